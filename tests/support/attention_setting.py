"""Small bases of random weights and predictions of the engine, for tests of control inside the attentions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO, SD15, SDXL
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.layers import Attention
from comfyui_controlnet_core.controlnet_core.models.unet import Residuals, UNet
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from engine_runs import denoiser, evaluate, prepare_on
from random_tensors import normal
from torch import Tensor, nn

SCHEDULE = scaled_linear()
TIMESTEP = 400.0
SIGMA = SCHEDULE.sigma(torch.tensor(TIMESTEP))
SIZE = (8, 16)
"""Height and width of the latent in cells."""
BASES = {
    "sd15": replace(SD15.unet, widths=(32, 64, 64, 64), num_heads=2, context_dim=16),
    "sdxl": replace(
        SDXL.unet, widths=(32, 64, 64), transformer_depth=(0, 2, 3), middle_depth=3, head_dim=16, context_dim=24,
        label_dim=12,
    ),
}  # fmt: skip


def layers(attention: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module, int]:
    """Layers for queries, keys, values and output of one of our attentions, and its number of heads."""
    assert isinstance(attention, Attention)
    return attention.q, attention.k, attention.v, attention.out, attention.heads


class AttentionSetting:
    """A base of random weights with a latent x, and predictions of its noise. texts: the prompt, then the negative one.

    kind: "attn1" (self attention) or "attn2" (cross attention). enlarged: layers whose weights are three times as large
    as usual, so that these attentions matter. images: rows of x.
    """

    def __init__(self, family: str, kind: str, enlarged: Sequence[str], images: int) -> None:
        torch.manual_seed(0)
        self.family, self.kind, self.unet = family, kind, UNet(BASES[family]).eval()
        for attention in self.attentions():
            for name in enlarged:
                getattr(attention, name).weight.data.mul_(3.0)
        self.config = replace(DEMO, unet=self.unet.config)
        self.x = normal(images, 4, *SIZE, seed=4) * 6.0
        label_dim = self.unet.config.label_dim
        self.label = None if label_dim is None else normal(1, label_dim, seed=8)
        self.texts: list[Tensor] = []

    def attentions(self) -> list[Any]:
        """All attentions of the kind, in the order in which they run."""
        return [module for name, module in self.unet.named_modules() if name.endswith(f".{self.kind}")]

    def by_engine(
        self, *units: ControlUnit, cfg: float = 1.0, batch: int = 0, packed: bool = False, **how: Any
    ) -> Tensor:
        """The engine's prediction of the noise. batch: repeat x so often. how: options of `engine_runs.denoiser`."""
        x = self.x.expand(batch, -1, -1, -1) if batch else self.x
        halves = [[Condition(text, units, label=self.label)] for text in self.texts[:2]]
        negative = halves[1] if cfg != 1.0 else []
        job = Job(self.unet, self.config, SCHEDULE, halves[0], negative, tuple(x.shape), [float(SIGMA)])
        backend = Backend(Runtime(pack_weights=packed))
        if how:
            clean = denoiser(job, backend, cfg, **how)(x, SIGMA)
        else:
            clean = evaluate(prepare_on(job, backend), x, SIGMA, cfg)
        return (x - clean) / SIGMA

    def by_unet(self, x: Tensor, text: Tensor, residuals: Residuals | None = None) -> Tensor:
        """The UNet alone on a latent at `SIGMA`, not scaled, for the texts (1 or rows, tokens, width)."""
        rows = max(len(x), len(text))
        label = None if self.label is None else self.label.expand(rows, -1)
        latents = scale_input(x, SIGMA).expand(rows, -1, -1, -1)
        return self.unet(latents, torch.full((rows,), TIMESTEP), text.expand(rows, -1, -1), label, residuals)
