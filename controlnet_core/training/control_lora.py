"""Trains a Control-LoRA: products of two thin matrices beside the locked weights of the base.

Source: Stability AI, 2023, Control-LoRA (W = W_base + up down, the rest whole), after Hu et al. 2021, "LoRA", section
4.1: down starts at random and up at zero, so that the net starts as the copy of the base that a ControlNet starts as.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import DerivedConfig
from ..errors import ValueRangeError
from ..models.controlnet import COPIED, ControlNet
from ..models.derived import ControlLora
from ..models.unet import UNet

MOST_RANK = 4096


class LowRankLinear(nn.Linear):
    """x (W + up down)^T + b. up: (out, rank). down: (rank, in)."""

    up: nn.Parameter
    down: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        # Two thin products instead of W + up down, which would be kept for the backward pass in W's size.
        return super().forward(input) + F.linear(F.linear(input, self.down), self.up)


class LowRankConv2d(nn.Conv2d):
    """The convolution with W + up down. up: (out, rank). down: (rank, in, k, k)."""

    up: nn.Parameter
    down: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        thin = F.conv2d(input, self.down, None, self.stride, self.padding, self.dilation, self.groups)
        return super().forward(input) + F.conv2d(thin, self.up[..., None, None])


_LOW_RANK: dict[type[nn.Module], type[LowRankLinear | LowRankConv2d]] = {
    nn.Linear: LowRankLinear,
    nn.Conv2d: LowRankConv2d,
}


def make_low_rank(net: ControlNet, unet: UNet, rank: int, generator: torch.Generator) -> None:
    """Let a fresh ControlNet train `rank` columns for each large weight it copied, in place.

    The copied weights become the base's own tensors, locked, so they need no second memory. Norms, biases, hint encoder
    and zero convolutions stay whole and are trained. The rank of a small weight is at most that of the weight itself.
    Raises ValueRangeError for a rank outside 1..4096.
    """
    if not 1 <= rank <= MOST_RANK:
        raise ValueRangeError(f"rank is {rank}: choose a number from 1 to {MOST_RANK}, for example 64")
    base = dict(unet.named_modules())
    net.requires_grad_(True)
    for name, module in net.named_modules():
        low_rank = _LOW_RANK.get(type(module))
        if low_rank is None or name.split(".")[0] not in COPIED:
            continue
        layer = cast("LowRankLinear | LowRankConv2d", module)
        # The class is changed instead of the module replaced: names, places and hooks stay as they are.
        layer.__class__ = low_rank  # type: ignore[assignment]
        layer.weight = cast("nn.Linear", base[name]).weight
        out, *into = layer.weight.shape
        columns = min(rank, out, layer.weight[0].numel())
        # Uniform as torch initialises a layer of these inputs, with a seed that does not depend on the device.
        bound = layer.weight[0].numel() ** -0.5
        down = (torch.rand(columns, *into, generator=generator) * 2.0 - 1.0) * bound
        layer.down = nn.Parameter(down.to(layer.weight))
        layer.up = nn.Parameter(layer.weight.new_zeros(out, columns))


@torch.no_grad()
def start_from(net: ControlNet, source: ControlNet) -> None:
    """Let a net from `make_low_rank` start as close to a trained ControlNet of the same base as its ranks allow.

    up down becomes the best approximation of what training changed in a weight, by its singular values (Eckart and
    Young 1936); what is whole is copied.
    """
    modules, trained = dict(net.named_modules()), dict(source.named_parameters())
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and name in trained:
            parameter.copy_(trained[name])
    for name, module in modules.items():
        if not isinstance(module, (LowRankLinear, LowRankConv2d)):
            continue
        change = (trained[f"{name}.weight"] - module.weight).flatten(1)
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        # The square root on both sides: up and down then learn at the same pace.
        root, rank = values.sqrt(), module.up.shape[1]
        module.up.copy_(left[:, :rank] * root[:rank])
        module.down.copy_((root[:rank, None] * right[:rank]).view_as(module.down))


def to_control_lora(net: ControlNet) -> ControlLora:
    """The trained weights of a net from `make_low_rank`, as its file holds them. They are not copied."""
    config = net.config
    held = DerivedConfig(config.unet.context_dim, config.hint_channels, config.hint_widths)
    return ControlLora(held, {name: p.detach() for name, p in net.named_parameters() if p.requires_grad})
