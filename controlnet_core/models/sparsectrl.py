"""SparseCtrl (Guo et al. 2023): control of a video by hints for some of its frames.

A ControlNet for AnimateDiff. It reads no noisy latent (zeros instead), and its hint has one channel more: 1 in frames
that have a hint, 0 in the others. Behind each residual block, frames attend to each other at every pixel, so that the
net carries what the hints show to the frames without one:

    n = norm of each frame,    h = project in (n),    h += attention over frames (norm(h) + position)
    h += feed forward (norm(h)),    x += project out (h)

The images of the batch are the frames. In `scribble` files the hint is a picture, in `rgb` files its latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ControlNetConfig, SparseCtrlConfig
from ..errors import ShapeError, UnfitError
from .control import BindContext, CopyControl, ResidualProjection
from .controlnet import HintEncoder
from .layers import GROUPS, Attention, FeedForward, ResTransformer
from .projections import Projections
from .unet import TimeEmbedding, UNetEncoder, UNetInputs, UNetMiddle, embed_time_and_label, encoder_widths
from .zero_conv import ZeroConv

MOTION_HEADS = 8
MOST_FRAMES = 32
"""The nets were trained with positions up to 32."""
RGB = 3


class MotionFeedForward(FeedForward):
    """`FeedForward` in a motion block. A class of its own, because packing fuses `FeedForward` with its block."""


class MotionBlock(nn.Module):
    """Attention over frames and feed-forward network, each with its residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, width, MOTION_HEADS)
        self.norm2 = nn.LayerNorm(width)
        self.ff = MotionFeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, frames, width) -> the same."""
        seen = self.norm1(x) + positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        x = x + self.attn(seen, self.attn.kv(seen))
        return x + self.ff(self.norm2(x))


class MotionModule(nn.Module):
    """Lets the frames of a feature map attend to each other, pixel by pixel.

    joint_norm: take mean and variance of the first norm over all frames, as diffusers does; the authors' code, in which
    the nets were trained, takes those of each frame.
    """

    joint_norm = False

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList(MotionBlock(width) for _ in range(depth))
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B * frames, C, h, w), the frames of a video after each other -> the same."""
        count, width, height, columns = x.shape
        if self.joint_norm:
            videos = x.unflatten(0, (-1, frames)).transpose(1, 2)
            normed = self.norm(videos).transpose(1, 2).flatten(0, 1)
        else:
            normed = self.norm(x)
        # (videos, frames, C, h, w) -> (videos * h * w, frames, C)
        tokens = normed.unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2).reshape(-1, frames, width)
        h = self.proj_in(tokens)
        for block in self.blocks:
            h = block(h)
        h = self.proj_out(h).reshape(count // frames, height, columns, frames, width)
        return x + h.permute(0, 3, 4, 1, 2).reshape(x.shape)


def positions(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """(frames, width) float32: sines and cosines in turn (Vaswani et al. 2017)."""
    at = torch.arange(frames, dtype=torch.float32, device=device)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(at * rates), torch.cos(at * rates)], dim=-1).flatten(1)


class SparseCtrl(CopyControl):
    """A SparseCtrl net. encode_hint: (B, 3, 8h, 8w) in [0, 1] -> latents (B, 4, h, w), scaled; for `rgb` files."""

    config: SparseCtrlConfig
    compared = ("widths", "res_blocks", "context_dim")
    reads_all_images = True
    encode_hint: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: SparseCtrlConfig) -> None:
        super().__init__()
        self.config = config
        unet = config.unet
        self.time_embed = TimeEmbedding(unet)
        self.encoder = UNetEncoder(unet)
        self.middle = UNetMiddle(unet)
        self.hint: nn.Module = (
            HintEncoder(ControlNetConfig(unet, config.channels, config.hint_widths))
            if config.hint_widths
            else nn.Conv2d(config.channels, unet.widths[0], 3, padding=1)
        )
        widths = [width for width in unet.widths for _ in range(unet.res_blocks)]
        self.motion = nn.ModuleList(MotionModule(width, config.motion_depth) for width in widths)
        self.zero_convs = nn.ModuleList(ZeroConv(width) for width in encoder_widths(unet))
        self.zero_conv_middle = ZeroConv(unet.widths[-1])

    @property
    def hint_channels(self) -> int:
        """A picture, and whether its frame has a hint."""
        return RGB + 1

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        return f"{super().made_for} (AnimateDiff)"

    def bind(self, context: BindContext) -> BoundSparseCtrl:
        """Embed the hints; project text and timesteps. Raises UnfitError or ShapeError for frames that do not fit."""
        frames = count_frames(context.image_of_row)
        hint = context.spread(self.embed_hint(context.hint)).expand(context.rows, -1, -1, -1)
        if tuple(hint.shape[-2:]) != context.size:
            raise ShapeError(f"the hint has {tuple(hint.shape[-2:])} cells, the latent {context.size}: resize the hint")
        return BoundSparseCtrl(hint, context.project(self), frames)

    def embed_hint(self, hint: Tensor) -> Tensor:
        """(B, 4, 8h, 8w) in [0, 1], the last channel 1 where a frame has a hint -> (B, widths[0], h, w)."""
        mask = (hint[:, RGB:] > 0.5).to(hint)
        picture = hint[:, :RGB] * mask
        if self.config.hint_widths:
            return self.hint(torch.cat([picture, mask], dim=1))
        if self.encode_hint is None:
            raise UnfitError("this SparseCtrl reads its hints through a VAE: load it with Load SparseCtrl and link one")
        latent = self.encode_hint(picture).to(hint)
        small = F.interpolate(mask, size=tuple(latent.shape[-2:]), mode="nearest")
        return self.hint(torch.cat([latent * small, small], dim=1))

    def features(self, x: Tensor, inputs: SparseCtrlInputs) -> Iterator[Tensor]:
        """What each zero convolution reads. The values of x are not read."""
        # Trained with zeros in place of the latent: the hint alone says what is in a frame.
        h, motion = torch.zeros_like(x), iter(self.motion)
        for index, (block, shift, kv) in enumerate(zip(self.encoder.blocks, *inputs.blocks.encoder[:2], strict=True)):
            h = block(h, shift, kv)
            if index == 0:
                h = h + inputs.hint
            elif isinstance(block, ResTransformer):
                h = next(motion)(h, inputs.frames)
            yield h
        yield self.middle(h, inputs.blocks.middle)

    def projections(self, inputs: SparseCtrlInputs) -> Sequence[ResidualProjection]:
        """The zero convolutions."""
        return [*self.zero_convs, self.zero_conv_middle]  # type: ignore[list-item]

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Timesteps (B,) -> (B, embed_dim), with this net's embedding weights."""
        return embed_time_and_label(self.time_embed, None, t, y)


class SparseCtrlInputs(NamedTuple):
    """What the net reads at one noise level. hint: embedded, (rows, widths[0], h, w). frames: in each video."""

    hint: Tensor
    blocks: UNetInputs
    frames: int


@dataclass(frozen=True, eq=False)
class BoundSparseCtrl:
    """A net's hints and projections in one run; fields as in `SparseCtrlInputs`."""

    hint: Tensor
    projections: Projections
    frames: int

    def inputs_at(self, sigma: float) -> SparseCtrlInputs:
        """Hints, text and timestep for this noise level."""
        return SparseCtrlInputs(self.hint, self.projections.at(sigma), self.frames)


def count_frames(image_of_row: Sequence[int]) -> int:
    """The number of frames, where each condition has all of them in order.

    Raises UnfitError for rows in another order, and for more frames than the nets know.
    """
    first = image_of_row[0]
    frames = next((row for row, image in enumerate(image_of_row) if row and image == first), len(image_of_row))
    if tuple(image_of_row) != tuple(image_of_row[:frames]) * (len(image_of_row) // frames):
        raise UnfitError("SparseCtrl needs all frames of the video, in order, in each condition of the batch")
    if frames > MOST_FRAMES:
        raise UnfitError(
            f"SparseCtrl knows {MOST_FRAMES} frames, the batch has {frames}: sample fewer, or use context windows"
        )
    return frames
