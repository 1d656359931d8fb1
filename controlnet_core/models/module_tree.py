"""Trees of modules: built without memory, or a second one with other leaves. The original is not changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@contextmanager
def on_meta() -> Iterator[None]:
    """Context in which modules are built without memory: their weights have a shape and a dtype."""
    with torch.device("meta"), _WithoutInit():
        yield


class _WithoutInit(TorchFunctionMode):
    """Context in which weights are not initialised.

    Without memory there is nothing to fill, but the initialisation of weights on the meta device imports torch's
    compiler, which takes two seconds at the first model of a process.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave out the functions of torch.nn.init, which return the tensor that they are given."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def rebuild(module: ModuleT, replace: Callable[[nn.Module], nn.Module | None]) -> ModuleT:
    """A tree of the same shape. replace: returns a module to put in the place of one, or None to look inside it."""
    new = replace(module)
    return rebuild_inside(module, replace) if new is None else new  # type: ignore[return-value]


def shell(module: ModuleT) -> ModuleT:
    """A tree of the same shape around the same weights.

    It survives the original, and weights that are moved, cast or loaded in the original are so in the shell too.
    """
    return rebuild(module, copy_leaf)


def rebuild_inside(module: ModuleT, replace: Callable[[nn.Module], nn.Module | None]) -> ModuleT:
    """The same module with the modules inside it rebuilt, see `rebuild`."""
    twin = copy(module)
    children = module._modules.items()
    twin._modules = {name: child if child is None else rebuild(child, replace) for name, child in children}
    return twin


def copy_leaf(module: nn.Module) -> nn.Module | None:
    """A `replace` for `rebuild`: a copy of a leaf that shares its weights."""
    return None if module._modules else copy(module)


def cast_parameters(twin: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give a rebuilt tree parameters of its own, in this dtype on this device. All its modules must be copies."""
    for part in twin.modules():
        part._parameters = {
            name: None if p is None else nn.Parameter(place_weight(p.detach(), device, dtype), requires_grad=False)
            for name, p in part._parameters.items()
        }


def place_weight(weight: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A weight on a device in a dtype, in the memory layout that x has there."""
    # A GPU would convert a kernel in another layout on every call.
    kernel = device.type == "cuda" and weight.ndim == 4
    return weight.to(device, dtype, memory_format=torch.channels_last if kernel else torch.preserve_format)


def meta_copy(module: ModuleT) -> ModuleT:
    """A tree of the same shape with meta tensors as weights, which have a shape and a dtype but no contents."""
    twin = rebuild(module, copy_leaf)
    for part in twin.modules():
        # A copy shares the dictionaries of the original: weights, buffers, and hooks that are set on one of them later.
        vars(part).update({name: copy(value) for name, value in vars(part).items() if isinstance(value, dict)})
        part._parameters = {name: _meta_weight(p) for name, p in part._parameters.items()}
    return twin


def _meta_weight(weight: Tensor | None) -> nn.Parameter | None:
    if weight is None:
        return None
    empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False)
