"""The label vector of unCLIP models: a picture's vector, with noise, and how much noise it has.

Source: Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents"; Stable unCLIP 2.1, which
adds noise to the vector so that the model keeps more or less of the picture. SDXL reads such a vector in place of its
pooled text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .layers import timestep_embedding

LEVELS = 1000
MERGED_LEVEL = 0.05
"""Noise of the sum of several pictures, as a share of the levels, for Stable unCLIP."""


class PictureHint(NamedTuple):
    """A picture that guides a model. embeds: (n, width), one row a picture. noise: 0 to 1."""

    embeds: Tensor
    strength: float
    noise: float


def unclip_label(hints: Sequence[PictureHint], seed: int, merged_level: float = MERGED_LEVEL) -> Tensor:
    """Return the label vector (1, 2 width): the noised vector and the embedding of its noise level.

    seed: of the sampling. merged_level: noise of the sum of several pictures.
    """
    generator = torch.Generator().manual_seed((seed - 10) % 2**64)
    labels = []
    for hint in hints:
        for row in hint.embeds.float():
            # Each picture has the same noise.
            generator.manual_seed((seed - 10) % 2**64)
            labels.append(_with_noise(row[None], hint.noise, generator) * hint.strength)
    if len(labels) == 1:
        return labels[0]
    merged = torch.stack(labels).sum(0)
    # Drawn after the noise of the last picture.
    return _with_noise(merged[:, : merged.shape[1] // 2], merged_level, generator)


def _with_noise(vector: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(1, width) -> (1, 2 width). share: of the highest noise level."""
    level = round((LEVELS - 1) * share)
    kept = alpha_bar(level)
    noise = torch.randn(vector.shape, generator=generator)
    noised = kept.sqrt().float() * vector.cpu() + (1.0 - kept).sqrt().float() * noise
    return torch.cat((noised, timestep_embedding(torch.tensor([level]), vector.shape[1])), dim=1)


def alpha_bar(level: int) -> Tensor:
    """The share of the signal after `level` + 1 steps of the cosine schedule (Nichol and Dhariwal 2021, eq. 17)."""

    def cosine(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    # beta is limited near the end, so this is a product and not the cosine itself.
    kept = [1.0 - min(1.0 - cosine((n + 1) / LEVELS) / cosine(n / LEVELS), 0.999) for n in range(level + 1)]
    return torch.tensor(kept, dtype=torch.float64).prod()
