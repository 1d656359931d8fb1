"""Latents of examples, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class LatentCache:
    """Encodes an example when it is first used, and keeps the latent in half precision.

    encode: row -> latent (4, h, w). count: number of examples. limit: bytes; if the latents of all examples need more,
    none is kept.

    Each example is encoded alone. Convolutions round differently for another batch size, and a training that was
    stopped meets its examples in other batches: encoding those that are new together would change its last bits.
    """

    def __init__(self, encode: Callable[[int], Tensor], count: int, limit: int = 2 * 1024**3) -> None:
        self._encode, self._count, self._limit = encode, count, limit
        self._kept: dict[int, Tensor] = {}

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """(B, 4, h, w) float32 on the CPU."""
        # dict.fromkeys removes repetitions: a batch can draw the same example twice.
        fresh = {row: self._encode(row).cpu() for row in dict.fromkeys(rows) if row not in self._kept}
        for row, latent in fresh.items():
            if self._count * latent.numel() * 2 <= self._limit:
                self._kept[row] = latent.half()
        return torch.stack([(self._kept[row] if row in self._kept else fresh[row]).float() for row in rows])
