"""Bundled workflows of tools around control: tiles, sweeps; see `draw_workflows.py`."""

from __future__ import annotations

from editor_sheet import Sheet
from workflow_parts import HINT, PAINT, SHOW, SIZE, apply, base, example, net, preview


def tiled_upscale(sheet: Sheet) -> None:
    """Draw: a picture at twice its size, sampled in tiles under a net."""
    about = (
        "## Upscale in tiles\n\n"
        "Tiled Upscale enlarges the picture and samples it tile by tile. Each tile sees its part of the hint, so the "
        "tiles agree with each other, and memory depends on the tile alone. Tile Colour Fix brings back the colours "
        "of the picture.\n\n"
        "The demo model has no tile ControlNet, so edges are used instead. With your own model: load a tile "
        "ControlNet, link the picture itself to Apply ControlNet, and set tile_size to 512 (SD1.5) or 1024 (SDXL)."
    )
    start = base(sheet, "tiled_upscale", about, "a photo of a red box")
    sheet.group("2  The picture and its edges", (400, -80, 640, 720))
    source = example(sheet, "demo scene 9", "picture", (420, 0), "Picture")
    edges = sheet.node(
        "CNCore_ExampleImage", (420, 180, 320, 130), {"picture": "demo scene 9", "view": "canny", "size": 2 * SIZE},
        title="Edges at the new size", color=HINT,
    )  # fmt: skip
    preview(sheet, source, "image", (760, 0), "Before")
    preview(sheet, edges, "image", (760, 300), "The edges")
    loaded = net(sheet, "canny", (420, 360))
    sheet.group("3  Tile by tile", (1060, -80, 1520, 720))
    control = apply(sheet, start, loaded, (edges, "image"), (1080, 0, 320, 280))
    values = {
        "scale_by": 2.0, "tile_size": SIZE + SIZE // 4, "overlap": SIZE // 4, "seed": 7, "steps": 10, "cfg": 5.0,
        "denoise": 0.3,
    }  # fmt: skip
    tiles = sheet.node("CNCore_TiledUpscale", (1440, 0, 340, 480), values, color=PAINT)
    sheet.link(start.model, "model", tiles, "model")
    sheet.link(control, "positive", tiles, "positive")
    sheet.link(control, "negative", tiles, "negative")
    sheet.link(start.model, "vae", tiles, "vae")
    sheet.link(source, "image", tiles, "image")
    colours = sheet.node("CNCore_TileColorFix", (1820, 0, 320, 130), {"block_size": 16}, color=PAINT)
    sheet.link(tiles, "image", colours, "image")
    sheet.link(source, "image", colours, "source")
    save = sheet.node("SaveImage", (2180, 0, 380, 400), {"filename_prefix": "tiled_upscale"}, color=SHOW)
    sheet.link(colours, "image", save, "images")
