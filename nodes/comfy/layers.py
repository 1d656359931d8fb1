"""Our nets on the editor's layers, so that it can hold their weights elsewhere and cast them as it runs them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from types import MappingProxyType
from typing import TypeVar

import comfy.ops
from torch import nn

from ...controlnet_core.engine.pack import rebuild

ModuleT = TypeVar("ModuleT", bound=nn.Module)

LAYERS: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {
        kind: getattr(comfy.ops.disable_weight_init, kind.__name__)
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
    }
)
"""The editor's layers are torch's, with a second way to run for when their weights are elsewhere."""


def with_host_layers(module: ModuleT) -> ModuleT:
    """A second tree around the same parameters, its leaves of the editor's classes."""
    return rebuild(module, _host_layer)


def _host_layer(module: nn.Module) -> nn.Module | None:
    kind = LAYERS.get(type(module))
    if kind is None:
        return None
    twin = copy(module)
    twin.__class__ = kind
    return twin
