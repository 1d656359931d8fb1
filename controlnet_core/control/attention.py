"""Where control enters inside the attentions: beside the text that a transformer block reads.

A net whose entry is "attention" makes one `AttentionChange` per transformer block. Strength, mode, block weights,
schedule and masks count as for the skip that the block makes (encoder) or reads (decoder), or as for the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.control import Place, RowScale
from ..models.layers import AttentionChange
from ..models.to_device import to_device_async
from ..models.unet import BlockInputs, UNetInputs
from .bound_unit import NetInputs

STACKS = ("encoder", "middle", "decoder")


def with_attention_control(blocks: UNetInputs, nets: Sequence[NetInputs]) -> UNetInputs:
    """What the UNet's blocks read, with the changes that these nets make in the transformer blocks."""
    if not nets:
        return blocks
    stacks = (_with_changes(stack, own, nets) for stack, own in zip(STACKS, blocks, strict=True))
    return UNetInputs(*stacks)  # type: ignore[arg-type]


def _with_changes(stack: str, own: BlockInputs | None, nets: Sequence[NetInputs]) -> BlockInputs | None:
    if own is None:
        return None

    def changed(block: int, depth: int, kv: Any) -> Any:
        place = Place(stack, block, depth)
        return (*kv, *(change for net in nets for change in attention_changes(net, place, kv[0])))

    blocks = enumerate(own.kv)
    return own._replace(kv=tuple(tuple(changed(b, d, kv) for d, kv in enumerate(block)) for b, block in blocks))


def attention_changes(net: NetInputs, place: Place, like: Tensor) -> Iterable[AttentionChange]:
    """The changes by each unit of a net in the transformer block at a place. like: gives device and dtype."""
    for rows, factor in _factors(net, place, like):
        # (1 or rows, 1, h, w) -> one factor per token
        scale = RowScale(rows, factor.flatten(2).movedim(1, 2))
        change = net.net.attention_change(net.inputs, place, scale)
        if change is not None:
            yield change


def output_changes(net: NetInputs, place: Place, like: Tensor) -> tuple[Callable[[Tensor], Tensor], ...]:
    """The changes by each unit of a net in the output of the block at a place, each in place."""
    scales = (RowScale(*found) for found in _factors(net, place, like))
    changes = (net.net.output_change(net.inputs, place, scale) for scale in scales)
    return tuple(change for change in changes if change is not None)


def _factors(net: NetInputs, place: Place, like: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """For each unit that acts at a place its rows and their factor, (1 or rows, 1, 1 or h, 1 or w)."""
    for unit in net.units:
        index = target_index(place, len(unit.weights) - 1)
        if unit.acts_on(index):
            weight = to_device_async(torch.tensor(float(unit.weights[index])), like.device, like.dtype)
            weight = weight.reshape(1, 1, 1, 1)
            yield unit.rows, weight if unit.scales is None else weight * unit.scales[index].to(weight)


def target_index(place: Place, skips: int) -> int:
    """The target of control whose weight and mask count at a place: a skip's number, or `skips` for the middle."""
    if place.stack == "middle":
        return skips
    return place.block if place.stack == "encoder" else skips - 1 - place.block
