"""Measure every GPU figure with one command: in parts, kept as JSON, printed as a table.

    COMFYUI_DIR=... python benchmarks/gpu.py --json benchmarks/results/gpu.json
    python benchmarks/gpu.py --json FILE --parts ceiling batch sdxl      measure some parts; FILE keeps the others
    python benchmarks/gpu.py --json FILE --table                         print the table of FILE; needs no GPU

Each part runs in a process of its own, so that it does not share memory or compiled code with another part.

ceiling   the highest TFLOP/s of a matrix product in this precision
peers     20 evaluations in a row, synchronised once, SD1.5 at 512 pixels, batch 1, with 0, 1 and 3 nets: ours with each
          set of options beside diffusers (plain, compiled) and ComfyUI; with error and peak memory (not for graphs,
          which allocate their memory at capture)
batch     ours, batch 8: the counted operations divided by the time
sdxl      the same for SDXL at 1024 pixels, batch 1
first     seconds to load a full-size SD1.5 and a net, and from there to the first picture of 20 steps

Weights are random; speed does not depend on them. Ours is measured by default and with each set of options (`OURS`).
The table uses the best of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import SD15, SDXL, ModelConfig
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_schedule
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.runtime.device import DTYPES, Runtime, choose_device
from gpu_goals import Row, table
from measure import machine, seconds
from peers import CFG, SHAPES, Ours, Step, denoiser_of, make_case, write_weights
from step import compare, make_engines
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

OURS: dict[str, dict[str, bool]] = {
    "default": {},
    "graphs": {"graphs": True},
    "graphs, wide": {"graphs": True, "fused_qkv": True},
    "graphs, wide, side by side": {"graphs": True, "fused_qkv": True, "parallel_nets": True},
    "all, compiled": {"graphs": True, "fused_qkv": True, "parallel_nets": True, "compile": True},
}
STEPS = 20


@dataclass(frozen=True)
class Setup:
    """Settings of all parts.

    size: side of SD1.5's pictures in pixels; SDXL's are twice as large. sides: of the square matrices of the part
    "ceiling". compiled: whether diffusers is measured compiled too.
    """

    device: torch.device
    dtype: str
    shape: str = "sd15"
    size: int = 512
    batch: int = 8
    steps: int = STEPS
    repeats: int = 5
    sides: tuple[int, ...] = (4096, 8192, 16384)
    compiled: bool = True

    def runtime(self, options: dict[str, bool]) -> Runtime:
        """Return our runtime with some options."""
        return replace(Runtime.choose(str(self.device), self.dtype), **options)


# ---- parts


def ceiling(setup: Setup) -> Iterator[Row]:
    """Measure TFLOP/s of products of square matrices."""
    for side in setup.sides:
        a, b = (torch.randn(side, side, device=setup.device, dtype=DTYPES[setup.dtype]) for _ in range(2))
        took = timed(lambda a=a, b=b: a @ b, setup, in_a_row=10)
        yield {"side": side, "tflops": 2 * side**3 / took / 1e12}


def peers(setup: Setup) -> Iterator[Row]:
    """Measure several evaluations in a row with `step.compare`."""
    options = {"fast": False, "accelerate": False, "openvino": False, "without_diffusers": False}
    wanted = argparse.Namespace(nets=[3], ours_only=False, compiled=setup.compiled, **options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder, 3, setup.shape)
        _, *others = make_engines(wanted, folder, setup.runtime({}))
        engines: list[Any] = [*(named(folder, setup, options) for options in OURS), *others]
        for nets in (1, 0, 3):
            case = make_case(setup.size, 1, nets)
            for row in compare([InARow(e, setup.steps) for e in engines], case, setup.repeats, setup.device):
                yield {**row, "nets": nets, "steps": setup.steps, "size": setup.size}


def named(folder: Path, setup: Setup, options: str) -> Ours:
    """Return our engine with a set of options, named after the set."""
    engine = Ours(folder, 3, setup.runtime(OURS[options]))
    engine.name = f"ours, {options}"
    return engine


class InARow:
    """An engine whose step is several evaluations in a row."""

    def __init__(self, engine: Any, count: int) -> None:
        self.engine, self.count = engine, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, case: Any, body: Callable[[Step], None]) -> None:
        """Call `body` with the step; see `peers`."""

        def several(step: Step) -> Tensor:
            for _ in range(self.count - 1):
                step()
            return step()

        self.engine.run(case, lambda step: body(lambda: several(step)))


def batch(setup: Setup) -> Iterator[Row]:
    """Measure SD1.5 with several pictures at once."""
    yield from throughput(SD15 if setup.shape == "sd15" else small(SD15), setup.batch, setup.size, setup)


def sdxl(setup: Setup) -> Iterator[Row]:
    """Measure SDXL with one picture."""
    yield from throughput(SDXL if setup.shape == "sd15" else small(SDXL), 1, 2 * setup.size, setup)


def small(config: ModelConfig) -> ModelConfig:
    """Return a narrow and shallow version of a model, to try the script out."""
    unet = config.unet
    depth = tuple(min(1, d) for d in unet.transformer_depth)
    return replace(
        config, unet=replace(unet, widths=tuple(w // 10 for w in unet.widths), transformer_depth=depth, middle_depth=1)
    )


def throughput(config: ModelConfig, batch: int, size: int, setup: Setup) -> Iterator[Row]:
    """Measure operations per second of our evaluations, with one net."""
    for name, options in OURS.items():
        backend = Backend(setup.runtime(options))
        unet, net = random_models(config, setup)
        step = evaluation(config, unet, net, batch, size, backend)
        with FlopCounterMode(display=False) as counted:
            evaluation(config, unet, net, batch, size, Backend(setup.runtime({})))()
        took = timed(step, setup, in_a_row=setup.steps)
        operations = counted.get_total_flops()
        yield {
            "engine": f"ours, {name}", "model": config.name, "batch": batch, "size": size, "seconds": took,
            "tflop": operations / 1e12, "tflops": operations / took / 1e12,
        }  # fmt: skip


def random_models(config: ModelConfig, setup: Setup) -> tuple[UNet, ControlNet]:
    """Make a UNet and a ControlNet with random weights on the device."""
    models = []
    for kind, own in ((UNet, config.unet), (ControlNet, config.controlnet)):
        with torch.device("meta"):
            model: nn.Module = kind(own)  # type: ignore[arg-type]
        model.to(DTYPES[setup.dtype]).to_empty(device=setup.device)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
        models.append(model.eval().requires_grad_(False))
    return models[0], models[1]


def evaluation(
    config: ModelConfig, unet: UNet, net: ControlNet, batch: int, size: int, backend: Backend
) -> Callable[[], Tensor]:
    """Prepare a run and return a function that does one guided evaluation."""
    draw = torch.Generator().manual_seed(0)
    cells = size // 8
    x = 4.0 * torch.randn(batch, 4, cells, cells, generator=draw)
    units = (ControlUnit(net, torch.rand(1, 3, size, size, generator=draw)),)
    label = None if config.unet.label_dim is None else torch.randn(1, config.unet.label_dim, generator=draw)
    texts = torch.randn(2, 77, config.unet.context_dim, generator=draw)
    halves = ([Condition(text[None], units, label)] for text in texts)
    schedule = make_schedule(config.noise)
    sigma = schedule.sigma(torch.tensor(500.0))
    job = Job(unet, config, schedule, *halves, tuple(x.shape), [float(sigma)])
    x, denoise = x.to(backend.runtime.device), denoiser_of(job, backend)
    return lambda: denoise(x, sigma)


def first(setup: Setup) -> Iterator[Row]:
    """Measure loading, the first picture, and a second picture."""
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), 1, setup.shape)
        for name, options in OURS.items():
            yield {"engine": f"ours, {name}", **first_picture(Path(folder), setup, options)}


def first_picture(folder: Path, setup: Setup, options: dict[str, bool]) -> dict[str, float]:
    """Return the seconds of loading, of the first picture and of the second, with the autoencoder."""
    began = perf_counter()
    engine = Ours(folder, 1, setup.runtime(options))
    config = replace(SD15, unet=engine.unet.config)
    decoder = AutoencoderKL(config.vae if setup.shape == "sd15" else replace(config.vae, widths=(32, 32, 32, 32)))
    runtime = engine.backend.runtime
    decoding = Backend(Runtime(runtime.device, runtime.vae_dtype))
    for model, backend in ((engine.unet, engine.backend), (engine.nets[0], engine.backend), (decoder, decoding)):
        backend.optimise(model)
    wait(setup.device)
    loaded = perf_counter() - began
    case, cells = make_case(setup.size, 1, 1), setup.size // 8
    units = (ControlUnit(engine.nets[0], case.hint),)
    halves = [[Condition(case.text[i : i + 1], units)] for i in range(2)]
    model = DiffusionModel(engine.unet, config, make_schedule(config.noise))

    def picture(seed: int) -> None:
        settings = SampleSettings(seed, setup.steps, CFG)
        latent = generate(model, *halves, torch.zeros(1, 4, cells, cells), settings, backend=engine.backend)
        decoding.optimise(decoder).decode(latent.to(setup.device, runtime.vae_dtype)).float().cpu()

    took = [seconds(lambda seed=seed: picture(seed), setup.device) for seed in (0, 1)]
    return {"loading": loaded, "first": took[0], "second": took[1]}


PARTS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "ceiling": ceiling, "peers": peers, "batch": batch, "sdxl": sdxl, "first": first
}  # fmt: skip


def timed(call: Callable[[], Any], setup: Setup, in_a_row: int) -> float:
    """Return the median seconds of a call, measured over several calls that are synchronised once."""

    def several() -> None:
        for _ in range(in_a_row):
            call()

    several()
    return statistics.median(seconds(several, setup.device) for _ in range(setup.repeats)) / in_a_row


def wait(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file with the rows of each part")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="sd15", help="small: to try the script out")
    parser.add_argument("--table", action="store_true", help="only print the table of the JSON file")
    parser.add_argument("--here", action="store_true", help="run all parts in this process")
    args = parser.parse_args(arguments)
    if not args.table:
        try:
            choose_device(args.device)
        except ValueRangeError as error:
            print(error, file=sys.stderr)
            args.table = True
    for part in () if args.table else args.parts:
        print(f"part {part}", file=sys.stderr, flush=True)
        if args.here or len(args.parts) == 1:
            measured(args, part)
        else:
            again = [sys.executable, __file__, "--parts", part, "--dtype", args.dtype, "--device", args.device]
            kept = ["--json", str(args.json)] if args.json else []
            subprocess.run([*again, "--shape", args.shape, *kept], check=False)
    print(table(kept_in(args.json)))
    return 0


def measured(args: argparse.Namespace, part: str) -> None:
    """Measure a part, print its rows, and write them to the JSON file."""
    setup = Setup(choose_device(args.device), args.dtype, args.shape)
    if args.shape != "sd15":
        setup = replace(setup, size=64, batch=2, steps=2, repeats=1, sides=(64,))
    rows = []
    with torch.inference_mode():
        for row in PARTS[part](setup):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.json:
        found = kept_in(args.json)
        parts = {**found.get("parts", {}), part: rows}
        whole = {"machine": machine(setup.device), "dtype": args.dtype, "shape": args.shape, "parts": parts}
        args.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def kept_in(file: Path | None) -> dict[str, Any]:
    """Return the content of a JSON file; an empty dictionary if it does not exist."""
    return json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
