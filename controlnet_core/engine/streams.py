"""Independent work side by side: on a GPU each piece on a stream of its own, elsewhere one after the other.

The encoder of the UNet and the ControlNets read the same latent and not each other. At batch 1 none of them fills a
large card, so that together they take little longer than one. Also inside a CUDA graph, where the streams become
branches. The price is memory: the residuals of all nets are held until the encoder is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

FirstT = TypeVar("FirstT")
MadeT = TypeVar("MadeT")


class Streams:
    """The streams of a device, made when they are first needed and kept.

    Memory that was taken on a stream is used again on that stream alone: new ones at each evaluation would come to
    hold memory for each of the 32 that torch deals out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.made: list[torch.cuda.Stream] = []

    def __call__(
        self, first: Callable[[], FirstT], others: Sequence[Callable[[], MadeT]]
    ) -> tuple[FirstT, list[MadeT]]:
        """What each job gives. On return the current stream may use it all."""
        if self.device.type != "cuda" or not others:
            return first(), [job() for job in others]
        self.made += [torch.cuda.Stream(self.device) for _ in others[len(self.made) :]]
        streams = self.made[: len(others)]
        using = torch.cuda.current_stream(self.device)
        made = []
        for stream, job in zip(streams, others, strict=True):
            stream.wait_stream(using)  # what the job reads has been made
            with torch.cuda.stream(stream):
                made.append(job())
        own = first()
        for stream, result in zip(streams, made, strict=True):
            using.wait_stream(stream)
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    leaf.record_stream(using)  # its memory is not given away before it has been used
        return own, made
