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


def side_by_side(
    first: Callable[[], FirstT], others: Sequence[Callable[[], MadeT]], device: torch.device
) -> tuple[FirstT, list[MadeT]]:
    """What each job gives. On return the current stream may use it all."""
    if device.type != "cuda" or not others:
        return first(), [job() for job in others]
    using = torch.cuda.current_stream(device)
    streams = [torch.cuda.Stream(device) for _ in others]
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
