"""Draw the README's picture: a generated image, its predicted mask, and the overlay with its legend.

    uv run python docs/readme_picture.py runs/demo/run/export/model_fp32.onnx docs/example.png

The model is the one that `gmtool demo` exports. The image is larger than those of the demo, and of another seed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gmtool.data.toy import ToyConfig, draw_sample

SIZE = ToyConfig(height_px=240, width_px=320)
SEED = [7, 2]
GAP, FONT_PX = 12, 14
COLORS = 256
"""Palette size: it keeps the PNG below 200 kB."""


def main() -> None:
    """Write the picture."""
    model, picture = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(draw_sample(np.random.default_rng(SEED), SIZE)[0]).save(folder / "toy.png")
        command = [
            sys.executable,
            "-m",
            "gmtool",
            "predict",
            str(folder / "toy.png"),
            "--out",
            str(folder / "masks"),
        ]
        subprocess.run([*command, "--model", model, "--format", "color,overlay", "--device", "cpu"], check=True)
        overlay = Image.open(folder / "masks/overlay/toy.jpg").convert("RGB")
        panels = {"image": folder / "toy.png", "mask": folder / "masks/color/toy.png"}
        width, height = SIZE.width_px, SIZE.height_px
        canvas = Image.new("RGB", (3 * width + 2 * GAP, overlay.height), "white")
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
        for column, (caption, path) in enumerate(panels.items()):
            left = column * (width + GAP)
            canvas.paste(Image.open(path).convert("RGB"), (left, 0))
            draw.text((left + width // 2, height + FONT_PX), caption, fill="#202020", font=font, anchor="mm")
        canvas.paste(overlay, (2 * (width + GAP), 0))
        canvas.quantize(COLORS, kmeans=3, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main()
