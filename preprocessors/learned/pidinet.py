"""PiDiNet, with the key names of table5_pidinet.pth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import named


def _difference_kernel(weight: Tensor, kind: str) -> Tensor:
    """The plain kernel that equals a pixel difference convolution (Su et al. 2021).

    "cd" subtracts the sum of the kernel at its centre, "ad" the kernel turned by an eighth. "rd" is a 5x5 kernel,
    positive on the outer ring and negative on the inner one. "cv" is the kernel itself.
    """
    if kind == "cv":
        return weight
    flat = weight.flatten(2)
    # A difference of pixels is linear, so it is a plain convolution with another kernel.
    if kind == "cd":
        centre = torch.zeros_like(flat)
        centre[:, :, 4] = flat.sum(2)
        return (flat - centre).view_as(weight)
    if kind == "ad":
        return (flat - flat[:, :, [3, 0, 1, 6, 4, 2, 7, 8, 5]]).view_as(weight)
    wide = flat.new_zeros(*flat.shape[:2], 25)
    wide[:, :, [0, 2, 4, 10, 14, 20, 22, 24]] = flat[:, :, 1:]
    wide[:, :, [6, 7, 8, 11, 13, 16, 17, 18]] = -flat[:, :, 1:]
    return wide.view(*weight.shape[:2], 5, 5)


class DifferenceConv(nn.Module):
    """A 3x3 convolution, without bias, on differences of pixels."""

    def __init__(self, kind: str, width_in: int, width: int, groups: int = 1) -> None:
        super().__init__()
        self.kind, self.groups = kind, groups
        self.weight = nn.Parameter(torch.empty(width, width_in // groups, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        kernel = _difference_kernel(self.weight, self.kind)
        return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=self.groups)


class PidiBlock(nn.Module):
    """A separable residual block with a difference convolution."""

    def __init__(self, kind: str, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        if stride > 1:
            self.shortcut = nn.Conv2d(width_in, width, 1)
        self.conv1 = DifferenceConv(kind, width_in, width_in, groups=width_in)
        self.conv2 = nn.Conv2d(width_in, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2) if self.stride > 1 else x
        y = self.conv2(F.relu(self.conv1(x)))
        return y + (self.shortcut(x) if self.stride > 1 else x)


class DilationModule(nn.Module):
    """CDCM: the sum of four dilated 3x3 convolutions."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1)
        for number, dilation in enumerate((5, 7, 9, 11), start=1):
            conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
            setattr(self, f"conv2_{number}", conv)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(x))
        a, b, c, d = (getattr(self, f"conv2_{number}")(x) for number in (1, 2, 3, 4))
        return a + b + c + d


class SpatialAttention(nn.Module):
    """CSAM: one weight per pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4, 1)
        self.conv2 = nn.Conv2d(4, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv2(self.conv1(F.relu(x))))


class PiDiNet(nn.Module):
    """Pixel difference network (Su et al. 2021), configuration carv4, width 60.

    (B,3,H,W) in 0..1, channels in the order BGR -> (B,1,H,W) edges 0..1.
    """

    def __init__(self, width: int = 60, inner: int = 24) -> None:
        super().__init__()
        widths = (width, width * 2, width * 4, width * 4)
        # carv4: central, angular, radial and plain convolution in turn, 16 in all.
        kinds = iter(("cd", "ad", "rd", "cv") * 4)
        self.init_block = DifferenceConv(next(kinds), 3, width)
        for level, (before, now) in enumerate(zip((width, *widths), widths, strict=False), start=1):
            for number in range(1, 4 if level == 1 else 5):
                # The first level has no first block, since `init_block` stands in for it.
                first = number == 1 and level > 1
                block = PidiBlock(next(kinds), before if first else now, now, stride=2 if first else 1)
                setattr(self, f"block{level}_{number}", block)
        self.dilations = nn.ModuleList(DilationModule(w, inner) for w in widths)
        self.attentions = nn.ModuleList(SpatialAttention(inner) for _ in widths)
        self.conv_reduces = nn.ModuleList(named(conv=nn.Conv2d(inner, 1, 1)) for _ in widths)
        self.classifier = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, h, edges = x.shape[-2:], self.init_block(x), []
        for level in range(4):
            for number in range(1, 4 if level == 0 else 5):
                h = getattr(self, f"block{level + 1}_{number}")(h)
            edge = self.conv_reduces[level](self.attentions[level](self.dilations[level](h)))
            edges.append(F.interpolate(edge, size, mode="bilinear", align_corners=False))
        return torch.sigmoid(self.classifier(torch.cat(edges, 1)))
