"""What a condition says about some pictures of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from ..control.hint import repeat_to
from ..control.unit import ControlUnit, Hint
from .condition import Condition
from .unit import check_items


class Cut:
    """Takes some pictures out of what is given per picture; what holds for all pictures stays the same object.

    Raises ShapeError where something does not fill the batch.
    """

    def __init__(self, pictures: range, batch: int) -> None:
        self.pictures, self.batch = pictures, batch
        self.units: dict[ControlUnit, ControlUnit] = {}

    def condition(self, condition: Condition) -> Condition:
        """A condition for these pictures."""
        return replace(
            condition,
            mask=self._optional(condition.mask, "mask"),
            beside=self._optional(condition.beside, "picture"),
            units=tuple(self.unit(unit) for unit in condition.units),
        )

    def unit(self, unit: ControlUnit) -> ControlUnit:
        """A unit for these pictures; asked twice it is the same one."""
        if unit not in self.units:
            self.units[unit] = self._cut(unit) if _unit_differs(unit) else unit
        return self.units[unit]

    def _cut(self, unit: ControlUnit) -> ControlUnit:
        items = check_items(unit.items, self.batch)
        return replace(
            unit,
            hint=self._tensor(unit.hint, "hint"),
            more_hints=tuple(Hint(self._tensor(hint.picture, "hint"), hint.kind) for hint in unit.more_hints),
            mask=self._optional(unit.mask, "mask"),
            items=tuple(items[i % len(items)] for i in self.pictures),
            whole=unit,
        )

    def _optional(self, x: Tensor | None, what: str) -> Tensor | None:
        return None if x is None else self._tensor(x, what)

    def _tensor(self, x: Tensor, what: str) -> Tensor:
        return x if len(x) == 1 else repeat_to(x, self.batch, what)[self.pictures.start : self.pictures.stop]


def differs(conditions: Iterable[Condition]) -> bool:
    """Whether anything is given per picture, so that parts of a batch of one size are not alike."""
    return any(
        _several(c.mask) or _several(c.beside) or any(_unit_differs(unit) for unit in c.units) for c in conditions
    )


def _unit_differs(unit: ControlUnit) -> bool:
    pictures = [hint.picture for hint in unit.hints]
    return len(unit.items or ()) > 1 or any(_several(x) for x in (unit.mask, *pictures))


def _several(x: Tensor | None) -> bool:
    return x is not None and len(x) > 1
