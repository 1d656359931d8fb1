"""Depth Anything V2 (Yang et al. 2024): a DINOv2 encoder and a DPT head, with the official key names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .images import imagenet, infer, to_maps
from .layers import named, named_residual

if TYPE_CHECKING:
    from ..entry import Weights
    from .library import Library

PATCH = 14
_SIDE = 518
_LONGEST = 8


@dataclass(frozen=True)
class DepthConfig:
    """Sizes of a Depth Anything network.

    width, depth, heads: of the encoder. taps: the blocks whose output the head reads. features, widths: of the head.
    grid: side of the learned position table, in patches.
    """

    width: int
    depth: int
    heads: int
    taps: tuple[int, ...]
    features: int
    widths: tuple[int, ...]
    grid: int = _SIDE // PATCH


SMALL = DepthConfig(384, 12, 6, (2, 5, 8, 11), 64, (48, 96, 192, 384))
BASE = DepthConfig(768, 12, 12, (2, 5, 8, 11), 128, (96, 192, 384, 768))
LARGE = DepthConfig(1024, 24, 16, (4, 11, 17, 23), 256, (256, 512, 1024, 1024))
# 25, 97 and 335 million parameters.
CONFIGS = {"small": SMALL, "base": BASE, "large": LARGE}


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, width * 3)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        # One matrix holds all three, queries first.
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A transformer block with scaled residuals."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = named(fc1=nn.Linear(width, width * 4), gelu=nn.GELU(), fc2=nn.Linear(width * 4, width))
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DinoV2(nn.Module):
    """(B,3,H,W), sides multiples of 14 -> the normalised patch tokens after four of the blocks."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        width = config.width
        self.taps, self.grid = config.taps, config.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, width))
        # Only training uses it, but it is in the file.
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = named(proj=nn.Conv2d(3, width, PATCH, stride=PATCH))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> list[Tensor]:
        rows, columns = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), 1) + self.positions(rows, columns)
        taps = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.taps:
                taps.append(self.norm(tokens)[:, 1:])
        return taps

    def positions(self, rows: int, columns: int) -> Tensor:
        """The learned positions, interpolated to a grid of another size.

        The official code adds 0.1 to the size, to keep rounding from losing a row; without it the values differ.
        """
        if rows == columns == self.grid:
            return self.pos_embed
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:].float()
        grid = grid.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat((first, grid.to(first.dtype)), 1)


def _residual_unit(width: int) -> nn.Sequential:
    """Two 3x3 convolutions around an identity."""
    conv1, conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    return named_residual(relu1=nn.ReLU(), conv1=conv1, relu2=nn.ReLU(), conv2=conv2)


class Fusion(nn.Module):
    """Adds shallower features to the deeper ones and enlarges them to the next size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = _residual_unit(width)
        self.resConfUnit2 = _residual_unit(width)

    def forward(self, deep: Tensor, shallow: Tensor | None, size: tuple[int, int]) -> Tensor:
        h = deep if shallow is None else deep + self.resConfUnit1(shallow)
        h = F.interpolate(self.resConfUnit2(h), size, mode="bilinear", align_corners=True)
        return self.out_conv(h)


class Scratch(nn.Module):
    """The fusion part of the DPT head; "scratch" is its name in the weights file."""

    def __init__(self, widths: tuple[int, ...], features: int) -> None:
        super().__init__()
        for level, width in enumerate(widths, start=1):
            self.add_module(f"layer{level}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            self.add_module(f"refinenet{level}", Fusion(features))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU()
        )


class DPTHead(nn.Module):
    """Dense prediction transformer head (Ranftl et al. 2021)."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        a, b, _, d = config.widths
        self.projects = nn.ModuleList(nn.Conv2d(config.width, width, 1) for width in config.widths)
        enlarge4, enlarge2 = nn.ConvTranspose2d(a, a, 4, stride=4), nn.ConvTranspose2d(b, b, 2, stride=2)
        self.resize_layers = nn.ModuleList([enlarge4, enlarge2, nn.Identity(), nn.Conv2d(d, d, 3, stride=2, padding=1)])
        self.scratch = Scratch(config.widths, config.features)

    def forward(self, taps: list[Tensor], rows: int, columns: int) -> Tensor:
        levels = []
        for tokens, project, resize in zip(taps, self.projects, self.resize_layers, strict=True):
            grid = tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)
            levels.append(self.scratch.get_submodule(f"layer{len(levels) + 1}_rn")(resize(project(grid))))
        sizes = [(2 * levels[0].shape[-2], 2 * levels[0].shape[-1]), *(level.shape[-2:] for level in levels)]
        # From the deepest level up; each is enlarged to the size of the next one.
        h = self.scratch.get_submodule("refinenet4")(levels[3], None, sizes[3])
        for index in (2, 1, 0):
            h = self.scratch.get_submodule(f"refinenet{index + 1}")(h, levels[index], sizes[index])
        h = self.scratch.output_conv1(h)
        h = F.interpolate(h, (rows * PATCH, columns * PATCH), mode="bilinear", align_corners=True)
        return self.scratch.output_conv2(h)


class DepthAnything(nn.Module):
    """(B,3,H,W) normalised as ImageNet's, sides multiples of 14 -> (B,1,H,W) disparity, larger is nearer."""

    def __init__(self, config: DepthConfig = SMALL) -> None:
        super().__init__()
        self.pretrained = DinoV2(config)
        self.depth_head = DPTHead(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.depth_head(self.pretrained(x), x.shape[-2] // PATCH, x.shape[-1] // PATCH)


def inner_size(height: int, width: int, side: int = _SIDE) -> tuple[int, int]:
    """The size at which the network sees the picture: shorter side at least `side`, both multiples of 14.

    Of pictures longer than 8 to 1 the longer side is 8 times `side`: attention takes memory with its square.
    """
    scale = min(side / min(height, width), _LONGEST * side / max(height, width))

    def fitted(length: int) -> int:
        rounded = round(length * scale / PATCH) * PATCH
        return rounded if rounded >= side else math.ceil(length * scale / PATCH) * PATCH

    return fitted(height), fitted(width)


def disparity(
    frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], model: str = "small"
) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) float32 disparity of unknown scale, larger is nearer."""
    chosen = dict(zip(CONFIGS, weights, strict=True))[model]
    net = library.net(chosen, partial(DepthAnything, CONFIGS[model]))
    found = infer(net, network_input(frames, net)).float()
    resize = partial(F.interpolate, size=frames.shape[1:3], mode="bilinear", align_corners=True)
    return to_maps(resize(found))


def network_input(frames: np.ndarray, net: nn.Module) -> Tensor:
    """(B,H,W,3) uint8 RGB -> (B,3,h,w) normalised as ImageNet's, at `inner_size`, on the network's device."""
    import cv2

    rows, columns = inner_size(*frames.shape[1:3])
    # As the official code: enlarged in floats, so that cubic overshoot is not clamped to bytes.
    unit = (frame.astype(np.float32) / np.float32(255.0) for frame in frames)
    large_frames = [cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_CUBIC) for frame in unit]
    parameter = next(net.parameters())
    pictures = torch.from_numpy(np.stack(large_frames)).permute(0, 3, 1, 2).to(parameter.device)
    return imagenet(pictures).to(parameter.dtype)
