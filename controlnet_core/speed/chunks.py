"""Evaluate a few images of a batch at a time, so that their activations fit into memory.

Each image keeps its noise, hint, mask and factor. The result is that of the whole batch within rounding: products of
other sizes are summed in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from ..conditioning.batch_slice import differs_by_image, slice_job
from ..conditioning.job import Job
from ..errors import UnfitError
from ..prepare import Prepared

Part = tuple[slice, Prepared]
"""Images of a batch, and what was prepared for them."""


def prepare_chunks(job: Job, images: int, prepare: Callable[[Job], Prepared]) -> tuple[Part, ...]:
    """Prepare a job, `images` of its batch at a time. Parts of one size share what they have in common.

    Raises UnfitError for a net that needs all images at once.
    """
    batch = job.shape[0]
    for unit in job.units:
        if unit.net.reads_all_images and images < batch:
            raise UnfitError(
                f"{unit.name or 'this net'} needs all {batch} images of the batch at once, and only {images} fit or "
                "were asked for: use smaller images or fewer frames, or set --chunk 0"
            )
    alike = not differs_by_image(job.conditions)
    known: dict[Hashable, Prepared] = {}
    parts = []
    for first in range(0, batch, images):
        part = range(first, min(first + images, batch))
        key = len(part) if alike else part
        if key not in known:
            known[key] = prepare(slice_job(job, part))
        parts.append((slice(part.start, part.stop), known[key]))
    return tuple(parts)


class ChunkedDenoiser:
    """Denoisers for the parts of a batch, as one. Each keeps its own state, since parts may share what is prepared."""

    def __init__(self, parts: Sequence[tuple[slice, Callable[[Tensor, Tensor], Tensor]]]) -> None:
        self.parts = parts

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The prediction of x0 for the whole batch, (B, 4, h, w)."""
        return torch.cat([denoise(x[images], sigma) for images, denoise in self.parts])
