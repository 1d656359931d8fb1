"""HED, with the key names of ControlNetHED.pth."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HedBlock(nn.Module):
    """Some 3x3 convolutions at one resolution, and a projection of the last to one edge map."""

    def __init__(self, width_in: int, width: int, layers: int) -> None:
        super().__init__()
        widths = [width_in] + [width] * layers
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.projection = nn.Conv2d(width, 1, 1)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            h = F.relu(conv(h))
        return h, self.projection(h)


class HED(nn.Module):
    """Holistically-nested edge detection (Xie and Tu 2015), as retrained for ControlNet.

    (B,3,H,W) RGB 0..255 -> (B,1,H,W) edges 0..1: the sigmoid of the mean of five maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        # VGG-16: input width, width, number of convolutions.
        for number, sizes in enumerate(
            ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3)), start=1
        ):
            self.add_module(f"block{number}", HedBlock(*sizes))

    def forward(self, x: Tensor) -> Tensor:
        h, edges = x - self.norm, []
        for name, block in self.named_children():
            h, edge = block(h if name == "block1" else F.max_pool2d(h, 2))
            # In float32 also on a GPU: the mean of five maps decides about weak edges.
            edges.append(F.interpolate(edge.float(), x.shape[-2:], mode="bilinear", align_corners=False))
        return torch.sigmoid(torch.stack(edges).mean(0))
