"""Draw the pictures of the template browser: run workflows/NAME.json and write workflows/NAME.jpg.

python docs/draw_thumbnails.py                 # all workflows
python docs/draw_thumbnails.py canny_photo     # some
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.bundled import bundled_names
from comfyui_controlnet_core.workflows.execution import RunResult, execute
from comfyui_controlnet_core.workflows.formats import read_document, to_graph
from comfyui_controlnet_core.workflows.validation import require_runnable
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
SIDE, GAP, TILES, INSET = 384, 4, 4, 112
QUALITY = 85
GRIDS = ("control_sweep",)
"""Workflows whose result is a grid: it is shown whole, without previews that would cover it."""


def main(names: Sequence[str]) -> None:
    """Run the workflows and write their thumbnails."""
    for name in names or bundled_names():
        with tempfile.TemporaryDirectory() as folder:
            host = StandaloneHost(output_dir=folder, device="cpu")
            classes = build_nodes(host)
            graph = to_graph(read_document(FOLDER / f"{name}.json"), classes)
            result = execute(require_runnable(graph, classes, strict=True).graph, classes)
            shape = whole if name in GRIDS else square
            shown = [] if name in GRIDS else pictures(result, host, "temp", shape)
            saved = pictures(result, host, "output", shape)
        if not shown + saved:
            print(f"{name}: makes no picture, so it has no thumbnail")
            continue
        target = FOLDER / f"{name}.jpg"
        thumbnail(shown, saved).save(target, quality=QUALITY, optimize=True)
        print(f"workflows/{target.name}: {target.stat().st_size / 1000:.0f} kB")


def pictures(
    result: RunResult, host: StandaloneHost, kind: str, shape: Callable[[Path], Image.Image]
) -> list[Image.Image]:
    """Return the pictures of a run: kind "temp" for previews, "output" for results. shape: `square` or `whole`."""
    root = {"temp": host.temp_dir, "output": host.output_dir}[kind]
    files = [root / entry["subfolder"] / entry["filename"] for entry in result.ui("images") if entry["type"] == kind]
    return [shape(file) for file in files if file.suffix == ".png"]


def square(file: Path) -> Image.Image:
    """Read a picture and crop the largest square at its centre."""
    with Image.open(file) as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        return picture.convert("RGB").crop((left, top, left + side, top + side))


def whole(file: Path) -> Image.Image:
    """Read a picture and put it on the smallest white square."""
    with Image.open(file) as picture:
        side = max(picture.size)
        sheet = Image.new("RGB", (side, side), "white")
        sheet.paste(picture.convert("RGB"), ((side - picture.width) // 2, (side - picture.height) // 2))
        return sheet


def thumbnail(shown: Sequence[Image.Image], saved: Sequence[Image.Image]) -> Image.Image:
    """Draw one result with small previews on it; or several results and previews as four tiles.

    The previews go to the upper right: in the demo's scenes this part shows only sky.
    """
    if len(saved) > 1 and len(shown) + len(saved) >= TILES:
        return tiles([*shown, *saved][:TILES])
    *rest, main_picture = [*shown, *saved]
    large = scaled(main_picture, SIDE)
    for column, picture in enumerate(reversed(rest[:2]), 1):
        frame = Image.new("RGB", (INSET, INSET), "white")
        frame.paste(scaled(picture, INSET - 2 * GAP), (GAP, GAP))
        large.paste(frame, (SIDE - column * (INSET - GAP) - GAP, 0))
    return large


def tiles(shown: Sequence[Image.Image]) -> Image.Image:
    """Draw four pictures in a square."""
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    side = (SIDE - GAP) // 2
    for i, picture in enumerate(shown):
        sheet.paste(scaled(picture, side), (i % 2 * (side + GAP), i // 2 * (side + GAP)))
    return sheet


def scaled(picture: Image.Image, side: int) -> Image.Image:
    """Resize a square picture."""
    return picture.resize((side, side), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main(sys.argv[1:])
