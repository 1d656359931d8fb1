"""Group normalisation, with SiLU behind it, in Triton: the picture is read twice and written once.

For channels_last tensors, whose memory is (batch, cells, channels). Three small kernels: mean and spread of each
channel over parts of the picture; those of each group, merged without cancellation (Chan, Golub, LeVeque 1979);
and the result. Sums are float32 whatever the input. Imported only where Triton is there (see `speed.fused_qkv`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CELLS, CHANNELS = 32, 64
"""Tile of one program: cells x channels."""
PARTS = 16
"""Most parts into which a picture is cut: enough programs for a large card at batch 1."""


@triton.jit
def channel_moments(
    x, shift, means, spreads, cells, channels, part_cells, shift_stride,
    HAS_SHIFT: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances from it, of each channel in one part of one picture."""
    batch, part = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    first = part * part_cells
    last = tl.minimum(first + part_cells, cells)
    base = x + batch.to(tl.int64) * cells * channels
    total = tl.zeros((CHANNELS,), tl.float32)
    for start in range(first, last, CELLS):
        cell = start + tl.arange(0, CELLS)
        inside = (cell < last)[:, None] & known[None, :]
        total += tl.sum(tl.load(base + cell[:, None] * channels + channel[None, :], inside, 0.0).to(tl.float32), 0)
    mean = total / (last - first)
    spread = tl.zeros((CHANNELS,), tl.float32)
    for start in range(first, last, CELLS):
        cell = start + tl.arange(0, CELLS)
        inside = (cell < last)[:, None] & known[None, :]
        value = tl.load(base + cell[:, None] * channels + channel[None, :], inside, 0.0).to(tl.float32)
        distance = tl.where(inside, value - mean[None, :], 0.0)
        spread += tl.sum(distance * distance, 0)
    if HAS_SHIFT:
        mean += tl.load(shift + batch * shift_stride + channel, known, 0.0).to(tl.float32)
    where = (batch * tl.num_programs(1) + part) * channels + channel
    tl.store(means + where, mean, known)
    tl.store(spreads + where, spread, known)


@triton.jit
def group_moments(
    means, spreads, group_means, group_scales, cells, channels, per_group, part_cells, parts, eps,
    PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / deviation of one group of one picture, from those of its channels in all parts."""
    batch, group = tl.program_id(0), tl.program_id(1)
    part, own = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    inside = (part < parts)[:, None] & (own < per_group)[None, :]
    where = (batch * parts + part)[:, None] * channels + (group * per_group + own)[None, :]
    mean = tl.load(means + where, inside, 0.0)
    count = tl.where(inside, tl.minimum(part_cells, cells - part * part_cells)[:, None], 0).to(tl.float32)
    number = cells * per_group
    whole = tl.sum(tl.sum(count * mean, 1), 0) / number
    distance = mean - whole
    spread = tl.load(spreads + where, inside, 0.0) + count * distance * distance
    variance = tl.sum(tl.sum(spread, 1), 0) / number
    at = batch * tl.num_programs(1) + group
    tl.store(group_means + at, whole)
    tl.store(group_scales + at, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def normalise(
    x, shift, weight, bias, group_means, group_scales, out, cells, channels, per_group, groups, shift_stride,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """silu((x + shift - mean) * scale * weight + bias) of one tile."""
    batch = tl.program_id(0)
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    at = batch * groups + channel // per_group
    scale = tl.load(group_scales + at, known, 0.0) * tl.load(weight + channel, known, 0.0).to(tl.float32)
    centre = tl.load(group_means + at, known, 0.0)
    if HAS_SHIFT:
        centre -= tl.load(shift + batch * shift_stride + channel, known, 0.0).to(tl.float32)
    offset = tl.load(bias + channel, known, 0.0).to(tl.float32)
    inside = (cell < cells)[:, None] & known[None, :]
    where = batch.to(tl.int64) * cells * channels + cell[:, None] * channels + channel[None, :]
    value = (tl.load(x + where, inside, 0.0).to(tl.float32) - centre[None, :]) * scale[None, :] + offset[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + where, value.to(out.dtype.element_ty), inside)


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None = None, silu: bool = True
) -> Tensor:
    """silu(group_norm(x + shift)). x: (B, C, H, W), channels_last; shift: (1 or B, C, 1, 1)."""
    batch, channels, height, width = x.shape
    cells, per_group = height * width, channels // groups
    part_cells = triton.cdiv(triton.cdiv(cells, PARTS), CELLS) * CELLS
    parts = triton.cdiv(cells, part_cells)
    blocks = triton.cdiv(channels, CHANNELS)
    means, spreads = torch.empty(2, batch, parts, channels, device=x.device, dtype=torch.float32)
    group_means, group_scales = torch.empty(2, batch, groups, device=x.device, dtype=torch.float32)
    out = torch.empty_like(x)
    added = x if shift is None else shift.contiguous()
    stride = channels if shift is not None and shift.shape[0] > 1 else 0
    tile = {"HAS_SHIFT": shift is not None, "CELLS": CELLS, "CHANNELS": CHANNELS}
    # Where Triton is not installed, a type checker takes its kernels for plain functions.
    channel_moments[(batch, parts, blocks)](x, added, means, spreads, cells, channels, part_cells, stride, **tile)  # type: ignore[index]
    group_moments[(batch, groups)](  # type: ignore[index]
        means, spreads, group_means, group_scales, cells, channels, per_group, part_cells, parts, eps,
        PARTS=PARTS, WIDTH=triton.next_power_of_2(per_group),  # type: ignore[arg-type]
    )  # fmt: skip
    normalise[(batch, triton.cdiv(cells, CELLS), blocks)](  # type: ignore[index]
        x, added, weight, bias, group_means, group_scales, out, cells, channels, per_group, groups, stride,
        SILU=silu, **tile,
    )  # fmt: skip
    return out
