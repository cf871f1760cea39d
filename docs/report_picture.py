"""Draw a report on a wide screen and, dark, at its images, on a telephone: the picture of docs/evaluation.md.

    uv run python docs/report_picture.py runs/demo/report.html docs/report.png

Needs Chromium (Debian: apt-get install chromium). Both are frames of one page, since Chromium opens no window as
narrow as a telephone; a frame takes the colour scheme of the element that holds it.
"""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HEIGHT, WIDE, NARROW, GAP = 1640, 1120, 420, 36
COLORS = 256
"""A palette keeps the picture below 250 kB; text and flat colours lose nothing."""
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1"
)
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: {gap}px; background: #cdd5de; display: flex; gap: {gap}px; }}
iframe {{ border: 0; height: {height}px; border-radius: 18px; box-shadow: 0 12px 40px #0d1b2a40; }}
</style>
<iframe style="width: {wide}px; color-scheme: light" srcdoc="{page}"></iframe>
<iframe style="width: {narrow}px; color-scheme: dark" srcdoc="{page}" onload="
  const heading = [...this.contentDocument.querySelectorAll('h2')].find(h => h.textContent.startsWith('Worst'));
  this.contentWindow.scrollTo(0, heading ? heading.offsetTop - 24 : 0)"></iframe>"""


def main() -> None:
    """Write the picture."""
    report, picture = map(Path, sys.argv[1:])
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        frames, raw = Path(folder, "frames.html"), Path(folder, "raw.png")
        page = html.escape(report.read_text(encoding="utf-8"))
        frames.write_text(
            PAGE.format(page=page, wide=WIDE, narrow=NARROW, height=HEIGHT, gap=GAP), encoding="utf-8"
        )
        size = f"--window-size={WIDE + NARROW + 3 * GAP},{HEIGHT + 2 * GAP}"
        profile = f"--user-data-dir={folder}/profile"
        command = [chromium, *OPTIONS.split(), profile, size, f"--screenshot={raw}", str(frames)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = Image.open(raw).convert("RGB").quantize(COLORS, kmeans=3, dither=Image.Dither.NONE)
        image.save(picture, optimize=True)


if __name__ == "__main__":
    main()
