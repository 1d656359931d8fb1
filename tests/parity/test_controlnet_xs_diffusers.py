"""ControlNet-XS beside diffusers' UNetControlNetXSModel: whole predictions on random weights, in both base families."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.diffusers import unet_rules
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO, SD15, SDXL, ModelConfig
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.controlnet_xs import ControlNetXS
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from engine_runs import evaluate, prepare_on
from few import few_of
from random_tensors import normal, randomise, relative_error
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
SCHEDULE = scaled_linear()
TIMESTEP = 321.0
SIZE = (8, 16)
SMALL15 = replace(SD15.unet, widths=(32, 64, 64, 64), num_heads=2, context_dim=16)
SMALLXL = replace(
    SDXL.unet, widths=(32, 64, 64), transformer_depth=(0, 1, 2), middle_depth=2, head_dim=16, context_dim=24,
    label_dim=44,
)  # fmt: skip
POOLED, TIME_IDS = 20, 4
"""SMALLXL's label: a pooled text of 20, and six sizes of 4 each."""


@dataclass(frozen=True)
class Case:
    """widths, heads: of the net. mix: None for a net without timestep embedding of its own. own_groups: whether the
    reference gets the groups of its parts, see `with_own_norms`."""

    base: str
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    mix: float | None = None
    own_groups: bool = False


CASES = {
    "sd15": Case("sd15", (8, 16, 16, 16), (2, 2, 2, 2)),
    "sd15, odd widths, own time": Case("sd15", (4, 8, 12, 12), (1, 1, 2, 3), 1.0, own_groups=True),
    "sdxl": Case("sdxl", (8, 16, 16), (1, 2, 2)),
    "sdxl, own time": Case("sdxl", (4, 8, 32), (1, 1, 2), 0.9, own_groups=True),
}


def base_of(name: str) -> Any:
    """diffusers' UNet of one of the small shapes."""
    unet = SMALL15 if name == "sd15" else SMALLXL
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in unet.transformer_depth]
    more: dict[str, Any] = {"attention_head_dim": unet.num_heads}
    if name == "sdxl":
        more = {
            "attention_head_dim": [unet.heads(width) for width in unet.widths], "use_linear_projection": True,
            "transformer_layers_per_block": [max(1, depth) for depth in unet.transformer_depth],
            "addition_embed_type": "text_time", "addition_time_embed_dim": TIME_IDS,
            "projection_class_embeddings_input_dim": unet.label_dim,
        }  # fmt: skip
    net = diffusers.UNet2DConditionModel(
        block_out_channels=unet.widths, down_block_types=down, cross_attention_dim=unet.context_dim,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)], sample_size=8, **more,
    )  # fmt: skip
    return randomise(net)


def with_own_norms(reference: Any, base: Any, adapter: Any) -> Any:
    """The joint model with the normalisations of the two models that it was made of.

    diffusers takes the groups of a block's first normalisation as the most of its others, which changes nothing in the
    released nets, and an epsilon of 1e-6 instead of 1e-5.
    """
    sources = {"base_": dict(base.named_modules()), "ctrl_": dict(adapter.named_modules())}
    for name, module in reference.named_modules():
        part = next((part for part in sources if f".{part}" in name), "")
        if part and isinstance(module, torch.nn.GroupNorm):
            plain = name.replace(part, "")
            inner = plain.replace("mid_block.midblock", "mid_block") if part == "base_" else plain
            source = sources[part][inner]
            module.num_groups, module.eps = source.num_groups, source.eps
    return reference


class Setting:
    """A base and a net of random weights, in diffusers and here."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, theirs = case, base_of(case.base)
        adapter = diffusers.ControlNetXSAdapter.from_unet(
            theirs, block_out_channels=list(case.widths), num_attention_heads=list(case.heads),
            learn_time_embedding=case.mix is not None, time_embedding_mix=1.0 if case.mix is None else case.mix,
            conditioning_embedding_out_channels=(4, 8, 8, 16),
        )  # fmt: skip
        randomise(adapter).save_pretrained(folder)
        self.path = folder
        self.reference = diffusers.UNetControlNetXSModel.from_unet(theirs, adapter).eval()
        if case.own_groups:
            with_own_norms(self.reference, theirs, adapter)
        self.net, self.identity = load_control(folder)
        assert isinstance(self.net, ControlNetXS)
        self.unet = UNet(SMALL15 if case.base == "sd15" else SMALLXL).eval()
        keymap = KeyMap(unet_rules(self.unet.config))
        self.unet.load_state_dict({str(keymap.to_ours(key)): t for key, t in theirs.state_dict().items()}, strict=True)
        self.config: ModelConfig = replace(DEMO, unet=self.unet.config)
        self.x, self.sigma = normal(2, 4, *SIZE, seed=4) * 6.0, SCHEDULE.sigma(torch.tensor(TIMESTEP))
        self.hint = normal(2, 3, 8 * SIZE[0], 8 * SIZE[1], seed=5).sigmoid()
        self.text = normal(1, 7, self.unet.config.context_dim, seed=6)
        self.pooled, self.ids = normal(1, POOLED, seed=7), torch.tensor([[64.0, 128.0, 0.0, 0.0, 64.0, 128.0]])

    @property
    def label(self) -> Tensor | None:
        if self.case.base == "sd15":
            return None
        encoded = self.reference.base_add_time_proj(self.ids.flatten()).reshape(1, -1)
        return torch.cat([self.pooled, encoded], dim=1)

    def ours(self, *units: ControlUnit) -> Tensor:
        """The prediction of the noise."""
        condition = Condition(self.text, units, label=self.label)
        job = Job(self.unet, self.config, SCHEDULE, [condition], [], tuple(self.x.shape), [float(self.sigma)])
        prepared = prepare_on(job, Backend(Runtime(pack_weights=False)))
        return (self.x - evaluate(prepared, self.x, self.sigma, 1.0)) / self.sigma

    def theirs(self, scale: float = 1.0, control: bool = True) -> Tensor:
        """The same by diffusers."""
        x = scale_input(self.x, self.sigma, 1.0)
        added = {"text_embeds": self.pooled.expand(2, -1), "time_ids": self.ids.expand(2, -1)}
        return self.reference(
            x, torch.full((2,), TIMESTEP), self.text.expand(2, -1, -1), self.hint, scale, added_cond_kwargs=added,
            apply_control=control, return_dict=False,
        )[0]  # fmt: skip


@pytest.mark.parametrize("name", few_of(CASES, "sd15, odd widths, own time", "sdxl"))
@torch.inference_mode()
def test_prediction(name: str, tmp_path: Path) -> None:
    setting = Setting(CASES[name], tmp_path)
    for strength in (1.0, 0.6):
        found = setting.ours(ControlUnit(setting.net, setting.hint, strength=strength))
        worst = relative_error(found, setting.theirs(strength))
        print(f"{name}, strength {strength}: {worst:.1e}")
        assert worst <= TOLERANCE
    plain = setting.ours()
    assert relative_error(plain, setting.theirs(control=False)) <= TOLERANCE
    assert relative_error(found, plain) > 0.01
    assert torch.equal(setting.ours(ControlUnit(setting.net, setting.hint, strength=0.0)), plain)
