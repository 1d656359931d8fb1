"""T2I-Adapter (Mou et al. 2023): a small network that turns a hint into one feature map per level.

It sees neither x nor t, so its output is a constant of the run. Unlike a ControlNet's residuals, its
features are added inside the base's encoder, where the next block reads them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AdapterConfig, UNetConfig
from ..errors import ShapeError, UnfitError
from .control import BindContext, ControlModel, FixedInputs, ResidualProjection, identity
from .layers import Downsample
from .unet import encoder_widths

XL_HALVED = 2
"""The one level that the kind for SDXL halves: its unshuffle by 16 has done one halving already."""


class AdapterRes(nn.Module):
    """Convolution, ReLU, convolution, with a residual."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, width, H, W)."""
        return x + self.conv2(F.relu(self.conv1(x)))


class AverageDown(nn.Module):
    """Halves by averaging 2 x 2; an odd side gets a row of zeros on each end first, as in the host."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""
        return F.avg_pool2d(x, 2, stride=2, padding=(x.shape[-2] % 2, x.shape[-1] % 2))


class AdapterLevel(nn.Module):
    """Halving, widening, residual blocks; a light level works at a quarter of the width and widens at its end."""

    def __init__(self, config: AdapterConfig, width_in: int, width: int, halve: bool) -> None:
        super().__init__()
        inner = width // 4 if config.light else width
        self.down = None
        if halve:
            self.down = Downsample(width_in, width_in, stride=2) if config.conv_down else AverageDown()
        kernel = 1 if config.light else config.kernel
        widens = config.light or width_in != inner
        self.widen = nn.Conv2d(width_in, inner, kernel, padding=kernel // 2) if widens else None
        res_kernel = 3 if config.light else config.kernel
        self.res = nn.ModuleList(AdapterRes(inner, res_kernel) for _ in range(config.res_blocks))
        self.out = nn.Conv2d(inner, width, 1) if config.light else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, width, H', W')."""
        for layer in (self.down, self.widen, *self.res, self.out):
            if layer is not None:
                x = layer(x)
        return x


AdapterInputs: TypeAlias = tuple["Tensor | None", ...]
"""For each target the feature map, (1 or rows, C, h, w), or None if nothing is added."""


class Adapter(ControlModel):
    """All levels on the unshuffled hint: each cell of the first one reads unshuffle x unshuffle pixels."""

    entry = "encoder"

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.hint_channels * config.unshuffle**2
        first = channels if config.light else config.widths[0]
        # The light kind has no first convolution of its own: its levels begin with a 1x1.
        self.conv_in = None if config.light else nn.Conv2d(channels, first, 3, padding=1)
        self.levels = nn.ModuleList(
            AdapterLevel(config, width_in, width, level == XL_HALVED if config.xl else level > 0)
            for level, (width_in, width) in enumerate(pairwise((first, *config.widths)))
        )

    @property
    def hint_channels(self) -> int:
        """Channels of the hint that the caller gives: at least RGB. A net for gray hints converts it itself."""
        return max(3, self.config.hint_channels)

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        return f"a base of widths {tuple(dict.fromkeys(self.config.widths))} ({'SDXL' if self.config.xl else 'SD1.x'})"

    def fits(self, config: UNetConfig) -> bool:
        """Whether the features are as wide as the base's blocks at their places."""
        return adapter_places(self.config, config) is not None

    def bind(self, context: BindContext) -> FixedInputs:
        """Compute the features, once. Raises UnfitError on a base without a place for them."""
        places = adapter_places(self.config, context.base)
        if places is None:
            raise UnfitError(
                f"the T2I-Adapter was made for {self.made_for}, this base has widths {context.base.widths}: "
                "load a T2I-Adapter made for this base"
            )
        maps: list[Tensor | None] = [None] * (len(encoder_widths(context.base)) + 1)
        for place, feature in zip(places, self(self.divisible(context.hint)), strict=True):
            maps[place] = context.spread(feature)
        return FixedInputs(tuple(maps))

    def features(self, x: Tensor, inputs: AdapterInputs) -> Iterator[Tensor | None]:
        """The maps that were computed from the hint: the same at every x and sigma."""
        return iter(inputs)

    def projections(self, inputs: AdapterInputs) -> Sequence[ResidualProjection]:
        """None: the features are the residuals."""
        return [identity] * len(inputs)

    def divisible(self, hint: Tensor) -> Tensor:
        """The hint at the next multiple of `unshuffle` on each side, which a latent of odd size does not give."""
        size = [-(-side // self.config.unshuffle) * self.config.unshuffle for side in hint.shape[-2:]]
        return hint if list(hint.shape[-2:]) == size else F.interpolate(hint, size=size, mode="nearest-exact")

    def forward(self, hint: Tensor) -> tuple[Tensor, ...]:
        """(B, hint_channels, H, W) in [0, 1] -> one (B, widths[i], h_i, w_i) per level.

        H and W are multiples of `unshuffle`. A net that reads gray takes the mean of the channels.
        Raises ShapeError for another number of channels.
        """
        wanted = self.config.hint_channels
        # The released adapters for sketches and edges read gray pictures; ComfyUI takes the mean as well.
        if wanted == 1 and hint.shape[1] > 1:
            hint = hint.mean(dim=1, keepdim=True)
        if hint.ndim != 4 or hint.shape[1] != wanted:
            raise ShapeError(f"the hint is {tuple(hint.shape)}, this T2I-Adapter reads (B, {wanted}, H, W)")
        h = F.pixel_unshuffle(hint, self.config.unshuffle)
        if self.conv_in is not None:
            h = self.conv_in(h)
        features = []
        for level in self.levels:
            h = level(h)
            features.append(h)
        return tuple(features)


def adapter_places(config: AdapterConfig, unet: UNetConfig) -> tuple[int, ...] | None:
    """The encoder block behind which each feature map is added; the number of blocks stands for the middle.

    The last residual block of each level (2, 5, 8 and 11 in SD1.5). In SDXL, whose features begin at
    half the latent's size: the first halving, the last residual blocks of levels 1 and 2, the middle.
    None where the base's blocks are not as wide as the features.
    """
    step = unet.res_blocks + 1
    widths = encoder_widths(unet)
    ends = [level * step + unet.res_blocks for level in range(len(unet.widths))]
    places = (step, *ends[1:], len(widths)) if config.xl else tuple(ends)
    found = tuple([*widths, unet.widths[-1]][place] for place in places)
    return places if found == config.widths else None
