"""Our UNet around the editor's own layers.

The leaf modules are borrowed, not their tensors: how a layer casts, patches or fetches its weights stays the
editor's business, and a LoRA that replaces a weight replaces it here too.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...controlnet_core.checkpoints.keymap import KeyMap
from ...controlnet_core.checkpoints.ldm import unet_rules
from ...controlnet_core.config import UNetConfig
from ...controlnet_core.engine.pack import PackedConv2d, PackedLinear, pack, rebuild
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.layers import Attention, Mlp, timestep_embedding
from ...controlnet_core.models.unet import UNet

PLAIN_LAYERS = (nn.Conv2d, nn.Linear)
"""Kinds of layers that can be packed, most of them the editor's subclasses of these."""


class BorrowedUNet(UNet):
    """A UNet whose layers may store their weights in another dtype than they compute in."""

    dtype = torch.float32

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As `UNet.embed`, in `dtype`."""
        sinusoid = timestep_embedding(t, self.time_embed.width).to(self.dtype)
        emb = Mlp.forward(self.time_embed, sinusoid)
        return emb if self.label_embed is None or y is None else emb + self.label_embed(y)


@dataclass(frozen=True, eq=False)
class Frame:
    """A UNet without weights, with each leaf's own name and the editor's name for its place."""

    unet: BorrowedUNet
    places: tuple[tuple[nn.Module, str, str], ...]


def frame(config: UNetConfig) -> Frame:
    """The frame of this shape, to be filled by `bind`."""
    with torch.device("meta"):
        unet = BorrowedUNet(config)
    theirs = KeyMap(unet_rules(config)).to_theirs
    leaves = ((leaf, name) for name, leaf in unet.named_modules() if leaf._parameters)
    places = ((leaf, name, (theirs(f"{name}.weight") or "").removesuffix(".weight")) for leaf, name in leaves)
    return Frame(unet, tuple(places))


def bind(frame: Frame, native: nn.Module, dtype: torch.dtype) -> BorrowedUNet:
    """A second tree like the frame whose leaves are the layers of the editor's UNet, which computes in `dtype`.

    Nothing is copied, and neither tree given is changed. Raises UnfitError unless each layer that holds weights
    has its place, in this shape, exactly once.
    """
    layers = {name: module for name, module in native.named_modules() if module._parameters}
    found = {leaf: _same_shape(name, leaf, layers.pop(theirs, None)) for leaf, name, theirs in frame.places}
    if layers:
        raise UnfitError(f"the model's UNet has a layer that Stable Diffusion has not: {next(iter(layers))}")
    bound = rebuild(frame.unet, found.get)
    bound.dtype = dtype
    _check_heads(bound, native)
    return bound


def _same_shape(name: str, leaf: nn.Module, layer: nn.Module | None) -> nn.Module:
    """The editor's layer for a leaf of ours."""
    shapes = [None if m is None else {k: tuple(p.shape) for k, p in _weights(m)} for m in (leaf, layer)]
    if layer is None or shapes[0] != shapes[1]:
        raise UnfitError(f"the model's UNet differs from Stable Diffusion's at {name}: {shapes[1]}, not {shapes[0]}")
    return layer


def _weights(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module._parameters.items() if p is not None]


def _check_heads(bound: UNet, native: nn.Module) -> None:
    """The number of heads is no weight's shape: compare it where the editor's attention tells it."""
    heads = {m.to_q: m.heads for m in native.modules() if hasattr(m, "to_q") and hasattr(m, "heads")}
    for module in bound.modules():
        if isinstance(module, Attention) and heads.get(module.q, module.heads) != module.heads:
            raise UnfitError(f"the model's attention has {heads[module.q]} heads where {module.heads} were expected")


def changed_by_others(native: nn.Module) -> str:
    """What another pack has put on the inner modules of the editor's UNet, which the engine would pass by."""
    for name, module in native.named_modules():
        if module._parameters:
            continue
        if "forward" in module.__dict__:
            return f"another pack replaced the forward of {name or 'the UNet'}"
        if name and (module._forward_hooks or module._forward_pre_hooks):
            return f"another pack hooked {name}"
    return ""


def not_packable(bound: nn.Module) -> str:
    """Why the backend's layout is not to be had for these weights; empty if it is."""
    for module in bound.modules():
        if not module._parameters:
            continue
        if any(getattr(module, name, False) for name in ("comfy_cast_weights", "weight_function", "bias_function")):
            return "the weights are cast or patched as they run"
        if any(p.device.type != "cpu" or p.dtype != torch.float32 for _, p in _weights(module)):
            return "only float32 weights on the CPU have a layout of their own"
    return "" if torch.backends.mkldnn.is_available() else "this torch has no oneDNN"


def packed(bound: BorrowedUNet) -> BorrowedUNet:
    """The tree with a copy of its weights in the backend's layout."""
    return pack(rebuild(bound, _plain_layer), torch.float32)


def _plain_layer(module: nn.Module) -> nn.Module | None:
    """A layer of torch's own class on the same weights, which `pack` knows."""
    for kind in PLAIN_LAYERS:
        if isinstance(module, kind) and type(module) is not kind:
            twin = copy(module)
            twin.__class__ = kind
            return twin
    return None


def packed_bytes(tree: nn.Module) -> int:
    """Size of the copies in a packed tree; a convolution has one for each size of its input that it met."""
    total = 0
    for module in tree.modules():
        if isinstance(module, PackedLinear):
            total += module.weight.numel() * module.weight.element_size()
        elif isinstance(module, PackedConv2d):
            total += sum(weight.numel() * weight.element_size() for weight in module.packed.values())
    return total
