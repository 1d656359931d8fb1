"""What a run carries from one evaluation to the next: what it may use again, and whether all was finite.

Without shortcuts every evaluation stands for itself and the picture is exact. With them:

reuse_every k          a net runs at every k-th evaluation
reuse_tolerance e      a net runs when the scaled latent has moved by more than e (relative L2 norm) since
                       the net ran last: often while the layout is made, seldom when details are
encoder_every k        the UNet's encoder and all control run at every k-th evaluation, the decoder at each:
                       the encoder's features change little between neighbours (Li et al. 2023, "Faster
                       Diffusion")
deep_every k           the UNet's lower levels, and the nets, run at every k-th evaluation, its top level at
                       each (Ma et al. 2024, "DeepCache")
guidance_start, _end   outside this window of the timestep axis the negative half is not computed
                       (Kynkaanniemi et al. 2024, "Applying guidance in a limited interval")

What is left out is not held still but continued along a line, see `engine.forecast`; residuals are added at
the strength of the moment. The first two evaluations, which make the line, are always computed, and a k is grown
into (`STAGES`): what goes astray while the layout is made becomes another picture, later it is a detail.

The error is the user's to judge: `controlnet run --measure` and `benchmarks/shortcuts.py` print it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..control.plan import words
from ..control.report import Recorder
from ..errors import ValueRangeError
from ..models.control import Direct
from .forecast import Forecast, Values
from .record import RecordedActor
from .streams import Streams
from .unit import Actor, PreparedUnit

if TYPE_CHECKING:
    from .graphs import Graphs

DIRECT = Direct()
STAGES = ((0.3, 2), (0.5, 3))
"""Up to these positions on the timestep axis, not more seldom than at every so many evaluations; then at every k-th."""


@dataclass(frozen=True)
class Shortcuts:
    """What a run may leave out. Raises ValueRangeError for values out of range."""

    reuse_every: int = 1
    reuse_tolerance: float = 0.0
    encoder_every: int = 1
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    deep_every: int = 1
    careful: bool = False
    """While the layout is made nothing is left out: each of `STAGES` has one less."""

    def __post_init__(self) -> None:
        for name in ("reuse_every", "encoder_every", "deep_every"):
            if getattr(self, name) < 1:
                raise ValueRangeError(f"{name} is {getattr(self, name)}: 1 is every evaluation, 2 every second one")
        if self.careful and max(self.reuse_every, self.encoder_every, self.deep_every) == 1:
            raise ValueRangeError("careful says when less is left out: say what, such as reuse_every 2 (--reuse 2)")
        if self.encoder_every > 1 and self.deep_every > 1:
            raise ValueRangeError("encoder_every and deep_every leave out the same blocks: choose one of them")
        if not 0.0 <= self.reuse_tolerance < float("inf"):  # nan is neither
            raise ValueRangeError(f"reuse_tolerance is {self.reuse_tolerance}: give 0 (off) or more, such as 0.1")
        if not 0.0 <= self.guidance_start <= self.guidance_end <= 1.0:
            raise ValueRangeError(
                f"guidance is wanted from {self.guidance_start} to {self.guidance_end}: give two positions between "
                "0 (pure noise) and 1 (finished), in this order"
            )

    @property
    def continues_nets(self) -> bool:
        """Whether there are evaluations at which a net in its window does not run."""
        return self.reuse_every > 1 or self.reuse_tolerance > 0.0 or self.deep_every > 1

    @property
    def shortens_unet(self) -> bool:
        """Whether there are evaluations at which a part of the UNet does not run."""
        return self.deep_every > 1 or self.encoder_every > 1

    @property
    def limits_guidance(self) -> bool:
        """Whether the negative half is left out anywhere."""
        return (self.guidance_start, self.guidance_end) != (0.0, 1.0)

    @property
    def words(self) -> str:
        """What is left out, such as "nets once in 2 evaluations, guidance from 10 % to 80 %"."""
        seldom = {"nets": self.reuse_every, "encoder": self.encoder_every, "lower levels": self.deep_every}
        growing = ", carefully" if self.careful else ""
        said = [f"{what} once in {every} evaluations{growing}" for what, every in seldom.items() if every > 1]
        if self.reuse_tolerance > 0.0:
            said.append(f"nets when the latent has moved by {self.reuse_tolerance:.2%}")
        if self.limits_guidance:
            said.append(f"guidance from {self.guidance_start:.0%} to {self.guidance_end:.0%}")
        return ", ".join(said) or "nothing is left out"


EXACT = Shortcuts()


@dataclass(eq=False)
class Repeater:
    """Residuals of one net, before their weights, that are computed now and then and continued in between."""

    shortcuts: Shortcuts
    forecast: Forecast
    seen: Tensor | None = None

    @classmethod
    def of(cls, shortcuts: Shortcuts) -> Repeater:
        """Nothing computed yet."""
        return cls(shortcuts, Forecast(shortcuts.reuse_every, gap=shortcuts.encoder_every))

    def residuals(self, x: Tensor, run: Run, may_run: bool, compute: Callable[[], Values]) -> Iterator[Any]:
        """Those of the evaluation that a run is in, one by one, computed or continued.

        x: what the net reads, scaled. may_run: whether it is one for nets to run.
        """
        now = run.evaluations
        counted = self.forecast.is_due(now, run.limit)
        due = not self.forecast.past or (may_run and self._is_due(x, counted))
        found = self.forecast.next(now, compute if due else None)
        if due:
            self.seen = x
        return found

    def through(
        self, actor: Actor, x: Tensor, sigma: float, targets: Iterable[Tensor], run: Run, may_run: bool
    ) -> Iterator[Tensor]:
        """As `Actor.through`, for all targets, or for the first of them where the net may not run.

        Raises ValueError where all targets are wanted and there are not as many residuals.
        """
        residuals = self.residuals(x, run, may_run, lambda: actor.residuals(x, sigma))
        for index, (target, residual) in enumerate(zip(targets, residuals, strict=may_run)):
            actor.add(target, residual, DIRECT, index, sigma)
            yield target

    def _is_due(self, x: Tensor, counted: bool) -> bool:
        tolerance = self.shortcuts.reuse_tolerance
        if self.seen is None or len(self.forecast.past) < 2:
            return True
        if tolerance > 0.0 and float((x - self.seen).norm() / self.seen.norm()) > tolerance:
            return True
        by_tolerance_alone = tolerance > 0.0 and self.shortcuts.reuse_every == 1
        return counted and not by_tolerance_alone


@dataclass(eq=False)
class Run:
    """State of one run. `finite`: on a GPU, where looking at every step would stall it, whether all was.

    recorder: who wants to know what ran, see `control.report`. rescale: see `diffusion.guidance`. graphs: what
    replays evaluations, where that is wanted. side_by_side: the streams on which nets run beside the encoder, if any.
    evaluations: how many there were. ends: sigmas at which the stages end, see `stage_ends`; none for no stages.
    limit: at this evaluation, see `Forecast.is_due`.
    """

    shortcuts: Shortcuts = EXACT
    check_every_step: bool = True
    recorder: Recorder | None = None
    rescale: float = 0.0
    finite: Tensor | None = None
    evaluations: int = 0
    ends: tuple[float, ...] = ()
    limit: float = math.inf
    repeaters: dict[tuple[PreparedUnit, ...], Repeater] = field(default_factory=dict)
    forecasts: dict[object, Forecast] = field(default_factory=dict)
    observed: dict[Actor, Actor] = field(default_factory=dict)
    parts: dict[int, Run] = field(default_factory=dict)
    graphs: Graphs | None = None
    side_by_side: Streams | None = None

    def part(self, index: int) -> Run:
        """State of its own for a part of the batch, since parts may be prepared as one (see `engine.chunks`)."""
        if index not in self.parts:
            fresh = replace(self, finite=None, evaluations=0, repeaters={}, forecasts={}, observed={}, parts={})
            self.parts[index] = fresh
        return self.parts[index]

    def begin(self, sigma: float) -> None:
        """An evaluation begins."""
        self.evaluations += 1
        ahead = (gap for end, (_, gap) in zip(self.ends, STAGES, strict=False) if sigma > end)
        self.limit = next(ahead, math.inf) - self.shortcuts.careful

    @property
    def failed(self) -> bool:
        """Whether a prediction that was noted was not finite; asked at the end, since a GPU is waited for."""
        noted = [run.finite for run in (self, *self.parts.values()) if run.finite is not None]
        return not all(bool(finite) for finite in noted)

    def through(
        self, actor: Actor, x: Tensor, sigma: float, targets: Iterable[Tensor], may_run: bool = True
    ) -> Iterator[Tensor]:
        """The targets with an actor's residuals, computed or continued.

        may_run False: computed only if they never were.
        """
        actor = self.heard(actor)
        if not self.shortcuts.continues_nets:
            return actor.through(x, sigma, targets)
        key = actor.units  # the actor itself is another one whenever any net enters or leaves its window
        if key not in self.repeaters:
            self.repeaters[key] = Repeater.of(self.shortcuts)
        return self.repeaters[key].through(actor, x, sigma, targets, self, may_run)

    def heard(self, actor: Actor) -> Actor:
        """The actor, telling the recorder what it does; that it acts is told now."""
        if self.recorder is None:
            return actor
        for unit in actor.units:
            self.recorder.unit(unit.key, unit.name, words(unit.key))
        return self.observed.setdefault(actor, RecordedActor(actor.bound, actor.units, self.recorder))

    @property
    def at_once(self) -> bool:
        """Whether the nets run beside the encoder: not while they are timed, nor where some of them are left out."""
        watched = self.recorder is not None and self.recorder.observe
        return self.side_by_side is not None and not watched and not self.shortcuts.continues_nets

    def controlled(self, key: object, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Skips and middle with all control, computed or continued."""
        if self.shortcuts.encoder_every == 1:
            return compute()
        forecast = self.forecasts.setdefault(key, Forecast(self.shortcuts.encoder_every))
        due = forecast.is_due(self.evaluations, self.limit)
        return list(forecast.next(self.evaluations, compute if due else None))

    def deep(self, key: object) -> Forecast | None:
        """What the lower levels give to the top one, where it is not computed at every evaluation."""
        if self.shortcuts.deep_every == 1:
            return None
        return self.forecasts.setdefault(key, Forecast(self.shortcuts.deep_every))

    def note_finite(self, output: Tensor) -> None:
        """Remember whether a prediction was finite, without waiting for it."""
        finite = torch.isfinite(output).all()
        self.finite = finite if self.finite is None else self.finite & finite


def stage_ends(percent_to_sigma: Callable[[float], Any]) -> tuple[float, ...]:
    """The sigmas at which `STAGES` end, by what tells the sigma of a position on the timestep axis."""
    return tuple(float(percent_to_sigma(end)) for end, _ in STAGES)
