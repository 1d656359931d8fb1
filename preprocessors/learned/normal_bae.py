"""NormalBae (Bae et al. 2021) on EfficientNet-B5 (Tan and Le 2019), with the key names of scannet.pt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .images import imagenet, infer, to_input
from .layers import named, named_residual

if TYPE_CHECKING:
    from ..entry import Weights
    from .library import Library

# EfficientNet-B5: kernel, stride, expansion, width, repetitions of each stage.
_STAGES = (
    (3, 1, 1, 24, 3), (3, 2, 6, 40, 5), (5, 2, 6, 64, 5), (3, 2, 6, 128, 7), (5, 1, 6, 176, 7), (5, 2, 6, 304, 9),
    (3, 1, 6, 512, 3),
)  # fmt: skip
_STEM, _HEAD = 48, 2048
# The epsilon of TensorFlow's batch norm.
_EPS = 1e-3


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=_EPS)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, which puts an odd pixel at the right and at the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a weight that is computed from the means of all channels."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(width, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv_expand(F.silu(self.conv_reduce(mean))))


def _block(width_in: int, width: int, kernel: int, stride: int, expansion: int) -> nn.Sequential:
    """Widen (not in the first stage), filter by depth, squeeze and excite, project."""
    hidden = width_in * expansion
    depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden, bias=False)
    squeeze = SqueezeExcite(hidden, round(width_in / 4))
    project = nn.Conv2d(hidden, width, 1, bias=False)
    # The file names the projection and the norms differently where nothing is widened.
    layers: dict[str, nn.Module]
    if expansion == 1:
        layers = {"conv_dw": depthwise, "bn1": _norm(hidden), "act1": nn.SiLU(), "se": squeeze}
        layers |= {"conv_pw": project, "bn2": _norm(width)}
    else:
        layers = {"conv_pw": nn.Conv2d(width_in, hidden, 1, bias=False), "bn1": _norm(hidden), "act1": nn.SiLU()}
        layers |= {"conv_dw": depthwise, "bn2": _norm(hidden), "act2": nn.SiLU(), "se": squeeze}
        layers |= {"conv_pwl": project, "bn3": _norm(width)}
    return (named_residual if stride == 1 and width_in == width else named)(**layers)


class EfficientNetB5(nn.Module):
    """(B,3,H,W) -> features of stages 1, 2, 3 and 5, and of the last convolution (whose norm is not used)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv(3, _STEM, 3, 2, bias=False)
        self.bn1 = _norm(_STEM)
        width_in, stages = _STEM, []
        for kernel, stride, expansion, width, count in _STAGES:
            blocks: list[nn.Module] = []
            for index in range(count):
                blocks.append(_block(width_in, width, kernel, stride if index == 0 else 1, expansion))
                width_in = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(width_in, _HEAD, 1, bias=False)
        # It is in the file but not used: the decoder reads the features before it.
        self.bn2 = _norm(_HEAD)

    def forward(self, x: Tensor) -> list[Tensor]:
        h, features = F.silu(self.bn1(self.conv_stem(x))), []
        for index, stage in enumerate(self.blocks):
            h = stage(h)
            if index in (0, 1, 2, 4):
                features.append(h)
        return [*features, self.conv_head(h)]


class UpSample(nn.Module):
    """Enlarges deep features to the size of shallow ones and merges both by two convolutions."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self._net = nn.Sequential(
            nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(),
        )  # fmt: skip

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        large = F.interpolate(deep, shallow.shape[-2:], mode="bilinear", align_corners=True)
        return self._net(torch.cat((large, shallow), 1))


def _refine(width_in: int) -> nn.Sequential:
    """Four 1x1 convolutions over a list of pixels."""
    layers: list[nn.Module] = []
    for width in (128, 128, 128):
        layers += [nn.Conv1d(width_in, width, 1), nn.ReLU()]
        width_in = width
    return nn.Sequential(*layers, nn.Conv1d(width_in, 4, 1))


def _normalize(output: Tensor) -> Tensor:
    """(B,4,...) -> unit normals, and a positive certainty."""
    normals, kappa = output[:, :3], output[:, 3:]
    length = normals.square().sum(1, keepdim=True).sqrt() + 1e-10
    return torch.cat((normals / length, F.elu(kappa) + 1.01), 1)


class Decoder(nn.Module):
    """Normals at an eighth of the size, refined pixel by pixel at a quarter, at a half and at full size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(_HEAD, _HEAD, 1)
        self.up1 = UpSample(_HEAD + 176, 1024)
        self.up2 = UpSample(1024 + 64, 512)
        self.up3 = UpSample(512 + 40, 256)
        self.up4 = UpSample(256 + 24, 128)
        self.out_conv_res8 = nn.Conv2d(512, 4, 3, padding=1)
        self.out_conv_res4 = _refine(512 + 4)
        self.out_conv_res2 = _refine(256 + 4)
        self.out_conv_res1 = _refine(128 + 4)

    def forward(self, features: list[Tensor]) -> Tensor:
        f2, f4, f8, f16, f32 = features
        h = self.up1(self.conv2(f32), f16)
        eighth = self.up2(h, f8)
        quarter = self.up3(eighth, f4)
        half = self.up4(quarter, f2)
        normals = _normalize(self.out_conv_res8(eighth))
        steps = ((eighth, self.out_conv_res4), (quarter, self.out_conv_res2), (half, self.out_conv_res1))
        for context, refine in steps:
            both = torch.cat((context, normals), 1)
            both = F.interpolate(both, scale_factor=2, mode="bilinear", align_corners=True)
            normals = _normalize(refine(both.flatten(2))).view(len(both), 4, *both.shape[-2:])
        return normals


class NormalBae(nn.Module):
    """(B,3,H,W) normalised as ImageNet's, sides multiples of 32 -> (B,3,H,W) unit normals: left, up, front."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = named(original_model=EfficientNetB5())
        self.decoder = Decoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))[:, :3]


def normals(
    frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], convention: str = "bae"
) -> np.ndarray:
    """(B,H,W,3) uint8 RGB, sides multiples of 32 -> (B,H,W,3) float32 0..1 in `convention`."""
    from ..normals import decode, encode

    net = library.net(weights[0], NormalBae)
    found = infer(net, imagenet(to_input(frames, net) / 255.0)).float().cpu()
    hint = ((found + 1.0) * 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
    return hint if convention == "bae" else encode(decode(hint, "bae"), convention)
