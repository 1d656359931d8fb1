"""Counts the bytes of tensors that are alive while code runs, the same on every device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """A context in which tensors are counted. live: bytes that were made in it and are alive. peak: the most so far.

    What the allocator keeps and scratch memory inside an operator are not counted.
    """

    def __init__(self, kernels: Mapping[Any, Callable[..., Tensor]] = MappingProxyType({})) -> None:
        """kernels: replaces operators on meta tensors."""
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()
        self.kernels = kernels

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, which takes longer than an estimate."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for old in tree_leaves((args, kwargs)):
            self._forget_older(old)
        kernel = self.kernels.get(func)
        call = kernel if kernel is not None and _on_meta(args, kwargs or {}) else func
        result = call(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self._count(leaf)
        return result

    def _forget_older(self, leaf: Any) -> None:
        """Do not count tensors that were made outside, nor their views."""
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


def _on_meta(args: Any, kwargs: Mapping[str, Any]) -> bool:
    first = next((leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)), None)
    device = kwargs.get("device") if first is None else first.device
    return device is not None and torch.device(device).type == "meta"
