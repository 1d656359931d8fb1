"""What may be left out, and what it costs in exactness: error of the final latent beside the time, demo model.

    python benchmarks/shortcuts.py [--scenes 8] [--nets canny depth] [--steps 20] [--full-size 256] [--json FILE]

The error is || latent - exact || / || exact ||, median and largest over the scenes (euler, 20 steps, cfg 4, fp32);
the time is the median of a scene's, as a fraction of the exact run's, measured in turn in one process.
`--full-size` takes the time of as many evaluations of a full-size SD1.5 with random weights and as many nets, once
each: the small demo model cannot show what is gained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from comfyui_controlnet_core import controlnet_core
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.engine.backend import Backend
from comfyui_controlnet_core.controlnet_core.engine.condition import Condition
from comfyui_controlnet_core.controlnet_core.engine.evaluate import evaluate
from comfyui_controlnet_core.controlnet_core.engine.pack import can_pack
from comfyui_controlnet_core.controlnet_core.engine.run import EXACT, Run, Shortcuts
from comfyui_controlnet_core.controlnet_core.engine.runtime import Runtime
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from fidelity import FIRST_SEED, hint
from measure import machine
from peers import CFG, Ours, make_case, write_weights
from torch import Tensor

ASSETS = Path(controlnet_core.__file__).parent / "assets"
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
    "lower levels at every 2nd, nets at every 4th": (Shortcuts(deep_every=2, reuse_every=4), torch.float32),
    "guidance from 10 to 80 %": (Shortcuts(guidance_start=0.1, guidance_end=0.8), torch.float32),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--nets", nargs="+", default=["canny"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--full-size", type=int, metavar="PIXELS", help="time a full-size SD1.5 at this size as well")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sample = sampler(args.nets, args.steps)
    latents: dict[str, list[Tensor]] = {name: [] for name in ROWS}
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    cpu = torch.device("cpu")
    for scene in range(-1, args.scenes):  # the first is a warm-up
        for name, (shortcuts, dtype) in ROWS.items():
            if not can_pack(cpu, dtype):
                continue
            began = perf_counter()
            latent = sample(max(scene, 0), shortcuts, dtype)
            if scene >= 0:
                times[name].append(perf_counter() - began)
                latents[name].append(latent)
    rows = [row(name, latents, times) for name in ROWS if times[name]]
    full = full_size_times(args.full_size, len(args.nets), args.steps) if args.full_size else {}
    print(f"{'what':46}{'median error':>14}{'largest':>10}{'time':>8}{'SD1.5':>8}")
    for r in rows:
        r["full_size_time"] = full.get(r["what"])
        last = "" if r["full_size_time"] is None else f"{r['full_size_time']:.2f}"
        print(f"{r['what']:46}{r['median_error']:14.2%}{r['largest_error']:10.2%}{r['time']:8.2f}{last:>8}")
    if args.json:
        report = {"machine": machine(cpu), "nets": args.nets, "steps": args.steps, "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def sampler(nets: list[str], steps: int) -> Callable[[int, Shortcuts, torch.dtype], Tensor]:
    """(scene, shortcuts, dtype) -> latent."""
    checkpoint = load_checkpoint(ASSETS / "demo_base.safetensors")
    model = DiffusionModel(checkpoint.unet, checkpoint.config, scaled_linear())
    text = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32).text_encoder()
    loaded = {name: load_controlnet(ASSETS / f"demo_{name}.safetensors")[0] for name in nets}
    backends = {dtype: Backend(Runtime(dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)}
    settings = SampleSettings(steps=steps, cfg=4.0)

    def sample(scene: int, shortcuts: Shortcuts, dtype: torch.dtype) -> Tensor:
        rendered = render_seed(FIRST_SEED + scene)
        units = tuple(ControlUnit(net, hint(name, rendered), name=name) for name, net in loaded.items())
        with torch.inference_mode():
            texts = text.encode(rendered.caption), text.encode("")
        halves = ([Condition(t, units)] for t in texts)
        latent = torch.zeros(1, 4, 16, 16)
        return generate(model, *halves, latent, settings, backend=backends[dtype], shortcuts=shortcuts)

    return sample


def full_size_times(size: int, nets: int, steps: int) -> dict[str, float]:
    """Time of `steps` evaluations of SD1.5 with each shortcut whose time does not hang on the picture; exact is 1."""
    times = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_weights(Path(folder), nets, "sd15")
        engine = Ours(Path(folder), nets, Runtime())
        case = make_case(size, 1, nets)
        prepared = engine.prepare(case)
        evaluate(prepared, case.x, case.sigma, CFG)  # packs the weights
        for name, (shortcuts, dtype) in ROWS.items():
            if dtype != torch.float32 or shortcuts.reuse_tolerance > 0.0 or shortcuts.limits_guidance:
                continue
            run = Run(shortcuts)
            began = perf_counter()
            for _ in range(steps):
                evaluate(prepared, case.x, case.sigma, CFG, run)
            times[name] = perf_counter() - began
    return {name: seconds / times["exact"] for name, seconds in times.items()}


def row(name: str, latents: dict[str, list[Tensor]], times: dict[str, list[float]]) -> dict[str, Any]:
    """Error against the exact latents, and time as a fraction of the exact run's."""
    pairs = zip(latents[name], latents["exact"], strict=True)
    errors = [float((made - exact).norm() / exact.norm()) for made, exact in pairs]
    time = statistics.median(times[name]) / statistics.median(times["exact"])
    return {"what": name, "median_error": statistics.median(errors), "largest_error": max(errors), "time": time}


if __name__ == "__main__":
    sys.exit(main())
