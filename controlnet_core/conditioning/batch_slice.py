"""A job for some images of its batch only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from ..control.hint import repeat_to
from ..control.unit import ControlUnit, Hint
from .condition import Condition
from .job import Job


def slice_job(job: Job, images: range) -> Job:
    """The job for these images. Whatever holds for all images stays the same object.

    Raises ShapeError if something given per image does not fill the batch.
    """
    batch = job.shape[0]
    units = {unit: _slice_unit(unit, images, batch) for unit in job.units}

    def cut(condition: Condition) -> Condition:
        return replace(
            condition,
            mask=_slice(condition.mask, images, batch, "mask"),
            concat=_slice(condition.concat, images, batch, "image"),
            units=tuple(units[unit] for unit in condition.units),
        )

    return job.with_conditions(cut, shape=(len(images), *job.shape[1:]))


def differs_by_image(conditions: Iterable[Condition]) -> bool:
    """Whether anything is given per image, so that equally large parts of the batch are not alike."""
    return any(
        _is_per_image(c.mask) or _is_per_image(c.concat) or any(_unit_differs(unit) for unit in c.units)
        for c in conditions
    )


def _slice_unit(unit: ControlUnit, images: range, batch: int) -> ControlUnit:
    if not _unit_differs(unit):
        return unit
    hint, *more = (Hint(_slice(h.picture, images, batch, "hint"), h.kind) for h in unit.hints)  # type: ignore[arg-type]
    # Resolved for the whole batch first: a short list of factors repeats over the batch, not over the slice.
    factors = unit.image_factors(batch)
    return replace(
        unit,
        hint=hint.picture,
        more_hints=tuple(more),
        mask=_slice(unit.mask, images, batch, "mask"),
        keyframes=tuple(replace(k, mask=_slice(k.mask, images, batch, "mask")) for k in unit.keyframes),
        items=tuple(factors[i] for i in images),
        whole=unit,
    )


def _unit_differs(unit: ControlUnit) -> bool:
    images = [hint.picture for hint in unit.hints]
    masks = [unit.mask, *(frame.mask for frame in unit.keyframes)]
    return len(unit.items or ()) > 1 or any(_is_per_image(x) for x in (*masks, *images))


def _is_per_image(x: Tensor | None) -> bool:
    return x is not None and len(x) > 1


def _slice(x: Tensor | None, images: range, batch: int, what: str) -> Tensor | None:
    if x is None or len(x) == 1:
        return x
    return repeat_to(x, batch, what)[images.start : images.stop]
