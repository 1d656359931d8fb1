"""Counts the bytes of tensors that are alive while code runs, the same on every device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes


class TensorMemory(TorchDispatchMode):
    """A context in which tensors are counted. live: bytes that were made in it and are alive. peak: the most so far.

    small_peak: the most bytes so far in tensors of less than `small` bytes. What the allocator keeps and scratch memory
    inside an operator are not counted.
    """

    def __init__(self, kernels: Mapping[Any, Callable[..., Tensor]] = MappingProxyType({}), small: int = 0) -> None:
        """kernels: replaces operators on meta tensors."""
        super().__init__()
        self.live = self.peak = 0
        self.small, self.small_live, self.small_peak = small, 0, 0
        self.known: dict[int, weakref.ref[Any]] = {}
        self.kernels = kernels

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, which takes longer than an estimate."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [*_tensors(args), *_tensors(kwargs.values())]
        for tensor in given:
            self._remember(tensor, made_here=False)
        kernel = self.kernels.get(func)
        device = given[0].device if given else torch.device(kwargs.get("device") or "cpu")
        result = (kernel if kernel is not None and device.type == "meta" else func)(*args, **kwargs)
        for tensor in _tensors((result,)):
            self._remember(tensor, made_here=True)
        return result

    def _remember(self, tensor: Tensor, made_here: bool) -> None:
        """Count a tensor's storage once. One that was made outside is known with size 0, so are its views."""
        if tensor.layout != torch.strided:
            return
        # A view shares the storage of its base, so that storages are counted and not tensors.
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self.known:
            size = storage.nbytes() if made_here else 0
            self.live += size
            self.peak = max(self.peak, self.live)
            if size < self.small:
                self.small_live += size
                self.small_peak = max(self.small_peak, self.small_live)
            # The memory is free when the storage dies, which may be long after the tensor that was returned.
            self.known[key] = weakref.ref(storage, lambda _: self._release(key, size))

    def _release(self, key: int, size: int) -> None:
        self.known.pop(key, None)
        self.live -= size
        if size < self.small:
            self.small_live -= size


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operator: alone, or in a list."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


@contextmanager
def uncounted() -> Iterator[None]:
    """Context in which no `TensorMemory` counts what is made."""
    with _disable_current_modes():
        yield
