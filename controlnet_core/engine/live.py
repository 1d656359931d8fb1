"""Bytes of tensors alive: what a call takes, counted while it runs, the same for every device and engine."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on and still alive. `peak`: the most there were.

    The same count for every engine, whatever the allocator keeps; scratch memory inside an operator is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for old in tree_leaves((args, kwargs)):
            self._forget_older(old)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self._count(leaf)
        return result

    def _forget_older(self, leaf: Any) -> None:
        """What comes in and was not made here is not counted, nor are its views."""
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            storage = leaf.untyped_storage()
            if id(storage) not in self.known:
                self._remember(storage, 0)

    def _count(self, leaf: Any) -> None:
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            storage = leaf.untyped_storage()
            if id(storage) not in self.known:
                self._remember(storage, storage.nbytes())

    def _remember(self, storage: Any, size: int) -> None:
        self.known.add(id(storage))
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, id(storage), size)

    def _release(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size
