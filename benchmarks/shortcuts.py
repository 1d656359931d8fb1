"""Measure the error of the shortcuts in the final latent, and their time.

    python benchmarks/shortcuts.py --json FILE [--scenes 12] [--cases "one net" "three nets"] [--pictures FILE]
    python benchmarks/shortcuts.py --json FILE --full-size 128 [--repeats 3]

The first form measures errors: || latent - exact || / || exact || on the demo model (euler, 20 steps, cfg 4, fp32),
with mean, median and largest over held-out scenes. The second form measures times and needs a quiet machine: the same
number of evaluations and nets with a full-size SD1.5 with random weights, as a fraction of the exact time; median of
turns in one process. (The demo model is too small to show the gain.) Both forms keep the other's results in FILE, and
print the table of FILE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core import controlnet_core
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_sigmas, scaled_linear
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed import EXACT, Shortcuts
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.pack import can_pack
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from fidelity import FIRST_SEED, hint, pictures
from measure import machine
from peers import Ours, make_case, write_weights
from PIL import Image
from torch import Tensor

ASSETS = Path(controlnet_core.__file__).parent / "assets"
CPU = torch.device("cpu")
CASES = {"one net": ("canny",), "three nets": ("canny", "depth", "openpose")}
ROWS: dict[str, tuple[Shortcuts, torch.dtype]] = {
    "exact": (EXACT, torch.float32),
    "bf16": (EXACT, torch.bfloat16),
    "nets at every 2nd step": (Shortcuts(reuse_every=2), torch.float32),
    "nets at every 3rd step": (Shortcuts(reuse_every=3), torch.float32),
    "nets at every 4th step": (Shortcuts(reuse_every=4), torch.float32),
    "nets when x moved by 10 %": (Shortcuts(reuse_tolerance=0.1), torch.float32),
    "nets when x moved by 20 %": (Shortcuts(reuse_tolerance=0.2), torch.float32),
    "encoder at every 2nd step": (Shortcuts(encoder_every=2), torch.float32),
    "nets and lower levels at every 2nd step": (Shortcuts(deep_every=2), torch.float32),
    "nets and lower levels at every 3rd step": (Shortcuts(deep_every=3), torch.float32),
    "the same at every 2nd step, careful": (Shortcuts(deep_every=2, careful=True), torch.float32),
    "the same at every 3rd step, careful": (Shortcuts(deep_every=3, careful=True), torch.float32),
    "lower levels at every 2nd, nets at every 4th": (Shortcuts(deep_every=2, reuse_every=4), torch.float32),
    "guidance from 10 to 80 %": (Shortcuts(guidance_start=0.1, guidance_end=0.8), torch.float32),
}
SHOWN = "nets and lower levels at every 3rd step"
"""The row that `--pictures` shows below the exact pictures."""
Sample = Callable[[int, Shortcuts, torch.dtype], Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="normal")
    parser.add_argument("--full-size", type=int, metavar="PIXELS", help="measure times instead, at this size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file with the errors and times")
    parser.add_argument("--pictures", type=Path, help=f"exact pictures of the scenes above those with {SHOWN!r}")
    args = parser.parse_args()
    settings = SampleSettings(steps=args.steps, cfg=4.0, sampler=args.sampler, scheduler=args.scheduler)
    report = json.loads(args.json.read_text(encoding="utf-8")) if args.json and args.json.exists() else {}
    for case in args.cases:
        entry = report.setdefault(case, {"nets": CASES[case], "errors": {}, "times": {}})
        if args.full_size:
            entry["times"] = times(args.full_size, len(CASES[case]), args.steps, args.repeats)
            continue
        scenes = range(args.first, args.first + args.scenes)
        latents = sampled(CASES[case], settings, scenes)
        entry["errors"] = {**vars(settings), "scenes": [*scenes], "rows": errors(latents)}
        if args.pictures:
            name = f"{args.pictures.stem}_{case.replace(' ', '_')}{args.pictures.suffix}"
            sheet(latents["exact"], latents[SHOWN]).save(args.pictures.with_name(name))
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def sampled(nets: Sequence[str], settings: SampleSettings, scenes: Sequence[int]) -> dict[str, list[Tensor]]:
    """Sample the latents of each row, scene by scene."""
    sample = sampler(nets, settings)
    rows = {name: row for name, row in ROWS.items() if can_pack(CPU, row[1])}
    return {name: [sample(scene, *row) for scene in scenes] for name, row in rows.items()}


def sampler(nets: Sequence[str], settings: SampleSettings) -> Sample:
    """Load the models and return a function (scene, shortcuts, dtype) -> latent."""
    checkpoint = load_checkpoint(ASSETS / "demo_base.safetensors")
    model = DiffusionModel(checkpoint.unet, checkpoint.config, scaled_linear())
    text = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32).text_encoder()
    loaded = {name: load_controlnet(ASSETS / f"demo_{name}.safetensors")[0] for name in nets}
    backends = {dtype: Backend(Runtime(dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)}

    def sample(scene: int, shortcuts: Shortcuts, dtype: torch.dtype) -> Tensor:
        rendered = render_seed(FIRST_SEED + scene)
        units = tuple(ControlUnit(net, hint(name, rendered), name=name) for name, net in loaded.items())
        with torch.inference_mode():
            texts = text.encode(rendered.caption), text.encode("")
        halves = ([Condition(t, units)] for t in texts)
        latent = torch.zeros(1, 4, 16, 16)
        return generate(model, *halves, latent, settings, backend=backends[dtype], options=RunOptions(shortcuts))

    return sample


def errors(latents: dict[str, list[Tensor]]) -> dict[str, dict[str, Any]]:
    """Return mean, median and largest error of each row against the exact latents."""
    rows = {}
    for name, made in latents.items():
        each = [float((m - e).norm() / e.norm()) for m, e in zip(made, latents["exact"], strict=True)]
        rows[name] = {"mean": statistics.fmean(each), "median": statistics.median(each), "largest": max(each)}
    return rows


def times(size: int, nets: int, steps: int, repeats: int) -> dict[str, Any]:
    """Measure `steps` evaluations of SD1.5 with each shortcut whose time does not depend on the picture; exact is 1."""
    rows = {
        name: shortcuts
        for name, (shortcuts, dtype) in ROWS.items()
        if dtype == torch.float32 and shortcuts.reuse_tolerance == 0.0 and not shortcuts.limits_guidance
    }
    taken: dict[str, list[float]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_weights(Path(folder), nets, "sd15")
        engine = Ours(Path(folder), nets, Runtime())
        case = make_case(size, 1, nets)
        sigmas = make_sigmas(scaled_linear(), "normal", steps, sampler="euler")[:-1]
        # the same units in all rows, so that nothing is prepared while time is taken
        units = engine.units(case)
        warm = engine.denoiser(case, units=units)
        for sigma in sigmas:  # packs the weights, projects the timesteps
            warm(case.x, sigma)
        for repeat in range(repeats):
            for name in list(rows) if repeat % 2 else list(rows)[::-1]:
                denoise = engine.denoiser(case, rows[name], units)
                began = perf_counter()
                for sigma in sigmas:
                    denoise(case.x, sigma)
                taken[name].append(perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    exact = medians["exact"]
    spread = {name: (max(seconds) - min(seconds)) / exact for name, seconds in taken.items()}
    about = {"pixels": size, "repeats": repeats, "seconds_exact": exact, "machine": machine(CPU)}
    return {**about, "rows": {name: seconds / exact for name, seconds in medians.items()}, "spread": spread}


def sheet(exact: Sequence[Tensor], made: Sequence[Tensor]) -> Image.Image:
    """Draw the pictures of the exact latents above those of the others."""
    vae = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32).vae
    with torch.inference_mode():
        rows = [np.hstack(pictures(vae.decode(torch.cat(list(latents))))) for latents in (exact, made)]
    return Image.fromarray(np.rint(np.vstack(rows) * 255).astype(np.uint8))


def table(report: dict[str, Any]) -> str:
    """Return a Markdown table: a line for each row, columns for each case."""
    columns = [f"{case}: {name}" for case in report for name in ("mean", "median", "largest", "time")]
    lines = ["| what | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name in ROWS:
        cells = []
        for entry in report.values():
            error = entry["errors"].get("rows", {}).get(name)
            time = entry["times"].get("rows", {}).get(name)
            cells += [f"{error[key]:.1%}" if error else "" for key in ("mean", "median", "largest")]
            cells.append("" if time is None else f"{time:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
