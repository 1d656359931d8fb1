"""Line art estimated by networks: realistic and coarse, anime, manga, with the official key names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..image_ops import gray
from .images import infer, to_input, to_maps
from .layers import Residual, named

if TYPE_CHECKING:
    from ..entry import Weights
    from .library import Library


def _residual_block(width: int) -> nn.Sequential:
    """A residual block of two 3x3 convolutions with reflected borders."""
    half, other = ((nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)) for _ in range(2))
    return named(conv_block=Residual(*half, nn.ReLU(), *other))


class LineartGenerator(nn.Sequential):
    """Informative drawings (Chan et al. 2022): (B,3,H,W) RGB 0..1, sides multiples of 4 -> (B,1,H,W), ink is 0.

    The files sk_model.pth and sk_model2.pth.
    """

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), nn.InstanceNorm2d(64), nn.ReLU())
        self.model1 = nn.Sequential(*self._down(64, 128), *self._down(128, 256))
        self.model2 = nn.Sequential(*(_residual_block(256) for _ in range(blocks)))
        self.model3 = nn.Sequential(*self._up(256, 128), *self._up(128, 64))
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(64, 1, 7), nn.Sigmoid())

    @staticmethod
    def _down(width_in: int, width: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(width_in, width, 3, stride=2, padding=1), nn.InstanceNorm2d(width), nn.ReLU()

    @staticmethod
    def _up(width_in: int, width: int) -> tuple[nn.Module, ...]:
        conv = nn.ConvTranspose2d(width_in, width, 3, stride=2, padding=1, output_padding=1)
        return conv, nn.InstanceNorm2d(width), nn.ReLU()


class UnetLevel(nn.Module):
    """One level of the U-Net of pix2pix (Isola et al. 2017), around the deeper levels.

    Modules without weights (activations, instance norms) stay in `model`, since they count in the official numbering.
    """

    def __init__(self, outer: int, inner: int, deeper: nn.Module | None = None, width_in: int | None = None) -> None:
        super().__init__()
        self.outermost = width_in is not None
        down = nn.Conv2d(width_in or outer, inner, 4, stride=2, padding=1)
        up = nn.ConvTranspose2d(inner if deeper is None else inner * 2, outer, 4, stride=2, padding=1)
        if self.outermost:
            layers = [down, deeper, nn.ReLU(), up, nn.Tanh()]
        elif deeper is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, nn.InstanceNorm2d(outer)]
        else:
            before = [nn.LeakyReLU(0.2), down, nn.InstanceNorm2d(inner)]
            layers = [*before, deeper, nn.ReLU(), up, nn.InstanceNorm2d(outer)]
        self.model = nn.Sequential(*(layer for layer in layers if layer is not None))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat((x, self.model(x)), 1)


class AnimeGenerator(nn.Sequential):
    """The anime line art U-Net of eight levels, netG.pth.

    (B,3,H,W) RGB -1..1, sides multiples of 256 -> (B,1,H,W) -1..1, ink is -1.
    """

    def __init__(self) -> None:
        super().__init__()
        level: nn.Module = UnetLevel(512, 512)
        for _ in range(3):
            level = UnetLevel(512, 512, level)
        for outer, inner in ((256, 512), (128, 256), (64, 128)):
            level = UnetLevel(outer, inner, level)
        self.model = UnetLevel(1, 64, level, width_in=3)


def _norm_conv(width_in: int, width: int, *after: nn.Module, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Batch norm, leaky ReLU, convolution, and `after`."""
    conv = nn.Conv2d(width_in, width, kernel, stride=stride, padding=kernel // 2)
    return named(model=nn.Sequential(nn.BatchNorm2d(width_in, eps=1e-3), nn.LeakyReLU(0.2), conv, *after))


class MangaBlock(nn.Module):
    """Two convolutions, and a skip connection that brings its input to their width and size if these differ."""

    def __init__(self, width_in: int, width: int, stride: int = 1, enlarge: bool = False) -> None:
        super().__init__()
        after = [nn.Upsample(scale_factor=2, mode="nearest")] if enlarge else []
        self.conv1 = _norm_conv(width_in, width, *after, stride=stride)
        self.residual = _norm_conv(width, width)
        fit: dict[str, nn.Module] = {}
        if width_in != width or stride != 1:
            fit["model"] = nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride), *after)
        # Named as in the file; without layers it is the identity.
        self.shortcut = named(**fit)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.conv1(x)) + self.shortcut(x)


def _stage(width_in: int, width: int, count: int, scale: str) -> nn.Sequential:
    """Blocks of one width. The last one of an encoder halves the size, the first one of a decoder doubles it."""
    blocks = []
    for index in range(count):
        stride = 2 if scale == "down" and index == count - 1 else 1
        blocks.append(MangaBlock(width if index else width_in, width, stride, scale == "up" and index == 0))
    return named(model=nn.Sequential(*blocks))


# Width, number of blocks, change of size of each stage.
_MANGA_STAGES = (
    (24, 2, "same"), (48, 3, "down"), (96, 5, "down"), (192, 7, "down"), (384, 12, "down"),
    (192, 7, "up"), (96, 5, "up"), (48, 3, "up"), (24, 2, "up"), (16, 2, "same"),
)  # fmt: skip


class MangaLine(nn.Module):
    """Manga line extraction (Li et al. 2017), erika.pth.

    (B,1,H,W) gray 0..255, sides multiples of 16 -> (B,1,H,W) about 0..255, ink is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        width_in = 1
        for number, (width, count, scale) in enumerate(_MANGA_STAGES):
            self.add_module(f"block{number}", _stage(width_in, width, count, scale))
            width_in = width
        self.conv15 = _norm_conv(width_in, 1, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        *stages, conv15 = self.children()
        skips: list[Tensor] = []
        for stage, (_, _, scale) in zip(stages, _MANGA_STAGES, strict=True):
            if scale == "down":
                skips.append(x)
            x = skips.pop() + stage(x) if scale == "up" else stage(x)
        return conv15(x)


def realistic(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB, sides multiples of 4 -> (B,H,W) float32 0..1, lines bright."""
    net = library.net(weights[0], LineartGenerator)
    return 1.0 - to_maps(infer(net, to_input(frames, net) / 255.0))


def anime(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) float32 0..1, lines bright.

    The frames are stretched to multiples of 256, as the official annotator does, and the lines are stretched back.
    """
    import cv2

    # Eight levels halve the picture eight times.
    height, width = frames.shape[1:3]
    size = (-(-width // 256) * 256, -(-height // 256) * 256)
    wide = np.stack([cv2.resize(np.ascontiguousarray(f), size, interpolation=cv2.INTER_CUBIC) for f in frames])
    net = library.net(weights[0], AnimeGenerator)
    ink = to_maps(infer(net, to_input(wide, net) / 127.5 - 1.0))
    lines = np.clip(0.5 - 0.5 * ink, 0.0, 1.0)
    return np.stack([cv2.resize(line, (width, height), interpolation=cv2.INTER_AREA) for line in lines])


def manga(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB, sides multiples of 16 -> (B,H,W) float32 0..1, lines bright."""
    grays = np.stack([gray(frame) for frame in frames])[..., None]
    net = library.net(weights[0], MangaLine)
    return 1.0 - np.clip(to_maps(infer(net, to_input(grays, net))) / 255.0, 0.0, 1.0)
