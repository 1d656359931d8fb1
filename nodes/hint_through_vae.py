"""Latents of hints, for nets that read their hint through a VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..controlnet_core.config import SD15


class HintThroughVae:
    """Hint (B, 3, H, W) in [0, 1] -> its latent (B, 4, H/8, W/8), scaled for SD1.x.

    encode: IMAGE -> latents, not scaled.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self.encode = encode

    def __call__(self, hint: Tensor) -> Tensor:
        """Encode. The published nets were trained on hints that the VAE reads in [0, 1], not in [-1, 1]."""
        # An image in [0, 1] is read as 2 image - 1, so this one is read as the hint itself.
        image = (hint.float() + 1.0) / 2.0
        return self.encode(image.movedim(1, -1).cpu()) * SD15.vae.scaling_factor

    def __deepcopy__(self, memo: Any) -> HintThroughVae:
        """Itself: copies of a net share their VAE."""
        return self
