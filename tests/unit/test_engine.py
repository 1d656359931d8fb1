"""prepare and evaluate against the plain definition; controls against their formulas."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Literal
from weakref import ref

import pytest
import torch
from comfyui_controlnet_core.controlnet_core import pipeline
from comfyui_controlnet_core.controlnet_core import prepare as preparation
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Area, Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO as WHOLE_DEMO
from comfyui_controlnet_core.controlnet_core.config import SD15, UNetConfig
from comfyui_controlnet_core.controlnet_core.control.hint import mask_at
from comfyui_controlnet_core.controlnet_core.control.modes import MODES, block_heights, mode_weights
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.denoise import Denoiser, predict
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import (
    Interrupted,
    NonFiniteError,
    ShapeError,
    UnfitError,
    ValueRangeError,
)
from comfyui_controlnet_core.controlnet_core.models.control import (
    BindContext,
    ControlModel,
    ResidualProjection,
    identity,
)
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.layers import ConvIn
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.unet import BlockInputs, Residuals, UNet, UNetMiddle
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed import EXACT, EvaluationClock, Shortcuts
from comfyui_controlnet_core.controlnet_core.speed.forecast import DAMPING, Forecast
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.pack import can_pack, pack
from engine_runs import denoiser, evaluate, prepare_on
from few import rows_of
from torch import Tensor

DEMO = replace(WHOLE_DEMO, unet=replace(WHOLE_DEMO.unet, widths=(32, 64, 64)))
"""The demo model at half its width, which is several times as fast."""
SCHEDULE = scaled_linear()
SIZE = (2, 4, 16, 16)


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    torch.manual_seed(0)
    return DiffusionModel(UNet(DEMO.unet).eval(), DEMO, SCHEDULE)


def make_net(model: DiffusionModel, seed: int) -> ControlNet:
    torch.manual_seed(seed)
    net = ControlNet.from_unet(model.unet, DEMO.controlnet).eval()
    for zero in net.zeros:
        torch.nn.init.normal_(zero.conv.weight, std=0.05)
        torch.nn.init.normal_(zero.conv.bias, std=0.05)
    torch.nn.init.normal_(net.hint.convs[-1].weight, std=0.5)
    return net


@pytest.fixture(scope="module")
def nets(model: DiffusionModel) -> tuple[ControlNet, ControlNet]:
    return make_net(model, 1), make_net(model, 2)


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(Runtime(pack_weights=request.param))


def texts(count: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(1, 77, DEMO.unet.context_dim, generator=g) for _ in range(count)]


def count(calls: list[Any], x: Tensor, what: Any = 1) -> None:
    """Count a call on real tensors; the memory estimate makes calls on meta tensors, too."""
    if not x.is_meta:
        calls.append(what)


def hint(seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


def noisy(seed: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 4.0, SCHEDULE.sigma(torch.tensor(600.0))


def residuals(net: ControlNet, x: Tensor, text: Tensor, picture: Tensor, weights: list[float]) -> Residuals:
    rows = len(x)
    out = net(x, torch.full((rows,), 600.0), text.expand(rows, -1, -1), picture.expand(rows, -1, -1, -1))
    *skips, middle = [r * w for r, w in zip([*out.skips, out.middle], weights, strict=True)]
    return Residuals(tuple(skips), middle)


def total(parts: list[Residuals]) -> Residuals | None:
    if not parts:
        return None
    skips = tuple(sum(r) for r in zip(*(p.skips for p in parts), strict=True))
    return Residuals(skips, sum(p.middle for p in parts))  # type: ignore[arg-type]


def by_definition(model: DiffusionModel, text: Tensor, parts: list[Residuals]) -> Tensor:
    x, sigma = noisy()
    rows = len(x)
    eps = model.unet(
        scale_input(x, sigma), torch.full((rows,), 600.0), text.expand(rows, -1, -1), residuals=total(parts)
    )
    return x - eps * sigma


def by_engine(
    model: DiffusionModel, positive: list[Condition], negative: list[Condition], backend: Backend, cfg: float
) -> Tensor:
    x, sigma = noisy()
    prepared = prepare_on(Job(model.unet, DEMO, SCHEDULE, positive, negative, SIZE, [float(sigma)]), backend)
    return evaluate(prepared, x, sigma, cfg)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@torch.inference_mode()
def test_guidance_with_two_nets_is_the_definition(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], backend: Backend
) -> None:
    prompt, empty = texts(2)
    units = (ControlUnit(nets[0], hint(1), 0.7), ControlUnit(nets[1], hint(2), 1.3))
    got = by_engine(model, [Condition(prompt, units)], [Condition(empty, units)], backend, 6.0)
    x = scale_input(*noisy())
    halves = []
    for text in (prompt, empty):
        parts = [
            residuals(nets[0], x, text, hint(1), [0.7] * 7),
            residuals(nets[1], x, text, hint(2), [1.3] * 7),
        ]
        halves.append(by_definition(model, text, parts))
    close(got, halves[1] + 6.0 * (halves[0] - halves[1]))
    # Order does not matter beyond rounding.
    swapped = units[::-1]
    close(by_engine(model, [Condition(prompt, swapped)], [Condition(empty, swapped)], backend, 6.0), got)


@torch.inference_mode()
@pytest.mark.parametrize("mode", MODES)
def test_modes_follow_their_formulas(model: DiffusionModel, nets: tuple[ControlNet, ControlNet], mode: str) -> None:
    backend = Backend(Runtime(pack_weights=False))
    prompt, empty = texts(2)
    units = (ControlUnit(nets[0], hint(1), 0.9, mode=mode),)
    got = by_engine(model, [Condition(prompt, units)], [Condition(empty, units)], backend, 5.0)
    soft = [0.825 ** (6 - i) for i in range(7)]
    heights = [16, 16, 8, 8, 4, 4, 4]
    formula = {
        "balanced": ([1.0] * 7, True),
        "prompt": (soft, True),
        "control": (soft, False),
        "cfg-rw": ([16 / h for h in heights], False),
        "cfg-rw-literal": ([64 / h for h in heights], False),
        "mid-only": ([0.0] * 6 + [1.0], True),
    }
    weights, both = formula[mode]
    x = scale_input(*noisy())
    halves = []
    for text, controlled in ((prompt, True), (empty, both)):
        parts = [residuals(nets[0], x, text, hint(1), [0.9 * w for w in weights])] if controlled else []
        halves.append(by_definition(model, text, parts))
    close(got, halves[1] + 5.0 * (halves[0] - halves[1]))


@torch.inference_mode()
@pytest.mark.parametrize("masked", [False, True])
def test_halves_pictures_curve_and_mask_multiply(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], backend: Backend, masked: bool
) -> None:
    prompt, empty = texts(2)
    mask = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(8)) if masked else None
    unit = ControlUnit(
        nets[0], hint(1), 0.9, curve=lambda p: 1.5 - p, items=(0.5, 2.0), positive=0.8, negative=0.3, mask=mask
    )
    got = by_engine(model, [Condition(prompt, (unit,))], [Condition(empty, (unit,))], backend, 5.0)
    x = scale_input(*noisy())
    curve = 1.5 - (1.0 - 600.0 / 999.0)
    halves = []
    for text, half in ((prompt, 0.8), (empty, 0.3)):
        part = residuals(nets[0], x, text, hint(1), [0.9 * curve * half] * 7)
        items = torch.tensor([0.5, 2.0])[:, None, None, None]
        at = [1.0 if mask is None else mask_at(mask, tuple(r.shape[-2:])) for r in (*part.skips, part.middle)]
        *skips, middle = [r * items * m for r, m in zip((*part.skips, part.middle), at, strict=True)]
        halves.append(by_definition(model, text, [Residuals(tuple(skips), middle)]))
    close(got, halves[1] + 5.0 * (halves[0] - halves[1]))
    # A half of factor 0 is not computed: the same as a unit that the half does not carry.
    alone = replace(unit, negative=0.0)
    without = by_engine(model, [Condition(prompt, (alone,))], [Condition(empty)], backend, 5.0)
    both = by_engine(model, [Condition(prompt, (alone,))], [Condition(empty, (alone,))], backend, 5.0)
    assert torch.equal(both, without)
    with pytest.raises(ShapeError, match="got 3 factors per picture for a batch of 2"):
        bad = replace(unit, items=(1.0, 1.0, 1.0))
        by_engine(model, [Condition(prompt, (bad,))], [], backend, 1.0)


class Shifter(ControlModel):
    """A kind of control that the engine has never heard of: constant features for some targets."""

    hint_channels = 3
    made_for = "any base"

    def __init__(self, entry: Literal["skips", "encoder"]) -> None:
        super().__init__()
        self.entry: Literal["skips", "encoder"] = entry
        self.amount = torch.nn.Parameter(torch.tensor(0.3))

    def fits(self, config: UNetConfig) -> bool:
        return True

    def bind(self, context: BindContext) -> Shifter:
        self.level = context.hint.mean()
        return self

    def inputs_at(self, sigma: float) -> None:
        return None

    def projections(self, inputs: None) -> list[ResidualProjection]:
        return [identity] * 7

    def features(self, x: Tensor, inputs: None) -> Iterator[Tensor | None]:
        for width, side in ((32, 16), (32, 16), (0, 0), (64, 8), (0, 0), (0, 0), (64, 4)):
            yield torch.full((len(x), width, side, side), float(self.amount * self.level)) if width else None


class Unfinished(ControlModel):
    """A file that becomes a net only with its base."""

    hint_channels = 3
    made_for = "the demo"

    def fits(self, config: UNetConfig) -> bool:
        return config == DEMO.unet

    def resolve(self, unet: UNet) -> ControlNet:
        self.asked = getattr(self, "asked", 0) + 1
        net = ControlNet.from_unet(unet, DEMO.controlnet)
        for zero in net.zeros:
            torch.nn.init.constant_(zero.conv.bias, 0.1)
        return net.eval()


@torch.inference_mode()
@pytest.mark.parametrize("entry", ["skips", "encoder"])
def test_a_new_kind_of_control_needs_no_branch_in_the_engine(
    model: DiffusionModel, backend: Backend, entry: Literal["skips", "encoder"]
) -> None:
    (prompt,) = texts(1)
    net = Shifter(entry)
    got = by_engine(model, [Condition(prompt, (ControlUnit(net, hint(1), 0.5),))], [], backend, 1.0)
    x, sigma = noisy()
    unet, level = model.unet, 0.5 * 0.3 * float(hint(1).mean())
    emb = unet.embed(torch.full((2,), 600.0))
    text = prompt.expand(2, -1, -1)
    shifts, kv, _ = unet.encoder.project(emb, text)
    h, skips = scale_input(x, sigma), []
    adds = [level, level, 0.0, level, 0.0, 0.0]
    for block, shift, keys, add in zip(unet.encoder.blocks, shifts, kv, adds, strict=True):
        h = block(h, shift, keys)
        if entry == "encoder":
            h = h + add
        skips.append(h if entry == "encoder" else h + add)
    middle = unet.middle(h, unet.middle.project(emb, text)) + level
    eps = unet.head(unet.decoder(middle, skips, BlockInputs(*unet.decoder.project(emb, text))))
    close(got, x - eps * sigma)


class Short(Shifter):
    """A kind that has fewer features than there are targets."""

    def projections(self, inputs: None) -> list[ResidualProjection]:
        return super().projections(inputs)[:-1]

    def features(self, x: Tensor, inputs: None) -> Iterator[Tensor | None]:
        return islice(super().features(x, inputs), len(self.projections(inputs)))


@pytest.mark.parametrize("entry", ["skips", "encoder"])
@pytest.mark.parametrize("shortcuts", [EXACT, Shortcuts(reuse_every=2), Shortcuts(deep_every=2)], ids=str)
def test_a_net_with_too_few_residuals_is_not_taken_for_a_whole_one(
    model: DiffusionModel, entry: Literal["skips", "encoder"], shortcuts: Shortcuts
) -> None:
    with pytest.raises(ValueError, match="zip"):
        sample(model, (ControlUnit(Short(entry), hint(1)),), shortcuts, steps=1)


@torch.inference_mode()
def test_a_file_that_needs_its_base_is_resolved_once(model: DiffusionModel, backend: Backend) -> None:
    (prompt,) = texts(1)
    net = Unfinished()
    conditions = [Condition(prompt, (ControlUnit(net, hint(1)),))]
    got = by_engine(model, conditions, [], backend, 1.0)
    by_engine(model, conditions, [], backend, 1.0)
    assert net.asked == 1
    complete = net.resolve(model.unet)
    close(got, by_engine(model, [Condition(prompt, (ControlUnit(complete, hint(1)),))], [], backend, 1.0))


def test_soft_weights_of_sd15_are_the_published_ones() -> None:
    weights = mode_weights("prompt", SD15.unet, 64)
    assert len(weights) == 13
    assert weights[0] == pytest.approx(0.0994, abs=1e-4)
    assert weights[-1] == 1.0
    assert block_heights(SD15.unet, 64) == (64, 64, 64, 32, 32, 32, 16, 16, 16, 8, 8, 8, 8)
    assert mode_weights("cfg-rw", SD15.unet, 64)[::3] == (1.0, 2.0, 4.0, 8.0, 8.0)


@torch.inference_mode()
def test_a_mask_multiplies_residual_and_bias(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], backend: Backend
) -> None:
    (prompt,) = texts(1)
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1.0
    got = by_engine(model, [Condition(prompt, (ControlUnit(nets[0], hint(1), mask=mask),))], [], backend, 1.0)
    x = scale_input(*noisy())
    plain = residuals(nets[0], x, prompt, hint(1), [1.0] * 7)
    masked = Residuals(
        tuple(r * mask_at(mask, tuple(r.shape[-2:])) for r in plain.skips),
        plain.middle * mask_at(mask, tuple(plain.middle.shape[-2:])),
    )
    close(got, by_definition(model, prompt, [masked]))


@torch.inference_mode()
def test_slow_with_several_nets_nothing_runs_at_strength_zero_or_outside_the_window(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(Runtime(pack_weights=False))
    (prompt,) = texts(1)
    plain = by_engine(model, [Condition(prompt)], [], backend, 1.0)

    def fail(*args: object) -> None:
        raise AssertionError("the net ran")

    monkeypatch.setattr(ControlNet, "features", fail)
    for unit in (
        ControlUnit(nets[0], hint(), 0.0),
        ControlUnit(nets[0], hint(), start=0.9),
        ControlUnit(nets[0], hint(), end=0.1),
    ):
        assert torch.equal(by_engine(model, [Condition(prompt, (unit,))], [], backend, 1.0), plain)


@torch.inference_mode()
def test_block_weights_multiply(model: DiffusionModel, nets: tuple[ControlNet, ControlNet]) -> None:
    backend = Backend(Runtime(pack_weights=False))
    (prompt,) = texts(1)
    weights = (0.0, 0.5, 1.0, 1.5, 0.2, 0.0, 2.0)
    unit = ControlUnit(nets[0], hint(1), 0.5, block_weights=weights)
    got = by_engine(model, [Condition(prompt, (unit,))], [], backend, 1.0)
    x = scale_input(*noisy())
    close(got, by_definition(model, prompt, [residuals(nets[0], x, prompt, hint(1), [0.5 * w for w in weights])]))
    with pytest.raises(ValueRangeError, match="3 block weights came, this net has 7"):
        bad = ControlUnit(nets[0], hint(1), block_weights=(1.0, 1.0, 1.0))
        by_engine(model, [Condition(prompt, (bad,))], [], backend, 1.0)


@torch.inference_mode()
def test_a_batch_equals_its_singles(model: DiffusionModel, nets: tuple[ControlNet, ControlNet]) -> None:
    backend = Backend(Runtime(pack_weights=False))
    prompt, empty = texts(2)
    pictures = hint(7, batch=2)
    settings = SampleSettings(seed=4, steps=3, cfg=5.0)

    def run(picture: Tensor, batch: int, index: list[int]) -> Tensor:
        units = (ControlUnit(nets[0], picture),)
        conditions = ([Condition(prompt, units)], [Condition(empty, units)])
        latent = torch.zeros(batch, 4, 16, 16)
        return generate(model, *conditions, latent, settings, backend=backend, batch_index=index)

    both = run(pictures, 2, [0, 1])
    for i in range(2):
        close(run(pictures[i : i + 1], 1, [i]), both[i : i + 1])


@torch.inference_mode()
def test_areas_are_predicted_apart_and_blended(model: DiffusionModel) -> None:
    backend = Backend(Runtime(pack_weights=False))
    a, b = texts(2)
    whole = by_engine(model, [Condition(a)], [], backend, 1.0)
    covered = by_engine(model, [Condition(a), Condition(b, area=Area(0, 0, 16, 8))], [], backend, 1.0)
    close(covered[..., 8:], whole[..., 8:])
    assert not torch.allclose(covered[..., :7], whole[..., :7])


@torch.inference_mode()
def test_hint_and_mask_are_brought_to_the_size_of_an_area(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet]
) -> None:
    """As the host does: a unit acts in an area as it would on a latent of the area's size."""
    (text,) = texts(1)
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1.0
    unit, area = ControlUnit(nets[0], hint(), mask=mask), Area(4, 2, 8, 12)
    x, sigma = torch.randn(SIZE, generator=torch.Generator().manual_seed(5)), torch.tensor(2.0)
    part = x[..., 4:12, 2:14]

    def by(condition: Condition, latent: Tensor) -> Tensor:
        backend = Backend(Runtime(pack_weights=False))
        prepared = prepare_on(Job(model.unet, DEMO, SCHEDULE, [condition], [], latent.shape, [2.0]), backend)
        return predict(Denoiser(prepared, 1.0), latent, sigma, prepared.inputs_at(2.0).batches[0])[0]

    placed = by(Condition(text, (unit,), area=area), x)
    close(placed, by(Condition(text, (unit,)), part))
    assert not torch.allclose(placed, by(Condition(text, area=area), x))


@torch.inference_mode()
def test_errors_name_what_came_and_what_fits(model: DiffusionModel, nets: tuple[ControlNet, ControlNet]) -> None:
    backend = Backend(Runtime(pack_weights=False))
    (prompt,) = texts(1)
    with pytest.raises(ShapeError, match="5 wide, this model reads 128"):
        by_engine(model, [Condition(torch.zeros(1, 77, 5))], [], backend, 1.0)
    with pytest.raises(ShapeError, match="2 channels"):
        bad = ControlUnit(nets[0], torch.zeros(1, 2, 64, 64))
        by_engine(model, [Condition(prompt, (bad,))], [], backend, 1.0)
    with on_meta():
        other = ControlNet(SD15.controlnet)
    with pytest.raises(UnfitError, match=r"canny\.pth was made for .* 768 wide text; the model demo"):
        unit = ControlUnit(other, hint(), name="canny.pth")
        by_engine(model, [Condition(prompt, (unit,))], [], backend, 1.0)


@pytest.mark.parametrize("shape", [(1, 1, 128, 128), (1, 4, 128, 128), (1, 3, 1, 1), (1, 3, 77, 131), (1, 3, 64, 256)])
@torch.inference_mode()
def test_hints_of_any_size_and_colour_model_are_brought_to_fit(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], shape: tuple[int, ...]
) -> None:
    (prompt,) = texts(1)
    unit = ControlUnit(nets[0], torch.rand(shape))
    assert by_engine(model, [Condition(prompt, (unit,))], [], Backend(Runtime()), 1.0).isfinite().all()


def test_nan_weights_are_reported_with_the_nets_name(model: DiffusionModel) -> None:
    net = make_net(model, 9)
    with torch.no_grad():
        net.middle.res1.conv1.weight[0, 0, 0, 0] = torch.nan
    (prompt,) = texts(1)
    units = (ControlUnit(net, hint(), name="broken.safetensors"),)
    with pytest.raises(NonFiniteError, match=r"comes from broken\.safetensors"):
        generate(
            model, [Condition(prompt, units)], [], torch.zeros(1, 4, 16, 16), SampleSettings(steps=2),
            backend=Backend(Runtime()),
        )  # fmt: skip


def test_a_run_can_be_stopped_and_started_again(model: DiffusionModel) -> None:
    (prompt,) = texts(1)
    backend = Backend(Runtime())
    args = (model, [Condition(prompt)], [], torch.zeros(1, 4, 16, 16), SampleSettings(steps=3))
    with pytest.raises(Interrupted):
        generate(*args, backend=backend, options=RunOptions(cancelled=lambda: True))
    first = generate(*args, backend=backend)
    assert torch.equal(first, generate(*args, backend=backend))


def test_a_noise_mask_keeps_the_rest_of_the_latent(model: DiffusionModel) -> None:
    (prompt,) = texts(1)
    latent = torch.randn(1, 4, 16, 16)
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1.0
    out = generate(
        model, [Condition(prompt)], [], latent, SampleSettings(steps=3), backend=Backend(Runtime()), noise_mask=mask
    )
    assert torch.equal(out[:, :, 9:], latent[:, :, 9:])
    assert not torch.allclose(out[:, :, :7], latent[:, :, :7])


@torch.inference_mode()
def test_slow_with_several_nets_one_net_on_several_hints_runs_once(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, empty = texts(2)
    units = (
        ControlUnit(nets[0], hint(1), 0.7),
        ControlUnit(nets[0], hint(2, batch=2), 1.3, mode="control"),
        ControlUnit(nets[0], hint(3), 0.5, start=0.9),
    )
    calls = []
    features = ControlNet.features

    def counted(net: ControlNet, x: Tensor, *args: object) -> Iterator[Tensor]:
        calls.append(len(x))
        return features(net, x, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ControlNet, "features", counted)
    got = by_engine(model, [Condition(prompt, units)], [Condition(empty, units)], backend, 6.0)
    assert calls == [6]  # both halves of two pictures for the first unit, one half for the second
    x = scale_input(*noisy())
    soft = [1.3 * 0.825 ** (6 - i) for i in range(7)]
    halves = []
    for text, second in ((prompt, True), (empty, False)):
        parts = [residuals(nets[0], x, text, hint(1), [0.7] * 7)]
        if second:
            parts.append(residuals(nets[0], x, text, hint(2, batch=2), soft))
        halves.append(by_definition(model, text, parts))
    close(got, halves[1] + 6.0 * (halves[0] - halves[1]))


def test_nothing_is_prepared_again_when_only_the_seed_changes(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(Runtime())
    prompt, empty = texts(2)
    units = (ControlUnit(nets[0], hint(1)),)
    embedded = []
    embed_hint = ControlNet.embed_hint
    monkeypatch.setattr(ControlNet, "embed_hint", lambda *args: count(embedded, args[1]) or embed_hint(*args))

    def run(seed: int, side: int, units: tuple[ControlUnit, ...]) -> Tensor:
        mask = torch.ones(1, 8 * side, 8 * side)  # made anew each time, as nodes do, and so are the texts
        conditions = [Condition(prompt.clone(), units, mask=mask)], [Condition(empty.clone(), units)]
        latent = torch.zeros(1, 4, side, side)
        return generate(model, *conditions, latent, SampleSettings(seed=seed, steps=2), backend=backend)

    first = run(1, 16, units)
    run(2, 16, units)
    run(3, 8, units)
    assert len(embedded) == 2  # once for each size
    assert torch.equal(run(1, 16, units), first)
    assert len(embedded) == 2
    run(1, 16, (replace(units[0], strength=0.5),))
    assert len(embedded) == 3


@torch.inference_mode()
def test_conditions_outside_their_window_take_no_rows(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch holds what acts at its sigma, and gives what those conditions alone give."""
    early, late, empty = texts(3)
    units = (ControlUnit(nets[0], hint(1), 0.7),)
    positive = [Condition(early, units, end=0.3), Condition(late, start=0.3), Condition(late, start=0.99)]
    x, sigma = noisy()
    rows: list[tuple[int, int]] = []
    forward, features = UNetMiddle.forward, ControlNet.features
    monkeypatch.setattr(UNetMiddle, "forward", lambda self, h, *a: rows.append((0, len(h))) or forward(self, h, *a))
    heard = lambda self, x, *a: rows.append((1, len(x))) or features(self, x, *a)  # noqa: E731
    monkeypatch.setattr(ControlNet, "features", heard)
    negative = [Condition(empty, units)]
    prepared = prepare_on(Job(model.unet, DEMO, SCHEDULE, positive, negative, SIZE, [float(sigma)]), backend)
    both, unet_alone = {(0, 4), (1, 4)}, {(0, 4), (1, 2)}
    for timestep, acting, ran in ((900.0, 0, both), (600.0, 1, unet_alone), (100.0, 1, unet_alone)):
        level = SCHEDULE.sigma(torch.tensor(timestep))
        rows.clear()
        got = evaluate(prepared, x, level, 5.0)
        assert ran <= set(rows) <= ran | {(0, 2)}, rows  # (a net has a middle as well)
        halves = [replace(positive[acting], start=0.0, end=1.0)], negative
        single = prepare_on(Job(model.unet, DEMO, SCHEDULE, *halves, SIZE, [float(level)]), backend)
        assert torch.equal(got, evaluate(single, x, level, 5.0))


@torch.inference_mode()
def test_what_both_halves_have_in_common_is_computed_once(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the text is read, the latents and their hints are the same in every condition of a batch."""
    units = (ControlUnit(nets[0], hint(1, batch=2)), ControlUnit(nets[1], hint(2), negative=0.0))
    prompt, empty = texts(2)
    x, sigma = noisy()
    rows: dict[str, list[int]] = {"first": [], "all": []}
    conv_in, middle = ConvIn.forward, UNetMiddle.forward
    monkeypatch.setattr(ConvIn, "forward", lambda self, h, *a: rows["first"].append(len(h)) or conv_in(self, h, *a))
    monkeypatch.setattr(UNetMiddle, "forward", lambda self, h, *a: rows["all"].append(len(h)) or middle(self, h, *a))

    def predicted(conditions: list[Condition]) -> Tensor:
        job = Job(model.unet, DEMO, SCHEDULE, conditions[:1], conditions[1:], SIZE, [float(sigma)])
        return evaluate(prepare_on(job, backend), x, sigma, 5.0)

    got = predicted([Condition(prompt, units), Condition(empty, units)])
    assert rows == {"first": [2, 2, 2], "all": [4, 4, 2]}
    rows["first"].clear()
    bind_context, inputs_at = preparation._bind_context, preparation.ConditionBatch.inputs_at
    monkeypatch.setattr(preparation, "_bind_context", lambda *a: replace(c := bind_context(*a), distinct_rows=c.rows))
    monkeypatch.setattr(
        preparation.ConditionBatch,
        "inputs_at",
        lambda self, sigma: inputs_at(self, sigma)._replace(distinct_rows=len(self.conditions) * self.images),
    )
    apart = predicted([Condition(prompt, units), Condition(empty, units)])
    assert rows["first"] == [4, 4, 2]
    torch.testing.assert_close(got, apart, rtol=0.0, atol=2e-5 * float(apart.abs().max()))


@torch.inference_mode()
def test_one_text_may_be_for_all_rows(model: DiffusionModel, nets: tuple[ControlNet, ControlNet]) -> None:
    (text,), (x, _), (net, _) = texts(1), noisy(), nets
    t, each = torch.full((len(x),), 600.0), text.expand(len(x), -1, -1)
    close(model.unet(x, t[:1], text), model.unet(x, t, each))
    for shared, own in zip(net(x, t[:1], text, hint())[0], net(x, t, each, hint())[0], strict=True):
        close(shared, own)


@torch.inference_mode()
def test_what_is_prepared_is_shared_where_the_same_conditions_act(model: DiffusionModel) -> None:
    a, b = texts(2)
    area = Area(0, 0, 16, 8)
    conditions = [Condition(a), Condition(b, area=area, end=0.5)]
    levels = [float(SCHEDULE.sigma(torch.tensor(t))) for t in (900.0, 800.0, 100.0)]
    prepared = prepare_on(Job(model.unet, DEMO, SCHEDULE, conditions, [], SIZE, levels), Backend(Runtime()))
    first, second, last = (prepared.conditions_at(level) for level in levels)
    assert first is second
    assert len(first.batches) == 2 and last.batches == first.batches[:1]
    assert [len(batch.projections.shifts) for batch in first.batches] == [3, 2]


def test_a_half_in_which_nothing_acts_predicts_nothing(model: DiffusionModel) -> None:
    """As in the host: the weighed mean of nothing is 0; so is that of a condition of strength 0."""
    (prompt,) = texts(1)
    for silent in (Condition(prompt, start=0.9), Condition(prompt, strength=0.0)):
        assert not by_engine(model, [silent], [], Backend(Runtime()), 1.0).any()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_memory_held_after_a_run_a_backend_keeps_no_model_alive(packed: bool) -> None:
    backend = Backend(Runtime(pack_weights=packed))
    torch.manual_seed(0)
    model = DiffusionModel(UNet(DEMO.unet).eval(), DEMO, SCHEDULE)
    nets = [make_net(model, seed) for seed in (1, 2)]
    prompt, empty = texts(2)

    def run(net: ControlNet, unit: ControlUnit) -> None:
        conditions = [Condition(prompt, (unit,))], [Condition(empty, (unit,))]
        generate(model, *conditions, torch.zeros(1, 4, 8, 8), SampleSettings(steps=1), backend=backend)

    units = [ControlUnit(net, hint()) for net in nets]
    for net, unit in zip(nets, units, strict=True):
        run(net, unit)
    weights = [ref(net.middle.res1.conv1.weight) for net in nets] + [ref(model.unet.middle.res1.conv1.weight)]
    assert len(backend.runs.made) == 2
    del net, unit, nets[0], units[0]
    gc.collect()
    assert [w() is None for w in weights] == [True, False, False]
    assert len(backend.runs.made) == 1
    model = None
    gc.collect()
    assert weights[2]() is None
    assert not backend.runs.made
    nets.clear()
    units.clear()
    gc.collect()
    assert [w() is None for w in weights] == [True, True, True]
    assert not backend._twins


@torch.inference_mode()
def test_packing_leaves_the_original_alone_and_computes_in_the_dtype_asked_for(model: DiffusionModel) -> None:
    if not can_pack(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this processor does not compute in bfloat16")
    unet = UNet(DEMO.unet).eval()
    before = {name: (p.data_ptr(), p.dtype) for name, p in unet.named_parameters()}
    x, t, text = torch.randn(1, 4, 16, 16), torch.tensor([400.0]), texts(1)[0]
    packed = pack(unet, torch.bfloat16)(x.bfloat16(), t, text.bfloat16())
    assert {name: (p.data_ptr(), p.dtype) for name, p in unet.named_parameters()} == before
    plain = UNet(DEMO.unet).eval()
    plain.load_state_dict(unet.state_dict())
    torch.testing.assert_close(packed, plain.bfloat16()(x.bfloat16(), t, text.bfloat16()), rtol=0.05, atol=0.05)
    assert packed.dtype == torch.bfloat16


def sample(
    model: DiffusionModel, units: tuple[ControlUnit, ...], shortcuts: Shortcuts = EXACT, steps: int = 6
) -> Tensor:
    prompt, empty = texts(2)
    conditions = [Condition(prompt, units)], [Condition(empty, units)]
    settings = SampleSettings(steps=steps, cfg=4.0)
    return generate(
        model,
        *conditions,
        torch.zeros(1, 4, 16, 16),
        settings,
        backend=Backend(Runtime()),
        options=RunOptions(shortcuts),
    )


@pytest.mark.parametrize(("every", "runs"), rows_of([(1, 6), (2, 4), (3, 3)], 2))
def test_reused_residuals_save_runs_of_the_net(
    model: DiffusionModel,
    nets: tuple[ControlNet, ControlNet],
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    runs: int,
) -> None:
    units = (ControlUnit(nets[0], hint(1)),)
    exact = sample(model, units)
    calls = []
    features = ControlNet.features
    monkeypatch.setattr(ControlNet, "features", lambda *args: count(calls, args[1]) or features(*args))
    got = sample(model, units, Shortcuts(reuse_every=every))
    assert len(calls) == runs
    error = float((got - exact).norm() / exact.norm())
    assert error == 0.0 if every == 1 else 0.0 < error < 0.2
    # A tolerance that nothing exceeds is the two runs that make a line, one that everything exceeds is exact.
    calls.clear()
    sample(model, units, Shortcuts(reuse_tolerance=1e9))
    assert len(calls) == 2
    torch.testing.assert_close(sample(model, units, Shortcuts(reuse_tolerance=1e-9)), exact, rtol=1e-4, atol=1e-4)


def test_kept_residuals_take_the_strength_of_the_moment(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], backend: Backend
) -> None:
    (prompt,) = texts(1)
    x, sigma = noisy()
    later = SCHEDULE.sigma(torch.tensor(300.0))
    with torch.inference_mode():
        outputs = []
        for curve in (lambda p: 1.0, lambda p: float(p < 0.5)):
            unit = ControlUnit(nets[0], hint(1), curve=curve)
            job = Job(model.unet, DEMO, SCHEDULE, [Condition(prompt, (unit,))], [], SIZE, [])
            denoise = denoiser(job, backend, 1.0, Shortcuts(reuse_every=9))
            denoise(x, sigma)
            outputs.append(denoise(x, later))
        plain = prepare_on(Job(model.unet, DEMO, SCHEDULE, [Condition(prompt)], [], SIZE, []), backend)
        assert torch.equal(outputs[1], evaluate(plain, x, later, 1.0))
        assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("shortcuts", [Shortcuts(encoder_every=2), Shortcuts(deep_every=2)], ids=str)
def test_lower_blocks_and_nets_are_run_at_every_kth_evaluation(
    model: DiffusionModel,
    nets: tuple[ControlNet, ControlNet],
    monkeypatch: pytest.MonkeyPatch,
    shortcuts: Shortcuts,
) -> None:
    units = (ControlUnit(nets[0], hint(1)),)
    calls = []
    middle = UNetMiddle.forward
    monkeypatch.setattr(UNetMiddle, "forward", lambda *args: count(calls, args[1]) or middle(*args))
    exact = sample(model, units)
    assert len(calls) == 12  # the UNet's and the net's
    calls.clear()
    got = sample(model, units, shortcuts)
    assert len(calls) == 8  # at the evaluations 0, 1, 3 and 5
    assert 0.0 < float((got - exact).norm() / exact.norm()) < 0.2


def test_what_is_not_computed_is_continued_along_a_damped_line() -> None:
    forecast = Forecast(every=3)
    computed = []

    def at(now: int) -> list[Tensor | None]:
        def values() -> list[Tensor | None]:
            computed.append(now)
            return [torch.full((2,), 5.0 - 0.5 * now), None]

        return list(forecast.next(now, values if forecast.is_due(now) else None))

    for now in (*range(1, 10), *range(20, 24)):  # nobody asked from 10 to 19: before is no neighbour
        got, nothing = at(now)
        last = computed[-1]
        way = min(now - last, last - computed[-2]) if now > last else 0  # no further than the line is known
        torch.testing.assert_close(got, torch.full((2,), 5.0 - 0.5 * (last + DAMPING * way)))
        assert nothing is None
    assert computed == [1, 2, 5, 8, 20, 21]


@pytest.mark.parametrize(
    ("shortcuts", "computed"),
    [
        (Shortcuts(deep_every=2), [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (Shortcuts(deep_every=5), [1, 2, 4, 6, 9, 14, 19]),
        (Shortcuts(deep_every=2, careful=True), [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20]),
        (Shortcuts(reuse_every=3, careful=True), [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 19]),
        (Shortcuts(encoder_every=3), [1, 2, 4, 6, 9, 12, 15, 18]),
    ],
    ids=str,
)
def test_what_is_left_out_grows_with_the_way_that_is_gone(
    model: DiffusionModel,
    nets: tuple[ControlNet, ControlNet],
    monkeypatch: pytest.MonkeyPatch,
    shortcuts: Shortcuts,
    computed: list[int],
) -> None:
    """Of 20 evaluations the first six lie in the first 30 % of the timestep axis, ten in the first half."""
    clocks: list[EvaluationClock] = []
    ran: list[int] = []
    features, begin = ControlNet.features, EvaluationClock.begin
    monkeypatch.setattr(EvaluationClock, "begin", lambda clock, sigma: clocks.append(clock) or begin(clock, sigma))
    monkeypatch.setattr(ControlNet, "features", lambda *args: count(ran, args[1], clocks[-1].now) or features(*args))
    sample(model, (ControlUnit(nets[0], hint(1)),), shortcuts, steps=20)
    assert ran == computed


@pytest.mark.parametrize("shortcuts", [Shortcuts(reuse_every=4), Shortcuts(deep_every=4)], ids=str)
def test_a_net_that_was_away_begins_anew(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], monkeypatch: pytest.MonkeyPatch, shortcuts: Shortcuts
) -> None:
    whole, between = ControlUnit(nets[0], hint(1)), ControlUnit(nets[1], hint(2), start=0.3, end=0.6)
    calls = []
    features = ControlNet.features
    monkeypatch.setattr(ControlNet, "features", lambda self, *a: count(calls, a[0], self) or features(self, *a))
    exact = sample(model, (whole, between), steps=12)
    calls.clear()
    got = sample(model, (whole, between), shortcuts, steps=12)
    assert 0.0 < float((got - exact).norm() / exact.norm()) < 0.2
    assert len(calls) < 24


def test_guidance_in_an_interval_computes_one_half_outside_it(model: DiffusionModel) -> None:
    prompt, empty = texts(2)
    settings = SampleSettings(steps=6, cfg=4.0)

    def run(negative: list[Condition], shortcuts: Shortcuts, cfg: float = 4.0) -> Tensor:
        return generate(
            model, [Condition(prompt)], negative, torch.zeros(1, 4, 16, 16), replace(settings, cfg=cfg),
            backend=Backend(Runtime()), options=RunOptions(shortcuts),
        )  # fmt: skip

    whole = run([Condition(empty)], Shortcuts())
    assert torch.equal(run([Condition(empty)], Shortcuts(guidance_start=0.0, guidance_end=1.0)), whole)
    never = run([Condition(empty)], Shortcuts(guidance_start=0.999, guidance_end=0.9991))
    assert torch.equal(never, run([], Shortcuts(), cfg=1.0))
    part = run([Condition(empty)], Shortcuts(guidance_start=0.2, guidance_end=0.8))
    assert not torch.equal(part, whole) and not torch.equal(part, never)


@pytest.mark.parametrize(
    "values",
    [
        {"reuse_every": 0},
        {"careful": True, "reuse_tolerance": 0.1},
        {"deep_every": 0},
        {"deep_every": 2, "encoder_every": 2},
        {"reuse_tolerance": -1.0},
        {"guidance_start": 0.9, "guidance_end": 0.1},
    ],
)
def test_shortcuts_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueRangeError):
        Shortcuts(**values)  # type: ignore[arg-type]


def test_what_is_not_finite_is_found_without_looking_at_every_step(
    model: DiffusionModel, nets: tuple[ControlNet, ControlNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "results_are_free", lambda device: False)
    units = (ControlUnit(nets[0], hint(1)),)
    assert sample(model, units, steps=2).isfinite().all()
    broken = ControlUnit(make_net(model, 9), hint(1), name="broken.safetensors")
    with torch.no_grad():
        broken.net.middle.res1.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"comes from broken\.safetensors"):
        sample(model, (broken,), steps=2)
