"""Runs references through the UNet, and lets its blocks read what they show (see `models.reference`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..models.control import Place
from ..models.reference import Recorded, RecordTokens, Reference, adain_places, moments
from ..models.unet import BlockInputs, UNet, UNetInputs
from .attention import STACKS, output_changes, with_attention_control
from .bound_unit import NetInputs


def with_references(unet: UNet, blocks: UNetInputs, nets: tuple[NetInputs, ...]) -> UNetInputs:
    """What the UNet's blocks read, with the changes by each reference: the UNet runs once more for each of them."""
    plain = blocks
    for net in nets:
        if not isinstance(net.net, Reference):
            continue
        (unit,) = net.units  # nets of this kind are not joined
        recorded = record(unet, net.net, net.inputs, rows_of(plain, unit.rows))
        acting = net._replace(inputs=recorded)
        blocks = with_attention_control(blocks, [acting])
        blocks = _with_outputs(blocks, acting)
    return blocks


def record(unet: UNet, net: Reference, x: Tensor, blocks: UNetInputs) -> Recorded:
    """Run the UNet on a noised reference, and record what its self attentions read and its blocks put out.

    x: (rows, 4, h, w), the noised latent of the reference, scaled as the UNet reads it. Recorded are the tokens of each
    transformer block, if the net uses attention, and the mean and deviation of some block outputs, if it uses AdaIN.
    """
    recorded = Recorded()
    places = adain_places(unet.config) if net.uses_adain else {}

    def tokens(stack: str, own: BlockInputs | None) -> BlockInputs | None:
        def added(block: int, depth: int, kv: Any) -> Any:
            return (*kv, RecordTokens(recorded, Place(stack, block, depth))) if net.uses_attention else kv

        if own is None:
            return None
        kv = (tuple(added(b, d, kv) for d, kv in enumerate(block)) for b, block in enumerate(own.kv))
        return BlockInputs(own.shifts, tuple(kv))

    def record_moments(place: Place, h: Tensor) -> None:
        if place in places:
            recorded.moments[place] = moments(h)

    encoder, middle, decoder = (tokens(stack, own) for stack, own in zip(STACKS, blocks, strict=True))
    assert encoder is not None and middle is not None and decoder is not None
    skips = []
    for number, h in enumerate(unet.encoder.walk(x, encoder)):
        record_moments(Place("encoder", number, 0), h)
        skips.append(h)
    h = unet.middle(skips[-1], middle)
    record_moments(Place("middle", 0, 0), h)
    # The front of a block is the output of the one before it.
    fronts = tuple(
        (_recording_front(record_moments, Place("decoder", number - 1, 0)),)
        for number in range(len(unet.decoder.blocks))
    )
    unet.decoder(h, skips, decoder._replace(fronts=fronts))
    return recorded


def _recording_front(record: Callable[[Place, Tensor], None], place: Place) -> Callable[[Tensor], Tensor]:
    def front(h: Tensor) -> Tensor:
        record(place, h)
        return h

    return front


def _with_outputs(blocks: UNetInputs, net: NetInputs) -> UNetInputs:
    """The changes of block outputs, each in front of the block that reads it."""
    encoder, middle, decoder = blocks
    assert decoder is not None
    outputs = [
        *(Place("encoder", number, 0) for number in range(len(encoder.kv))), Place("middle", 0, 0),
        *(Place("decoder", number, 0) for number in range(len(decoder.kv) - 1)),
    ]  # fmt: skip
    like = next(kv[0] for block in encoder.kv + middle.kv + decoder.kv for kv in block)
    changes = [output_changes(net, place, like) for place in outputs]
    if not any(changes):
        return blocks
    # The encoder's first block has no front: it reads the latent.
    count = len(encoder.kv)
    return UNetInputs(
        encoder.with_fronts([(), *changes[: count - 1]]),
        middle.with_fronts([changes[count - 1]]),
        decoder.with_fronts(changes[count:]),
    )


def rows_of(blocks: UNetInputs, rows: slice | Tensor) -> UNetInputs:
    """What the blocks read for some rows of the batch, without any change: projected timestep and text alone."""

    def part(own: BlockInputs | None) -> Any:
        if own is None:
            return None
        shifts = tuple(s if s is None or len(s) == 1 else s[rows] for s in own.shifts)
        kv = tuple(tuple((k[rows], v[rows]) for k, v, *_ in block) for block in own.kv)
        return BlockInputs(shifts, kv)

    return UNetInputs(*(part(own) for own in blocks))
