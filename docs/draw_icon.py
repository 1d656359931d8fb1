"""Draw the icon and the banner for ComfyUI's registry from the picture strip of the README.

    python docs/draw_strip.py OUT && python docs/draw_icon.py

Writes docs/images/icon.png (square, 400 pixels) and docs/images/banner.png (21:9).
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).parent / "images"
TILE, GAP = 320, 8
SIDE = 400
BANNER = (1260, 540)
INK = "#202020"


def main() -> None:
    """Write both pictures."""
    with Image.open(IMAGES / "strip.png") as strip:
        tiles = [strip.convert("RGB").crop((x, 0, x + TILE, TILE)) for x in range(0, 4 * (TILE + GAP), TILE + GAP)]
    icon(tiles[1], tiles[3]).save(IMAGES / "icon.png", optimize=True)
    banner(tiles).save(IMAGES / "banner.png", optimize=True)


def icon(edges: Image.Image, result: Image.Image) -> Image.Image:
    """The edges above the diagonal, the picture that follows them below it."""
    size = (SIDE, SIDE)
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon([(0, SIDE), (SIDE, 0), (SIDE, SIDE)], fill=255)
    drawn = Image.composite(
        result.resize(size, Image.Resampling.BICUBIC), edges.resize(size, Image.Resampling.NEAREST), mask
    )
    ImageDraw.Draw(drawn).line([(0, SIDE), (SIDE, 0)], fill="white", width=8)
    return drawn


def banner(tiles: list[Image.Image]) -> Image.Image:
    """The name above photo, edges, the picture without control, and with it."""
    drawn = Image.new("RGB", BANNER, INK)
    pen = ImageDraw.Draw(drawn)
    pen.text((60, 42), "ControlNet Core", fill="white", font=ImageFont.load_default(size=76))
    pen.text(
        (62, 136), "photo, hint, without control, with control", fill="#b0b0b0", font=ImageFont.load_default(size=34)
    )
    side = (BANNER[0] - 120 - 3 * 24) // 4
    for index, tile in enumerate(tiles):
        method = Image.Resampling.NEAREST if index == 1 else Image.Resampling.BICUBIC
        drawn.paste(tile.resize((side, side), method), (60 + index * (side + 24), 218))
    return drawn


if __name__ == "__main__":
    main()
