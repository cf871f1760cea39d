"""Shapes of batches, and the optimisation profiles of TensorRT plans."""

from __future__ import annotations

from dataclasses import dataclass

from gmtool.errors import UsageError

MAX_DIGITS = 10
"""Digits of a number of pixels; Python refuses to parse thousands of them."""


@dataclass(frozen=True)
class BatchShape:
    """Shape of a batch of images of one size, written as `4x512x1024`."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str, *, where: str) -> BatchShape:
        """Parse `BxHxW`.

        Args:
            text: Text such as `1x512x1024`.
            where: Name of the option, for the message.

        Raises:
            UsageError: Not three whole numbers above zero.
        """
        sides = _sides(text)
        if sides is None or len(sides) != 3:
            raise UsageError(f"{where} {text}: expected batch x height x width, for example 1x512x1024")
        batch, height, width = sides
        return cls(batch, height, width)

    @property
    def pixels(self) -> int:
        """Number of pixels of all images."""
        return self.batch * self.height * self.width

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def covers(self, other: BatchShape) -> bool:
        """Return whether each side of `other` is at most this one's."""
        return other.batch <= self.batch and other.height <= self.height and other.width <= self.width


@dataclass(frozen=True)
class ShapeProfile:
    """Optimisation profile of a TensorRT plan: smallest, optimal and largest shape."""

    min: BatchShape
    opt: BatchShape
    max: BatchShape

    def __post_init__(self) -> None:
        if not (self.max.covers(self.opt) and self.opt.covers(self.min)):
            raise UsageError(f"shapes {self}: expected min <= opt <= max in batch, height and width")

    def __str__(self) -> str:
        return f"min {self.min}, opt {self.opt}, max {self.max}"

    def misfit(self, shape: BatchShape) -> str | None:
        """Return the dimensions of `shape` outside of the profile, as text; None if all are inside."""
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
        size: Text such as `512x1024`, or height and width.
        where: Name of the option, for the message.

    Raises:
        UsageError: Not whole numbers above zero.
    """
    if isinstance(size, tuple):
        size = "x".join(map(str, size))
    sides = _sides(size)
    if sides is None or len(sides) > 2:
        raise UsageError(f"{where} {size}: expected HEIGHTxWIDTH in pixels, such as 512x1024")
    return sides[0], sides[-1]


def _sides(text: str) -> list[int] | None:
    """Return numbers above zero that stand between `x`; None if there are others."""
    parts = text.lower().replace("×", "x").split("x")
    return (
        [int(part) for part in parts]
        if all(part.isascii() and part.isdigit() and len(part) <= MAX_DIGITS and int(part) for part in parts)
        else None
    )
