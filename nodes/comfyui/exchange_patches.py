"""A ControlNet-XS beside ComfyUI's own UNet, through the patches that the UNet calls around its blocks.

The patches go into the options of one call of the model: nothing is left on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ...controlnet_core.models.controlnet_xs import Exchange

Make = Callable[[Exchange], Iterator[Tensor | None]]
ToDecoder = Callable[[Exchange, int], Tensor | None]


class ExchangePatches:
    """One net in one call of the model.

    make: begins to run the net: what is added to each block of the encoder and to the middle's output, all rows of x,
    weighed; None for nothing. to_decoder: the same in front of a block of the decoder, by number. rows: of x, those
    that the net acts on. time: the embedding of the timestep that the base reads in these rows, (1, embed_dim); None
    for the base's own.
    """

    def __init__(self, make: Make, to_decoder: ToDecoder, rows: Tensor | slice, time: Tensor | None) -> None:
        self.make, self.to_decoder, self.rows, self.time = make, to_decoder, rows, time
        self.exchange = Exchange()
        self.residuals: Iterator[Tensor | None] = iter(())
        self.residual: Tensor | None = None  # of the block that runs next

    def attach(self, options: dict[str, Any]) -> None:
        """Add the patches to the options of a call."""
        patches = dict(options.get("patches") or {})  # a new one: that of the model's options is shared by all calls

        def put(name: str, first: list[Any], last: list[Any]) -> None:
            patches[name] = [*first, *patches.get(name, ()), *last]

        # Its residuals are a part of a block's output, before anything else changes that; it looks when all have.
        put("input_block_patch", [self.behind_input], [])
        put("input_block_patch_after_skip", [], [self.look])
        put("output_block_patch", [self.behind_middle], [self.before_output])
        if self.time is not None:
            put("emb_patch", [], [self.embed])
        options["patches"] = patches

    def embed(self, emb: Tensor, width: int, options: Mapping[str, Any]) -> Tensor:
        """As ComfyUI calls a patch of the timestep's embedding, before it adds that of the label."""
        assert self.time is not None
        changed = emb.clone()
        changed[self.rows] = self.time.to(emb)
        return changed

    def behind_input(self, h: Tensor, options: Mapping[str, Any]) -> Tensor:
        """As ComfyUI calls a patch behind a block of the encoder."""
        if options["block"][1] == 0:  # another pack may call the UNet more than once
            self.exchange = Exchange()
            self.residuals = self.make(self.exchange)
            self.residual = next(self.residuals)
        return _sum(h, self.residual)

    def look(self, h: Tensor, options: Mapping[str, Any]) -> Tensor:
        """As ComfyUI calls a patch behind a block of the encoder, last of all: h is what the next block reads."""
        self.exchange.base = h[self.rows]
        # Now, and not when it is added: ComfyUI adds the residuals of other ControlNets to the skips in place.
        self.residual = next(self.residuals)
        return h

    def behind_middle(self, h: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """As ComfyUI calls a patch in front of a block of the decoder. Older versions have none behind the middle."""
        return (_sum(h, self.residual) if options["block"][1] == 0 else h), skip

    def before_output(self, h: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """As ComfyUI calls a patch in front of a block of the decoder."""
        return _sum(h, self.to_decoder(self.exchange, options["block"][1])), skip


def _sum(h: Tensor, residual: Tensor | None) -> Tensor:
    # Out of place: h may be a tensor that another part of the UNet keeps.
    return h if residual is None else h + residual.to(h.dtype)
