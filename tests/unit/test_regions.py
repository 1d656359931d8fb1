"""Prompts for regions beside attention couple written out (`support/regions_reference.py`), on random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_setting import BASES, AttentionSetting, layers
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.errors import UnfitError
from comfyui_controlnet_core.controlnet_core.models.layers import Attention
from comfyui_controlnet_core.controlnet_core.models.regions import RegionPrompts, region_shares
from random_tensors import assert_close, normal
from regions_reference import hooked
from torch import Tensor

TOLERANCE = 1e-4
WEIGHTS = (1.0, 0.5)


def masks() -> Tensor:
    """(1, 2, 64, 128): the left half, and a soft band that overlaps it; no region at the right end."""
    both = torch.zeros(1, 2, 64, 128)
    both[:, 0, :, :64] = 1.0
    both[:, 1, :, 48:104] = torch.linspace(0, 1, 56)
    return both


class Setting(AttentionSetting):
    """A base whose cross attentions matter, and its predictions both ways."""

    def __init__(self, family: str) -> None:
        super().__init__(family, "attn2", ("k", "v", "out"), images=2)
        # Texts may have different lengths.
        lengths, width = (7, 7, 7, 14), self.unet.config.context_dim
        self.texts = [normal(1, length, width, seed=n) for n, length in enumerate(lengths, 6)]
        self.net = RegionPrompts(self.texts[2:], WEIGHTS)

    def unit(self, **settings: Any) -> ControlUnit:
        return ControlUnit(**{"net": self.net, "hint": masks(), "negative": 0.0, **settings})

    def plain(self, text: Tensor) -> Tensor:
        return self.by_unet(self.x, text)

    def by_reference(self, **how: Any) -> Tensor:
        at = torch.nn.functional.avg_pool2d(masks()[0], 8)
        given = {"masks": at, "weights": WEIGHTS, **how}
        with hooked(self.attentions(), layers, [self.texts[0], *self.texts[2:]], **given):
            return self.plain(self.texts[0])


@pytest.fixture(scope="module", params=sorted(BASES))
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


@torch.inference_mode()
def test_the_attention_of_all_blocks_is_that_of_attention_couple(setting: Setting) -> None:
    expected = setting.by_reference()
    assert_close(setting.by_engine(setting.unit()), expected)
    bare = setting.plain(setting.texts[0])
    assert float((bare - expected).abs().max() / expected.abs().max()) > 100 * TOLERANCE


@torch.inference_mode()
def test_only_the_prompts_half_is_changed(setting: Setting) -> None:
    positive, negative = setting.by_reference(), setting.plain(setting.texts[1])
    assert_close(setting.by_engine(setting.unit(), cfg=3.0), negative + 3.0 * (positive - negative))


@torch.inference_mode()
@pytest.mark.parametrize("how", [{"packed": True}, {"graphs": True}, {"chunk": 1}])
def test_accelerations_give_the_same(setting: Setting, how: dict[str, Any]) -> None:
    assert_close(setting.by_engine(setting.unit(), cfg=3.0, **how), setting.by_engine(setting.unit(), cfg=3.0))


@torch.inference_mode()
def test_regions_of_one_picture_of_a_batch(setting: Setting) -> None:
    """Masks for each picture, and a factor for each picture."""
    both = torch.cat([masks(), masks().flip(3)])
    at = torch.nn.functional.avg_pool2d(both, 8)
    for picture in (0, 1):
        expected = setting.by_reference(masks=at[picture], rows=slice(picture, picture + 1))
        factors = (1.0, 0.0) if picture == 0 else (0.0, 1.0)
        assert_close(setting.by_engine(setting.unit(hint=both, items=factors)), expected)


@torch.inference_mode()
def test_a_region_of_all_is_that_text_as_the_prompt(setting: Setting) -> None:
    net = RegionPrompts([setting.texts[1]], [1.0])
    made = setting.by_engine(setting.unit(net=net, hint=torch.ones(1, 1, 64, 128)))
    assert_close(made, setting.plain(setting.texts[1]))
    none = setting.by_engine(setting.unit(net=net, hint=torch.zeros(1, 1, 64, 128)))
    assert_close(none, setting.plain(setting.texts[0]))


@torch.inference_mode()
def test_strength_moves_from_the_prompt_to_the_regions() -> None:
    """0 changes nothing and 1 is the formula; half of it lies between, in the first cross attention."""
    torch.manual_seed(0)
    attention = Attention(16, 8, 2)
    net = RegionPrompts([normal(1, 5, 8)], [1.0])
    query, output = normal(1, 4, 16, seed=1), normal(1, 4, 16, seed=2)
    from comfyui_controlnet_core.controlnet_core.models.control import Place, RowScale
    from comfyui_controlnet_core.controlnet_core.models.regions import RegionInputs

    whole = torch.tensor([[0.0, 1.0]]).expand(1, 4, 2)
    made = {}
    for factor in (0.0, 0.5, 1.0):
        scale = RowScale(slice(None), torch.full((1, 1, 1), factor))
        change = net.attention_change(RegionInputs((whole,), 2), Place("middle", 0, 0), scale)
        made[factor] = change.text_output(output, query, attention.to_text)
    torch.testing.assert_close(made[0.0], output)
    torch.testing.assert_close(made[1.0], attention.to_text(query, net.texts[0]))
    torch.testing.assert_close(made[0.5], (made[0.0] + made[1.0]) / 2)


def test_shares_sum_to_one_and_follow_the_weights() -> None:
    """Where regions overlap, a token is shared by their weights; a weight below 1 leaves the rest to the prompt."""
    both = torch.zeros(1, 2, 2, 2)
    both[:, 0, 0], both[:, 1, :, 0] = 1.0, 1.0
    found = region_shares(both, (3.0, 0.5), (2, 2))[0]
    expected = torch.tensor([[0.0, 6 / 7, 1 / 7], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)


def test_texts_of_another_model_are_an_error(setting: Setting) -> None:
    net = RegionPrompts([torch.zeros(1, 7, 99)], [1.0])
    with pytest.raises(UnfitError, match="99 wide text"):
        setting.by_engine(setting.unit(net=net, hint=torch.ones(1, 1, 64, 128)))
