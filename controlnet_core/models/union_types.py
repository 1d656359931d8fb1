"""The types of hint that ControlNet Union tells apart, by number and by name."""

from __future__ import annotations

from ..errors import ValueRangeError

UNION_TYPES: tuple[tuple[str, ...], ...] = (
    ("openpose",),
    ("depth",),
    ("hed", "pidi", "scribble", "ted"),
    ("canny", "lineart", "anime_lineart", "mlsd"),
    ("normal",),
    ("segment",),
    ("tile",),
    ("repaint",),
)
"""What the released nets mean by type 0, 1, ...; the last two are ProMax's."""
UNION_CHOICES = tuple("/".join(names) for names in UNION_TYPES)
"""Their names as ComfyUI writes them, such as "canny/lineart/anime_lineart/mlsd"."""


def union_type(kind: str) -> int:
    """The number of a type by one of its names ("canny"), several of them ("canny/lineart"), or as digits.

    Raises ValueRangeError for a name that no released net knows.
    """
    if kind.isdecimal():
        return int(kind)
    names = set(kind.lower().split("/"))
    for number, known in enumerate(UNION_TYPES):
        if names <= set(known):
            return number
    raise ValueRangeError(
        f"control type {kind!r} is unknown to ControlNet Union: choose one of {', '.join(UNION_CHOICES)}"
    )
