"""Run ControlNets beside the UNet's encoder: on a GPU each on a CUDA stream, elsewhere one after the other.

The encoder and the ControlNets read the same latent and not each other. At batch 1 none of them fills a large GPU, so
that together they take little longer than one. Inside a captured evaluation the streams become branches. The price is
memory: the residuals of all nets are held until the encoder is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..control.bound_unit import NetInputs
from ..denoise import ControlledUNet, encoder_targets
from ..prepare import BatchInputs
from .context import RunContext

FirstT = TypeVar("FirstT")
OtherT = TypeVar("OtherT")


class Streams:
    """The CUDA streams of a device, made when they are first needed and kept.

    They are kept because memory that was taken on a stream is used again on that stream alone: new streams in each
    evaluation would come to hold memory for each of the 32 that torch hands out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.made: list[torch.cuda.Stream] = []

    def __call__(
        self, first: Callable[[], FirstT], others: Sequence[Callable[[], OtherT]]
    ) -> tuple[FirstT, list[OtherT]]:
        """The result of each job. On return the current stream may use all of them."""
        if self.device.type != "cuda" or not others:
            return first(), [job() for job in others]
        self.made += [torch.cuda.Stream(self.device) for _ in others[len(self.made) :]]
        streams = self.made[: len(others)]
        current = torch.cuda.current_stream(self.device)
        results = []
        for stream, job in zip(streams, others, strict=True):
            stream.wait_stream(current)  # the job's inputs were made on the current stream
            with torch.cuda.stream(stream):
                results.append(job())
        own = first()
        for stream, result in zip(streams, results, strict=True):
            current.wait_stream(stream)
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    leaf.record_stream(current)  # keeps the allocator from giving the memory away too early
        return own, results


class ParallelNets:
    """Replaces `ControlledUNet.features`."""

    def __init__(self, inner: Any, streams: Streams) -> None:
        self.inner, self.streams = inner, streams

    def __call__(
        self, model: ControlledUNet, rows: Tensor, inputs: BatchInputs, count: int | None = None
    ) -> list[Tensor]:
        """Skips and middle with all control."""
        if count is not None:
            return self.inner(model, rows, inputs, count)
        nets = [net for net in inputs.nets if net.net.entry == "skips"]
        jobs = [partial(_residuals, model, net, rows) for net in nets]
        targets, residuals = self.streams(lambda: list(encoder_targets(model, rows, inputs, True)), jobs)
        for net, own in zip(nets, residuals, strict=True):
            for index, (target, residual) in enumerate(zip(targets, own, strict=True)):
                net.add(target, residual, index)
        return targets


def _residuals(model: ControlledUNet, net: NetInputs, rows: Tensor) -> list[Tensor | None]:
    return list(model.residuals(net, rows, True))


def wrap(denoiser: Any, context: RunContext) -> None:
    """Run the nets of a denoiser beside its encoder."""
    denoiser.unet.features = ParallelNets(denoiser.unet.features, context.streams)
