"""What the pretended card cannot tell, on a real one: `python -m pytest -m gpu tests/integration/test_gpu.py`.

The same runs as in tests/unit/test_card.py, with torch itself looking for what the host waits for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from card_cases import CASES, OPTIONS, Case, World, assert_alike, everything, on_card, on_host, several
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.diffusion.samplers import SAMPLERS, Step
from comfyui_controlnet_core.controlnet_core.pipeline import SampleSettings
from PIL import Image
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TOLERANCE = 1e-3
"""Of the largest value: sums in another order, at random weights, enlarged by guidance."""


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """float32 as the processor has it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Forbid:
    """Between the first step of a run and its last, torch raises at what makes the host wait."""

    def __call__(self, step: Step) -> None:
        torch.cuda.set_sync_debug_mode("error" if step.index < step.total - 1 else "default")


def run_on(case: Case, runtime: Any, **more: Any) -> Tensor:
    try:
        world = World()
        return world.sample(runtime, **case(world), on_step=Forbid(), **more)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_off(case: Case) -> Tensor:
    world = World()
    return world.sample(on_host(), **case(world))


@pytest.mark.parametrize("name", CASES)
def test_a_run_without_waits_gives_the_processors_picture(name: str) -> None:
    assert_alike(run_on(CASES[name], on_card()), run_off(CASES[name]), TOLERANCE)


@pytest.mark.parametrize("options", [name for name in OPTIONS if "graphs" not in name])
def test_what_is_to_be_had_by_choice_gives_the_same(options: str) -> None:
    assert_alike(run_on(everything, on_card(**OPTIONS[options])), run_off(everything), TOLERANCE)


@pytest.mark.parametrize("options", [name for name in OPTIONS if "graphs" in name])
def test_graphs_are_captured_and_replayed_to_the_same(options: str) -> None:
    world, recorder = World(), Recorder()
    backend, case = Backend(on_card(**OPTIONS[options])), everything(world)
    for seed in (0, 1):  # the first captures, in its loop; the second only replays
        settings = SampleSettings(seed, steps=4, cfg=4.0)
        watch = Forbid() if seed else None
        made = world.sample(
            backend.runtime, **case, backend=backend, settings=settings, on_step=watch, recorder=recorder
        )
        calm = World()
        assert_alike(made, calm.sample(on_host(), **everything(calm), settings=settings), TOLERANCE)
    assert recorder.report().notes == ()
    assert any(program.captured is not None for program in backend.programs)


def test_compiled_blocks_give_the_same() -> None:
    assert_alike(run_on(CASES["one net"], on_card(fused_qkv=True, compile=True)), run_off(CASES["one net"]), TOLERANCE)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(sampler: str) -> None:
    def case(world: World) -> dict[str, Any]:
        settings = SampleSettings(steps=4, cfg=4.0, sampler=sampler, ancestral="cpu")
        return {"units": [world.unit()], "settings": settings}

    assert_alike(run_on(case, on_card()), run_off(case), TOLERANCE)


@pytest.mark.parametrize("options", ["plain", "graphs, side by side, wide", "streamed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, options: str) -> None:
    world = World()
    made = world.sample(on_card(dtype, **OPTIONS[options]), **several(world))
    assert_alike(made, run_off(several), 0.1)


@pytest.mark.parametrize("options", OPTIONS)
def test_memory_does_not_grow_with_steps_or_runs(options: str) -> None:
    world, backend = World(), Backend(on_card(**OPTIONS[options]))
    case = several(world)

    def reserved(steps: int) -> int:
        world.sample(backend.runtime, **case, backend=backend, settings=SampleSettings(steps=steps, cfg=4.0))
        return torch.cuda.memory_reserved()

    torch.cuda.empty_cache()
    reserved(8)
    first = reserved(8)
    assert max(reserved(8) for _ in range(3)) <= first + 4 * 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("channels", "height", "width", "shifts"), [(64, 9, 7, 2), (96, 24, 40, 1), (320, 64, 64, 2), (2560, 8, 8, 0)]
)
def test_triton_kernels(dtype: torch.dtype, channels: int, height: int, width: int, shifts: int) -> None:
    kernels = pytest.importorskip("comfyui_controlnet_core.controlnet_core.speed.triton_norm")
    torch.manual_seed(0)
    x = torch.randn(2, channels, height, width).to("cuda", dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels).to("cuda", dtype)
    shift = torch.randn(shifts, channels, 1, 1).to("cuda", dtype) if shifts else None
    wide = x.double() if shift is None else x.double() + shift.double()
    truth = F.silu(F.group_norm(wide, 32, weight.double(), bias.double(), 1e-5))
    made = kernels.group_norm(x, 32, weight, bias, 1e-5, shift)
    bound = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert float((made.double() - truth).abs().max() / truth.abs().max()) < bound


def test_the_command_makes_the_same_picture_on_the_card(tmp_path: Path) -> None:
    pictures = []
    for device, more in (("cpu", []), ("cuda", ["--graphs", "--wide", "--side-by-side"])):
        command = [
            sys.executable, "-m", "comfyui_controlnet_core", "run", "canny_to_image", "--device", device,
            "--dtype", "fp32", "--output", str(tmp_path / device), "--json", "--quiet", *more,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        first, *_ = json.loads(done.stdout)["images"]
        pictures.append(np.asarray(Image.open(first).convert("RGB"), dtype=np.float32))
    assert np.abs(pictures[0] - pictures[1]).mean() < 1.0
