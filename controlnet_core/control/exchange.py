"""Lets a ControlNet-XS run beside the base, block by block (see `models.controlnet_xs`).

Its residuals are added while the encoder runs, as those of a T2I-Adapter. Besides, it reads the base's feature map in
front of each block, and adds to the one in front of each decoder block; and the base may read the net's embedding of
the timestep instead of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..models.controlnet_xs import ControlNetXS, Exchange
from ..models.projections import Projections
from ..models.unet import UNetInputs
from .bound_unit import NetInputs


def with_learned_embeddings(blocks: UNetInputs, nets: Sequence[NetInputs], base: Projections, rows: int) -> UNetInputs:
    """What the UNet's blocks read at one noise level, where a net replaces the UNet's embedding of the timestep.

    base: the UNet's projections. rows: of x. Of several such nets, the UNet reads the embedding of the last one.
    """
    for net in nets:
        emb = net.inputs.emb if isinstance(net.net, ControlNetXS) else None
        if emb is None:
            continue
        (unit,) = net.units  # nets of this kind are not joined
        stacks = []
        for own, learned in zip(blocks, base.time_shifts(emb), strict=True):
            assert own is not None  # only a ControlNet has no decoder
            pairs = zip(own.shifts, learned, strict=True)
            shifts = tuple(_replace_rows(old, new, unit.rows, rows) for old, new in pairs)
            stacks.append(own._replace(shifts=shifts))
        blocks = UNetInputs(*stacks)
    return blocks


def _replace_rows(old: Tensor | None, new: Tensor | None, where: slice, rows: int) -> Tensor | None:
    """Shifts (1 or rows, C, 1, 1) -> (rows, C, 1, 1) with the new ones (1 or n, C, 1, 1) in n of the rows."""
    if old is None or new is None:
        return old
    changed = old.expand(rows, *old.shape[1:]).clone()
    changed[where] = new.to(old.dtype)
    return changed


def with_exchanges(blocks: UNetInputs, nets: tuple[NetInputs, ...]) -> tuple[UNetInputs, tuple[NetInputs, ...]]:
    """What blocks and nets read in one evaluation, where some nets exchange feature maps with the UNet."""
    begun = []
    for net in nets:
        model = net.net
        if isinstance(model, ControlNetXS):
            net = net._replace(inputs=net.inputs._replace(exchange=Exchange()))
            blocks = _with_exchange(blocks, model, net)
        begun.append(net)
    return blocks, tuple(begun)


def _with_exchange(blocks: UNetInputs, model: ControlNetXS, net: NetInputs) -> UNetInputs:
    encoder, middle, decoder = blocks
    assert decoder is not None
    exchange = net.inputs.exchange

    def look(h: Tensor) -> Tensor:
        exchange.base = net.rows_of(h)
        return h

    def add_to_decoder(number: int) -> Callable[[Tensor], Tensor]:
        def add(h: Tensor) -> Tensor:
            index = model.decoder_target(number)
            if net.acts_on(index):
                net.add(h, model.decoder_residual(exchange, number), index)
            return h

        return add

    # The encoder's first block reads the latent.
    return UNetInputs(
        encoder.with_fronts([(), *[(look,)] * (len(encoder.shifts) - 1)]),
        middle.with_fronts([(look,)]),
        decoder.with_fronts([(add_to_decoder(number),) for number in range(len(decoder.shifts))]),
    )
