"""A second tree of modules with other leaves; nothing of the original is changed."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def rebuild(module: ModuleT, replace: Callable[[nn.Module], nn.Module | None]) -> ModuleT:
    """A tree of the same shape; `replace` returns a new leaf, or None to keep the module as it is."""
    new = replace(module)
    return rebuild_inside(module, replace) if new is None else new  # type: ignore[return-value]


def shell(module: ModuleT) -> ModuleT:
    """A tree of the same shape around the same weights: it stays when the module goes, and follows what becomes of it.

    Weights that are moved, cast or loaded anew in the module are so in the shell too.
    """
    return rebuild(module, copy_leaf)


def rebuild_inside(module: ModuleT, replace: Callable[[nn.Module], nn.Module | None]) -> ModuleT:
    """As `rebuild`, for the modules inside this one."""
    twin = copy(module)
    children = module._modules.items()
    twin._modules = {name: child if child is None else rebuild(child, replace) for name, child in children}
    return twin


def copy_leaf(module: nn.Module) -> nn.Module | None:
    """For `rebuild`: a copy of a leaf that shares its weights."""
    return None if module._modules else copy(module)


def cast_parameters(twin: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give a rebuilt tree, whose modules are all copies, parameters of its own in this type, on this device."""
    for part in twin.modules():
        part._parameters = {
            name: None if p is None else nn.Parameter(placed(p.detach(), device, dtype), requires_grad=False)
            for name, p in part._parameters.items()
        }


def placed(weight: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A weight on a device, in a type; on a GPU a kernel lies as x does, or it would be laid out anew at each call."""
    kernel = device.type == "cuda" and weight.ndim == 4
    return weight.to(device, dtype, memory_format=torch.channels_last if kernel else torch.preserve_format)
