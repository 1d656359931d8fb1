"""Aspect ratio buckets: sizes of about the same area, one of which each picture is scaled to.

Source: NovelAI 2022, "NovelAI Improvements on Stable Diffusion", and Podell et al. 2023 (SDXL), section 2.3, whose
buckets have sides in multiples of 64 and proportions up to 1:4, as these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]
"""(height, width) in pixels."""


def bucket_sizes(side: int, multiple: int) -> tuple[Size, ...]:
    """The sizes of all buckets, from tall to wide: sides in multiples of `multiple`, area at most `side` squared.

    For each length of one side there is one size, with the other side as long as the area allows.
    """
    shortest = -(-side // 2 // multiple) * multiple
    lengths = range(max(multiple, shortest), 2 * side + 1, multiple)
    pairs = [(length, side * side // length // multiple * multiple) for length in lengths]
    fitting = {pair for pair in pairs if pair[1] in lengths}
    both = fitting | {(width, height) for height, width in fitting}
    return tuple(sorted(both, key=lambda size: (size[1] / size[0], size)))


def choose_bucket(shape: Sequence[int], sizes: Sequence[Size]) -> Size:
    """The size whose proportions are nearest to those of a picture (height, width); of two, the larger one."""
    height, width = shape
    wanted = math.log(width / height)

    def distance(size: Size) -> tuple[float, int]:
        # Rounded, so that sizes of the same proportions are compared by their area.
        return round(abs(math.log(size[1] / size[0]) - wanted), 9), -size[0] * size[1]

    return min(sizes, key=distance)
