"""A backend runs modules in the form that suits its device, and remembers what it has made.

One backend lives as long as whoever owns it (a headless host, a test, one node in the editor);
nothing is kept in the module. What it made is dropped when the original is.
"""

from __future__ import annotations

from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..models.control import ControlModel
from ..models.unet import UNet
from .pack import pack
from .runtime import Runtime

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Backend:
    """Optimised twins of modules, made once per module."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._twins: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        self._resolved: WeakKeyDictionary[UNet, WeakKeyDictionary[ControlModel, ControlModel]] = WeakKeyDictionary()

    def optimise(self, module: ModuleT) -> ModuleT:
        """The module, moved to the runtime's device and dtype, and packed where the backend can; made once.

        The move is in place, so that weights are not held twice: one module belongs to one backend.
        """
        twin = self._twins.get(module)
        if twin is not None:
            return twin  # type: ignore[return-value]
        placed = module.to(device=self.runtime.device, dtype=self.runtime.dtype).eval()
        packed = pack(placed) if self.runtime.pack_weights else placed
        if packed is not module:  # a value that is its own weak key would never be dropped
            self._twins[module] = packed
        return packed

    def resolve(self, net: ControlModel, unet: UNet) -> ControlModel:
        """The net that is run on this base, asked for once; itself, unless it takes weights from the base."""
        known = self._resolved.setdefault(unet, WeakKeyDictionary())
        if net in known:
            return known[net]
        resolved = net.resolve(unet)
        if resolved is not net:  # see `optimise`
            known[net] = resolved
        return resolved

    def layout(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in the memory layout in which convolutions are fastest."""
        return x.contiguous(memory_format=torch.channels_last)
