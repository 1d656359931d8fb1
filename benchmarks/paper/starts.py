"""How a net begins: the paper's ControlNet, and the two that its ablation compares it with (section 4, figure 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from comfyui_controlnet_core.controlnet_core.config import ControlNetConfig
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.layers import ConvBlock, Downsample, TextKV
from comfyui_controlnet_core.controlnet_core.models.unet import BlockInputs, BlockStack, Shifts, UNet, encoder_widths
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import HINT_STD
from comfyui_controlnet_core.controlnet_core.training.step import initialise_hint_encoder
from torch import Tensor, nn

Start = Callable[[UNet, ControlNetConfig, int, bool], ControlNet]
"""(base, shape, seed, quick) -> a fresh net. quick: He's initialisation of the hint encoder, as in short trainings."""


def zero(unet: UNet, config: ControlNetConfig, seed: int, quick: bool) -> ControlNet:
    """The paper's: a copy of the base's encoder behind zero convolutions."""
    torch.manual_seed(seed)
    net = ControlNet.from_unet(unet, config)
    if quick:
        initialise_hint_encoder(net, HINT_STD, torch.Generator().manual_seed(seed))
    return net


def gaussian(unet: UNet, config: ControlNetConfig, seed: int, quick: bool) -> ControlNet:
    """The same copy, with Gaussian weights where the zero convolutions have zeros."""
    net = zero(unet, config, seed, quick)
    generator = torch.Generator().manual_seed(seed + 1)
    for conv in (*(zero.conv for zero in net.zeros), net.hint.convs[-1]):
        # LeCun's initialisation: the residual is as large as the feature map that it is made of.
        nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5, generator=generator)
    return net


def lite(unet: UNet, config: ControlNetConfig, seed: int, quick: bool) -> ControlNet:
    """ControlNet-lite: one convolution in place of each copied block; zero convolutions as in the paper's."""
    torch.manual_seed(seed)
    net = ControlNetLite(config)
    if quick:
        initialise_hint_encoder(net, HINT_STD, torch.Generator().manual_seed(seed))
    return net


STARTS: Mapping[str, Start] = {"zero": zero, "gaussian": gaussian, "lite": lite}
NAMES = {"zero": "zero convolution", "gaussian": "Gaussian convolution", "lite": "ControlNet-lite"}


class ControlNetLite(ControlNet):
    """A ControlNet whose blocks are single convolutions: it has no timestep, reads no text, and copies nothing."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        widths = encoder_widths(config.unet)
        blocks = self.encoder.blocks
        for index in range(1, len(blocks)):
            stride = 2 if isinstance(blocks[index], Downsample) else 1
            blocks[index] = SingleConv(widths[index - 1], widths[index], stride)  # type: ignore[index]
        self.middle = LiteMiddle(widths[-1])  # type: ignore[assignment]


class SingleConv(ConvBlock):
    """A convolution behind a SiLU, without which all blocks together would be one linear map."""

    def forward(self, x: Tensor, shift: None = None, kv: TextKV = ()) -> Tensor:
        """(B, width_in, H, W) -> (B, width, ceil(H / stride), ceil(W / stride))."""
        return super().forward(F.silu(x))


class LiteMiddle(BlockStack):
    """The middle block as one convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = SingleConv(width, width, 1)

    def time_shifts(self, emb: Tensor) -> Shifts:
        """No shift."""
        return ()

    def text_kv(self, context: Tensor) -> tuple[TextKV, ...]:
        """No keys and values."""
        return ()

    def forward(self, h: Tensor, projected: BlockInputs) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.conv(h)
