"""Weights in the layout that oneDNN prefers, reordered once instead of at every call.

Plain torch reorders the weights in each call, which for the lower levels of a small image takes longer than the
arithmetic. `pack` makes a second tree of modules with other leaves, in float32 or bfloat16. Large 3x3 convolutions are
computed with fewer multiplications (`speed.packed_cpu.winograd`).

The original weights stay in the dtype of their file and mapped from it: the system can take their pages back after a
layer is packed, so that a model is held once. Weights in float8 are packed in every call: packed copies would be held
at full width.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.float8 import FLOAT8
from ...models.layers import FeedForward, ResBlock, TransformerBlock, Upsample
from ...models.module_tree import cast_parameters, copy_leaf, rebuild, rebuild_inside
from .fused_blocks import FusedFeedForward, FusedResBlock, FusedTransformerBlock, FusedUpsample
from .kept import KeptWeights, packed_once
from .products import Geometry, conv, linear, linear_with, pack_conv, pack_linear
from .winograd import Doubled, Winograd, may_suit, suits
from .work_buffer import WorkBuffer

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Blocked:
    """A convolution whose weight is in oneDNN's blocked layout, the best one for inputs of one size."""

    def __init__(self, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
        """weight: packed."""
        self.weight, self.bias, self.geometry = weight, bias, geometry

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """conv(x), plus the residual if there is one."""
        return conv(x, self.weight, self.bias, self.geometry, residual)


class PackedConv2d(nn.Module):
    """A convolution with its weight in the form that is best for the size of the input. Inference only.

    The weight is packed when a size is first met: oneDNN would reorder a weight in another size's layout in every call.
    Few sizes are kept, since a run has one per layer, two with areas. A Winograd filter fits all sizes.
    """

    SIZES = 2

    def __init__(
        self, conv: nn.Conv2d, dtype: torch.dtype, work_buffer: WorkBuffer | None, kept: KeptWeights | None = None
    ) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)  # `pack` leaves convolutions with padding "same" as they are
        self.geometry: Geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.dtype, self.work_buffer, self.kept = dtype, work_buffer, kept
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
        work_buffer = self._work_buffer_for(torch.Size((rows, width, 2 * height, 2 * across)))
        if work_buffer is None:
            return self(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self._by_tiles(Doubled, work_buffer)(x)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that were made so far."""
        return sum(form.nbytes for form in (*self.blocked.values(), *self.tiled.values()))

    @property
    def to_come(self) -> int:
        """Most bytes of the weight where none was made yet: as large as for tiles, if they are possible."""
        if self.nbytes:
            return 0
        large = self.work_buffer is not None and may_suit(self.plain.shape, self.geometry, self.dtype)
        return self.dtype.itemsize * self.plain.numel() * (16 if large else 9) // 9

    def _form(self, size: torch.Size) -> Blocked | Winograd:
        work_buffer = self._work_buffer_for(size)
        if work_buffer is not None:
            return self._by_tiles(Winograd, work_buffer)
        if size not in self.blocked:
            made = self._blocked(size)
            # The oldest goes first: a run that changed its size does not come back to the old one.
            while len(self.blocked) >= self.SIZES:
                self.blocked.pop(next(iter(self.blocked)))
            self.blocked[size] = made
        return self.blocked[size]

    def _by_tiles(self, kind: type[Winograd], work_buffer: WorkBuffer) -> Winograd:
        if kind not in self.tiled:
            self.tiled[kind] = kind(self.plain, self.bias, self.dtype, work_buffer, self.kept)
        return self.tiled[kind]

    def _work_buffer_for(self, size: torch.Size) -> WorkBuffer | None:
        """Where tiles are written, if the convolution goes by tiles at this size."""
        return self.work_buffer if suits(self.plain.shape, self.geometry, size, self.dtype) else None

    def _blocked(self, size: torch.Size) -> Blocked:
        form = f"convolution {self.geometry} {tuple(size)}"
        (weight,) = packed_once(
            self.kept, self.plain, form, [self.plain.shape], self.dtype,
            lambda: [pack_conv(self.plain.to(self.dtype), self.geometry, size)],
        )  # fmt: skip
        return Blocked(weight, self.bias, self.geometry)


class Float8Conv2d(PackedConv2d):
    """The same with a weight in float8, packed in every call."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.plain.nbytes

    @property
    def to_come(self) -> int:
        """Nothing that stays."""
        return 0

    def _form(self, size: torch.Size) -> Blocked:
        return self._blocked(size)

    def _work_buffer_for(self, size: torch.Size) -> None:
        """Nowhere: to transform a filter at each use costs more than it saves."""


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's blocked layout. Inference only."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, kept: KeptWeights | None = None
    ) -> None:
        super().__init__()
        plain = weight.detach()
        (self.weight,) = packed_once(
            kept, plain, "linear", [plain.shape], dtype, lambda: [pack_linear(plain.to(dtype))]
        )
        self.bias = None if bias is None else bias.detach().to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return linear(x, self.weight, self.bias)

    def ready(self) -> PackedLinear:
        """The layer itself: it is packed already."""
        return self

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the product."""
        return linear(x, self.weight, self.bias, gelu=True)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + the product, (..., C')."""
        return linear_with(x, residual, self.weight, self.bias, "add")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """factor * the product, (..., C')."""
        return linear_with(x, factor, self.weight, self.bias, "mul")


class Float8Linear(nn.Module):
    """The same with a weight in float8, packed in every call."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.stored, self.dtype = weight.detach(), dtype
        self.bias = None if bias is None else bias.detach().to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.stored.nbytes

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with."""
        return self.stored.to(self.dtype)

    def ready(self) -> PackedLinear:
        """The packed layer, for one use."""
        return PackedLinear(self.stored, self.bias, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return self.ready()(x)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + the product, (..., C')."""
        return self.ready().plus(x, residual)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this processor computes in `dtype` with packed weights."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # oneDNN has no packed products in float16, which processors compute by converting.
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(
    module: ModuleT, dtype: torch.dtype, work_buffer: WorkBuffer | None = None, kept: KeptWeights | None = None
) -> ModuleT:
    """A twin with packed layers that computes in `dtype`; see `can_pack`.

    work_buffer: what convolutions by tiles write to, shared with other twins that run in turn; None: no tiles.
    kept: packed weights on the disk.
    """

    def replace(leaf: nn.Module) -> nn.Module | None:
        # Exactly these types: a subclass may compute something else.
        if type(leaf) is nn.Conv2d and leaf.padding_mode == "zeros" and isinstance(leaf.padding, tuple):
            if leaf.weight.dtype in FLOAT8:
                return Float8Conv2d(leaf, dtype, work_buffer)
            return PackedConv2d(leaf, dtype, work_buffer, kept)
        if type(leaf) is nn.Linear:
            return _pack_linear(leaf.weight, leaf.bias, dtype, kept)
        if type(leaf) is FeedForward:
            return _pack_feed_forward(leaf, dtype, kept)
        if type(leaf) is ResBlock:
            return FusedResBlock(rebuild_inside(leaf, replace))
        if isinstance(leaf, Upsample):
            return FusedUpsample(rebuild_inside(leaf, replace))
        if type(leaf) is TransformerBlock:
            return FusedTransformerBlock(rebuild_inside(leaf, replace))
        return copy_leaf(leaf)

    twin = rebuild(module, replace)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))  # meta in a memory estimate
    cast_parameters(twin, device, dtype)
    return twin


def _pack_linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, kept: KeptWeights | None
) -> PackedLinear | Float8Linear:
    if weight.dtype in FLOAT8:
        return Float8Linear(weight, bias, dtype)
    return PackedLinear(weight, bias, dtype, kept)


def _pack_feed_forward(ff: FeedForward, dtype: torch.dtype, kept: KeptWeights | None) -> FusedFeedForward:
    value, gate = ff.proj.weight.tensor_split(2)
    value_bias, gate_bias = ff.proj.bias.tensor_split(2)
    out = _pack_linear(ff.out.weight, ff.out.bias, dtype, kept)
    return FusedFeedForward(
        _pack_linear(value, value_bias, dtype, kept), _pack_linear(gate, gate_bias, dtype, kept), out
    )


def packed_bytes(twin: nn.Module) -> int:
    """Of the weights that a packed twin has made so far; a convolution makes its own when it meets a size."""
    kinds = (PackedLinear, Float8Linear, PackedConv2d)
    layers = sum(module.nbytes for module in twin.modules() if isinstance(module, kinds))
    return layers + sum(p.nbytes for p in twin.parameters())


def further_bytes(twin: nn.Module) -> int:
    """Bytes of convolution weights of a packed twin beyond one form each: further sizes, and Winograd filters."""
    convs = (module for module in twin.modules() if isinstance(module, PackedConv2d) and module.nbytes)
    return sum(max(0, conv.nbytes - conv.dtype.itemsize * conv.plain.numel()) for conv in convs)


def bytes_to_come(twin: nn.Module) -> int:
    """Of the weights that a packed twin, or a part of one, makes when it is first run; 0 for other modules."""
    return sum(module.to_come for module in twin.modules() if isinstance(module, PackedConv2d))


def most_packed_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Of a twin in which every 3x3 convolution goes by tiles; a filter is then 16/9 as large."""
    tiled = (m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    return dtype.itemsize * (sum(p.numel() for p in module.parameters()) + sum(-(-7 * n // 9) for n in tiled))
