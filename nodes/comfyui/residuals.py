"""The residuals of control objects as ComfyUI passes them to its UNet: {"input": [], "middle": [], "output": []}.

The nets of a chain add their residuals to these lists. If Accelerate is on the model, nets of ours pass
`LazyResiduals` instead, so that one residual at a time is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import comfy.patcher_extension
from torch import Tensor

Residuals: TypeAlias = Mapping[str, list[Any]]
"""Lists of (B, C, h, w) tensors or None; "output" belongs to the skips, first to last."""
WRAPPER = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
ACCELERATE_KEY = "controlnet_core_accelerate"
"""Key of Accelerate's wrapper around the UNet, which adds each residual when it is made."""


class LazyResiduals(Mapping[str, list[Any]]):
    """The residuals of a net and of those before it in the chain, each computed when it is added.

    Other code may read it like a native object's dictionary; all lists are computed then.
    make(may_run): yields what the net adds to each skip, first to last, then to the middle block's output; None for
    nothing. may_run is False where the net must not run, see `denoise.controlled_features`. unit: the control object of
    the net. previous: the residuals of the nets before it.
    """

    def __init__(self, make: Callable[[bool], Iterator[Tensor | None]], unit: Any, previous: Residuals | None) -> None:
        self.make, self.unit, self.previous = make, unit, previous

    @cached_property
    def lists(self) -> Residuals:
        """All residuals of the chain, in the lists of native objects."""
        *skips, middle = self.make(True)
        return add_residuals({"input": [], "middle": [middle], "output": skips}, self.previous)

    @property
    def computed(self) -> Residuals:
        """The lists that native nets before the first net of ours have made."""
        return computed_residuals(self.previous)

    def __getitem__(self, key: str) -> list[Any]:
        return self.lists[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.lists)

    def __len__(self) -> int:
        return len(self.lists)


def accelerate_is_on(options: Mapping[str, Any]) -> bool:
    """Whether Accelerate is on the model with these options."""
    return ACCELERATE_KEY in ((options.get("wrappers") or {}).get(WRAPPER) or {})


def computed_residuals(control: Residuals | None) -> Residuals:
    """The residuals of a chain that exist already: no net runs."""
    if isinstance(control, LazyResiduals):
        return control.computed
    return {} if control is None else control


def acting_key(control: Residuals | None) -> tuple[Any, ...]:
    """A key that is equal while the same nets of a chain act: our nets, and the places of residuals in lists."""
    if isinstance(control, LazyResiduals):
        return (*acting_key(control.previous), control.unit)
    return tuple((name, *(one is not None for one in given)) for name, given in computed_residuals(control).items())


def residuals_by_target(control: Residuals | None, skips: int, may_run: bool = True) -> Iterator[Tensor | None]:
    """What is added to each skip, first to last, then to the middle block's output.

    skips: their number. may_run: see `LazyResiduals`. ComfyUI takes residuals from the ends of its lists.
    """
    if isinstance(control, LazyResiduals):
        own = control.make(may_run)
        return (
            own if control.previous is None else map(_sum, residuals_by_target(control.previous, skips, may_run), own)
        )
    lists = computed_residuals(control)
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
