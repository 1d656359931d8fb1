"""A batch evaluated in parts is the whole batch; how many parts follows from what is free."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Area, Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import ShapeError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, _prepare_parts, generate
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.runtime.memory import Footprint, MemoryPlan, free_bytes, plan_memory
from comfyui_controlnet_core.controlnet_core.speed import EXACT, Shortcuts
from torch import Tensor

SCHEDULE = scaled_linear()
CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64), transformer_depth=(1, 1), context_dim=32))
BATCH = 5


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    torch.manual_seed(0)
    return DiffusionModel(UNet(CONFIG.unet).eval(), CONFIG, SCHEDULE)


@pytest.fixture(scope="module")
def net(model: DiffusionModel) -> ControlNet:
    net = ControlNet.from_unet(model.unet).eval()
    for zero in net.zeros:
        torch.nn.init.normal_(zero.conv.weight, std=0.05)
    torch.nn.init.normal_(net.hint.convs[-1].weight, std=0.5)
    return net


def rand(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def sample(
    model: DiffusionModel,
    units: tuple[ControlUnit, ...],
    chunk: int,
    shortcuts: Shortcuts = EXACT,
    recorder: Recorder | None = None,
) -> Tensor:
    conditions = (
        [Condition(rand(1, 1, 77, 32), units), Condition(rand(3, 1, 77, 32), mask=rand(4, BATCH, 8, 8))],
        [Condition(rand(2, 1, 77, 32), units), Condition(rand(5, 1, 77, 32), area=Area(0, 0, 8, 4))],
    )
    settings = SampleSettings(seed=3, steps=4, cfg=4.0, sampler="euler_ancestral")
    backend = Backend(Runtime(pack_weights=False, chunk=chunk))
    latent = torch.zeros(BATCH, 4, 8, 8)
    return generate(model, *conditions, latent, settings, backend=backend, options=RunOptions(shortcuts, recorder))


@pytest.mark.parametrize("shortcuts", [EXACT, Shortcuts(reuse_every=2), Shortcuts(deep_every=2)], ids=str)
@pytest.mark.parametrize("chunk", [2])
def test_parts_are_the_whole(model: DiffusionModel, net: ControlNet, chunk: int, shortcuts: Shortcuts) -> None:
    factors = (0.5, 1.0, 1.5, 2.0, 0.2)
    units = (
        ControlUnit(net, rand(6, BATCH, 3, 64, 64), items=factors, mask=rand(7, BATCH, 16, 16)),
        ControlUnit(net, rand(8, 1, 3, 64, 64), 0.5, end=0.7),
    )
    whole = sample(model, units, BATCH, shortcuts)
    parts = sample(model, units, chunk, shortcuts)
    assert float((parts - whole).abs().max()) <= 2e-5 * float(whole.abs().max())
    assert not torch.allclose(whole, sample(model, units[1:], BATCH, shortcuts))


def test_the_report_counts_evaluations_of_the_whole_batch(model: DiffusionModel, net: ControlNet) -> None:
    unit = ControlUnit(net, rand(6, BATCH, 3, 64, 64))
    reports = []
    for chunk in (BATCH, 2):
        recorder = Recorder(observe=True)
        sample(model, (unit,), chunk, recorder=recorder)
        reports.append(recorder.report())
    whole, parts = reports
    assert parts.evaluations == whole.evaluations == 4
    assert [(u.acted, u.ran) for u in parts.units] == [(u.acted, u.ran) for u in whole.units] == [(4, 4)]
    for told, norms in zip(parts.units[0].norms, whole.units[0].norms, strict=True):
        assert told == pytest.approx(norms, rel=1e-3)
    assert (parts.memory["chunk"], whole.memory["chunk"]) == (2, BATCH)


@torch.inference_mode()
def test_what_all_pictures_share_is_prepared_once(model: DiffusionModel, net: ControlNet) -> None:
    backend = Backend(Runtime(pack_weights=False))
    text = rand(1, 1, 77, 32)

    def prepare(picture: Tensor) -> list[int]:
        positive = [Condition(text, (ControlUnit(net, picture),))]
        job = Job(model.unet, CONFIG, SCHEDULE, positive, [], (BATCH, 4, 8, 8), [4.0])
        return [id(prepared) for _, prepared in _prepare_parts(job, backend, 2)]

    shared = prepare(rand(6, 1, 3, 64, 64))
    assert shared[0] == shared[1] != shared[2]  # two pictures, two, and one
    assert len(set(prepare(rand(6, BATCH, 3, 64, 64)))) == 3


def test_what_does_not_fit_the_batch_is_refused_in_parts_too(model: DiffusionModel, net: ControlNet) -> None:
    with pytest.raises(ShapeError, match="got 2 factors per picture for a batch of 5"):
        sample(model, (ControlUnit(net, rand(6, 1, 3, 64, 64), items=(1.0, 2.0)),), 2)
    with pytest.raises(ShapeError, match="2 hints came for a batch of 5"):
        sample(model, (ControlUnit(net, rand(6, 2, 3, 64, 64)),), 2)


def footprint(pictures: int) -> Footprint:
    return Footprint(weights=1000, prepared=10 * pictures, preparing=0, step=100 * pictures)


@pytest.mark.parametrize(
    ("free", "chunk", "expected", "fits"),
    [
        (None, 0, 8, True),
        (None, 9, 8, True),
        (2100, 0, 8, True),
        (2000, 0, 4, True),
        (100, 0, 1, False),
        (100, 3, 3, False),
    ],
)
def test_out_of_memory_as_many_pictures_as_fit(free: int | None, chunk: int, expected: int, fits: bool) -> None:
    plan = plan_memory(footprint, 8, 0, free, chunk)
    assert (plan.chunk, plan.fits) == (expected, fits)
    assert ("more than there is" in plan.summary()) != fits


def test_weights_that_are_there_already_need_no_room() -> None:
    assert not plan_memory(footprint, 1, 0, 500).fits
    assert plan_memory(footprint, 1, 1000, 500).fits
    assert MemoryPlan(footprint(1), 1, 1, 0, None).fits
    assert (free_bytes(torch.device("cpu")) or 1) > 0
    assert free_bytes(torch.device("meta")) is None
