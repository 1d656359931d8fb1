"""Weights that stay on the host and come to the device layer by layer, for models that do not fit there.

A `Conveyor` learns in which order layers are used (it is the same at every evaluation) and brings the next ones
while the present one computes, on a stream of its own and from pinned memory. Only layers beyond what may be
resident are brought so; norms and biases always are. Nothing is computed differently: the result is bit-equal.

The host is far ahead of a GPU, so what it lets go of is still in use there. Its memory is taken by a later weight all
the same, whose copy waits, on the GPU, for the layer before: so no more is held than is under way, and nobody waits
for anybody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..models.narrow import held
from .at_use import AtUse
from .narrow import CastAtUse
from .rebuild import cast_parameters, copy_leaf, rebuild

ModuleT = TypeVar("ModuleT", bound=nn.Module)
AHEAD = 64 * 2**20
"""Bytes on the device that are brought before they are needed: a few of the largest layers of SDXL (13 to 52 MB in
fp16)."""


class Parcel(NamedTuple):
    """A weight on its way. arrived: what a stream has to wait for; None where copies are done at once."""

    weight: Tensor
    arrived: torch.cuda.Event | None


class Conveyor:
    """Brings weights of layers that are used one after the other. ahead: bytes on the device that may be under way."""

    def __init__(self, device: torch.device, dtype: torch.dtype, ahead: int = AHEAD) -> None:
        self.device, self.dtype, self.ahead = device, dtype, ahead
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Weak, all of them: a layer goes when its model does.
        self.following: WeakKeyDictionary[Streamed, ref[Streamed]] = WeakKeyDictionary()
        self.coming: WeakKeyDictionary[Streamed, Parcel] = WeakKeyDictionary()
        self.last: ref[Streamed] | None = None
        self.at_hand: Parcel | None = None
        self.users: set[torch.cuda.Stream] = set()

    def take(self, layer: Streamed) -> Tensor:
        """The layer's weight on the device; those that are likely next are sent for."""
        last = None if self.last is None else self.last()
        if layer is last and self.at_hand is not None:
            return self._received(self.at_hand)
        self._let_go()
        if last is not None:
            self.following[last] = ref(layer)
        if layer not in self.coming:  # another order than last time: what is under way may never be asked for
            self.coming.clear()
            self.coming[layer] = self._send(layer)
        self.last, self.at_hand = ref(layer), self.coming.pop(layer)
        for following in self._next(layer):
            self.coming[following] = self._send(following)
        return self._received(self.at_hand)

    def _let_go(self) -> None:
        """Copies from now on wait for what the weight at hand is used for, and may come in its place."""
        for user in self.users:
            assert self.stream is not None
            self.stream.wait_stream(user)
        self.users.clear()
        self.at_hand = None

    def rest(self) -> None:
        """Let go of all that is on the device; the order of use stays known."""
        self._let_go()
        self.coming.clear()
        self.last = None

    def _next(self, layer: Streamed) -> Iterator[Streamed]:
        """Layers to send for, in the order of use, as far as there is room."""
        room, following = self.ahead, self._after(layer)
        while following is not None and following is not layer:
            room -= following.host.numel() * self.dtype.itemsize
            if room < 0:
                return
            if following not in self.coming:
                yield following
            following = self._after(following)

    def _after(self, layer: Streamed) -> Streamed | None:
        following = self.following.get(layer)
        return None if following is None else following()

    def _send(self, layer: Streamed) -> Parcel:
        if self.stream is None:
            return Parcel(layer.host.to(self.device, self.dtype), None)
        with torch.cuda.stream(self.stream):
            weight = layer.host.to(self.device, non_blocking=True).to(self.dtype)
            arrived = torch.cuda.Event()
            arrived.record(self.stream)
            return Parcel(weight, arrived)

    def _received(self, parcel: Parcel) -> Tensor:
        if parcel.arrived is not None:
            using = torch.cuda.current_stream(self.device)
            using.wait_event(parcel.arrived)
            self.users.add(using)
        return parcel.weight


class Streamed(AtUse):
    """A layer whose weight is brought at each use."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, conveyor: Conveyor) -> None:
        super().__init__(layer)
        weight = layer.weight.detach()
        if conveyor.stream is not None:
            weight = weight.to(held(weight, conveyor.dtype))  # not wider than it is used: quicker to bring
            weight = _pinned(weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight)
        self.host = weight
        self.conveyor = conveyor

    @property
    def weight(self) -> Tensor:
        """The weight on the device."""
        return self.conveyor.take(self)


def _pinned(weight: Tensor) -> Tensor:
    """Where the GPU can fetch it by itself; as it is, and slower, where the system has no more of such memory."""
    try:
        return weight.pin_memory()
    except RuntimeError:
        return weight


def stream(module: ModuleT, conveyor: Conveyor, resident: int) -> tuple[ModuleT, int]:
    """A twin of which `resident` bytes of weights stay on the device, and how many bytes of that were not used.

    The module is left as it is, and the twin's streamed layers read its weights.
    """
    left = resident

    def replace(leaf: nn.Module) -> nn.Module | None:
        nonlocal left
        if not isinstance(leaf, nn.Linear | nn.Conv2d) or type(leaf) not in (nn.Linear, nn.Conv2d):
            return copy_leaf(leaf)
        kept_in = held(leaf.weight, conveyor.dtype)
        size = leaf.weight.numel() * kept_in.itemsize
        if size > left:
            return Streamed(leaf, conveyor)
        left -= size
        return copy_leaf(leaf) if kept_in == conveyor.dtype else CastAtUse(leaf, conveyor.device, conveyor.dtype)

    twin = rebuild(module, replace)
    cast_parameters(twin, conveyor.device, conveyor.dtype)
    return twin, left
