"""Lets a ControlNet-XS run beside the base, block by block (see `models.controlnet_xs`).

Its residuals are added while the encoder runs, as those of a T2I-Adapter. Besides, it sees the base's feature map in
front of each block, and adds to the one in front of each decoder block; and it may replace the timestep's embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..models.controlnet_xs import ControlNetXS, Exchange
from ..models.unet import BlockInputs, BlockStack, UNet, UNetInputs
from .bound_unit import NetInputs

Front = Callable[[Tensor], Tensor]


def with_exchanges(
    unet: UNet, rows: int, blocks: UNetInputs, nets: tuple[NetInputs, ...]
) -> tuple[UNetInputs, tuple[NetInputs, ...]]:
    """What the UNet's blocks and the nets read in one evaluation, where some nets exchange feature maps with the UNet.

    rows: of x. Of several nets with an embedding of the timestep of their own, the last one's is read by the base.
    """
    begun = []
    for net in nets:
        model = net.net
        if isinstance(model, ControlNetXS):
            net = net._replace(inputs=net.inputs._replace(exchange=Exchange()))
            blocks = _with_fronts(_with_embedding(unet, rows, blocks, net), model, net)
        begun.append(net)
    return blocks, tuple(begun)


def _with_fronts(blocks: UNetInputs, model: ControlNetXS, net: NetInputs) -> UNetInputs:
    encoder, middle, decoder = blocks
    assert decoder is not None
    exchange = net.inputs.exchange

    def look(h: Tensor) -> Tensor:
        exchange.base = net.rows_of(h)
        return h

    def add_to_decoder(number: int) -> Front:
        def add(h: Tensor) -> Tensor:
            index = model.decoder_target(number)
            if net.acts_on(index):
                net.add(h, model.decoder_residual(exchange, number), index)
            return h

        return add

    # The encoder's first block reads the latent.
    fronts = [None, *[look] * (len(encoder.shifts) - 1)]
    return UNetInputs(
        _join_fronts(encoder, fronts),
        _join_fronts(middle, [look]),
        _join_fronts(decoder, [add_to_decoder(number) for number in range(len(decoder.shifts))]),
    )


def _join_fronts(own: BlockInputs, more: list[Any]) -> BlockInputs:
    """With one more front per block, behind those that it has; None for none."""
    before = own.fronts or ((),) * len(more)
    fronts = (had if new is None else (*had, new) for had, new in zip(before, more, strict=True))
    return own._replace(fronts=tuple(fronts))


def _with_embedding(unet: UNet, rows: int, blocks: UNetInputs, net: NetInputs) -> UNetInputs:
    """The base's timestep shifts in the rows of a net, by the net's embedding if it has one."""
    emb = net.inputs.emb
    if emb is None:
        return blocks
    (unit,) = net.units  # nets of this kind are not joined

    def replaced(part: BlockStack, own: Any) -> BlockInputs:
        pairs = zip(own.shifts, part.time_shifts(emb), strict=True)
        return own._replace(shifts=tuple(_put(old, new, unit.rows, rows) for old, new in pairs))

    parts = zip((unet.encoder, unet.middle, unet.decoder), blocks, strict=True)
    return UNetInputs(*(replaced(part, own) for part, own in parts))


def _put(old: Tensor | None, new: Tensor | None, where: slice | Tensor, rows: int) -> Tensor | None:
    """Shifts (1 or rows, C, 1, 1) with new ones (1 or n, C, 1, 1) in some rows."""
    if old is None or new is None:
        return old
    changed = old.expand(rows, *old.shape[1:]).clone()
    changed[where] = new.to(old.dtype)
    return changed
