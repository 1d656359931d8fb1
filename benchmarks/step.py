"""Seconds per CFG step with 0, 1 and 3 ControlNets: ours beside diffusers, in one process, alternating.

    python benchmarks/step.py [--sizes 128 256 512] [--nets 0 1 3] [--dtype fp32] [--repeats 5] [--json FILE]

Full-size SD1.5 with random weights (speed does not depend on them), the same weights in both engines, so
that the error beside each time means something: max |ours - theirs| / max |theirs| of the guided noise.
diffusers runs as its pipeline does: every ControlNet on both halves of the guidance, then the UNet. Ours runs
`evaluate` after `prepare`, whose time is given apart. Memory is the peak growth of the process (CPU) or of the
allocator (CUDA) during the steps, without the resident weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet, load_unet
from comfyui_controlnet_core.controlnet_core.config import SD15
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.engine.backend import Backend
from comfyui_controlnet_core.controlnet_core.engine.condition import Condition
from comfyui_controlnet_core.controlnet_core.engine.evaluate import evaluate
from comfyui_controlnet_core.controlnet_core.engine.prepare import prepare
from comfyui_controlnet_core.controlnet_core.engine.runtime import DTYPES, Runtime
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from torch import Tensor

CFG = 7.0
SIGMA_STEP = 500.0


def theirs(count: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.nn.Module, list[torch.nn.Module]]:
    """diffusers' UNet and ControlNets of SD1.5's shape, with random weights."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=768)
    nets = []
    for _ in range(count):
        net = ControlNetModel(cross_attention_dim=768)
        for conv in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
            torch.nn.init.normal_(conv.weight, std=0.02)
        nets.append(net.to(device, dtype).eval())
    return unet.to(device, dtype).eval(), nets


def their_step(unet: torch.nn.Module, nets: list[torch.nn.Module], x: Tensor, text: Tensor, hint: Tensor) -> Tensor:
    """The guided noise, as StableDiffusionControlNetPipeline computes it in a step."""
    rows = x.repeat(2, 1, 1, 1)
    hints = hint.repeat(2, 1, 1, 1)
    t = torch.tensor(SIGMA_STEP, device=x.device)
    skips, middle = None, None
    for net in nets:
        down, mid = net(rows, t, encoder_hidden_states=text, controlnet_cond=hints, return_dict=False)
        skips = down if skips is None else [a + b for a, b in zip(skips, down, strict=True)]
        middle = mid if middle is None else middle + mid
    noise = unet(
        rows, t, encoder_hidden_states=text, return_dict=False,
        down_block_additional_residuals=skips, mid_block_additional_residual=middle,
    )[0]  # fmt: skip
    positive, negative = noise.chunk(2)
    return negative + CFG * (positive - negative)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Peak growth in bytes while the block runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - base
        return
    base = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak - base
    finally:
        done.set()
        thread.join()


def resident() -> int:
    """Resident bytes of this process, the mapped weight files left out (Linux)."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * 4096


def seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """Wall time of one synchronised call."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--nets", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runtime = Runtime.choose(args.device, args.dtype)
    unet, nets = theirs(max(args.nets), runtime.dtype, runtime.device)
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(f"{folder}/unet")
        our_unet = load_unet(f"{folder}/unet")
        our_nets = []
        for i, net in enumerate(nets):
            net.save_pretrained(f"{folder}/net{i}")
            our_nets.append(load_controlnet(f"{folder}/net{i}")[0])
        rows = measure(args, runtime, unet, nets, our_unet, our_nets)
    if args.json:
        machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2), encoding="utf-8")
    return 0


def measure(
    args: argparse.Namespace,
    runtime: Runtime,
    unet: torch.nn.Module,
    nets: list[torch.nn.Module],
    our_unet: UNet,
    our_nets: list[ControlNet],
) -> list[dict[str, object]]:
    """One row per engine for each size and number of nets."""
    backend = Backend(runtime)
    text = torch.randn(2, 77, 768, device=runtime.device, dtype=runtime.dtype)
    rows: list[dict[str, object]] = []
    print(f"{'engine':12}{'size':>6}{'nets':>6}{'seconds':>10}{'spread':>9}{'peak MB':>9}{'error':>10}{'prepare':>9}")
    for size in args.sizes:
        for count in args.nets:
            for row in compare(size, args.repeats, backend, text, unet, nets[:count], our_unet, our_nets[:count]):
                rows.append({**row, "dtype": args.dtype})
                print(
                    f"{row['engine']:12}{size:6}{count:6}{row['seconds']:10.3f}{row['spread']:9.3f}"
                    f"{row['peak_bytes'] / 1e6:9.0f}{row['error']:10.1e}{row['prepare']:9.3f}",
                    flush=True,
                )
    return rows


def compare(
    size: int,
    repeats: int,
    backend: Backend,
    text: Tensor,
    unet: torch.nn.Module,
    nets: list[torch.nn.Module],
    our_unet: UNet,
    our_nets: list[ControlNet],
) -> Iterator[dict[str, Any]]:
    """Both engines on the same input, alternating which goes first."""
    device, dtype = backend.runtime.device, backend.runtime.dtype
    schedule = scaled_linear()
    sigma = schedule.sigma(torch.tensor(SIGMA_STEP))
    x = torch.randn(1, 4, size // 8, size // 8, device=device)
    hint = torch.rand(1, 3, size, size, device=device, dtype=dtype)
    units = tuple(ControlUnit(net, hint) for net in our_nets)
    halves = [Condition(text[:1], units)], [Condition(text[1:], units)]
    prepare(our_unet, SD15, schedule, *halves, tuple(x.shape), [], backend)  # packs the weights, once per model
    started = time.perf_counter()
    prepared = prepare(our_unet, SD15, schedule, *halves, tuple(x.shape), [float(sigma)], backend)
    prepare_time = time.perf_counter() - started
    scaled = scale_input(x, sigma).to(dtype)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: evaluate(prepared, x, sigma, CFG),
        "diffusers": lambda: their_step(unet, nets, scaled, text, hint),
    }
    outputs = {name: run().float() for name, run in runs.items()}
    noise = (x - outputs["ours"]) / sigma
    error = float((noise - outputs["diffusers"]).abs().max() / outputs["diffusers"].abs().max())
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks = dict.fromkeys(runs, 0)
    for repeat in range(repeats):
        for name in list(runs) if repeat % 2 else list(runs)[::-1]:
            with peak_memory(device) as peak:
                times[name].append(seconds(runs[name], device))
                peaks[name] = max(peaks[name], peak())
    for name in runs:
        yield {
            "engine": name,
            "size": size,
            "nets": len(nets),
            "seconds": statistics.median(times[name]),
            "spread": max(times[name]) - min(times[name]),
            "peak_bytes": peaks[name],
            "error": error if name == "ours" else 0.0,
            "prepare": prepare_time if name == "ours" else 0.0,
        }


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        return f"{names[0]}, {len(names)} cores" if names else platform.processor()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
