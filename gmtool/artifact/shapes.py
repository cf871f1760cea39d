"""Which shapes a model is built for: batches of images of one size, and the ranges that a plan takes."""

from __future__ import annotations

from dataclasses import dataclass

from gmtool.errors import UsageError


@dataclass(frozen=True)
class BatchShape:
    """A batch of images of one size; written as `4x512x1024`."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str, *, where: str) -> BatchShape:
        """Read `BxHxW`.

        Args:
            text: What was typed.
            where: The option, for the message.

        Raises:
            UsageError: Not three whole numbers above zero.
        """
        parts = text.lower().replace("×", "x").split("x")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise UsageError(f"{where} {text}: expected batch x height x width, for example 1x512x1024")
        return cls(*map(int, parts))

    @property
    def pixels(self) -> int:
        """Pixels of all images together."""
        return self.batch * self.height * self.width

    def covers(self, other: BatchShape) -> bool:
        """Return whether no side of `other` is larger."""
        return other.batch <= self.batch and other.height <= self.height and other.width <= self.width


@dataclass(frozen=True)
class ShapeProfile:
    """An optimisation profile: the shapes that a plan takes, and the one that it is fastest at."""

    min: BatchShape
    opt: BatchShape
    max: BatchShape

    def __post_init__(self) -> None:
        if not (self.max.covers(self.opt) and self.opt.covers(self.min)):
            raise UsageError(f"shapes {self}: expected min <= opt <= max in batch, height and width")

    def __str__(self) -> str:
        return f"min {self.min}, opt {self.opt}, max {self.max}"

    def misfit(self, shape: BatchShape) -> str | None:
        """Return which sides of `shape` are outside, and of what; None if it is inside."""
        outside = [
            f"{name} {got} is outside {low}..{high}"
            for name, got, low, high in (
                ("batch", shape.batch, self.min.batch, self.max.batch),
                ("height", shape.height, self.min.height, self.max.height),
                ("width", shape.width, self.min.width, self.max.width),
            )
            if not low <= got <= high
        ]
        return ", ".join(outside) or None


def parse_size(size: str | tuple[int, int], *, where: str) -> tuple[int, int]:
    """Return height and width from `HxW`, from `N` for a square, or from two numbers.

    Args:
        size: What was given.
        where: The option, for the message.

    Raises:
        UsageError: Not whole numbers above zero.
    """
    if isinstance(size, tuple):
        size = "x".join(map(str, size))
    parts = size.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{where} {size}: expected HEIGHTxWIDTH in pixels, such as 512x1024")
    return int(parts[0]), int(parts[-1])
