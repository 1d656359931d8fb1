"""What control objects hand to the model: {"input": [...], "middle": [...], "output": [...]} of residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import comfy.patcher_extension
from torch import Tensor

Residuals: TypeAlias = Mapping[str, list[Any]]
"""Lists of (B, C, h, w) tensors or None; "output" belongs to the skips, first to last."""
WRAPPER = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
STREAM_TAKER = "controlnet_core_accelerate"
"""Key of the wrapper around the UNet that takes residuals as they are made."""


class Stream(Mapping[str, list[Any]]):
    """Residuals that are made one by one, when their skips are there; none but the one at work is held.

    To all but the taker of streams it is a native object's dictionary, whose lists are made when somebody looks.
    make: begins anew to yield what is added to each skip, first to last, then to the middle's output, None for
    nothing; it is told whether the net may run, see `engine.run`. unit: whose they are. previous: what the nets in
    front of it say.
    """

    def __init__(self, make: Callable[[bool], Iterator[Tensor | None]], unit: Any, previous: Residuals | None) -> None:
        self.make, self.unit, self.previous = make, unit, previous

    @cached_property
    def lists(self) -> Residuals:
        """All of them, as native objects hand them over."""
        *skips, middle = self.make(True)
        return add_residuals({"input": [], "middle": [middle], "output": skips}, self.previous)

    @property
    def ready(self) -> Residuals:
        """What was in lists already when the first net of ours came to it."""
        return ready(self.previous)

    def __getitem__(self, key: str) -> list[Any]:
        return self.lists[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.lists)

    def __len__(self) -> int:
        return len(self.lists)


def streams_are_taken(options: Mapping[str, Any]) -> bool:
    """Whether the model's options say that somebody takes residuals as they are made."""
    return STREAM_TAKER in ((options.get("wrappers") or {}).get(WRAPPER) or {})


def ready(control: Residuals | None) -> Residuals:
    """The lists of what a chain hands over that are there without making anything."""
    if isinstance(control, Stream):
        return control.ready
    return {} if control is None else control


def acting(control: Residuals | None) -> tuple[Any, ...]:
    """What a chain hands over, as a key: which nets of ours act, and where something in lists is added."""
    if isinstance(control, Stream):
        return (*acting(control.previous), control.unit)
    return tuple((name, *(one is not None for one in those)) for name, those in ready(control).items())


def by_target(control: Residuals | None, skips: int, may_run: bool = True) -> Iterator[Tensor | None]:
    """What is added to each skip, first to last, then to the middle's output. Lists are used from their ends."""
    if isinstance(control, Stream):
        own = control.make(may_run)
        return own if control.previous is None else map(_sum, by_target(control.previous, skips, may_run), own)
    lists = ready(control)
    outputs, middles = ([*[None] * n, *lists.get(key, ())][-n:] for key, n in (("output", skips), ("middle", 1)))
    return iter([*outputs, *middles])


def add_residuals(own: Residuals, previous: Residuals | None) -> Residuals:
    """The sum of both, by position; out of place, since a chain's tensors may be shared."""
    if previous is None:
        return own
    total: dict[str, list[Any]] = {}
    for key in ("input", "middle", "output"):
        mine, theirs = own.get(key, []), previous.get(key, [])
        length = max(len(mine), len(theirs))
        padded = ([*side, *[None] * (length - len(side))] for side in (theirs, mine))
        total[key] = [_sum(a, b) for a, b in zip(*padded, strict=True)]
    return total


def _sum(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return a + b
