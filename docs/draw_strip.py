"""Draw the picture strip of the README from the output of `controlnet run canny_photo`.

controlnet run canny_photo --output OUT && python docs/draw_strip.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

SIDE, GAP = 320, 8


def main(output: Path) -> None:
    """Put photo, edges, the picture without control and the one with it side by side."""
    names = ("temp/preview_00001_.png", "temp/preview_00002_.png", "canny_photo/without_00001_.png",
             "canny_photo/with_00001_.png")  # fmt: skip
    strip = Image.new("RGB", (4 * SIDE + 3 * GAP, SIDE), "white")
    for i, name in enumerate(names):
        # nearest keeps the edge lines sharp
        method = Image.Resampling.NEAREST if i == 1 else Image.Resampling.BICUBIC
        with Image.open(output / name) as picture:
            strip.paste(picture.convert("RGB").resize((SIDE, SIDE), method), (i * (SIDE + GAP), 0))
    target = Path(__file__).parent / "images" / "strip.png"
    target.parent.mkdir(exist_ok=True)
    strip.save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
