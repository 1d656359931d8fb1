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

MadeT = TypeVar("MadeT")


def side_by_side(jobs: Sequence[Callable[[], MadeT]], device: torch.device) -> list[MadeT]:
    """What each job gives. On return the current stream may use it all."""
    if device.type != "cuda" or len(jobs) < 2:
        return [job() for job in jobs]
    using = torch.cuda.current_stream(device)
    others = [torch.cuda.Stream(device) for _ in jobs[1:]]
    made = []
    for stream, job in zip(others, jobs[1:], strict=True):
        stream.wait_stream(using)  # what the job reads has been made
        with torch.cuda.stream(stream):
            made.append(job())
    first = jobs[0]()
    for stream, result in zip(others, made, strict=True):
        using.wait_stream(stream)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                leaf.record_stream(using)  # its memory is not given away before it has been used
    return [first, *made]
