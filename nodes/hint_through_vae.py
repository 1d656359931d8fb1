"""Latents of hints, for nets that read their hint through a VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..controlnet_core.config import SD15


class HintThroughVae:
    """Hint (B, 3, H, W) in [0, 1] -> its latent (B, 4, H/8, W/8), scaled for SD1.x.

    encode: IMAGE -> latents, not scaled. as_picture: whether the VAE reads the hint as it reads pictures, in [-1, 1];
    CtrLoRA's nets were trained on hints that it read in [0, 1].
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], *, as_picture: bool = False) -> None:
        self.encode, self.as_picture = encode, as_picture

    def __call__(self, hint: Tensor) -> Tensor:
        """Hint (B, 3, H, W) in [0, 1] -> scaled latent (B, 4, H/8, W/8)."""
        # An image in [0, 1] is read as 2 image - 1, so the second form is read as the hint itself.
        image = hint.float() if self.as_picture else (hint.float() + 1.0) / 2.0
        return self.encode(image.movedim(1, -1).cpu()) * SD15.vae.scaling_factor

    def __deepcopy__(self, memo: Any) -> HintThroughVae:
        """Return itself, because copies of a net share their VAE."""
        return self
