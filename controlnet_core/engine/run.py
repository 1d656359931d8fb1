"""What a run carries from one evaluation to the next: what it may use again, and whether all was finite.

Without shortcuts every evaluation stands for itself and the picture is exact. With them:

reuse_every k          a net runs at every k-th evaluation; in between its last residuals are added again,
                       at the strength of the moment
reuse_tolerance e      a net runs when the scaled latent has moved by more than e (relative L2 norm) since
                       the net ran last: often while the layout is made, seldom when details are
encoder_every k        the UNet's encoder and all control run at every k-th evaluation, the decoder at each:
                       the encoder's features change little between neighbours (Li et al. 2023, "Faster
                       Diffusion")
guidance_start, _end   outside this window of the timestep axis the negative half is not computed
                       (Kynkaanniemi et al. 2024, "Applying guidance in a limited interval")

The error is the user's to judge: `controlnet run --measure` and `benchmarks/shortcuts.py` print it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..control.plan import words
from ..control.report import Recorder
from ..errors import ValueRangeError
from ..models.control import Direct
from .record import RecordedActor
from .unit import Actor

DIRECT = Direct()


@dataclass(frozen=True)
class Shortcuts:
    """What a run may leave out. Raises ValueRangeError for values out of range."""

    reuse_every: int = 1
    reuse_tolerance: float = 0.0
    encoder_every: int = 1
    guidance_start: float = 0.0
    guidance_end: float = 1.0

    def __post_init__(self) -> None:
        if self.reuse_every < 1 or self.encoder_every < 1:
            raise ValueRangeError(
                f"reuse_every is {self.reuse_every} and encoder_every {self.encoder_every}: 1 is every evaluation"
            )
        if not 0.0 <= self.reuse_tolerance < float("inf"):  # nan is neither
            raise ValueRangeError(f"reuse_tolerance is {self.reuse_tolerance}: give 0 (off) or more, such as 0.1")
        if not 0.0 <= self.guidance_start <= self.guidance_end <= 1.0:
            raise ValueRangeError(
                f"guidance is wanted from {self.guidance_start} to {self.guidance_end}: give two positions between "
                "0 (pure noise) and 1 (finished), in this order"
            )

    @property
    def reuses(self) -> bool:
        """Whether residuals are used again."""
        return self.reuse_every > 1 or self.reuse_tolerance > 0.0

    @property
    def limits_guidance(self) -> bool:
        """Whether the negative half is left out anywhere."""
        return (self.guidance_start, self.guidance_end) != (0.0, 1.0)


EXACT = Shortcuts()


@dataclass(eq=False)
class Repeater:
    """An actor whose residuals are kept, before their weights, and added again while they will do."""

    actor: Actor
    shortcuts: Shortcuts
    residuals: list[Tensor | None] = field(default_factory=list)
    age: int = 0
    seen: Tensor | None = None

    def through(self, x: Tensor, sigma: float, targets: Iterable[Tensor]) -> Iterator[Tensor]:
        """As `Actor.through`."""
        if self._is_due(x):
            features = self.actor.features(x, sigma)
            outlets = self.actor.bound.outlets
            self.residuals = [None if f is None else o(f) for f, o in zip(features, outlets, strict=True)]
            self.age, self.seen = 0, x
        self.age += 1
        for index, (target, residual) in enumerate(zip(targets, self.residuals, strict=True)):
            self.actor.add(target, residual, DIRECT, index, sigma)
            yield target

    def _is_due(self, x: Tensor) -> bool:
        if self.seen is None or self.seen.shape != x.shape:
            return True
        if self.shortcuts.reuse_every > 1 and self.age >= self.shortcuts.reuse_every:
            return True
        tolerance = self.shortcuts.reuse_tolerance
        return tolerance > 0.0 and float((x - self.seen).norm() / self.seen.norm()) > tolerance


@dataclass(eq=False)
class Run:
    """State of one run. `finite`: on a GPU, where looking at every step would stall it, whether all was.

    recorder: who wants to know what ran, see `control.report`.
    """

    shortcuts: Shortcuts = EXACT
    check_every_step: bool = True
    recorder: Recorder | None = None
    finite: Tensor | None = None
    repeaters: dict[Actor, Repeater] = field(default_factory=dict)
    targets: dict[object, tuple[int, list[Tensor]]] = field(default_factory=dict)
    observed: dict[Actor, Actor] = field(default_factory=dict)

    def through(self, actor: Actor, x: Tensor, sigma: float, targets: Iterable[Tensor]) -> Iterator[Tensor]:
        """The targets with an actor's residuals, made now or used again."""
        if self.recorder is not None:
            for unit in actor.units:
                self.recorder.unit(unit.unit, unit.name, words(unit.unit))
            actor = self.observed.setdefault(actor, RecordedActor(actor.bound, actor.units, self.recorder))
        if not self.shortcuts.reuses:
            return actor.through(x, sigma, targets)
        if actor not in self.repeaters:
            self.repeaters[actor] = Repeater(actor, self.shortcuts)
        return self.repeaters[actor].through(x, sigma, targets)

    def controlled(self, key: object, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Skips and middle with all control, made now or used again."""
        if self.shortcuts.encoder_every == 1:
            return make()
        age, targets = self.targets.get(key, (self.shortcuts.encoder_every, []))
        if age >= self.shortcuts.encoder_every:
            age, targets = 0, make()
        self.targets[key] = age + 1, targets
        return targets

    def note_finite(self, output: Tensor) -> None:
        """Remember whether a prediction was finite, without waiting for it."""
        finite = torch.isfinite(output).all()
        self.finite = finite if self.finite is None else self.finite & finite
