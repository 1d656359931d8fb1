"""M-LSD (Gu et al. 2021), the large model on MobileNetV2, with the key names of mlsd_large_512_fp32.pth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .images import infer, to_input
from .layers import Residual, named

if TYPE_CHECKING:
    from ..entry import Weights
    from .library import Library

# MobileNetV2: expansion, width, repetitions, stride of each stage.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
_TAPS = (1, 3, 6, 10, 13)
_CANDIDATES = 200


class ConvUnit(nn.Sequential):
    """Convolution, batch norm, ReLU6."""

    def __init__(self, width_in: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        padding = 0 if stride == 2 else (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(width_in, width, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
        )
        # TensorFlow's "same" padding for stride 2: one pixel at the right and at the bottom only.
        self.shifted = stride == 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.shifted else x)


def _inverted_residual(width_in: int, width: int, stride: int, expansion: int) -> nn.Sequential:
    """MobileNetV2's block: widen, filter by depth, project."""
    hidden = width_in * expansion
    widen = [ConvUnit(width_in, hidden, kernel=1)] if expansion != 1 else []
    filtered = ConvUnit(hidden, hidden, stride=stride, groups=hidden)
    sequence = Residual if stride == 1 and width_in == width else nn.Sequential
    return named(conv=sequence(*widen, filtered, nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)))


class Backbone(nn.Module):
    """The first five stages of MobileNetV2; the results at five depths are returned."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvUnit(4, 32, stride=2)]
        width_in = 32
        for expansion, width, count, stride in _STAGES:
            for index in range(count):
                layers.append(_inverted_residual(width_in, width, stride if index == 0 else 1, expansion))
                width_in = width
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS:
                taps.append(x)
        return taps


def _unit(width_in: int, width: int, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(width_in, width, kernel, padding=padding, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


class Merge(nn.Module):
    """Concatenates a shallow and a deep feature map at the size of the shallow one."""

    def __init__(self, shallow: int, deep: int, enlarge: bool = True) -> None:
        super().__init__()
        self.conv1 = _unit(deep, 64, 1)
        self.conv2 = _unit(shallow, 64, 1)
        self.enlarge = enlarge

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        b = self.conv1(b)
        if self.enlarge:
            b = F.interpolate(b, scale_factor=2.0, mode="bilinear", align_corners=True)
        return torch.cat((self.conv2(a), b), 1)


def _refine() -> nn.Sequential:
    """A residual 3x3 convolution, then one that halves the width."""
    return named(conv1=Residual(*_unit(128, 128)), conv2=_unit(128, 64))


def _head() -> nn.Sequential:
    """The last convolutions, one of them dilated by 5."""
    return named(conv1=_unit(64, 64, dilation=5), conv2=_unit(64, 64), conv3=nn.Conv2d(64, 16, 1))


class MLSD(nn.Module):
    """(B,4,H,W) in -1..1, the fourth channel constant, sides multiples of 16 -> (B,9,H/2,W/2).

    Channel 0 is the logit of a segment's centre, 1 to 4 the displacements x, y to its start and end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.block15 = Merge(64, 96, enlarge=False)
        self.block16 = _refine()
        self.block17 = Merge(32, 64)
        self.block18 = _refine()
        self.block19 = Merge(24, 64)
        self.block20 = _refine()
        self.block21 = Merge(16, 64)
        self.block22 = _refine()
        self.block23 = _head()

    def forward(self, x: Tensor) -> Tensor:
        c1, c2, c3, c4, c5 = self.backbone(x)
        x = self.block16(self.block15(c4, c5))
        x = self.block18(self.block17(c3, x))
        x = self.block20(self.block19(c2, x))
        x = self.block22(self.block21(c1, x))
        return self.block23(x)[:, 7:]


def decode(output: Tensor, score: float, length: float) -> list[np.ndarray]:
    """(B,9,h,w) -> for each picture its segments (N,4) x0, y0, x1, y1, in pixels of the input.

    A segment counts if its centre is a maximum of 3x3 and one of the `_CANDIDATES` best ones, its probability is above
    `score`, and it is longer than `length` pixels of the output.
    """
    # The displacements are relative to the centre; the map has half the size of the input, hence 2.0 below.
    heat = torch.sigmoid(output[:, 0])
    peak = F.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0]
    # Keep the maxima: the centre of a segment is spread over several pixels.
    heat = torch.where(peak == heat, heat, torch.zeros_like(heat)).flatten(1)
    best, places = heat.topk(min(_CANDIDATES, heat.shape[1]), dim=1)
    width = output.shape[-1]
    segments = []
    for picture, scores, found in zip(output, best, places, strict=True):
        rows, columns = found // width, found % width
        ends = picture[1:5, rows, columns].T
        lengths = torch.linalg.vector_norm(ends[:, :2] - ends[:, 2:], dim=1)
        centres = torch.stack((columns, rows), dim=1).to(ends.dtype).repeat(1, 2)
        kept = (scores > score) & (lengths > length)
        segments.append(2.0 * (centres + ends)[kept].float().cpu().numpy())
    return segments


def lines(
    frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], score: float = 0.1, length: float = 0.1
) -> np.ndarray:
    """(B,H,W,3) uint8 RGB, sides multiples of 16 -> (B,H,W) uint8, segments one pixel wide."""
    import cv2

    net = library.net(weights[0], MLSD)
    pictures = to_input(frames, net) / 127.5 - 1.0
    # The official code appends a channel of ones before it scales the bytes.
    constant = torch.full_like(pictures[:, :1], 1.0 / 127.5 - 1.0)
    output = infer(net, torch.cat((pictures, constant), 1)).float()
    canvases = np.zeros(frames.shape[:3], np.uint8)
    for canvas, segments in zip(canvases, decode(output, score, length), strict=True):
        for x0, y0, x1, y1 in segments.astype(int).tolist():
            cv2.line(canvas, (x0, y0), (x1, y1), 255, 1)
    return canvases
