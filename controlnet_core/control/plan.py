"""What will run when: step x block x net, found without running anything.

A plan is data; `describe` says it in words, and `analysis.charts` draws it.
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
from .modes import block_heights, mode_weights
from .unit import ControlUnit


@dataclass(frozen=True)
class PlannedStep:
    """One unit at one step. weights: strength x curve x mode x block weight of each block, the middle last.

    runs: in how many of the step's evaluations the net runs. why: why it does not run at the step's own
    sigma; empty where it does.
    """

    weights: tuple[float, ...]
    runs: int
    why: str = ""


@dataclass(frozen=True)
class PlannedUnit:
    """One unit over the whole run. words: its settings. cells: height of each block's features.

    silent: for each block why it is never heard while the net runs; empty where it is heard.
    """

    name: str
    words: str
    cells: tuple[int, ...]
    silent: tuple[str, ...]
    steps: tuple[PlannedStep, ...]

    @property
    def runs(self) -> int:
        """Evaluations of the net in the whole run."""
        return sum(step.runs for step in self.steps)


@dataclass(frozen=True)
class Plan:
    """The plan of a run. evaluations: the sigmas at which the model is asked, step by step."""

    title: str
    evaluations: tuple[tuple[float, ...], ...]
    timesteps: tuple[float, ...]
    units: tuple[PlannedUnit, ...]

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The sigma at which each step begins."""
        return tuple(step[0] for step in self.evaluations)


def evaluations(sampler: str, sigmas: Tensor) -> tuple[tuple[float, ...], ...]:
    """At which sigmas a sampler asks the model, step by step, along a table (n + 1,) that descends.

    Samplers of higher order ask between the steps too. The sampler itself is run, on a latent of one cell
    and a model that always says zero: which sigmas it asks for does not depend on either.
    """
    asked: list[float] = []
    begins: list[int] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return torch.zeros_like(x)

    def on_step(_: Step) -> None:
        begins.append(len(asked) - 1)

    cell = torch.zeros(1, 1, 1, 1)
    get_sampler(sampler)(denoise, cell, sigmas, noise=lambda *_: torch.zeros_like(cell), on_step=on_step)
    return tuple(tuple(asked[a:b]) for a, b in zip(begins, [*begins[1:], len(asked)], strict=True))


def make_plan(
    units: Sequence[ControlUnit],
    base: UNetConfig,
    schedule: NoiseSchedule,
    sampler: str,
    sigmas: Tensor,
    latent_height: int,
    title: str,
) -> Plan:
    """The plan of a run of the model `base` over `sigmas` (n + 1,) on latents of this height.

    Raises ValueRangeError for a wrong count of block weights or an unknown sampler.
    """
    asked = evaluations(sampler, sigmas) if len(sigmas) > 1 else ()
    timesteps = tuple(float(schedule.timestep(torch.tensor(step[0]))) for step in asked)
    return Plan(title, asked, timesteps, tuple(_plan_unit(u, base, schedule, asked, latent_height) for u in units))


def _plan_unit(
    unit: ControlUnit, base: UNetConfig, schedule: NoiseSchedule, asked: Sequence[Sequence[float]], latent_height: int
) -> PlannedUnit:
    cells = block_heights(base, latent_height)
    steps = []
    for sigmas in asked:
        weights = [unit.weights_at(sigma, schedule, base, latent_height) for sigma in sigmas]
        why = "" if any(weights[0]) else _why_not(unit, sigmas[0], schedule)
        steps.append(PlannedStep(weights[0], sum(map(any, weights)), why))
    silent = _silent(unit, base, latent_height) if unit.strength else ("",) * len(cells)
    return PlannedUnit(unit.name or "a ControlNet", words(unit), cells, silent, tuple(steps))


def words(unit: ControlUnit) -> str:
    """The settings of a unit on one line."""
    parts = [f"strength {unit.strength:g}", f"{unit.start:.0%} to {unit.end:.0%}", unit.mode, _halves(unit)]
    kinds = [hint.kind for hint in unit.hints if hint.kind]
    parts += [f"reads {' and '.join(kinds)}"] if kinds else []
    parts += ["on a schedule"] if unit.curve is not None else []
    parts += ["times " + ", ".join(f"{i:g}" for i in unit.items) + " by picture"] if unit.items else []
    parts += ["inside its mask"] if unit.mask is not None else []
    parts += ["averaged over the picture"] if unit.pool else []
    return ", ".join(parts)


def _halves(unit: ControlUnit) -> str:
    """On which half of the guidance it acts."""
    positive, negative = unit.half(positive=True), unit.half(positive=False)
    if positive == negative == 1.0:
        return "both halves"
    acting = {"positive": positive, "negative": negative}
    heard = [f"the {name} half" + ("" if f == 1.0 else f" times {f:g}") for name, f in acting.items() if f]
    return " and ".join(heard) + (" alone" if len(heard) == 1 else "") if heard else "neither half"


def _why_not(unit: ControlUnit, sigma: float, schedule: NoiseSchedule) -> str:
    """Why the net, all of whose weights are 0, does not run at this sigma."""
    if unit.strength == 0.0:
        return "strength 0"
    if sigma > schedule.percent_to_sigma(unit.start):
        return f"before its window, which begins at {unit.start:.0%}"
    if sigma < schedule.percent_to_sigma(unit.end):
        return f"after its window, which ends at {unit.end:.0%}"
    if unit.factor_at(sigma, schedule) == 0.0:
        return "its schedule is at 0"
    return "all block weights are 0"


def _silent(unit: ControlUnit, config: UNetConfig, latent_height: int) -> tuple[str, ...]:
    """For each block why it is not heard."""
    by_mode = mode_weights(unit.mode, config, latent_height)
    own = unit.own_weights(config) or (1.0,) * len(by_mode)
    reasons = {(True, True): "", (False, True): f"mode {unit.mode}"}
    return tuple(reasons.get((m != 0.0, w != 0.0), "block weight 0") for m, w in zip(by_mode, own, strict=True))


# ------------------------------------------------------------------------------------------- in words


def describe(plan: Plan) -> str:
    """The plan as text: one table per net, with equal steps on one line."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    total = sum(len(step) for step in plan.evaluations)
    yield f"{plan.title}: {len(plan.evaluations)} steps, {total} evaluations of the model"
    if not plan.units:
        yield "no ControlNet acts on this prompt; one of strength 0 is not even applied"
    for number, unit in enumerate(plan.units, 1):
        yield ""
        yield f"{number}  {unit.name}, {unit.words}; runs in {unit.runs} of {total} evaluations"
        yield f"{'steps':<9}{'sigma':>14}{'t':>9}  block" + "".join(f"{n:>6}" for n in block_names(len(unit.cells)))
        yield f"{'cells':>39}" + "".join(f"{cells:>6}" for cells in unit.cells)
        for (step, why), run in groupby(range(len(unit.steps)), lambda i, u=unit: (u.steps[i].weights, u.steps[i].why)):
            indices = list(run)
            cells = f"  not run: {why}" if why else " " * 7 + "".join(f"{_number(w):>6}" for w in step)
            yield _span(plan, indices) + cells
        yield from (f"  blocks {blocks} are not heard: {why}" for why, blocks in silent_blocks(unit))


def _number(weight: float) -> str:
    return "-" if weight == 0.0 else f"{weight:.2f}"


def _span(plan: Plan, indices: Sequence[int]) -> str:
    """The columns for steps, sigma and timestep of neighbouring steps."""
    first, last = indices[0], indices[-1]
    sigmas, timesteps = plan.sigmas, plan.timesteps
    if first == last:
        return f"{first + 1:<9}{sigmas[first]:>14.3f}{timesteps[first]:>9.0f}"
    steps, sigma = f"{first + 1}-{last + 1}", f"{sigmas[first]:.3f}-{sigmas[last]:.3f}"
    return f"{steps:<9}{sigma:>14}{f'{timesteps[first]:.0f}-{timesteps[last]:.0f}':>9}"


def silent_blocks(unit: PlannedUnit) -> list[tuple[str, str]]:
    """(reason, names of the blocks) for the blocks that are never heard while the net runs."""
    names = block_names(len(unit.cells))
    reasons = dict.fromkeys(why for why in unit.silent if why)
    return [(r, ", ".join(n for n, why in zip(names, unit.silent, strict=True) if why == r)) for r in reasons]


def block_names(count: int) -> tuple[str, ...]:
    """("0", "1", ..., "mid") for so many blocks."""
    return (*(str(i) for i in range(count - 1)), "mid")
