"""CLIP's image transformer, which turns pictures into vectors that some models are guided by.

Sources: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.4;
Dosovitskiy et al. 2021 (Vision Transformer).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VisionConfig
from .layers import Attention
from .text_encoder import ClipLayer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training pictures, per channel."""


class VisionOutput(NamedTuple):
    """What the encoder says about B pictures.

    last, penultimate: states of the last layer and of the one before it, (B, 1 + patches, width). embeds: the picture
    as one vector, (B, projection), or (B, width) for models without a projection.
    """

    last: Tensor
    penultimate: Tensor
    embeds: Tensor


class ClipVisionModel(nn.Module):
    """CLIP's image transformer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patches = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.position_embedding = nn.Embedding((config.side // config.patch) ** 2 + 1, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(ClipLayer(config, config.hidden, Attention) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        self.projection = None if config.projection is None else nn.Linear(config.width, config.projection, bias=False)

    def forward(self, pictures: Tensor) -> VisionOutput:
        """Encode pictures (B, 3, side, side) as `prepare_pictures` makes them."""
        patches = self.patches(pictures).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        x = self.norm_in(torch.cat((first, patches), dim=1) + self.position_embedding.weight)
        before = x
        for layer in self.layers:
            before, x = x, layer(x)
        # The first token stands for the whole picture.
        embeds = self.norm_out(x[:, 0])
        return VisionOutput(x, before, embeds if self.projection is None else self.projection(embeds))


def prepare_pictures(image: Tensor, side: int = 224, *, crop: bool = True) -> Tensor:
    """Pictures (B, H, W, C) in [0, 1] -> (B, 3, side, side), normalised as in CLIP's training.

    crop: keep the proportions and cut the longer side at both ends; else stretch.
    """
    x = image[..., :3].movedim(-1, 1).float()
    height, width = x.shape[-2:]
    if (height, width) != (side, side):
        scale = side / min(height, width)
        size = (round(scale * height), round(scale * width)) if crop else (side, side)
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
        top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
        x = x[..., top : top + side, left : left + side]
    # Rounded to bytes, as the pictures of the training were.
    x = (255.0 * x).clamp(0, 255).round() / 255.0
    channels = [torch.tensor(values, device=x.device).reshape(3, 1, 1) for values in (MEAN, STD)]
    return (x - channels[0]) / channels[1]
