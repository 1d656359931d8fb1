"""A backend runs modules in the form that suits its device, and remembers what it has made.

One backend lives as long as whoever owns it (a headless host, a test, one node in the editor);
nothing is kept in the module. Packed twins are dropped when the original is; the last prepared runs, with the
models that they belong to, are kept until newer ones take their place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..models.control import ControlModel
from ..models.unet import UNet
from .pack import can_pack, pack
from .runtime import Runtime

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MadeT = TypeVar("MadeT")


@dataclass(frozen=True, eq=False)
class Same:
    """A tensor as part of a key: equal to itself alone, and kept alive by the key."""

    tensor: Tensor | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.tensor is other.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


class Backend:
    """Optimised twins of modules, made once per module; and what was prepared for the last runs."""

    KEPT_RUNS = 2
    """A workflow that samples twice, at two sizes, prepares nothing again when only the seed changes."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._twins: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        self._runs: OrderedDict[Hashable, Any] = OrderedDict()
        self._resolved: WeakKeyDictionary[UNet, WeakKeyDictionary[ControlModel, ControlModel]] = WeakKeyDictionary()

    def optimise(self, module: ModuleT) -> ModuleT:
        """The module in the runtime's device and dtype, packed where the backend can; made once.

        A packed twin leaves the module as it is. Otherwise the module is moved in place, so that weights
        are not held twice: one module belongs to one backend.
        """
        twin = self._twins.get(module)
        if twin is not None:
            return twin  # type: ignore[return-value]
        device, dtype = self.runtime.device, self.runtime.dtype
        if not (self.runtime.pack_weights and can_pack(device, dtype)):
            return module.to(device=device, dtype=dtype).eval()
        twin = self._twins[module] = pack(module, dtype).eval()
        return twin

    def resolve(self, net: ControlModel, unet: UNet) -> ControlModel:
        """The net that is run on this base, asked for once; itself, unless it takes weights from the base."""
        known = self._resolved.setdefault(unet, WeakKeyDictionary())
        if net in known:
            return known[net]
        resolved = net.resolve(unet)
        if resolved is not net:  # see `optimise`
            known[net] = resolved
        return resolved

    def once(self, key: Hashable, make: Callable[[], MadeT]) -> MadeT:
        """What `make` gives, made again only when `key` is not one of the last few."""
        if key not in self._runs:
            self._runs[key] = make()
            while len(self._runs) > self.KEPT_RUNS:
                self._runs.popitem(last=False)
        self._runs.move_to_end(key)
        return self._runs[key]

    def layout(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in the memory layout in which convolutions are fastest."""
        return x.contiguous(memory_format=torch.channels_last)
