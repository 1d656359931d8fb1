"""Our nets on ComfyUI's layers, so that it can hold their weights elsewhere and cast them as it runs them, and
in ComfyUI's arithmetic, so that their numbers are those of its own nets, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TypeVar

import comfy.ldm.modules.attention as host_attention
import comfy.ops
from torch import Tensor, nn

from ...controlnet_core.models.layers import Attention, KeyValue, SpatialTransformer
from ...controlnet_core.models.module_tree import rebuild

ModuleT = TypeVar("ModuleT", bound=nn.Module)

KINDS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
LAYERS: Mapping[type, type] = {kind: getattr(comfy.ops.disable_weight_init, kind.__name__) for kind in KINDS}
"""ComfyUI's layers are torch's, with a second way to run for when their weights are elsewhere."""


SLOW_ATTENTION = ("attention_basic", "attention_split", "attention_sub_quad")
"""What ComfyUI falls back to where it knows of nothing better, as on the CPU. Torch's own fused attention takes
a third of the time there; the numbers differ by rounding, some 1e-6 of the largest."""


class HostAttention(Attention):
    """Attention by the function that ComfyUI was started with (torch's, xFormers, Sage, Flash), unless slow."""

    def kv(self, context: Tensor, values: Tensor | None = None) -> KeyValue:
        """(B, tokens, context_dim) -> keys and values, as the function wants them."""
        if attention_is_slow():
            return super().kv(context, values)
        return self.k(context), self.v(context if values is None else values)

    def attended(self, x: Tensor, kv: KeyValue) -> Tensor:
        """(B, tokens, width) -> the same shape: self or cross attention, as `Attention.attended` defines it."""
        if attention_is_slow():
            return super().attended(x, kv)
        return host_attention.optimized_attention(self.q(x), *kv, self.heads)


def attention_is_slow() -> bool:
    """Whether ComfyUI's attention is one of its plain fallbacks. Read at each call, because other packs replace it."""
    return getattr(host_attention.optimized_attention, "__name__", "") in SLOW_ATTENTION


class HostTransformer(SpatialTransformer):
    """A spatial transformer that leaves the layout of a picture as ComfyUI has it, whose kernels then run."""

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H * W, C), contiguous."""
        return super().tokens(x).contiguous()

    def pixels(self, tokens: Tensor, height: int) -> Tensor:
        """(B, H * W, C) -> (B, C, H, W), contiguous instead of channels last."""
        return super().pixels(tokens, height).contiguous()


FORMS: Mapping[type, type] = {Attention: HostAttention, SpatialTransformer: HostTransformer}


def with_host_layers(module: ModuleT) -> ModuleT:
    """A second tree around the same parameters, its leaves of ComfyUI's classes."""
    return with_host_arithmetic(rebuild(module, _host_layer))


def with_host_arithmetic(tree: ModuleT) -> ModuleT:
    """A tree that was just rebuilt, its parts in the forms that compute as ComfyUI does; returns itself."""
    for module in tree.modules():
        module.__class__ = FORMS.get(type(module), type(module))
    return tree


def _host_layer(module: nn.Module) -> nn.Module | None:
    kind = LAYERS.get(type(module))
    if kind is None:
        return None
    twin = copy(module)
    twin.__class__ = kind
    return twin
