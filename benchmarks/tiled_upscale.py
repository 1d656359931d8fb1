"""Memory, time and seams of Tiled Upscale over the size of the image, on the demo model.

    python benchmarks/tiled_upscale.py [--sizes 256 512 1024] [--denoise 0.3]
    python benchmarks/tiled_upscale.py --picture docs/images/tiled_upscale.jpg

Each size runs in a process of its own. `tensors` is what the result and the enlarged image take, which grow with the
size; `peak` is what the process needs beyond what it had before the node. A seam would show as larger steps between
neighbouring pixels in overlaps than elsewhere: `seams` is the ratio of both means, divided by the same of the enlarged
image, whose edges lie somewhere too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.nodes.tile_grid import TileGrid
from comfyui_controlnet_core.nodes.upscale import lanczos
from comfyui_controlnet_core.workflows.contract import read_spec
from PIL import Image

MB = 2**20
TILE, OVERLAP, STEPS = 128, 32, 2


def main() -> None:
    """Run all sizes and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--denoise", type=float, default=0.3)
    parser.add_argument("--picture", help="draw an example into this file instead")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.denoise)))
        return
    if args.picture:
        draw(args.picture, args.denoise)
        return
    print(f"{'side':>6}{'tiles':>7}{'peak MB':>9}{'tensors MB':>12}{'seconds':>9}{'seams':>7}")
    for side in args.sizes:
        command = [sys.executable, __file__, "--one", str(side), "--denoise", str(args.denoise)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print("{side:>6}{tiles:>7}{peak:>9.0f}{tensors:>12.0f}{seconds:>9.1f}{seams:>7.2f}".format(**found), flush=True)


Run = Callable[..., Any]


def open_nodes() -> Run:
    """run(node id, **inputs) -> what the node returns, defaults filled in."""
    with tempfile.TemporaryDirectory() as folder:
        classes = build_nodes(StandaloneHost(folder, folder, device="cpu", dtype="fp32"))

    def run(name: str, **inputs: Any) -> Any:
        widgets = {item.name: item.default for item in read_spec(name, classes[name]).inputs.values() if item.is_widget}
        return getattr(classes[name](), classes[name].FUNCTION)(**{**widgets, **inputs})

    return run


def scene(run: Run, denoise: float, steps: int) -> dict[str, Any]:
    """What the node reads: a picture of the demo world, and the edges of it under a ControlNet."""
    model, clip, vae = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    prompt = "a photo of a red box"
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt=prompt, negative_prompt="")
    picture = run("CNCore_ExampleImage", picture="demo scene 9", view="picture", size=128)[0]
    edges = run("CNCore_ExampleImage", picture="demo scene 9", view="canny", size=256)[0]
    (net,) = run("CNCore_LoadControlNet", control_net="demo canny (built in)")
    halves = run("CNCore_ApplyControlNet", positive=positive, negative=negative, control_net=net, image=edges)
    settings = {"seed": 7, "steps": steps, "cfg": 5.0, "denoise": denoise, "tile_size": TILE, "overlap": OVERLAP}
    return {"model": model, "positive": halves[0], "negative": halves[1], "vae": vae, "image": picture, **settings}


def measure(side: int, denoise: float) -> dict[str, Any]:
    """One run with an image of this side."""
    run = open_nodes()
    given = scene(run, denoise, STEPS)
    run("CNCore_TiledUpscale", **given, scale_by=1.0)  # what is packed and imported at the first use
    before, began = peak_bytes(), time.perf_counter()
    (made,) = run("CNCore_TiledUpscale", **given, width=side, height=side)
    seconds = time.perf_counter() - began
    large = lanczos(given["image"].movedim(-1, 1), side, side).movedim(1, -1)
    grid = TileGrid.cover((side, side), TILE, OVERLAP)
    tensors = 2 * made.nelement() * made.element_size()
    return {
        "side": side, "tiles": len(grid.tiles), "peak": (peak_bytes() - before) / MB, "tensors": tensors / MB,
        "seconds": seconds, "seams": seams(made, grid) / seams(large, grid),
    }  # fmt: skip


def draw(file: str, denoise: float) -> None:
    """Draw the enlarged picture, the same as one tile, in tiles, and with Tile Colour Fix behind."""
    run = open_nodes()
    given = scene(run, denoise, 12)
    (large,) = run("ImageScaleBy", image=given["image"], upscale_method="lanczos", scale_by=2.0)
    (whole,) = run("CNCore_TiledUpscale", **{**given, "tile_size": 256})
    (tiles,) = run("CNCore_TiledUpscale", **given)
    (fixed,) = run("CNCore_TileColorFix", image=tiles, source=given["image"], block_size=16)
    labels = "enlarged\nsampled as one tile\nin tiles of 128\nand Tile Colour Fix"
    pictures = torch.cat([large, whole, tiles, fixed])
    (sheet,) = run("CNCore_CompareGrid", images=pictures, columns=4, labels=labels)
    Image.fromarray((sheet[0].numpy() * 255.0).round().astype("uint8")).save(file, quality=85)


def peak_bytes() -> int:
    """The most memory that this process had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seams(image: torch.Tensor, grid: TileGrid) -> float:
    """Mean step between neighbouring columns in overlaps, relative to that of all columns."""
    steps = image.diff(dim=2).abs().mean(dim=(0, 1, 3))
    middles = [(b + a + TILE) // 2 for a, b in zip(grid.columns, grid.columns[1:], strict=False)]
    near = [column for middle in middles for column in range(middle - OVERLAP // 2, middle + OVERLAP // 2)]
    return float(steps[near].mean() / steps.mean()) if near else 1.0


if __name__ == "__main__":
    main()
