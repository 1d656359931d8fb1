"""Which conditioning and which image of the batch each row of a latent belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class BatchRows(NamedTuple):
    """For each row of x: the index of its conditioning in this call, and of its image in the whole batch.

    windowed: whether the rows are a part of the images only.
    """

    conditionings: tuple[int, ...]
    images: tuple[int, ...]
    windowed: bool = False


def batch_rows(
    rows: int, conditionings: int, options: Mapping[str, Any], window: Sequence[int] | None = None
) -> BatchRows:
    """Rows of x in a call of `get_control` with this many conditionings.

    window: indices of the images that a pack's context window shows, in the order of the rows. ComfyUI's own context
    window stands in the options.
    """
    count = rows // conditionings
    sigmas = options.get("sigmas")
    # All images of the first conditioning come first, then those of the second. A pack that samples tiles repeats
    # this for each tile. There is one noise level for each image, so its number shows the repetition.
    if isinstance(sigmas, Tensor) and sigmas.ndim == 1 and rows % (len(sigmas) * conditionings) == 0:
        count = len(sigmas)
    if window is None:
        host_window = options.get("context_window")
        window = getattr(host_window, "index_list", None) if getattr(host_window, "dim", 0) == 0 else None
    windowed = window is not None and len(window) == count
    images = [window[row % count] if windowed and window is not None else row % count for row in range(rows)]
    return BatchRows(tuple(row // count % conditionings for row in range(rows)), tuple(images), windowed)


def row_factors(
    order: BatchRows, options: Mapping[str, Any], half: Callable[[bool], float], items: Sequence[float]
) -> list[float]:
    """For each row the factor of its half of the guidance times that of its image.

    half: whether it is the prompt's half -> factor. items: factors of the images, repeated to fill the batch.
    """
    # Outside of a sampler ComfyUI does not say which half a conditioning belongs to.
    halves = options.get("cond_or_uncond") or [0] * (1 + max(order.conditionings))
    rows = zip(order.conditionings, order.images, strict=True)
    return [half(halves[conditioning] == 0) * items[image % len(items)] for conditioning, image in rows]
