"""Our UNet around ComfyUI's own layers.

The leaf modules are shared, not their tensors. So ComfyUI still decides how a layer casts, patches or fetches its
weights, and a LoRA that replaces a weight replaces it here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...controlnet_core.checkpoints.keymap import KeyMap
from ...controlnet_core.checkpoints.ldm import unet_rules
from ...controlnet_core.config import UNetConfig
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.layers import Attention, Mlp, timestep_embedding
from ...controlnet_core.models.module_tree import on_meta, rebuild
from ...controlnet_core.models.unet import UNet
from ...controlnet_core.speed import WorkBuffer, pack

PLAIN_LAYERS = (nn.Conv2d, nn.Linear)
"""Kinds of layers that can be packed, most of them ComfyUI's subclasses of these."""
REPLACED = {"forward", "_conv_forward"}
"""Methods that other packs replace on a layer, for example to let convolutions wrap around the edges."""


class BorrowedUNet(UNet):
    """A UNet whose layers may store their weights in another dtype than they compute in."""

    dtype = torch.float32

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Timesteps (B,) and label vector (B, label_dim) or None -> (B, embed_dim), computed in `dtype`."""
        sinusoid = timestep_embedding(t, self.time_embed.width).to(self.dtype)
        emb = Mlp.forward(self.time_embed, sinusoid)
        return emb if self.label_embed is None or y is None else emb + self.label_embed(y)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a leaf of ours sits, what ComfyUI calls that place, and the shapes that its weights have.

    heads: of the attention whose queries the leaf makes; None for all others.
    """

    leaf: nn.Module
    name: str
    theirs: str
    shapes: Mapping[str, torch.Size]
    heads: int | None


@dataclass(frozen=True, eq=False)
class Frame:
    """A UNet without weights, and the places of its leaves."""

    unet: BorrowedUNet
    places: tuple[Place, ...]


def frame(config: UNetConfig) -> Frame:
    """The frame of this shape, to be filled by `bind`."""
    # Without memory, because `bind` replaces every leaf.
    with on_meta():
        unet = BorrowedUNet(config)
    theirs = KeyMap(unet_rules(config)).to_theirs
    heads: dict[nn.Module, int] = {module.q: module.heads for module in unet.modules() if isinstance(module, Attention)}
    leaves = ((leaf, name) for name, leaf in unet.named_modules() if leaf._parameters)
    places = (
        Place(leaf, name, (theirs(f"{name}.weight") or "").removesuffix(".weight"), _shapes(leaf), heads.get(leaf))
        for leaf, name in leaves
    )
    return Frame(unet, tuple(places))


def bind(frame: Frame, native: nn.Module, dtype: torch.dtype) -> BorrowedUNet:
    """A second tree like the frame whose leaves are the layers of ComfyUI's UNet, which computes in `dtype`.

    Nothing is copied, and neither tree given is changed. Raises UnfitError unless each layer that holds weights
    has its place, in this shape, exactly once, and nobody else has put something on what is passed by.
    """
    layers, heads = _survey(native)
    found = {place.leaf: _fitting(place, layers.pop(place.theirs, None), heads) for place in frame.places}
    if layers:
        raise UnfitError(f"the model's UNet has a layer that Stable Diffusion has not: {next(iter(layers))}")
    bound = rebuild(frame.unet, found.get)
    bound.dtype = dtype
    return bound


def _survey(native: nn.Module) -> tuple[dict[str, nn.Module], dict[nn.Module, int | None]]:
    """The layers of ComfyUI's UNet by name, and the heads of the attentions by the layer of their queries.

    Raises UnfitError for what another pack has put on inner modules, which the engine does not call.
    """
    layers: dict[str, nn.Module] = {}
    heads: dict[nn.Module, int | None] = {}
    for name, module in native.named_modules():
        if module._parameters:
            layers[name] = module
        elif "forward" in module.__dict__:
            raise UnfitError(f"another pack replaced the forward of {name or 'the UNet'}")
        elif name and (module._forward_hooks or module._forward_pre_hooks):
            raise UnfitError(f"another pack hooked {name}")
        else:
            queries = module._modules.get("to_q")
            if queries is not None:
                heads[queries] = module.__dict__.get("heads")
    return layers, heads


def _fitting(place: Place, layer: nn.Module | None, heads: Mapping[nn.Module, int | None]) -> nn.Module:
    """ComfyUI's layer for a place. The number of heads is no weight's shape: its attention tells it."""
    shapes = None if layer is None else _shapes(layer)
    if layer is None or shapes != place.shapes:
        has, should = (s and {name: tuple(shape) for name, shape in s.items()} for s in (shapes, place.shapes))
        raise UnfitError(f"the model's UNet differs from Stable Diffusion's at {place.name}: {has}, not {should}")
    found = None if place.heads is None else heads.get(layer)
    if found is not None and found != place.heads:
        raise UnfitError(f"the model's attention has {found} heads where {place.heads} were expected")
    return layer


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in module._parameters.items() if p is not None}


def packing_blocker(bound: nn.Module) -> str:
    """Why these weights cannot be packed for the processor; empty if they can."""
    for module in bound.modules():
        if not module._parameters:
            continue
        if any(getattr(module, name, False) for name in ("comfy_cast_weights", "weight_function", "bias_function")):
            return "the weights are cast or patched as they run"
        changed = REPLACED & module.__dict__.keys() or module._forward_hooks or module._forward_pre_hooks
        if changed or getattr(module, "padding_mode", "zeros") != "zeros":
            return "another pack changed how a layer computes"
        weights = (p for p in module._parameters.values() if p is not None)
        if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in weights):
            return "only float32 weights on the CPU have a layout of their own"
    return "" if torch.backends.mkldnn.is_available() else "this torch has no oneDNN"


def pack_copy(bound: BorrowedUNet) -> BorrowedUNet:
    """A copy of the tree with its weights packed for the processor."""
    return pack(rebuild(bound, _plain_layer), torch.float32, WorkBuffer())


def _plain_layer(module: nn.Module) -> nn.Module | None:
    """A layer of torch's own class on the same weights, which `pack` knows."""
    for kind in PLAIN_LAYERS:
        if isinstance(module, kind) and type(module) is not kind:
            twin = cast("Any", copy(module))  # pyright allows no change of the class
            twin.__class__ = kind
            return twin
    return None
