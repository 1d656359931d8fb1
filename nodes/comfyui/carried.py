"""What a sampling in the editor carries from one evaluation to the next where shortcuts are on its model.

It lies in the options of that one sampling, which the editor makes for it and drops behind it, whether it ends
well or not. Nets of ours (`control`) and Accelerate find it there.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...controlnet_core.engine.forecast import Values
from ...controlnet_core.engine.run import Repeater, Run

KEY = "controlnet_core_shortcuts"
"""Where the options of a sampling carry it, and the key of the wrappers that keep it."""
REMEMBERED = 3
"""Evaluations of which the noise level is known: samplers of higher order go back as far."""
FRESH = 1.01
"""Noise that rises by more than rounding has been added anew."""


@dataclass(eq=False)
class Sampling:
    """State of one sampling.

    run: what the engine carries. window: the sigmas, highest first, between which guidance acts. acted, ran: calls
    in which nets acted and were run, by their names; whole: calls of the whole UNet where parts of it were to be left
    out, by the reason. halves, unguided: evaluations with a negative half, and those in which it was left out.
    """

    run: Run
    window: tuple[float, float]
    levels: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    repeaters: dict[Any, Repeater] = field(default_factory=dict)
    met: dict[Any, int] = field(default_factory=dict)
    acted: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    halves: int = 0
    unguided: int = 0

    def evaluation(self, sigma: float) -> None:
        """An evaluation begins. Where noise was added anew, what was before is no neighbour."""
        if self.levels and sigma > FRESH * max(self.levels):
            self.repeaters.clear()
            self.run.forecasts.clear()
        self.levels.append(sigma)
        self.run.begin(sigma)

    def guides(self, sigma: float) -> bool:
        """Whether the negative half counts at this noise level; called where there is one."""
        first, last = self.window
        inside = last <= sigma <= first
        self.halves += 1
        self.unguided += not inside
        return inside

    def is_first(self, key: Any) -> bool:
        """Whether this is the first time in this evaluation that `key` comes; another pack may look twice, even at
        another latent, and is given what is computed for it."""
        first = self.met.get(key) != self.run.evaluations
        self.met[key] = self.run.evaluations
        return first

    def residuals(self, key: Any, x: Tensor, may_run: bool, compute: Callable[[], Values]) -> Iterator[Any]:
        """A net's residuals before their weights, computed or continued. x: what it reads, scaled."""
        if not self.is_first(key):
            return iter(compute())
        repeater = self.repeaters.setdefault(key, Repeater.of(self.run.shortcuts))
        return repeater.residuals(x, self.run, may_run, compute)


def sampling_of(options: Mapping[str, Any] | None) -> Sampling | None:
    """The state of a sampling with shortcuts, by the model's options; None where everything is to be computed.

    So it is under context windows, which show one conditioning several latents in an evaluation.
    """
    if options is None or options.get("context_window") is not None:
        return None
    return options.get(KEY)


def identity(options: Mapping[str, Any]) -> tuple[int, ...]:
    """Which conditionings a call computes, and for which halves; empty where the editor does not say.

    Both are needed: for a prompt with an area the editor makes a negative one that keeps the identity of the prompt.
    """
    uuids = options.get("uuids") or ()
    return (*(u.int for u in uuids), *options.get("cond_or_uncond", ())) if uuids else ()


def report(sampling: Sampling) -> Iterator[str]:
    """What was left out and what could not be, a line for each."""
    shortcuts = sampling.run.shortcuts
    evaluations = sampling.run.evaluations
    yield f"shortcuts: {shortcuts.words}; {evaluations} evaluations"
    for name, acted in sampling.acted.items():
        yield f"{name} acted in {acted} calls and ran in {sampling.ran[name]}"
    if shortcuts.limits_guidance:
        yield f"the negative half was left out in {sampling.unguided} of {sampling.halves} evaluations that have one"
