"""TEED, with the key names of 7_model.pth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import named


def smish(x: Tensor) -> Tensor:
    """x tanh(ln(1 + sigmoid(x))), Wang et al. 2022."""
    return x * torch.tanh(torch.log1p(torch.sigmoid(x)))


class Smish(nn.Module):
    """`smish` as a module, which counts in the numbering of a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return smish(x)


def _double(width_in: int, width: int, stride: int = 1, last: nn.Module | None = None) -> nn.Sequential:
    """Two 3x3 convolutions with an activation between them, and `last`."""
    first = nn.Conv2d(width_in, width, 3, stride=stride, padding=1)
    second = nn.Conv2d(width, width, 3, padding=1)
    return named(conv1=first, act1=Smish(), conv2=second, act2=last or nn.Identity())


def _single(width_in: int, width: int, stride: int) -> nn.Sequential:
    """One 1x1 convolution."""
    return named(conv=nn.Conv2d(width_in, width, 1, stride=stride))


class TeedDense(nn.Module):
    """The dense layer. Its first convolution enlarges the picture by two pixels, its second one removes them again."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=2)
        self.conv2 = nn.Conv2d(width, width, 3)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return 0.5 * (self.conv2(smish(self.conv1(smish(x)))) + side)


def _up(width: int, steps: int) -> nn.Sequential:
    """Enlargement by 2 ** steps to one map."""
    layers: list[nn.Module] = []
    # With a kernel of 2 ** steps, this padding makes each step double the size exactly.
    kernel, pad = 2**steps, 2 ** (steps - 1) - 1
    for step in range(steps):
        out = 1 if step == steps - 1 else 16
        layers += [nn.Conv2d(width, out, 1), Smish(), nn.ConvTranspose2d(out, out, kernel, stride=2, padding=pad)]
        width = out
    return named(features=nn.Sequential(*layers))


class TeedFusion(nn.Module):
    """Three maps to one."""

    def __init__(self) -> None:
        super().__init__()
        self.DWconv1 = nn.Conv2d(3, 24, 3, padding=1, groups=3)
        self.DWconv2 = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def forward(self, x: Tensor) -> Tensor:
        first = self.DWconv1(smish(x))
        second = self.DWconv2(smish(first))
        return smish((first + second).sum(1, keepdim=True))


class TEED(nn.Module):
    """Tiny and efficient edge detection (Soria et al. 2023).

    (B,3,H,W) RGB 0..255, sides multiples of 4 -> (B,1,H,W) edges 0..1: the sigmoid of the mean of four maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block_1 = _double(3, 16, stride=2, last=Smish())
        self.block_2 = _double(16, 32)
        self.dblock_3 = nn.ModuleDict({"denselayer1": TeedDense(32, 48)})
        self.side_1 = _single(16, 32, 2)
        self.pre_dense_3 = _single(32, 48, 1)
        self.up_block_1 = _up(16, 1)
        self.up_block_2 = _up(32, 1)
        self.up_block_3 = _up(48, 2)
        self.block_cat = TeedFusion()

    def forward(self, x: Tensor) -> Tensor:
        first = self.block_1(x)
        second = self.block_2(first)
        down = F.max_pool2d(second, 3, stride=2, padding=1)
        third = self.dblock_3["denselayer1"](down + self.side_1(first), self.pre_dense_3(down))
        maps = torch.cat([self.up_block_1(first), self.up_block_2(second), self.up_block_3(third)], 1)
        return torch.sigmoid(torch.cat([maps, self.block_cat(maps)], 1).float().mean(1, keepdim=True))
