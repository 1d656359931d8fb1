"""Reference beside its published description on hooks (`support/look_reference.py`), on random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_setting import BASES, SIGMA, SIZE, AttentionSetting, layers
from comfyui_controlnet_core.controlnet_core.config import SD15, SDXL
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.errors import UnfitError
from comfyui_controlnet_core.controlnet_core.models.control import Place, check_base
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.reference import MODES, SEED, Reference, adain_places
from comfyui_controlnet_core.controlnet_core.models.unet import Residuals
from comfyui_controlnet_core.controlnet_core.run_options import Shortcuts
from look_reference import hooked
from random_tensors import assert_close, normal
from torch import Tensor, nn

TOLERANCE = 1e-4
ADAIN = {
    "sd15": (["encoder.10", "encoder.11", "middle"], range(4)),
    "sdxl": (["encoder.8", "middle"], range(3)),
}
"""The published blocks at a control weight of 1: of encoder and middle, and the numbers of those of the decoder."""


class Setting(AttentionSetting):
    """A base whose self attentions matter, a reference latent, and predictions both ways."""

    def __init__(self, family: str) -> None:
        super().__init__(family, "attn1", ("v", "out"), images=1)
        self.clean = normal(1, 4, *SIZE, seed=5)
        self.texts = [normal(1, 7, self.unet.config.context_dim, seed=seed) for seed in (6, 7)]

    def blocks(self) -> list[nn.Module]:
        """Those that AdaIN changes, with their upsampling where they have one."""
        names, numbers = ADAIN[self.family]
        parts = [self.unet.get_submodule(name.replace("encoder.", "encoder.blocks.")) for name in names]
        decoder = [self.unet.decoder.blocks[number] for number in numbers]
        return [*parts, *(block if block.up is None else block.up for block in decoder)]

    def unit(self, mode: str, **settings: Any) -> ControlUnit:
        hint = self.clean / self.config.vae.scaling_factor
        return ControlUnit(**{"net": Reference(mode), "hint": hint, **settings})

    def run(self, x: Tensor, residuals: Residuals | None = None) -> Tensor:
        """The UNet on a latent, for both texts in one batch."""
        return self.by_unet(x, torch.cat(self.texts), residuals)

    def by_reference(self, mode: str, fidelity: float = 0.0, residuals: Residuals | None = None) -> Tensor:
        noise = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(SEED))
        noised = self.clean + noise * SIGMA
        attentions = self.attentions() if "attention" in mode else []
        blocks = self.blocks() if "adain" in mode else []
        with hooked(lambda: self.run(noised), attentions, layers, blocks, fidelity, slice(1, 2)):
            return self.run(self.x, residuals)


def guided(rows: Tensor, cfg: float) -> Tensor:
    return rows[1:] + cfg * (rows[:1] - rows[1:])


@pytest.fixture(scope="module", params=sorted(BASES))
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


@torch.inference_mode()
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_that_of_the_description(setting: Setting, mode: str) -> None:
    expected, bare = setting.by_reference(mode), setting.run(setting.x)
    made = setting.by_engine(setting.unit(mode), cfg=3.0)
    assert_close(made, guided(expected, 3.0))
    error = float((made - guided(expected, 3.0)).abs().max() / made.abs().max())
    print(f"{setting.family} {mode}: {error:.1e}")
    assert float((bare - expected).abs().max() / expected.abs().max()) > 100 * TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("fidelity", [0.3, 1.0])
def test_style_fidelity_is_a_factor_of_the_negative_half(setting: Setting, fidelity: float) -> None:
    expected = setting.by_reference("attention+adain", fidelity)
    made = setting.by_engine(setting.unit("attention+adain", negative=1.0 - fidelity), cfg=3.0)
    assert_close(made, guided(expected, 3.0))


@torch.inference_mode()
@pytest.mark.parametrize(
    "how", [{"packed": True}, {"graphs": True}, {"chunk": 1, "batch": 2}, {"shortcuts": Shortcuts(deep_every=2)}]
)
def test_accelerations_give_the_same(setting: Setting, how: dict[str, Any]) -> None:
    unit, batch = setting.unit("attention+adain"), {"batch": how.get("batch", 1)}
    assert_close(setting.by_engine(unit, cfg=3.0, **how), setting.by_engine(unit, cfg=3.0, **batch))


@torch.inference_mode()
def test_with_a_controlnet(setting: Setting) -> None:
    """The net's residuals come on top, and do not change what is recorded of the reference."""
    torch.manual_seed(3)
    net = ControlNet.from_unet(setting.unet, replace(setting.config.controlnet, unet=setting.unet.config)).eval()
    for zero in net.zeros:
        zero.conv.weight.normal_(std=0.1)
    picture = normal(1, 3, 64, 128, seed=9).sigmoid()
    rows = (setting.x / (SIGMA**2 + 1) ** 0.5).expand(2, -1, -1, -1)
    label = None if setting.label is None else setting.label.expand(2, -1)
    time = torch.full((2,), 400.0)
    residuals = net(rows, time, torch.cat(setting.texts), picture.expand(2, -1, -1, -1), label)
    expected = setting.by_reference("attention", residuals=residuals)
    made = setting.by_engine(setting.unit("attention"), ControlUnit(net, picture), cfg=3.0)
    assert_close(made, guided(expected, 3.0))


@torch.inference_mode()
def test_strength_mask_and_factors(setting: Setting) -> None:
    """A mask of nothing, a strength of 0 for one picture, and halves of a strength between nothing and all."""
    bare = setting.run(setting.x)[:1]
    black = torch.zeros(1, 64, 128)
    assert_close(setting.by_engine(setting.unit("attention+adain", mask=black)), bare)
    both = setting.by_engine(setting.unit("attention", items=(1.0, 0.0)), batch=2)
    assert_close(both[1:], bare)
    assert_close(both[:1], setting.by_engine(setting.unit("attention")))
    weak = setting.by_engine(setting.unit("attention", strength=0.01))
    assert 0.0 < float((weak - bare).abs().max()) < 0.1 * float((both[:1] - bare).abs().max())


@torch.inference_mode()
def test_a_reference_of_another_size(setting: Setting) -> None:
    """Tokens of any number can be attended to, so the reference is not resized."""
    other = normal(1, 4, 16, 8, seed=5)
    made = setting.by_engine(setting.unit("attention+adain", hint=other))
    assert made.shape == setting.x.shape and bool(made.isfinite().all())


def test_the_blocks_of_adain_are_the_published_ones() -> None:
    def numbers(base: Any, stack: str) -> list[int]:
        return [place.block for place in adain_places(base) if place.stack == stack]

    assert (numbers(SD15.unet, "encoder"), numbers(SD15.unet, "decoder")) == ([10, 11], [0, 1, 2, 3])
    assert (numbers(SDXL.unet, "encoder"), numbers(SDXL.unet, "decoder")) == ([8], [0, 1, 2])
    assert Place("middle", 0, 0) in adain_places(SD15.unet)


def test_an_inpainting_model_is_an_error(setting: Setting) -> None:
    net = Reference("attention")
    assert not net.fits(replace(SD15.unet, in_channels=9))
    with pytest.raises(UnfitError, match="reads a latent and nothing beside it"):
        check_base(net, "the reference", replace(SD15.unet, in_channels=9), "this model")
