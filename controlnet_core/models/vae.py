"""The KL autoencoder between pictures and latents (Rombach et al. 2022)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import VAEConfig
from ..errors import ShapeError
from .layers import GROUPS, ResBlock, Upsample


class VAEResBlock(ResBlock):
    """Residual block without a timestep. (B, width_in, H, W) -> (B, width, H, W)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(width_in, width, embed_dim=0, eps=1e-6)


class PixelAttention(nn.Module):
    """Single-head attention over all positions of the smallest feature map, (B, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(layer(h), "b c h w -> b 1 (h w) c") for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))


def make_middle(width: int) -> nn.Sequential:
    """Residual block, attention, residual block, on (B, width, H, W)."""
    layers = {"res1": VAEResBlock(width, width), "attn": PixelAttention(width), "res2": VAEResBlock(width, width)}
    return nn.Sequential(OrderedDict(layers))


class VAEDown(nn.Module):
    """Strided convolution: (B, width, H, W) -> (B, width, H/2, W/2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # The released models pad on the right and at the bottom only.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class VAELevel(nn.Module):
    """The residual blocks of one resolution, and the change to the next. (B, width_in, H, W) -> (B, width, H', W')."""

    def __init__(self, width_in: int, width: int, count: int, *, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.res = nn.Sequential(*(VAEResBlock(width_in if j == 0 else width, width) for j in range(count)))
        self.down = VAEDown(width) if down else None
        self.up = Upsample(width) if up else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.res(x)
        x = x if self.down is None else self.down(x)
        return x if self.up is None else self.up(x)


class VAEEncoder(nn.Module):
    """Picture -> mean and log-variance of the latent. `levels` run from the highest resolution to the lowest."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.image_channels * config.patch**2, widths[0], 3, padding=1)
        last = len(widths) - 1
        pairs = pairwise((widths[0], *widths))
        levels = (VAELevel(*pair, config.res_blocks, down=i < last) for i, pair in enumerate(pairs))
        self.levels = nn.Sequential(*levels)
        self.middle = make_middle(widths[-1])
        self.norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 8, H/8, W/8)."""
        h = self.conv_in(F.pixel_unshuffle(image, self.patch) if self.patch > 1 else image)
        return self.conv_out(F.silu(self.norm_out(self.middle(self.levels(h)))))


class VAEDecoder(nn.Module):
    """Latent -> picture. `levels` run from the lowest resolution to the highest."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = tuple(reversed(config.widths))
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = make_middle(widths[0])
        last = len(widths) - 1
        pairs = pairwise((widths[0], *widths))
        levels = (VAELevel(*pair, config.res_blocks + 1, up=i < last) for i, pair in enumerate(pairs))
        self.levels = nn.Sequential(*levels)
        self.norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.image_channels * config.patch**2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, 8h, 8w)."""
        h = self.levels(self.middle(self.conv_in(latent)))
        image = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(image, self.patch) if self.patch > 1 else image


class AutoencoderKL(nn.Module):
    """Encoder and decoder, each with a 1x1 convolution at the latent."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = VAEEncoder(config)
        self.decoder = VAEDecoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and log-variance, each (B, 4, H/8, W/8), unscaled.

        Raises ShapeError if H or W is not a multiple of the autoencoder's factor (8 in Stable Diffusion).
        """
        height, width = image.shape[-2:]
        factor = self.config.factor
        if height % factor or width % factor:
            raise ShapeError(
                f"the picture is {width}x{height}, the autoencoder needs multiples of {factor}: crop or resize it to "
                f"{width // factor * factor}x{height // factor * factor}"
            )
        mean, logvar = self.quant_conv(self.encoder(image)).tensor_split(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)  # the released code's bounds: exp(logvar) stays finite

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled latent (B, 4, H/8, W/8).

        The mean of the posterior; with a generator, a sample from it. Raises ShapeError as `moments` does.
        """
        mean, logvar = self.moments(image)
        if generator is not None:
            # drawn on the generator's device, so that a seed gives the same latent on every machine
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
            mean = mean + noise * (0.5 * logvar).exp()
        return scale_latent(mean, self.config)

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent (B, 4, h, w) -> picture (B, 3, 8h, 8w), about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(unscale_latent(latent, self.config)))

    def decode_tiled(self, latent: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
        """Decode in overlapping tiles, for pictures too large to decode at once. tile, overlap: in latent cells.

        The group normalisations see one tile at a time, so the result differs a little from `decode`.
        """
        return blend_tiles(latent, self.decode, tile, overlap, self.config.factor, self.config.image_channels)


def scale_latent(latent: Tensor, config: VAEConfig) -> Tensor:
    """An autoencoder's latent (B, C, h, w) -> the latent that a UNet reads, of about unit variance."""
    if not config.latent_mean:
        return latent * config.scaling_factor
    mean, std = _per_channel(latent, config)
    return (latent - mean) * config.scaling_factor / std


def unscale_latent(latent: Tensor, config: VAEConfig) -> Tensor:
    """The inverse of `scale_latent`."""
    if not config.latent_mean:
        return latent / config.scaling_factor
    mean, std = _per_channel(latent, config)
    return latent * std / config.scaling_factor + mean


def _per_channel(latent: Tensor, config: VAEConfig) -> tuple[Tensor, Tensor]:
    mean, std = (latent.new_tensor(values).reshape(1, -1, 1, 1) for values in (config.latent_mean, config.latent_std))
    return mean, std


def blend_tiles(
    x: Tensor, run: Callable[[Tensor], Tensor], tile: int, overlap: int, scale: int, channels: int
) -> Tensor:
    """Run a function on overlapping tiles of (B, C, h, w) and blend its outputs by linear ramps.

    tile, overlap: in cells of x. scale, channels: of the outputs. Returns (B, channels, scale * h, scale * w).
    Raises ShapeError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ShapeError(f"overlap is {overlap} and tile {tile}: choose an overlap from 0 to {tile - 1}")
    batch, _, height, width = x.shape
    if height <= tile and width <= tile:
        return run(x)
    # Each output cell is the mean of the tiles that cover it, weighted by their ramps.
    total = x.new_zeros((batch, channels, height * scale, width * scale))
    weights = x.new_zeros((1, 1, height * scale, width * scale))
    for top in _tile_starts(height, tile, overlap):
        for left in _tile_starts(width, tile, overlap):
            out = run(x[:, :, top : top + tile, left : left + tile])
            rows = _ramp(out.shape[2], overlap * scale, top > 0, top + tile < height).to(out)
            columns = _ramp(out.shape[3], overlap * scale, left > 0, left + tile < width).to(out)
            window = rows[:, None] * columns[None, :]
            y, x0 = top * scale, left * scale
            area = (..., slice(y, y + out.shape[2]), slice(x0, x0 + out.shape[3]))
            total[area] += out * window
            weights[area] += window
    return total / weights


def _tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    # The last tile ends at the border, so that no tile is smaller than the others.
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramp(length: int, overlap: int, fade_in: bool, fade_out: bool) -> Tensor:
    ramp = torch.ones(length)
    slope = (torch.arange(overlap) + 1) / (overlap + 1)  # never 0, so that every weight can be divided by
    if fade_in and overlap:
        ramp[:overlap] *= slope
    if fade_out and overlap:
        ramp[-overlap:] *= slope.flip(0)
    return ramp
