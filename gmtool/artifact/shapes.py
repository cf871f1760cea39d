"""Batch shapes, TensorRT optimisation profiles, and image sizes as typed (`HxW`)."""

from __future__ import annotations

from dataclasses import dataclass

from gmtool.errors import ConfigError


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
            ConfigError: Not three whole numbers above zero.
        """
        parts = text.lower().replace("×", "x").split("x")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise ConfigError(f"{where} {text}: expected batch x height x width, for example 1x512x1024")
        return cls(*map(int, parts))

    @property
    def pixels(self) -> int:
        """Pixels of all images together."""
        return self.batch * self.height * self.width

    def covers(self, other: BatchShape) -> bool:
        """Return whether each side of `other` is at most this one's."""
        return other.batch <= self.batch and other.height <= self.height and other.width <= self.width


@dataclass(frozen=True)
class ShapeProfile:
    """Optimisation profile of a TensorRT plan: smallest, fastest and largest batch."""

    min: BatchShape
    opt: BatchShape
    max: BatchShape

    def __post_init__(self) -> None:
        if not (self.max.covers(self.opt) and self.opt.covers(self.min)):
            raise ConfigError(f"shapes {self}: expected min <= opt <= max in batch, height and width")

    def __str__(self) -> str:
        return f"min {self.min}, opt {self.opt}, max {self.max}"

    def misfit(self, shape: BatchShape) -> str | None:
        """Return the sides of `shape` outside their ranges, as text; None if it is inside."""
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


def parse_size(text: str, *, where: str) -> tuple[int, int]:
    """Read `HxW`, the height and width of images.

    Args:
        text: What was typed.
        where: The option, for the message.

    Raises:
        ConfigError: Not two whole numbers above zero.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"{where} {text}: expected height x width, for example 512x1024")
    return int(parts[0]), int(parts[1])
