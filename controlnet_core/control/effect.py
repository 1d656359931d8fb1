"""Find units of control that cannot have changed the picture, so that a run can report them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ..config import UNetConfig
from ..diffusion.schedule import NoiseSchedule
from .unit import ControlUnit


def idle_notes(
    units: Iterable[ControlUnit], sigmas: Sequence[float], schedule: NoiseSchedule, config: UNetConfig
) -> list[str]:
    """Return a message for each unit that had no effect in a run, or whose hint shows nothing.

    units: may contain duplicates. sigmas: the noise level at the beginning of each step. schedule, config: of the base.
    """
    notes = (idle_note(unit, sigmas, schedule, config) for unit in dict.fromkeys(units))
    return [note for note in dict.fromkeys(notes) if note]


def idle_note(unit: ControlUnit, sigmas: Sequence[float], schedule: NoiseSchedule, config: UNetConfig) -> str:
    """Return why a unit had no effect in a run, or a message about an empty hint; "" for a usual unit."""
    name = unit.name or "a control net"
    reason = _idle_reason(unit, sigmas, schedule, config)
    if reason:
        return f"{name} had no effect: {reason}"
    shades = {_constant(hint.picture) for hint in unit.hints}
    if len(shades) == 1 and (shade := shades.pop()) is not None:
        return f"the hint of {name} is all {shade}: check the picture and the preprocessor"
    return ""


def _idle_reason(unit: ControlUnit, sigmas: Sequence[float], schedule: NoiseSchedule, config: UNetConfig) -> str:
    if unit.strength == 0.0:
        return "its strength is 0"
    if unit.half_factor(positive=True) == unit.half_factor(positive=False) == 0.0:
        return "its factors for both prompts are 0"
    if unit.items is not None and not any(unit.items):
        return "its factors for all pictures are 0"
    if all(_is_empty(unit.masks(begun)) for begun in {unit.begun_count(sigma, schedule) for sigma in sigmas} or {0}):
        return "its mask has no white pixel"
    if not any(unit.own_weights(config) or (1.0,)):
        return "all its block weights are 0"
    # The height does not matter: a mode's factors are 0 for every height or for none.
    if not any(unit.weights(config, 64)):
        return f"its block weights are 0 where the mode {unit.mode} acts"
    if not any(unit.is_active(sigma, schedule) for sigma in sigmas):
        return f"no step is between its start {unit.start:g} and its end {unit.end:g}: use more steps or a wider window"
    if not any(unit.factor_at(sigma, schedule) for sigma in sigmas):
        return "its strength schedule is 0 at every step"
    if not any(any(unit.weights_at(sigma, schedule, config, 64)) for sigma in sigmas):
        return "its block weights and those of its keyframes give 0 at every step"
    if _is_untrained(unit):
        return "all its zero convolutions are 0: it was never trained, or its file is incomplete"
    return ""


def _is_empty(masks: Sequence[Tensor]) -> bool:
    """Whether one of the masks, which are multiplied, is black everywhere."""
    return any(not bool((mask > 0).any()) for mask in masks)


def _is_untrained(unit: ControlUnit) -> bool:
    """Whether the residuals are 0 for every input, because the convolutions that make them still are (section 3.1)."""
    named = getattr(unit.net, "named_parameters", None)
    zero_convs = [p for name, p in named() if name.startswith("zero_conv")] if named is not None else []
    known = bool(zero_convs) and not any(p.is_meta for p in zero_convs)  # weights may be elsewhere, for offloading
    return known and not any(bool(p.float().any()) for p in zero_convs)


def _constant(picture: Tensor) -> str | None:
    """Return "black" or "white" for a picture of nothing else."""
    low, high = float(picture.min()), float(picture.max())
    return {0.0: "black", 1.0: "white"}.get(low) if low == high else None
