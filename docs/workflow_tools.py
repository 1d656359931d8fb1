"""Bundled workflows of tools around control: tiles, sweeps; see `draw_workflows.py`."""

from __future__ import annotations

from editor_sheet import Sheet
from workflow_parts import HINT, PAINT, SHOW, SIZE, apply, base, empty, example, net, preview


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


def control_sweep(sheet: Sheet) -> None:
    """Draw: a grid over strength and mode."""
    about = (
        "## A grid over two settings\n\n"
        "Control Sweep samples an image for each pair of values, with one seed. The number under each image is its "
        "fidelity to the edges (F1), so the smallest strength that does is easy to find.\n\n"
        "Choose other settings in x and y and write their values: `0..1/5` are five numbers, others are separated by "
        "commas. The table can be saved or opened in a spreadsheet."
    )
    start = base(sheet, "control_sweep", about, "a photo of an orange cube and a purple cone on ground")
    sheet.group("2  Hint and unit", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 6", "canny", (420, 0), "Edges")
    preview(sheet, edges, "image", (760, 0), "The edges")
    loaded, latent = net(sheet, "canny", (420, 170)), empty(sheet, (420, 480))
    unit = sheet.node("CNCore_ControlUnit", (420, 280, 320, 160), color=HINT)
    sheet.link(loaded, "control_net", unit, "control_net")
    sheet.link(edges, "image", unit, "image")
    sheet.group("3  The grid", (1060, -80, 1340, 1000))
    values = {
        "x": "strength", "x_values": "0.3, 0.6, 1", "y": "mode", "y_values": "balanced, prompt", "seed": 7, "steps": 12,
        "cfg": 5.0,
    }  # fmt: skip
    sweep = sheet.node("CNCore_ControlSweep", (1080, 0, 640, 880), values, color=PAINT)
    sheet.link(start.model, "model", sweep, "model")
    sheet.link(start.prompt, "positive", sweep, "positive")
    sheet.link(start.prompt, "negative", sweep, "negative")
    sheet.link(unit, "stack", sweep, "stack")
    sheet.link(latent, "LATENT", sweep, "latent")
    sheet.link(start.model, "vae", sweep, "vae")
    sheet.link(start.model, "clip", sweep, "clip")
    save = sheet.node("SaveImage", (1760, 0, 620, 480), {"filename_prefix": "control_sweep"}, color=SHOW)
    sheet.link(sweep, "grid", save, "images")
