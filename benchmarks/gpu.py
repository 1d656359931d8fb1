"""All that is asked of a GPU, with one command: measured in parts, kept as JSON, told as a table.

    COMFYUI_DIR=... python benchmarks/gpu.py --json benchmarks/results/gpu.json
    python benchmarks/gpu.py --json FILE --parts ceiling batch sdxl      some parts, beside those that FILE has
    python benchmarks/gpu.py --json FILE --table                         the table of what FILE has; no GPU is needed

Each part has a process of its own, so that none finds another's memory or compiled code.

ceiling   the most TFLOP/s of a matrix product in this precision
peers     20 evaluations in a row, synchronised once, SD1.5 at 512 pixels, batch 1, with 0, 1 and 3 nets: ours with each
          set of options beside diffusers (plain, compiled) and ComfyUI; error and peak memory beside the time (not of
          graphs, whose memory is taken before they are replayed)
batch     ours, batch 8: the operations that ran, counted, over the time
sdxl      the same for SDXL at 1024 pixels, batch 1
first     seconds to load a full-size SD1.5 and a net, and to the first picture of 20 steps behind that

Weights are random, which speed does not depend on. Ours is measured as it comes, and with what is to be had by
choice (`OURS`); a claim is held to the best of them.
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
from comfyui_controlnet_core.controlnet_core.config import SD15, SDXL, ModelConfig
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_schedule
from comfyui_controlnet_core.controlnet_core.engine.backend import Backend
from comfyui_controlnet_core.controlnet_core.engine.chunks import Part, evaluate_parts
from comfyui_controlnet_core.controlnet_core.engine.condition import Condition
from comfyui_controlnet_core.controlnet_core.engine.graphs import Graphs
from comfyui_controlnet_core.controlnet_core.engine.job import Job
from comfyui_controlnet_core.controlnet_core.engine.prepare import prepare
from comfyui_controlnet_core.controlnet_core.engine.run import Run
from comfyui_controlnet_core.controlnet_core.engine.runtime import DTYPES, Runtime, choose_device
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from measure import machine, seconds
from peers import CFG, SHAPES, Ours, Step, make_case, write_weights
from step import compare, make_engines
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

OURS: dict[str, dict[str, bool]] = {
    "as it comes": {},
    "graphs": {"graphs": True},
    "graphs, wide": {"graphs": True, "wide": True},
    "graphs, wide, side by side": {"graphs": True, "wide": True, "side_by_side": True},
    "all, compiled": {"graphs": True, "wide": True, "side_by_side": True, "compile": True},
}
STEPS = 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What all parts are told. size: of SD1.5's pictures; SDXL's are twice as wide. sides: of the ceiling's squares.
    compiled: whether diffusers is compiled as well."""

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
        """Ours, with some options."""
        return replace(Runtime.choose(str(self.device), self.dtype), **options)


# ---- parts


def ceiling(setup: Setup) -> Iterator[Row]:
    """TFLOP/s of square products."""
    for side in setup.sides:
        a, b = (torch.randn(side, side, device=setup.device, dtype=DTYPES[setup.dtype]) for _ in range(2))
        took = timed(lambda a=a, b=b: a @ b, setup, in_a_row=10)
        yield {"side": side, "tflops": 2 * side**3 / took / 1e12}


def peers(setup: Setup) -> Iterator[Row]:
    """Rows of `step.compare`, of several evaluations in a row."""
    asked = argparse.Namespace(nets=[3], ours_only=False, compiled=setup.compiled, fast=False, accelerate=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder, 3, setup.shape)
        _, *others = make_engines(asked, folder, setup.runtime({}))
        engines: list[Any] = [*(named(folder, setup, options) for options in OURS), *others]
        for nets in (1, 0, 3):
            case = make_case(setup.size, 1, nets)
            for row in compare([InARow(e, setup.steps) for e in engines], case, setup.repeats, setup.device):
                yield {**row, "nets": nets, "steps": setup.steps, "size": setup.size}


def named(folder: Path, setup: Setup, options: str) -> Ours:
    """Our engine with a set of options, named after it."""
    engine = Ours(folder, 3, setup.runtime(OURS[options]))
    engine.name = f"ours, {options}"
    return engine


class InARow:
    """An engine whose step is several evaluations one behind the other."""

    def __init__(self, engine: Any, count: int) -> None:
        self.engine, self.count = engine, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, case: Any, body: Callable[[Step], None]) -> None:
        """As the engine's own `run`."""

        def several(step: Step) -> Tensor:
            for _ in range(self.count - 1):
                step()
            return step()

        self.engine.run(case, lambda step: body(lambda: several(step)))


def batch(setup: Setup) -> Iterator[Row]:
    """SD1.5, several pictures at once."""
    yield from throughput(SD15 if setup.shape == "sd15" else small(SD15), setup.batch, setup.size, setup)


def sdxl(setup: Setup) -> Iterator[Row]:
    """SDXL, one picture."""
    yield from throughput(SDXL if setup.shape == "sd15" else small(SDXL), 1, 2 * setup.size, setup)


def small(config: ModelConfig) -> ModelConfig:
    """The same in narrow and shallow, to try the script out."""
    unet = config.unet
    depth = tuple(min(1, d) for d in unet.transformer_depth)
    return replace(
        config, unet=replace(unet, widths=tuple(w // 10 for w in unet.widths), transformer_depth=depth, middle_depth=1)
    )


def throughput(config: ModelConfig, batch: int, size: int, setup: Setup) -> Iterator[Row]:
    """Operations a second of our evaluations, with one net."""
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
    """A UNet and a ControlNet, made on the device."""
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
    """A guided evaluation, prepared. As a run does it."""
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
    parts = [Part(slice(0, batch), prepare(job, backend))]
    graphs = Graphs(backend, (unet, net)) if backend.runtime.graphs else None
    run = Run(check_every_step=False, graphs=graphs, side_by_side=backend.beside)
    x = x.to(backend.runtime.device)
    return lambda: evaluate_parts(parts, x, sigma, CFG, run)


def first(setup: Setup) -> Iterator[Row]:
    """Loading, then a picture, then another one."""
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), 1, setup.shape)
        for name, options in OURS.items():
            yield {"engine": f"ours, {name}", **first_picture(Path(folder), setup, options)}


def first_picture(folder: Path, setup: Setup, options: dict[str, bool]) -> dict[str, float]:
    """Seconds of loading, of the first picture and of the second, with the autoencoder."""
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
    """Median seconds of a call, several of them synchronised once."""

    def several() -> None:
        for _ in range(in_a_row):
            call()

    several()
    return statistics.median(seconds(several, setup.device) for _ in range(setup.repeats)) / in_a_row


def wait(device: torch.device) -> None:
    """Until the device has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- what is asked


@dataclass(frozen=True)
class Claim:
    """asked: a bound, the least, or the most where `most`. value: from the rows of a part; None if they lack it."""

    words: str
    asked: float
    value: Callable[[dict[str, list[Row]]], float | None]
    most: bool = False

    def line(self, parts: dict[str, list[Row]]) -> str:
        """A row of the table."""
        value = self.value(parts)
        bound = f"{'at most' if self.most else 'at least'} {self.asked:g}"
        if value is None:
            return f"| {self.words} | {bound} | not measured | |"
        met = value <= self.asked if self.most else value >= self.asked
        return f"| {self.words} | {bound} | {value:.2f} | {'yes' if met else 'no'} |"


def ours(rows: Sequence[Row], key: str, **case: Any) -> list[float]:
    """A figure of ours, one for each set of options."""
    mine = (row for row in rows if row["engine"].startswith("ours"))
    return [row[key] for row in mine if row[key] is not None and all(row[k] == v for k, v in case.items())]


def times_as_fast(peer: str) -> Callable[[dict[str, list[Row]]], float | None]:
    """A peer's time over our best, one net."""
    return lambda parts: _of_peer(parts, peer, "seconds", nets=1, turned=True)


def of_memory(peer: str) -> Callable[[dict[str, list[Row]]], float | None]:
    """Our least peak over a peer's, three nets."""
    return lambda parts: _of_peer(parts, peer, "peak_bytes", nets=3)


def _of_peer(parts: dict[str, list[Row]], peer: str, key: str, nets: int, turned: bool = False) -> float | None:
    rows = parts.get("peers", [])
    theirs = [row[key] for row in rows if row["engine"] == peer and row["nets"] == nets and row[key] is not None]
    mine = ours(rows, key, nets=nets)
    if not theirs or not mine:
        return None
    return theirs[0] / min(mine) if turned else min(mine) / theirs[0]


def of_three_nets(parts: dict[str, list[Row]]) -> float | None:
    """Three nets beside one, with the best options of each."""
    one, three = (ours(parts.get("peers", []), "seconds", nets=nets) for nets in (1, 3))
    return min(three) / min(one) if one and three else None


def of_ceiling(part: str) -> Callable[[dict[str, list[Row]]], float | None]:
    """Operations a second over those of the ceiling, in percent."""

    def value(parts: dict[str, list[Row]]) -> float | None:
        made, most = ours(parts.get(part, []), "tflops"), [row["tflops"] for row in parts.get("ceiling", [])]
        return 100 * max(made) / max(most) if made and most else None

    return value


def of_first(parts: dict[str, list[Row]]) -> float | None:
    """Seconds to the first picture behind loading."""
    return min(ours(parts.get("first", []), "first"), default=None)


def of_preparing(key: str) -> Callable[[dict[str, list[Row]]], float | None]:
    """Preparing over a step's time, one net."""

    def value(parts: dict[str, list[Row]]) -> float | None:
        rows = [r for r in parts.get("peers", []) if r["nets"] == 1 and r.get(key) is not None]
        return rows[0][key] / (rows[0]["seconds"] / rows[0]["steps"]) if rows else None

    return value


CLAIMS = (
    Claim("20 steps, one net: times as fast as ComfyUI", 2.5, times_as_fast("ComfyUI")),
    Claim("20 steps, one net: times as fast as diffusers", 3.0, times_as_fast("diffusers")),
    Claim("20 steps, one net: times as fast as diffusers compiled", 1.2, times_as_fast("diffusers compiled")),
    Claim("time of three nets / time of one net", 1.35, of_three_nets, most=True),
    Claim("batch 8: percent of the peak of matrix products", 55.0, of_ceiling("batch")),
    Claim("SDXL at 1024 pixels: percent of the peak of matrix products", 55.0, of_ceiling("sdxl")),
    Claim("three nets: peak memory without weights / ComfyUI's", 0.8, of_memory("ComfyUI"), most=True),
    Claim("three nets: peak memory without weights / diffusers'", 0.8, of_memory("diffusers"), most=True),
    Claim("seconds to the first picture after loading", 5.0, of_first, most=True),
    Claim("preparing a run / time of a step", 1.0, of_preparing("prepare"), most=True),
    Claim("preparing a run with another seed / time of a step", 0.1, of_preparing("other_seed"), most=True),
)


def table(found: dict[str, Any]) -> str:
    """All claims in Markdown, with the machine that they were measured on."""
    about = ", ".join(f"{key} {value}" for key, value in found.get("machine", {}).items()) or "no GPU was measured yet"
    lines = [f"{about}, {found['dtype']}" if "dtype" in found else about, ""]
    lines += ["| on a GPU | goal | result | met |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(claim.line(found.get("parts", {})) for claim in CLAIMS)])


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the rows are kept, by part")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="sd15", help="small: to try the script out")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--here", action="store_true", help="all parts in this process")
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
    """Measure a part, print its rows, and keep them."""
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
    """What a file has; nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
