"""What a training reads of its examples again and again, encoded once: latents, and the text's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .disk_cache import DiskCache

MOST = 2 * 1024**3
"""Bytes that are kept: the latents of 65,000 pictures of 512 pixels, or the text of 18,000 captions."""


class LatentCache:
    """Encodes an example when it is first used, and keeps the result in half precision.

    encode: key (a row, a caption) -> tensor. limit: bytes; what is over it is encoded again each time, or read from
    `disk`. name: key -> what the tensor is made of, for `disk`; "" for what is not kept there.

    Each key is encoded alone. Networks round differently for another batch size, and a training that was stopped meets
    its examples in other batches: encoding those that are new together would change its last bits. For the same reason
    what is not kept is rounded too.
    """

    def __init__(
        self,
        encode: Callable[[Any], Tensor],
        limit: int = MOST,
        disk: DiskCache | None = None,
        name: Callable[[Any], str] = str,
    ) -> None:
        self._encode, self._room, self._disk, self._name = encode, limit, disk, name
        self._kept: dict[Hashable, Tensor] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether nothing has to be encoded for a key."""
        if key in self._kept or self._disk is None:
            return key in self._kept
        name = self._name(key)
        return bool(name) and self._disk.get(name) is not None

    def __call__(self, keys: Sequence[Hashable]) -> Tensor:
        """(B, ...) float32 on the CPU."""
        fresh: dict[Hashable, Tensor] = {}
        for key in keys:
            if key in self._kept or key in fresh:  # a batch can draw the same example twice
                continue
            fresh[key] = encoded = self._find(key)
            if encoded.nbytes <= self._room:
                self._kept[key] = encoded
                self._room -= encoded.nbytes
        return torch.stack([(self._kept[key] if key in self._kept else fresh[key]).float() for key in keys])

    def _find(self, key: Hashable) -> Tensor:
        """float16 on the CPU, from the disk or encoded."""
        name = self._name(key) if self._disk is not None else ""
        if self._disk is None or not name:
            return self._encode(key).cpu().half()
        found = self._disk.get(name)
        if found is None:
            found = self._encode(key).cpu().half()
            self._disk.put(name, found)
        return found
