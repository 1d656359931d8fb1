"""Where control enters inside the attentions: beside the text that a transformer block reads.

A net whose entry is "attention" makes one `AttentionChange` per transformer block. Strength, mode, block weights,
schedule and masks count as for the skip that the block makes (encoder) or reads (decoder), or as for the middle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    acting = [net for net in nets if net.net.entry == "attention"]
    if not acting:
        return blocks
    stacks = (_with_changes(stack, own, acting) for stack, own in zip(STACKS, blocks, strict=True))
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
    for unit in net.units:
        index = target_index(place, len(unit.weights) - 1)
        if not unit.acts_on(index):
            continue
        factor = to_device_async(torch.tensor(float(unit.weights[index])), like.device, like.dtype).reshape(1, 1, 1)
        if unit.scales is not None:
            # (1 or rows, 1, h, w) -> one factor per token
            factor = factor * unit.scales[index].to(factor).flatten(2).movedim(1, 2)
        change = net.net.attention_change(net.inputs, place, RowScale(unit.rows, factor))
        if change is not None:
            yield change


def target_index(place: Place, skips: int) -> int:
    """The target of control whose weight and mask count at a place: a skip's number, or `skips` for the middle."""
    if place.stack == "middle":
        return skips
    return place.block if place.stack == "encoder" else skips - 1 - place.block
