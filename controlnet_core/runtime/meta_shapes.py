"""Shapes of results of operators on meta tensors.

The meta versions in torch are slow: most are Python, and the first call of some imports torch's compiler with sympy,
which takes a second. These rules allocate a result of the right shape and do nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor


def _like(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.new_empty(x.shape)


def _empty_like(x: Tensor, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _in_place(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


def _broadcast(a: Tensor, b: Any, **kwargs: Any) -> Tensor:
    sides = zip_longest(reversed(a.shape), reversed(b.shape if isinstance(b, Tensor) else ()), fillvalue=1)
    return a.new_empty([max(pair) for pair in sides][::-1])


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return q.new_empty(*q.shape[:-1], v.shape[-1])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(x.shape[dim] for x in tensors)
    return tensors[0].new_empty(shape)


def _repeat(x: Tensor, counts: Sequence[int]) -> Tensor:
    return x.new_empty([side * count for side, count in zip(x.shape, counts, strict=True)])


def _conv2d(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, *more: Any) -> Tensor:
    strides, paddings = ((v[0], v[-1]) if isinstance(v, list | tuple) else (v, v) for v in (stride, padding))
    sides = zip(x.shape[2:], weight.shape[2:], strides, paddings, strict=True)  # this engine has no dilation
    return x.new_empty(x.shape[0], weight.shape[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in sides))


def _einsum(equation: str, tensors: Sequence[Tensor], **kwargs: Any) -> Tensor:
    # Spaces are allowed in an equation; dots for further sides are not used by this engine.
    letters, result = equation.replace(" ", "").split("->")
    pairs = zip(letters.split(","), tensors, strict=True)
    sides = {letter: side for term, x in pairs for letter, side in zip(term, x.shape, strict=True)}
    return tensors[0].new_empty([sides[letter] for letter in result])


def _pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // factor**2, x.shape[2] * factor, x.shape[3] * factor)


def _upsample(x: Tensor, size: Any, scales: Any = None) -> Tensor:
    sides = size or [int(side * scale) for side, scale in zip(x.shape[2:], scales, strict=True)]
    return x.new_empty(*x.shape[:2], *sides)


def _arange(end: int, dtype: torch.dtype = torch.int64, device: Any = "meta", **kwargs: Any) -> Tensor:
    return torch.empty(end, dtype=dtype, device=device)


ATEN = torch.ops.aten
SHAPE_RULES: Mapping[Any, Callable[..., Tensor]] = {
    **{getattr(ATEN, op).default: _like for op in ("group_norm", "layer_norm", "gelu", "silu", "exp", "cos", "sin")},
    **{getattr(ATEN, op).Tensor: _broadcast for op in ("add", "sub", "mul", "div")},
    **dict.fromkeys((ATEN.add_.Tensor, ATEN.addcmul_.default, ATEN.silu_.default, ATEN.copy_.default), _in_place),
    ATEN.empty_like.default: _empty_like,
    ATEN.cat.default: _cat,
    ATEN.repeat.default: _repeat,
    ATEN.arange.default: _arange,
    ATEN.linear.default: _linear,
    ATEN.mm.default: _mm,
    ATEN.conv2d.default: _conv2d,
    ATEN.einsum.default: _einsum,
    ATEN.pixel_shuffle.default: _pixel_shuffle,
    ATEN.upsample_nearest2d.vec: _upsample,
    ATEN._upsample_nearest_exact2d.vec: _upsample,
    ATEN.scaled_dot_product_attention.default: _attention,
}
