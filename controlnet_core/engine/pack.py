"""Weights in the layout the backend wants, reordered once instead of at every call.

A second tree of modules, with leaf modules replaced; nothing of the original is changed. On the CPU in
float32 and bfloat16, convolutions and linear layers get oneDNN's blocked layout; plain torch reorders the
weights at each call, which for the deep layers of a small picture takes longer than the arithmetic. Large 3x3
convolutions are done with fewer products (`engine.winograd`).

The originals stay as their file has them, in its dtype, and mapped from it: their pages are read
while a layer is packed and are the system's to take back afterwards, so that a model is held once. Weights
in float8 are not kept packed, which would be to hold them wide: their layers pack them at each use.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import FeedForward, ResBlock, TransformerBlock, Upsample
from ..models.narrow import NARROW
from ..models.vae import VAEUp
from .fuse import FusedFeedForward, FusedResBlock, FusedTransformerBlock, FusedUpsample
from .rebuild import cast_parameters, copy_leaf, rebuild, rebuild_inside
from .scratch import Scratch
from .winograd import Doubled, Geometry, Winograd, may_suit, suits

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Blocked:
    """A convolution whose weight is in oneDNN's blocked layout, the best one for inputs of one size."""

    def __init__(self, weight: Tensor, bias: Tensor | None, geometry: Geometry, size: torch.Size) -> None:
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(size))
        self.bias, self.geometry = bias, geometry

    @property
    def nbytes(self) -> int:
        """Of the weight."""
        return self.weight.nbytes

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """conv(x), plus the residual of the output's size, if there is one, inside the product."""
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, "none", [], "")
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, self.weight, self.bias, *self.geometry, "add", 1.0, None, [], None
        )


class PackedConv2d(nn.Module):
    """A convolution with its weight in the form that is best for the size of the input. Inference only.

    The weight is packed when a size is first met; a weight in another size's layout would be reordered at every
    call, which is what packing is there to avoid. Few sizes are remembered, for a run has one per layer, two with
    areas. A filter of tiles fits all sizes, and stays.
    """

    SIZES = 2

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, scratch: Scratch | None) -> None:
        super().__init__()
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.dtype, self.scratch = dtype, scratch
        self.plain = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.blocked: dict[torch.Size, Blocked] = {}
        self.tiled: dict[type[Winograd], Winograd] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self._form(x.shape)(x)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + conv(x); residual (B, C', H', W')."""
        return self._form(x.shape)(x, residual)

    def doubled(self, x: Tensor) -> Tensor:
        """conv of x enlarged to twice its size by the nearest neighbour: (B, C, H, W) -> (B, C', 2H, 2W)."""
        rows, width, height, across = x.shape
        scratch = self._scratch_for(torch.Size((rows, width, 2 * height, 2 * across)))
        if scratch is None:
            return self(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self._by_tiles(Doubled, scratch)(x)

    @property
    def nbytes(self) -> int:
        """Of the weights that were made."""
        return sum(form.nbytes for form in (*self.blocked.values(), *self.tiled.values()))

    @property
    def to_come(self) -> int:
        """Most bytes of the weight where none was made yet: as large as for tiles, if they are possible."""
        if self.nbytes:
            return 0
        large = self.scratch is not None and may_suit(self.plain.shape, self.geometry)
        return self.dtype.itemsize * self.plain.numel() * (16 if large else 9) // 9

    def _form(self, size: torch.Size) -> Blocked | Winograd:
        scratch = self._scratch_for(size)
        if scratch is not None:
            return self._by_tiles(Winograd, scratch)
        if size not in self.blocked:
            made = self._blocked(size)
            while len(self.blocked) >= self.SIZES:
                self.blocked.pop(next(iter(self.blocked)))
            self.blocked[size] = made
        return self.blocked[size]

    def _by_tiles(self, kind: type[Winograd], scratch: Scratch) -> Winograd:
        if kind not in self.tiled:
            self.tiled[kind] = kind(self.plain, self.bias, self.dtype, scratch)
        return self.tiled[kind]

    def _scratch_for(self, size: torch.Size) -> Scratch | None:
        """Where tiles are written, if the convolution goes by tiles at this size."""
        return self.scratch if suits(self.plain.shape, self.geometry, size, self.dtype) else None

    def _blocked(self, size: torch.Size) -> Blocked:
        return Blocked(self.plain.to(self.dtype), self.bias, self.geometry, size)


class NarrowConv2d(PackedConv2d):
    """The same with a weight in float8, packed anew at each use."""

    @property
    def nbytes(self) -> int:
        """Of the weight."""
        return self.plain.nbytes

    @property
    def to_come(self) -> int:
        """Nothing that stays."""
        return 0

    def _form(self, size: torch.Size) -> Blocked:
        return self._blocked(size)

    def _scratch_for(self, size: torch.Size) -> None:
        """Nowhere: to transform a filter at each use costs more than it saves."""


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's blocked layout. Inference only."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))
        self.bias = None if bias is None else bias.detach().to(dtype)

    @property
    def nbytes(self) -> int:
        """Of the weight."""
        return self.weight.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def at_hand(self) -> PackedLinear:
        """The layer itself: it is packed already."""
        return self

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the product."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + the product, (..., C')."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """factor * the product, (..., C')."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.weight, self.bias, "mul")


class NarrowLinear(nn.Module):
    """The same with a weight in float8, packed anew at each use."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.narrow, self.dtype = weight.detach(), dtype
        self.bias = None if bias is None else bias.detach().to(dtype)

    @property
    def nbytes(self) -> int:
        """Of the weight."""
        return self.narrow.nbytes

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with."""
        return self.narrow.to(self.dtype)

    def at_hand(self) -> PackedLinear:
        """The packed layer, for as long as it is used."""
        return PackedLinear(self.narrow, self.bias, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As `PackedLinear.forward`."""
        return self.at_hand()(x)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """As `PackedLinear.plus`."""
        return self.at_hand().plus(x, residual)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this processor computes in `dtype` with packed weights."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(module: ModuleT, dtype: torch.dtype, scratch: Scratch | None = None) -> ModuleT:
    """A twin with packed layers that computes in `dtype`; see `can_pack`.

    scratch: what convolutions by tiles write to, shared with other twins that run in turn; without it there are none.
    """

    def replace(leaf: nn.Module) -> nn.Module | None:
        if type(leaf) is nn.Conv2d and leaf.padding_mode == "zeros" and isinstance(leaf.padding, tuple):
            return (NarrowConv2d if leaf.weight.dtype in NARROW else PackedConv2d)(leaf, dtype, scratch)
        if type(leaf) is nn.Linear:
            return _pack_linear(leaf.weight, leaf.bias, dtype)
        if type(leaf) is FeedForward:
            return _pack_feed_forward(leaf, dtype)
        if type(leaf) is ResBlock:
            return FusedResBlock(rebuild_inside(leaf, replace))
        if isinstance(leaf, Upsample | VAEUp):
            return FusedUpsample(rebuild_inside(leaf, replace))
        if type(leaf) is TransformerBlock:
            return FusedTransformerBlock(rebuild_inside(leaf, replace))
        return copy_leaf(leaf)

    twin = rebuild(module, replace)
    cast_parameters(twin, torch.device("cpu"), dtype)  # of copies, all of them: the original's are left alone
    return twin


def _pack_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> PackedLinear | NarrowLinear:
    return (NarrowLinear if weight.dtype in NARROW else PackedLinear)(weight, bias, dtype)


def _pack_feed_forward(ff: FeedForward, dtype: torch.dtype) -> FusedFeedForward:
    value, gate = ff.proj.weight.chunk(2)
    value_bias, gate_bias = ff.proj.bias.chunk(2)
    out = _pack_linear(ff.out.weight, ff.out.bias, dtype)
    return FusedFeedForward(_pack_linear(value, value_bias, dtype), _pack_linear(gate, gate_bias, dtype), out)


def packed_bytes(twin: nn.Module) -> int:
    """Of the weights that a packed twin has made so far; a convolution makes its own when it meets a size."""
    kinds = (PackedLinear, NarrowLinear, PackedConv2d)
    layers = sum(module.nbytes for module in twin.modules() if isinstance(module, kinds))
    return layers + sum(p.nbytes for p in twin.parameters())


def bytes_to_come(twin: nn.Module) -> int:
    """Of the weights that a packed twin, or a part of one, makes when it is first run; 0 for other modules."""
    return sum(module.to_come for module in twin.modules() if isinstance(module, PackedConv2d))


def most_packed_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Of a twin in which every 3x3 convolution goes by tiles; a filter is then 16/9 as large."""
    tiled = (m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    return dtype.itemsize * (sum(p.numel() for p in module.parameters()) + sum(-(-7 * n // 9) for n in tiled))
