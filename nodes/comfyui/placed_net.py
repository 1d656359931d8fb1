"""Our nets on ComfyUI's layers, so that it can move, free and cast their weights."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.model_patcher
import torch

from ...controlnet_core.config import UNetConfig
from ...controlnet_core.memory_estimate import control_bytes
from ...controlnet_core.models.control import ControlModel
from .host_layers import with_host_layers
from .model_config import base_weights


class PlacedNet:
    """A net on ComfyUI's layers, with the patcher through which ComfyUI moves and frees it."""

    def __init__(self, net: ControlModel, device: torch.device | None = None) -> None:
        manage = comfy.model_management
        self.device = device or manage.get_torch_device()
        self.parameters = sum(p.numel() for p in net.parameters())
        stored = manage.unet_dtype(
            model_params=self.parameters,
            supported_dtypes=[torch.float16, torch.bfloat16, torch.float32],
            weight_dtype=net.dtype,
        )
        self.dtype = manage.unet_manual_cast(stored, self.device) or stored
        self.net = with_host_layers(net.to(self.dtype).requires_grad_(False))
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.net, load_device=self.device, offload_device=manage.unet_offload_device()
        )


class SharedNet:
    """A net that all copies of a unit share. One that needs a base is placed once it has one."""

    def __init__(self, net: ControlModel, name: str, device: torch.device | None = None) -> None:
        self.name = name
        self.device = device or comfy.model_management.get_torch_device()
        self.placed = None if net.needs_base else PlacedNet(net, device)
        self.net = net if self.placed is None else self.placed.net
        self.completed: WeakKeyDictionary[Any, PlacedNet] = WeakKeyDictionary()
        self.activations: dict[tuple[Any, ...], int] = {}

    def on(self, model: Any, base: UNetConfig) -> PlacedNet:
        """The net to run on a BaseModel.

        One that had to be completed is moved to the device here: ComfyUI loads models before it says which one is
        sampled.
        """
        if self.placed is not None:
            return self.placed
        if model not in self.completed:
            placed = PlacedNet(self.net.complete(base, base_weights(model, base)), self.device)
            placed.net.to(placed.device)
            self.completed[model] = placed
        return self.completed[model]

    def for_device(self, device: torch.device) -> SharedNet:
        """A copy with weights of its own on another device."""
        return SharedNet(copy.deepcopy(self.net), self.name, device)

    def activation_bytes(self, size: tuple[int, int], images: int, hints: int) -> int:
        """Bytes in float32 that the net holds besides its weights while it runs on both halves of the guidance."""
        key = (size, images, hints)
        if key not in self.activations:
            self.activations[key] = control_bytes(self.net, size, 2 * images, images, hints)
        return self.activations[key]
