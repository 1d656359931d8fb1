"""The plan of a run: which net acts at which step, and how strongly on each block, known before anything runs.

A plan is data. `describe` writes it as text, `analysis.charts` draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..config import UNetConfig
from ..diffusion.samplers import Step, get_sampler
from ..diffusion.schedule import NoiseSchedule
from .modes import block_heights, block_names, mode_weights
from .unit import ControlUnit


@dataclass(frozen=True)
class PlannedStep:
    """One unit at one step.

    weights: strength x curve x mode x block weight of each block, the middle last. runs: in how many evaluations of
    the step the net runs. why_idle: why the net does not run at the sigma where the step begins; "" if it runs.
    """

    weights: tuple[float, ...]
    runs: int
    why_idle: str = ""


@dataclass(frozen=True)
class PlannedUnit:
    """One unit in the whole run.

    words: its settings. cells: height of each block's feature map. why_unused: for each block why it has no effect
    although the net runs; "" if it has one.
    """

    name: str
    words: str
    cells: tuple[int, ...]
    why_unused: tuple[str, ...]
    steps: tuple[PlannedStep, ...]

    @property
    def runs(self) -> int:
        """Number of evaluations of the net in the whole run."""
        return sum(step.runs for step in self.steps)


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run. evaluations: for each step the sigmas at which the model is evaluated."""

    title: str
    evaluations: tuple[tuple[float, ...], ...]
    timesteps: tuple[float, ...]
    units: tuple[PlannedUnit, ...]


def list_evaluations(sampler: str, sigmas: Tensor) -> tuple[tuple[float, ...], ...]:
    """List, for each step, the sigmas at which a sampler evaluates the model. sigmas: (n + 1,), descending.

    Samplers of higher order also evaluate between the steps. dpm_adaptive chooses its sigmas by the picture: those
    listed are an example. Raises ValueRangeError for an unknown sampler.
    """
    # Run the sampler itself on a latent of one cell and a model that predicts zero: other sigmas depend on neither.
    evaluated: list[float] = []
    begins: list[int] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        evaluated.append(float(sigma))
        return torch.zeros_like(x)

    def on_step(_: Step) -> None:
        begins.append(len(evaluated) - 1)

    cell = torch.zeros(1, 1, 1, 1)
    get_sampler(sampler)(denoise, cell, sigmas, noise=lambda *_: torch.zeros_like(cell), on_step=on_step)
    return tuple(tuple(evaluated[a:b]) for a, b in zip(begins, [*begins[1:], len(evaluated)], strict=True))


def make_plan(
    units: Sequence[ControlUnit],
    base: UNetConfig,
    schedule: NoiseSchedule,
    sampler: str,
    sigmas: Tensor,
    latent_height: int,
    title: str,
) -> RunPlan:
    """Plan a run of the model `base` over `sigmas` (n + 1,) on latents of this height.

    Raises ValueRangeError for a wrong number of block weights or an unknown sampler.
    """
    steps = list_evaluations(sampler, sigmas) if len(sigmas) > 1 else ()
    timesteps = tuple(float(schedule.timestep(torch.tensor(step[0]))) for step in steps)
    return RunPlan(title, steps, timesteps, tuple(_plan_unit(u, base, schedule, steps, latent_height) for u in units))


def _plan_unit(
    unit: ControlUnit, base: UNetConfig, schedule: NoiseSchedule, steps: Sequence[Sequence[float]], latent_height: int
) -> PlannedUnit:
    cells = block_heights(base, latent_height)
    # As in a run: a unit whose factors for both halves of the guidance are 0 is not bound at all.
    acts, none = any(unit.half_factor(positive) for positive in (True, False)), (0.0,) * len(cells)
    planned = []
    for sigmas in steps:
        weights = [unit.weights_at(sigma, schedule, base, latent_height) if acts else none for sigma in sigmas]
        why_idle = "" if any(weights[0]) else _why_idle(unit, sigmas[0], schedule)
        planned.append(PlannedStep(weights[0], sum(map(any, weights)), why_idle))
    why_unused = _why_unused(unit, base, latent_height) if unit.strength else ("",) * len(cells)
    return PlannedUnit(unit.name or "a ControlNet", describe_settings(unit), cells, why_unused, tuple(planned))


def describe_settings(unit: ControlUnit) -> str:
    """Describe the settings of a unit on one line."""
    parts = [f"strength {unit.strength:g}", f"{unit.start:.0%} to {unit.end:.0%}", unit.mode, _halves(unit)]
    kinds = [hint.kind for hint in unit.hints if hint.kind]
    parts += [f"reads {' and '.join(kinds)}"] if kinds else []
    parts += ["on a schedule"] if unit.curve is not None else []
    parts += ["times " + ", ".join(f"{i:g}" for i in unit.items) + " by picture"] if unit.items else []
    parts += ["inside its mask"] if unit.mask is not None else []
    begins = ", ".join(f"{frame.position:.0%}" for frame in unit.keyframes)
    parts += [f"masks or block weights from {begins}"] if begins else []
    parts += ["averaged over the picture"] if unit.pool else []
    return ", ".join(parts)


def _halves(unit: ControlUnit) -> str:
    """Name the halves of the guidance in which a unit acts."""
    factors = {"positive": unit.half_factor(positive=True), "negative": unit.half_factor(positive=False)}
    if set(factors.values()) == {1.0}:
        return "both halves"
    acting = [f"the {name} half" + ("" if f == 1.0 else f" times {f:g}") for name, f in factors.items() if f]
    return " and ".join(acting) + (" only" if len(acting) == 1 else "") if acting else "neither half"


def _why_idle(unit: ControlUnit, sigma: float, schedule: NoiseSchedule) -> str:
    """Say why a net whose weights are all 0 at this sigma does not run."""
    if unit.strength == 0.0:
        return "strength 0"
    if not any(unit.half_factor(positive) for positive in (True, False)):
        return "its factors for both halves are 0"
    if sigma > schedule.percent_to_sigma(unit.start):
        return f"before its window, which begins at {unit.start:.0%}"
    if sigma < schedule.percent_to_sigma(unit.end):
        return f"after its window, which ends at {unit.end:.0%}"
    if unit.factor_at(sigma, schedule) == 0.0:
        return "its strength schedule is at 0"
    return "mode and block weights give 0 for every block"


def _why_unused(unit: ControlUnit, config: UNetConfig, latent_height: int) -> tuple[str, ...]:
    """Say for each block why it has no effect; "" if it has one."""
    by_mode = mode_weights(unit.mode, config, latent_height)
    own = unit.own_weights(config) or (1.0,) * len(by_mode)
    return tuple(
        "" if m and w else "block weight 0" if w == 0.0 else f"mode {unit.mode}"
        for m, w in zip(by_mode, own, strict=True)
    )


# ------------------------------------------------------------------------------------------- as text


def describe(plan: RunPlan) -> str:
    """Write the plan as text: a table for each net, with equal steps on one line."""
    return "\n".join(_lines(plan))


def _lines(plan: RunPlan) -> Iterator[str]:
    total = sum(len(step) for step in plan.evaluations)
    yield f"{plan.title}: {len(plan.evaluations)} steps, {total} evaluations of the model"
    if not plan.units:
        yield "no ControlNet acts on this prompt; one of strength 0 is left out"
    for number, unit in enumerate(plan.units, 1):
        yield ""
        yield f"{number}  {unit.name}, {unit.words}; runs in {unit.runs} of {total} evaluations"
        yield f"{'steps':<9}{'sigma':>14}{'t':>9}  block" + "".join(f"{n:>6}" for n in block_names(len(unit.cells)))
        yield f"{'cells':>39}" + "".join(f"{cells:>6}" for cells in unit.cells)
        for step, run in groupby(range(len(unit.steps)), lambda i, u=unit: (u.steps[i].weights, u.steps[i].why_idle)):
            weights, why_idle = step
            cells = "".join(f"{_number(w):>6}" for w in weights)
            yield _span(plan, list(run)) + (f"  not run: {why_idle}" if why_idle else " " * 7 + cells)
        yield from (f"  blocks {blocks} have no effect: {why}" for why, blocks in unused_blocks(unit))


def _number(weight: float) -> str:
    return "-" if weight == 0.0 else f"{weight:.2f}"


def _span(plan: RunPlan, indices: Sequence[int]) -> str:
    """The columns for steps, sigma and timestep of consecutive steps."""
    ends = sorted({indices[0], indices[-1]})
    steps = "-".join(str(i + 1) for i in ends)
    sigmas = "-".join(f"{plan.evaluations[i][0]:.3f}" for i in ends)
    timesteps = "-".join(f"{plan.timesteps[i]:.0f}" for i in ends)
    return f"{steps:<9}{sigmas:>14}{timesteps:>9}"


def unused_blocks(unit: PlannedUnit) -> list[tuple[str, str]]:
    """(reason, names of the blocks) for the blocks that have no effect although the net runs."""
    names = block_names(len(unit.cells))
    reasons = dict.fromkeys(why for why in unit.why_unused if why)
    return [(r, ", ".join(n for n, why in zip(names, unit.why_unused, strict=True) if why == r)) for r in reasons]
