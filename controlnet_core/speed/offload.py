"""Weights that stay on the host and are copied to the device layer by layer, for models that do not fit there.

A `WeightPrefetcher` learns the order in which layers are used (it is the same in every evaluation) and copies the next
weights while the current layer computes, on a stream of its own and from pinned memory. A share of the weights stays on
the device; norms and biases always do. The result is bit-equal.

The host runs far ahead of a GPU, so a weight that the host has released is still in use there. Its memory is given to
a later weight all the same, whose copy waits on the GPU for the earlier layer: only the copies in flight take memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..models.float8 import storage_dtype
from ..models.module_tree import cast_parameters, copy_leaf, rebuild
from .context import WeightPolicy
from .float8_layers import Float8Layer
from .lazy_weight import LazyWeight

ModuleT = TypeVar("ModuleT", bound=nn.Module)
AHEAD = 64 * 2**20
"""Bytes that are copied before they are needed: a few of the largest layers of SDXL (13 to 52 MB in fp16)."""


class WeightCopy(NamedTuple):
    """A weight on the device, or on its way there. arrived: the event that a stream waits for; None if the copy was
    immediate."""

    weight: Tensor
    arrived: torch.cuda.Event | None


class WeightPrefetcher:
    """Copies the weights of layers that are used one after the other, some of them ahead.

    resident: bytes of weights that stay on the device. ahead: bytes that may be copied ahead of their use.
    following: for each layer the one that was used after it last time. in_flight: copies of layers that come later.
    current: the copy of the layer that computes now.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, resident: int = 0, ahead: int = AHEAD) -> None:
        self.device, self.dtype, self.resident_left, self.ahead = device, dtype, resident, ahead
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # All weak: a layer goes when its model does.
        self.following: WeakKeyDictionary[OffloadedLayer, ref[OffloadedLayer]] = WeakKeyDictionary()
        self.in_flight: WeakKeyDictionary[OffloadedLayer, WeightCopy] = WeakKeyDictionary()
        self.last: ref[OffloadedLayer] | None = None
        self.current: WeightCopy | None = None
        self.users: set[torch.cuda.Stream] = set()

    def take(self, layer: OffloadedLayer) -> Tensor:
        """The layer's weight on the device. Starts the copies of those that are likely to be next."""
        last = None if self.last is None else self.last()
        if layer is last and self.current is not None:
            return self._received(self.current)
        self._release_current()
        if last is not None:
            self.following[last] = ref(layer)
        if layer not in self.in_flight:  # another order than last time: what is on its way may never be used
            self.in_flight.clear()
            self.in_flight[layer] = self._send(layer)
        self.last, self.current = ref(layer), self.in_flight.pop(layer)
        for following in self._next(layer):
            self.in_flight[following] = self._send(following)
        return self._received(self.current)

    def _release_current(self) -> None:
        """Let later copies take the memory of the current weight; they wait on the GPU until it has been used."""
        for user in self.users:
            assert self.stream is not None
            self.stream.wait_stream(user)
        self.users.clear()
        self.current = None

    def drop_copies(self) -> None:
        """Drop all copies on the device. The order of use stays known."""
        self._release_current()
        self.in_flight.clear()
        self.last = None

    def _next(self, layer: OffloadedLayer) -> Iterator[OffloadedLayer]:
        """The layers to copy next, in the order of use, as far as there is room."""
        room, following = self.ahead, self._after(layer)
        while following is not None and following is not layer:
            room -= following.host.numel() * self.dtype.itemsize
            if room < 0:
                return
            if following not in self.in_flight:
                yield following
            following = self._after(following)

    def _after(self, layer: OffloadedLayer) -> OffloadedLayer | None:
        following = self.following.get(layer)
        return None if following is None else following()

    def _send(self, layer: OffloadedLayer) -> WeightCopy:
        if self.stream is None:
            return WeightCopy(layer.host.to(self.device, self.dtype), None)
        with torch.cuda.stream(self.stream):
            weight = layer.host.to(self.device, non_blocking=True).to(self.dtype)
            arrived = torch.cuda.Event()
            arrived.record(self.stream)
            return WeightCopy(weight, arrived)

    def _received(self, copy: WeightCopy) -> Tensor:
        if copy.arrived is not None:
            using = torch.cuda.current_stream(self.device)
            using.wait_event(copy.arrived)
            self.users.add(using)
        return copy.weight


class OffloadedLayer(LazyWeight):
    """A layer whose weight is on the host."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, prefetcher: WeightPrefetcher) -> None:
        super().__init__(layer)
        weight = layer.weight.detach()
        if prefetcher.stream is not None:
            weight = weight.to(storage_dtype(weight, prefetcher.dtype))  # not wider than it is used: less to copy
            weight = _pinned(weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight)
        self.host = weight
        self.prefetcher = prefetcher

    @property
    def weight(self) -> Tensor:
        """The weight on the device."""
        return self.prefetcher.take(self)


def _pinned(weight: Tensor) -> Tensor:
    """The weight in pinned memory, which a GPU reads without the CPU; unpinned and slower if none of it is left."""
    try:
        return weight.pin_memory()
    except RuntimeError:
        return weight


def transform(module: ModuleT, policy: WeightPolicy) -> ModuleT:
    """A second tree of which the prefetcher's resident share stays on the device. The module is moved to the host."""
    prefetcher: WeightPrefetcher = policy.prefetcher

    def replace(leaf: nn.Module) -> nn.Module | None:
        if not isinstance(leaf, nn.Linear | nn.Conv2d) or type(leaf) not in (nn.Linear, nn.Conv2d):
            return copy_leaf(leaf)
        stored = storage_dtype(leaf.weight, prefetcher.dtype)
        size = leaf.weight.numel() * stored.itemsize
        if size > prefetcher.resident_left:
            return OffloadedLayer(leaf, prefetcher)
        prefetcher.resident_left -= size
        return copy_leaf(leaf) if stored == prefetcher.dtype else Float8Layer(leaf, prefetcher.device, prefetcher.dtype)

    twin = rebuild(module.cpu(), replace)
    cast_parameters(twin, prefetcher.device, prefetcher.dtype)
    return twin
