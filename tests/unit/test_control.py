"""What turns a unit's strength: schedules, block weights, halves, pictures, masks; and how hints are fitted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO, SD15, UNetConfig
from comfyui_controlnet_core.controlnet_core.control.curve import Keyframe, StrengthCurve, read_curve
from comfyui_controlnet_core.controlnet_core.control.easing import EASINGS, ease
from comfyui_controlnet_core.controlnet_core.control.hint import FITS, fit_hint
from comfyui_controlnet_core.controlnet_core.control.modes import MODES
from comfyui_controlnet_core.controlnet_core.control.residuals import weigh_residual
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.control.weights import PRESETS, BlockWeights
from comfyui_controlnet_core.controlnet_core.denoise import net_residuals
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import ShapeError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from engine_runs import prepare_on
from random_tensors import uniform
from torch import Tensor

UNET = replace(DEMO.unet, widths=(32, 32, 64), num_heads=2, context_dim=16)
CONFIG = replace(DEMO, unet=UNET)
SDXL = UNetConfig(widths=(320, 640, 1280), transformer_depth=(0, 2, 10), context_dim=2048)
SCHEDULE = scaled_linear()
BLOCKS = 7
LATENT = (2, 4, 8, 12)
TIMESTEP = 600.0
POSITION = 1.0 - TIMESTEP / 999.0
SIZES = [(8, 12), (8, 12), (4, 6), (4, 6), (2, 3), (2, 3), (2, 3)]
"""Feature maps of the demo's shape on this latent: the skips, then the middle."""


@pytest.fixture(scope="module")
def net() -> ControlNet:
    torch.manual_seed(1)
    made = ControlNet(replace(CONFIG.controlnet, hint_widths=(8, 8, 8, 8))).eval()
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return made


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNET).eval()


def residuals(unet: UNet, unit: ControlUnit, negative: bool = False) -> list[Tensor | None]:
    """What the engine adds to each target for a unit on one condition of two pictures."""
    sigma = float(SCHEDULE.sigma(torch.tensor(TIMESTEP)))
    carried, plain = Condition(uniform(1, 7, 16), (unit,)), Condition(uniform(1, 7, 16))
    halves = ([plain], [carried]) if negative else ([carried], [])
    prepared = prepare_on(Job(unet, CONFIG, SCHEDULE, *halves, LATENT, [sigma]), Backend(Runtime(pack_weights=False)))
    (batch,) = prepared.inputs_at(sigma).batches
    if not batch.nets:
        return [None] * BLOCKS
    x = scale_input(uniform(*LATENT, seed=3) * 9.0, torch.tensor(sigma)).repeat(len(batch.conditions), 1, 1, 1)
    (net,) = batch.nets
    (unit,) = net.units
    scales = unit.scales or (None,) * BLOCKS
    steps = zip(net_residuals(net, x), unit.weights, scales, strict=True)
    return [None if r is None else weigh_residual(r, float(weight), scale) for r, weight, scale in steps]


def plain_residuals(net: ControlNet, hint: Tensor) -> list[Tensor]:
    """The definition: the net's own outputs."""
    x = scale_input(uniform(*LATENT, seed=3) * 9.0, SCHEDULE.sigma(torch.tensor(TIMESTEP)))
    out = net(x, torch.full((2,), TIMESTEP), uniform(1, 7, 16).expand(2, -1, -1), hint.expand(2, -1, -1, -1))
    return [*out.skips, out.middle]


def assert_blocks(got: list[Tensor | None], plain: list[Tensor], factors: list[Tensor | float]) -> None:
    """Each block is the net's own output times its factor; a factor of 0 is nothing at all."""
    assert len(got) == len(plain) == len(factors) == BLOCKS
    for mine, own, factor in zip(got, plain, factors, strict=True):
        if isinstance(factor, float) and factor == 0.0:
            assert mine is None
            continue
        assert mine is not None
        expected = own * factor
        torch.testing.assert_close(mine.expand_as(expected), expected, rtol=1e-4, atol=1e-5 * float(own.abs().max()))


HINT = uniform(1, 3, 64, 96, seed=5)

MODE_FORMULAS = {
    "balanced": [1.0] * 7,
    "prompt": [0.825**d for d in (6, 5, 4, 3, 2, 1, 0)],
    "control": [0.825**d for d in (6, 5, 4, 3, 2, 1, 0)],
    "cfg-rw": [8 / h for h, _ in SIZES],
    "cfg-rw-literal": [64 / h for h, _ in SIZES],
    "mid-only": [0.0] * 6 + [1.0],
}
PRESET_FORMULAS = {
    "soft": [0.825**d for d in (6, 5, 4, 3, 2, 1, 0)],
    "soft-webui": [0.825**d for d in (12, 11, 10, 9, 8, 7, 6)],
    "soft-diffusers": torch.logspace(-1, 0, 7).tolist(),
    "linear": [0.2 + 1.8 * i / 6 for i in range(7)],
    "ease-in": [0.2 + 1.8 * (i / 6) ** 2 for i in range(7)],
    "ease-out": [0.2 + 1.8 * (1 - (1 - i / 6) ** 2) for i in range(7)],
    "ease-in-out": [0.2 + 1.8 * (3 * (i / 6) ** 2 - 2 * (i / 6) ** 3) for i in range(7)],
}
CURVES = {
    "linear": (read_curve("0: 1, 0.2: 0.5, 1: 2"), 0.5 + 1.5 * (POSITION - 0.2) / 0.8),
    "hold": (read_curve("0: 0.7, 1: 2", "hold"), 0.7),
    "ease-in": (read_curve("0: 0, 0.8: 1", "ease-in"), (POSITION / 0.8) ** 2),
    "its own": (read_curve("0: 1 ease-out, 0.5: 0\n1: 1"), 1.0 - (1 - (1 - POSITION / 0.5) ** 2)),
    "before the first": (read_curve("0.9: 0.3, 1: 1"), 0.3),
    "behind the last": (read_curve("0: 1, 0.1: 0.6"), 0.6),
}


@torch.inference_mode()
@pytest.mark.parametrize("mode", MODES)
def test_modes_undefined_each_multiplies_each_block_by_its_formula(unet: UNet, net: ControlNet, mode: str) -> None:
    got = residuals(unet, ControlUnit(net, HINT, 0.6, mode=mode))
    assert_blocks(got, plain_residuals(net, HINT), [0.6 * w for w in MODE_FORMULAS[mode]])
    only_conditional = mode in ("control", "cfg-rw", "cfg-rw-literal")
    negative = residuals(unet, ControlUnit(net, HINT, 0.6, mode=mode), negative=True)
    assert all(r is None for r in negative) == only_conditional


@torch.inference_mode()
@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_multiplies_each_block_by_its_formula(unet: UNet, net: ControlNet, preset: str) -> None:
    weights = BlockWeights(preset=preset, first=0.2, last=2.0)
    got = residuals(unet, ControlUnit(net, HINT, 0.5, block_weights=weights))
    assert_blocks(got, plain_residuals(net, HINT), [0.5 * w for w in PRESET_FORMULAS[preset]])


@torch.inference_mode()
@pytest.mark.parametrize("name", CURVES)
def test_each_schedule_multiplies_all_blocks_by_its_value(unet: UNet, net: ControlNet, name: str) -> None:
    curve, value = CURVES[name]
    got = residuals(unet, ControlUnit(net, HINT, 0.5, curve=curve))
    assert_blocks(got, plain_residuals(net, HINT), [0.5 * value] * BLOCKS)


@torch.inference_mode()
def test_a_schedule_at_0_costs_nothing(unet: UNet, net: ControlNet) -> None:
    assert residuals(unet, ControlUnit(net, HINT, curve=read_curve("0: 1, 0.3: 0"))) == [None] * BLOCKS


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [(64, 96), (8, 12), (30, 20)])
def test_masks_of_any_size_and_batches_of_masks(unet: UNet, net: ControlNet, count: int, size: tuple[int, int]) -> None:
    """A mask is stretched over the picture, by the mean of the area that each cell covers."""
    mask = uniform(count, *size, seed=6)
    got = residuals(unet, ControlUnit(net, HINT, 0.8, mask=mask))
    at = [torch.nn.functional.adaptive_avg_pool2d(mask[:, None], cells) for cells in SIZES]
    assert_blocks(got, plain_residuals(net, HINT), [0.8 * m for m in at])


@torch.inference_mode()
def test_regional_masks_of_two_nets_add_up(unet: UNet, net: ControlNet) -> None:
    """Where a mask and its opposite are used, the two halves sum to the whole."""
    left = torch.zeros(1, 8, 12)
    left[..., :6] = 1.0
    parts = [residuals(unet, ControlUnit(net, HINT, mask=mask)) for mask in (left, 1.0 - left)]
    for a, b, whole in zip(*parts, plain_residuals(net, HINT), strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a + b, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@torch.inference_mode()
def test_a_factor_for_each_picture_and_half(unet: UNet, net: ControlNet) -> None:
    unit = ControlUnit(net, HINT, 0.5, items=(0.25, 2.0), positive=0.7, negative=0.4)
    items = torch.tensor([0.25, 2.0])[:, None, None, None]
    assert_blocks(residuals(unet, unit), plain_residuals(net, HINT), [0.5 * 0.7 * items] * BLOCKS)
    negative = residuals(unet, unit, negative=True)
    assert_blocks(negative, plain_residuals(net, HINT), [0.5 * 0.4 * items] * BLOCKS)
    assert residuals(unet, replace(unit, negative=0.0), negative=True) == [None] * BLOCKS
    assert residuals(unet, replace(unit, positive=0.0)) == [None] * BLOCKS


@torch.inference_mode()
def test_one_hint_per_picture_of_a_batch(unet: UNet, net: ControlNet) -> None:
    frames = uniform(2, 3, 64, 96, seed=8)
    got = residuals(unet, ControlUnit(net, frames))
    assert_blocks(got, plain_residuals(net, frames), [1.0] * BLOCKS)
    with pytest.raises(ShapeError, match="3 hints came for a batch of 2"):
        residuals(unet, ControlUnit(net, uniform(3, 3, 64, 96)))
    with pytest.raises(ShapeError, match="3 masks came for a batch of 2"):
        residuals(unet, ControlUnit(net, HINT, mask=torch.ones(3, 8, 12)))
    with pytest.raises(ShapeError, match="got 3 factors per picture for a batch of 2"):
        residuals(unet, ControlUnit(net, HINT, items=(1.0, 1.0, 1.0)))


@torch.inference_mode()
def test_pooled_residuals_are_their_means_on_the_conditional_half_alone(unet: UNet, net: ControlNet) -> None:
    """The shuffle net, told so by the unit or by its file's config."""
    plain = [r.mean(dim=(2, 3), keepdim=True).expand_as(r) for r in plain_residuals(net, HINT)]
    mask = uniform(1, 8, 12, seed=6)
    at = [torch.nn.functional.adaptive_avg_pool2d(mask[:, None], cells) for cells in SIZES]
    assert_blocks(residuals(unet, ControlUnit(net, HINT, 0.5, pool=True)), plain, [0.5] * BLOCKS)
    masked = residuals(unet, ControlUnit(net, HINT, 0.5, pool=True, mask=mask))
    assert_blocks(masked, plain, [0.5 * m for m in at])
    assert residuals(unet, ControlUnit(net, HINT, pool=True), negative=True) == [None] * BLOCKS
    told = ControlNet(replace(net.config, global_pool=True)).eval()
    told.load_state_dict(net.state_dict())
    assert_blocks(residuals(unet, ControlUnit(told, HINT)), plain, [1.0] * BLOCKS)
    assert residuals(unet, ControlUnit(told, HINT), negative=True) == [None] * BLOCKS


# ---------------------------------------------------------------------------------- weights and schedules as data


def test_the_published_numbers_of_the_soft_weights() -> None:
    """reference: the official code and both conventions for SDXL; 12 + middle in SD1.5, 9 + middle in SDXL."""
    soft, webui = (BlockWeights(preset=name).resolve(SD15.unet) for name in ("soft", "soft-webui"))
    assert soft == webui
    assert (len(soft), round(soft[0], 4), soft[-1]) == (13, 0.0994, 1.0)
    acn = BlockWeights(preset="soft").resolve(SDXL)
    assert (len(acn), round(acn[0], 3), round(acn[-2], 3), acn[-1]) == (10, 0.177, 0.825, 1.0)
    cut = BlockWeights(preset="soft-webui").resolve(SDXL)
    assert (round(cut[0], 4), round(cut[-1], 4)) == (0.0994, 0.5615)
    diffusers = BlockWeights(preset="soft-diffusers").resolve(SD15.unet)
    assert diffusers == pytest.approx(torch.logspace(-1, 0, 13).tolist(), rel=1e-5)


def test_wrong_block_weights_are_refused(unet: UNet, net: ControlNet) -> None:
    with pytest.raises(ValueRangeError, match=r"12 block weights came, this net has 13 blocks \(12 skips"):
        BlockWeights(custom=(1.0,) * 12).resolve(SD15.unet)
    with pytest.raises(ValueRangeError, match="13 block weights came, this net has 7 blocks"):
        residuals(unet, ControlUnit(net, HINT, block_weights=(1.0,) * 13))
    with pytest.raises(ValueRangeError, match="'hard' are unknown: choose one of soft"):
        BlockWeights(preset="hard")


@pytest.mark.parametrize("easing", EASINGS)
def test_easings_begin_and_end_where_they_should(easing: str) -> None:
    assert ease(easing, 2.0, 5.0, 0.0) == 2.0
    assert ease(easing, 2.0, 5.0, 1.0) == 5.0
    values = [ease(easing, 0.0, 1.0, i / 20) for i in range(21)]
    assert values == sorted(values)


def test_keyframes_are_read_from_text() -> None:
    curve = read_curve("0:1, 0.25 : 0.5 ease-in\n 1: 0;", "hold")
    assert curve.keyframes == (
        Keyframe(0.0, 1.0, "hold"), Keyframe(0.25, 0.5, "ease-in"), Keyframe(1.0, 0.0, "hold"),
    )  # fmt: skip
    assert [curve(p) for p in (0.0, 0.2, 0.25, 1.0)] == [1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the strength schedule is empty"),
        (" ,\n", "the strength schedule is empty"),
        ("0.5: 1, 0.2: 0", "0.2 comes after the one at 0.5"),
        ("0.5: 1, 0.5: 0", "each position once"),
        ("0: 1, 1.5: 0", "at position 1.5: give 0 \\(noise\\) to 1"),
        ("0: nan", "give a number"),
        ("0: 1 bouncy", "easing 'bouncy' is unknown"),
        ("half: 1", "keyframe 'half: 1'"),
        ("0.5", "keyframe '0.5'"),
    ],
)
def test_schedules_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueRangeError, match=said):
        read_curve(text)


def test_a_schedule_without_keyframes_is_refused_as_data_too() -> None:
    with pytest.raises(ValueRangeError, match="is empty"):
        StrengthCurve(())


def test_which_strength_acts_when_does_not_depend_on_the_number_of_steps() -> None:
    """A schedule is read at the timestep's place, so 10 steps and 40 steps see the same curve."""
    curve = read_curve("0: 1, 1: 0")
    for timestep in (999.0, 500.0, 1.0):
        sigma = float(SCHEDULE.sigma(torch.tensor(timestep)))
        assert curve(SCHEDULE.sigma_to_percent(sigma)) == pytest.approx(timestep / 999.0, abs=1e-3)


# -------------------------------------------------------------------------------------------------------- hints


def ramp(height: int, width: int) -> Tensor:
    """(1, 2, H, W): row and column of each pixel, so that one sees where it came from."""
    rows = torch.arange(height).float()[:, None].expand(height, width)
    columns = torch.arange(width).float()[None].expand(height, width)
    return torch.stack([rows, columns])[None]


@pytest.mark.parametrize("fit", [name for name in FITS if name != "pixel-perfect"])
@pytest.mark.parametrize(("size", "wanted"), [((30, 50), (64, 64)), ((200, 90), (64, 96)), ((64, 64), (64, 64))])
def test_each_fit_gives_the_wanted_size(fit: str, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    hint = uniform(2, 3, *size)
    fitted = fit_hint(hint, *wanted, fit)
    assert fitted.shape == (2, 3, *wanted)
    assert fitted.min() >= hint.min()
    assert fitted.max() <= hint.max()
    assert size != wanted or torch.equal(fitted, hint)


def test_crop_keeps_the_middle_and_stretch_keeps_all() -> None:
    wide = ramp(32, 96)
    cropped = fit_hint(wide, 32, 32)
    assert torch.equal(cropped, wide[..., 32:64])
    stretched = fit_hint(wide, 32, 32, "stretch")
    assert torch.equal(stretched[0, 1, 0], torch.arange(32) * 3 + 1.0)


def test_inner_fit_covers_and_pad_stays_inside() -> None:
    wide = ramp(32, 96)
    assert torch.equal(fit_hint(wide, 32, 32, "inner-fit"), wide[..., 32:64])
    halved = fit_hint(wide, 16, 16, "inner-fit")
    assert torch.equal(halved[0, 1, 0], torch.arange(16) * 2 + 32.5)
    edge = torch.full((1, 3, 32, 96), 0.25)
    edge[..., 4:-4, 4:-4] = 1.0
    padded = fit_hint(edge, 96, 96, "pad")
    assert torch.equal(padded[..., 32:64, :], edge)
    assert torch.equal(padded[..., :32, :], torch.full((1, 3, 32, 96), 0.25))


def test_nearest_pixel_leaves_the_marks_of_an_inpainting_hint() -> None:
    hint = uniform(1, 3, 40, 40)
    hint[..., 10:20, 10:20] = -1.0
    fitted = fit_hint(hint, 72, 72)
    assert set(fitted.flatten().tolist()) <= set(hint.flatten().tolist())
    assert (fitted == -1.0).any()


def test_is_my_hint_cropped_not_with_pixel_perfect() -> None:
    """Is my hint cropped? With this fit it never is."""
    hint = uniform(1, 3, 64, 64)
    assert fit_hint(hint, 64, 64, "pixel-perfect") is hint
    with pytest.raises(ShapeError, match="the hint is 64x64 pixels, the picture 96x64"):
        fit_hint(hint, 64, 96, "pixel-perfect")
    with pytest.raises(ValueRangeError, match="choose one of crop, stretch"):
        fit_hint(hint, 64, 96, "squeeze")


@torch.inference_mode()
@pytest.mark.parametrize("fit", ["stretch", "inner-fit", "pad"])
def test_the_engine_fits_hints_as_the_unit_says(unet: UNet, net: ControlNet, fit: str) -> None:
    hint = uniform(1, 3, 100, 70, seed=9)
    got = residuals(unet, ControlUnit(net, hint, fit=fit))
    assert_blocks(got, plain_residuals(net, fit_hint(hint, 64, 96, fit)), [1.0] * BLOCKS)
    assert not math.isclose(float(fit_hint(hint, 64, 96, fit).mean()), float(fit_hint(hint, 64, 96).mean()))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("strength", math.nan, "the strength is nan"),
        ("positive", math.inf, "positive half is inf"),
        ("negative", -math.inf, "negative half is -inf"),
        ("items", (1.0, math.nan), "factor of a picture is nan"),
        ("block_weights", (math.inf,) * BLOCKS, "block weight is inf"),
        ("start", math.nan, "the window is nan"),
        ("end", math.inf, "give two numbers from 0 to 1"),
    ],
)
def test_numbers_of_a_unit_are_finite(unet: UNet, field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueRangeError, match=said):
        ControlUnit(ControlNet.from_unet(unet), HINT, **{field: value})
    with pytest.raises(ValueRangeError, match="a block weight is nan"):
        BlockWeights(middle=math.nan)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (1, 1)])
def test_the_narrowest_hints_are_cut_to_something(size: tuple[int, int]) -> None:
    assert fit_hint(torch.rand(1, 3, *size), 64, 64).shape == (1, 3, 64, 64)


def test_empty_lists_of_block_weights_are_refused() -> None:
    with pytest.raises(ValueRangeError, match="no block weight for any level"):
        BlockWeights(levels=())
    unit = ControlUnit(ControlNet(DEMO.controlnet), torch.zeros(1, 3, 64, 64), block_weights=())
    with pytest.raises(ValueRangeError, match="0 block weights came"):
        unit.weights(DEMO.unet, 8)
