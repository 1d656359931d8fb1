"""Evaluations replayed from fixed buffers beside plain ones, captures counted. The CPU calls what a GPU captures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Area, Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO, AdapterConfig
from comfyui_controlnet_core.controlnet_core.control.keyframes import UnitKeyframe
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.control import ControlModel
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed import (
    EvaluationClock,
    RunContext,
    Shortcuts,
    cuda_graphs,
    graph_blocker,
)
from comfyui_controlnet_core.controlnet_core.speed.cuda_graphs import Call, Captured, as_calls
from engine_runs import denoiser
from torch import Tensor

SCHEDULE = scaled_linear()
CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64), transformer_depth=(1, 1), context_dim=32, label_dim=16))
SIGMAS = [10.0, 4.0, 1.0]
TOLERANCE = 1e-5
"""Of the largest value: factors are multiplied in another order, and guidance enlarges the difference."""


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Bench:
    """A model with nets, and evaluations of it both ways. `captures` counts."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet = UNet(CONFIG.unet).eval()
        self.nets = [self._net(seed) for seed in (1, 2)]
        self.adapter = Adapter(AdapterConfig(widths=(32, 64), res_blocks=1)).eval()
        self.backend = Backend(Runtime(pack_weights=False))
        self.captures = 0
        self.pools: list[Any] = []

    def _net(self, seed: int) -> ControlNet:
        torch.manual_seed(seed)
        net = ControlNet.from_unet(self.unet).eval()
        for zero in net.zeros:
            torch.nn.init.normal_(zero.conv.weight, std=0.05)
            torch.nn.init.normal_(zero.conv.bias, std=0.05)
        torch.nn.init.normal_(net.hint.convs[-1].weight, std=0.5)
        return net

    def counted(self, evaluation: Call, device: torch.device, earlier: Captured | None) -> Captured:
        self.captures += 1
        self.pools.append(earlier and earlier.pool)
        return Captured(as_calls(evaluation, device, earlier).replay, pool=f"pool {len(self.pools)}")

    @torch.inference_mode()
    def __call__(
        self,
        units: Sequence[ControlUnit],
        *,
        seed: int = 5,
        cfg: float = 7.0,
        size: tuple[int, int, int] = (2, 8, 8),
        text: int = 1,
        chunk: int = 8,
        area: Area | None = None,
        rescale: float = 0.0,
    ) -> int:
        """Evaluate at all sigmas both ways, see that they are equal, and return how many captures it took."""
        batch, height, width = size
        x, before = rand(seed, batch, 4, height, width) * 5.0, self.captures

        def half(number: int) -> Condition:
            return Condition(rand(number, 1, 77, 32), tuple(units), rand(number, 1, 16))

        positive = [half(text), *([replace(half(9), area=area, strength=0.6)] if area else [])]
        negative = [half(text + 1)] if cfg != 1.0 else []
        job = Job(self.unet, CONFIG, SCHEDULE, positive, negative, x.shape, SIGMAS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda_graphs, "as_calls", self.counted)
            replayed, plain = (
                denoiser(job, self.backend, cfg, chunk=chunk, graphs=graphs, rescale=rescale)
                for graphs in (True, False)
            )
        for sigma in map(torch.tensor, SIGMAS):
            expected, got = plain(x, sigma), replayed(x, sigma)
            assert float((got - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
        return self.captures - before


@pytest.fixture(scope="module")
def models() -> Bench:
    return Bench()


@pytest.fixture
def bench(models: Bench) -> Bench:
    models.backend = Backend(Runtime(pack_weights=False))
    return models


def unit(net: ControlModel, seed: int = 3, strength: float = 0.8, side: int = 64, **more: object) -> ControlUnit:
    return ControlUnit(net, rand(seed, 1, 3, side, side).clamp(0, 1), strength, **more)  # type: ignore[arg-type]


def test_what_changes_between_steps_and_runs_is_not_captured_again(bench: Bench) -> None:
    net = bench.nets[0]
    assert bench([unit(net)]) == 1
    assert bench([unit(net)], seed=6) == 0
    assert bench([unit(net, strength=0.3)]) == 0
    assert bench([unit(net, seed=4)], text=3) == 0  # another hint, another prompt
    assert bench([unit(net, curve=lambda p: 1.5 - p)], cfg=3.0) == 0
    assert bench([unit(net, mode="prompt")]) == 0
    assert bench([unit(net)]) == 0  # what was bound before comes back


def test_what_changes_the_shape_of_the_work_is_captured_once(bench: Bench) -> None:
    net, other = bench.nets
    window = SCHEDULE.sigma_to_percent(2.0)
    assert bench([unit(net, end=window)]) == 2  # in its window, and behind it
    assert bench([unit(net, end=window, strength=0.2)]) == 0
    assert bench([unit(net), unit(other, end=window)]) == 1  # one alone is known
    assert bench([unit(net)], cfg=1.0) == 1
    assert bench([unit(net, side=80)], size=(2, 10, 8)) == 1
    assert bench([unit(net, mode="mid-only")]) == 1
    assert bench([unit(net)], rescale=0.7) == 1
    assert bench([unit(net)]) == 0


def test_one_net_on_two_hints_masks_factors_and_areas(bench: Bench) -> None:
    net = bench.nets[0]
    masked = unit(net, mask=rand(7, 2, 16, 16).clamp(0, 1), items=(0.5, 1.5))
    assert bench([masked, unit(net, seed=4, negative=0.5)]) == 1
    assert bench([replace(masked, items=(2.0, 1.0)), unit(net, seed=5, negative=0.2)]) == 0
    assert bench([masked], area=Area(0, 2, 8, 4)) == 1
    assert bench([masked], area=Area(0, 2, 8, 4), seed=8) == 0
    assert bench([unit(net, pool=True)]) == 1


def test_the_masks_of_keyframes_go_into_the_same_program(bench: Bench) -> None:
    masks = [rand(seed, 1, 64, 64).sigmoid() for seed in (20, 21)]
    # Sigmas 10 and 4 come before the middle of the timesteps, 1 behind it.
    frames = tuple(UnitKeyframe(position, mask) for position, mask in zip((0.0, 0.5), masks, strict=True))
    assert bench([unit(bench.nets[0], keyframes=frames)]) <= 1
    assert bench([unit(bench.nets[0], keyframes=frames[1:])]) <= 1  # without a mask at first: another program


def test_an_adapter_and_a_batch_in_parts(bench: Bench) -> None:
    assert bench([unit(bench.adapter), unit(bench.nets[0])]) == 1
    assert bench([unit(bench.nets[0])], size=(4, 8, 8), chunk=2) == 1
    differing = ControlUnit(bench.nets[0], rand(3, 4, 3, 64, 64).clamp(0, 1))
    assert bench([differing], size=(4, 8, 8), chunk=2) == 1  # two pictures' own hints, copied in by turns


def test_nets_side_by_side(bench: Bench) -> None:
    bench.backend = Backend(Runtime(pack_weights=False, parallel_nets=True))
    assert bench([unit(bench.nets[0]), unit(bench.nets[1], strength=0.4), unit(bench.adapter)]) == 1


def test_programs_share_their_memory_and_go_with_their_model() -> None:
    bench = Bench()
    bench([unit(bench.nets[0])])
    bench([unit(bench.nets[0])], cfg=1.0)
    programs = bench.backend.programs
    assert len(programs.made) == 2
    assert bench.pools == [None, "pool 1"]  # later ones use the memory of the first
    bench.nets.clear()
    assert not programs.made


def test_where_graphs_cannot_be_the_report_says_why(bench: Bench) -> None:
    cuda = Backend(Runtime(torch.device("cuda"), pack_weights=False))
    quiet = RunContext(cuda.runtime, EvaluationClock(), checks_each_step=False)
    assert graph_blocker(quiet) == ""
    assert "every step" in graph_blocker(replace(quiet, checks_each_step=True))
    assert "graphs need CUDA" in graph_blocker(replace(quiet, runtime=Runtime()))
    assert "streamed" in graph_blocker(replace(quiet, offloaded=True))
    assert "step to step" in graph_blocker(replace(quiet, clock=EvaluationClock(Shortcuts(reuse_every=2))))
    assert "measures" in graph_blocker(replace(quiet, options=RunOptions(recorder=Recorder(observe=True))))
    model = DiffusionModel(bench.unet, CONFIG, SCHEDULE)
    recorder = Recorder()
    conditions = [Condition(rand(1, 1, 77, 32), label=rand(1, 1, 16))], []
    backend = Backend(Runtime(graphs=True))
    latent = torch.zeros(1, 4, 8, 8)
    generate(
        model,
        *conditions,
        latent,
        SampleSettings(steps=1, cfg=1.0),
        backend=backend,
        options=RunOptions(recorder=recorder),
    )
    assert recorder.report().notes == ("no graphs: the device is cpu, graphs need CUDA",)
