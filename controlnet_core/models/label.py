"""SDXL's label vector: the pooled text, and sizes of the picture as sinusoids.

Source: Podell et al. 2023, "SDXL: Improving Latent Diffusion Models", section 2.2 (size and crop conditioning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from ..errors import ShapeError
from .layers import timestep_embedding

SINUSOID = 256
"""Width of the embedding of one number."""


@dataclass(frozen=True)
class PictureSize:
    """The sizes that condition SDXL, in pixels.

    height, width: of the original before it was scaled for training; small values give a blurred picture.
    crop_top, crop_left: how much was cut off. target_height, target_width: of the picture to make.
    """

    height: float
    width: float
    crop_top: float
    crop_left: float
    target_height: float
    target_width: float


@dataclass(frozen=True)
class ScoredSize:
    """The sizes that condition SDXL's refiner, in pixels, and how much people like the picture (0 to 10)."""

    height: float
    width: float
    crop_top: float
    crop_left: float
    aesthetic_score: float


SIZES: Mapping[int, type[PictureSize] | type[ScoredSize]] = {6: PictureSize, 5: ScoredSize}
"""The contents of a label vector, by how many numbers it has beside the pooled text."""


def size_kind(pooled_width: int, label_dim: int) -> type[PictureSize] | type[ScoredSize]:
    """Find the numbers in a label vector of this width. Raises ShapeError for a width of no known model."""
    # No entry of a config says what the vector holds. Its width does: 2816 = 1280 + 6 * 256.
    numbers, rest = divmod(label_dim - pooled_width, SINUSOID)
    if rest or numbers not in SIZES:
        raise ShapeError(
            f"the model reads a label vector {label_dim} wide; with a pooled text of {pooled_width} it would be "
            f"{' or '.join(f'{pooled_width + n * SINUSOID}' for n in SIZES)}: use the checkpoint's own text encoder"
        )
    return SIZES[numbers]


def label_vector(pooled: Tensor, size: PictureSize | ScoredSize) -> Tensor:
    """Pooled text (B, P) and sizes -> label vector (B, P + 256 per number), float32."""
    # The order of the numbers is that of the fields.
    numbers: Sequence[float] = astuple(size)
    sinusoids = timestep_embedding(torch.tensor(numbers, device=pooled.device), SINUSOID).flatten()
    return torch.cat([pooled.float(), sinusoids.expand(pooled.shape[0], -1)], dim=1)
