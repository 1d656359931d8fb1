"""The state of one sampling in ComfyUI whose model has shortcuts.

It is kept in the options of that sampling, which ComfyUI makes for it and drops afterwards, whether it ends well or
not. Our ControlNets (`core_control`) and Accelerate find it there.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ...controlnet_core.denoise import ControlledUNet
from ...controlnet_core.models.unet import UNet
from ...controlnet_core.runtime.device import Runtime
from ...controlnet_core.speed import ACCELERATIONS, EvaluationClock, ReusedResiduals, RunContext, Shortcuts

KEY = "controlnet_core_shortcuts"
"""Where the options of a sampling hold its state, and the key of the wrappers that keep it."""
REMEMBERED = 3
"""How many noise levels are remembered: samplers of higher order go back as far."""
FRESH = 1.01
"""If the noise level rises by more than this factor, noise was added anew."""


@dataclass(eq=False)
class Sampling:
    """State of one sampling.

    acted, ran: calls in which nets acted and ran, by name. whole: calls that ran the whole UNet although parts were to
    be skipped, by reason. halves, unguided: evaluations that have a negative half, and those in which it was skipped.
    last_calls: for each key of `is_first`, the evaluation in which it came last.
    """

    clock: EvaluationClock
    levels: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    reused: dict[Any, ReusedResiduals] = field(default_factory=dict)
    unets: dict[UNet, ControlledUNet] = field(default_factory=dict)
    last_calls: dict[Any, int] = field(default_factory=dict)
    acted: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    halves: int = 0
    unguided: int = 0

    @property
    def shortcuts(self) -> Shortcuts:
        """What may be skipped."""
        return self.clock.shortcuts

    def evaluation(self, sigma: float) -> None:
        """An evaluation begins. After noise was added anew, earlier values are no neighbours."""
        if self.levels and sigma > FRESH * max(self.levels):
            self.reused.clear()
            self.unets.clear()
        self.levels.append(sigma)
        self.clock.begin(sigma)

    def ran_whole(self, reason: str) -> None:
        """ComfyUI ran the whole UNet, for a reason that the report gives if a part was to be skipped."""
        if self.shortcuts.shortens_unet:
            self.whole[reason] += 1

    def guides(self, sigma: float) -> bool:
        """Whether the negative half counts at this noise level; called if there is one."""
        inside = self.clock.guides(sigma)
        self.halves += 1
        self.unguided += not inside
        return inside

    def is_first(self, key: Any) -> bool:
        """Whether `key` comes for the first time in this evaluation. Another pack may evaluate twice, even at another
        latent: the second call is computed in full."""
        first = self.last_calls.get(key) != self.clock.now
        self.last_calls[key] = self.clock.now
        return first

    def residuals(
        self, key: Any, x: Tensor, may_run: bool, compute: Callable[[], list[Any]]
    ) -> Iterator[Tensor | None]:
        """A net's residuals before their weights, computed or continued. x: what the net reads, scaled."""
        if not self.is_first(key):
            return iter(compute())
        return self.reused.setdefault(key, ReusedResiduals(self.clock)).at(x, may_run, compute)

    def accelerated(self, unet: UNet) -> ControlledUNet:
        """A UNet that skips what the shortcuts skip; nets decide about their residuals themselves."""
        if unet not in self.unets:
            holder = SimpleNamespace(unet=ControlledUNet(unet))
            context = RunContext(Runtime(), self.clock)
            for acceleration in ACCELERATIONS:
                # The other seams belong to our own loop: here ComfyUI calls model and nets.
                if acceleration.seam in ("features", "decode"):
                    acceleration.wrap(holder, context)
            self.unets[unet] = holder.unet
        return self.unets[unet]


def sampling_of(options: Mapping[str, Any] | None) -> Sampling | None:
    """The state of a sampling with shortcuts, from the model's options; None if everything is to be computed.

    Under context windows it is: they show one conditioning several latents in an evaluation.
    """
    if options is None or options.get("context_window") is not None:
        return None
    return options.get(KEY)


def identity(options: Mapping[str, Any]) -> tuple[int, ...]:
    """Which conditionings a call computes, and for which halves; empty if ComfyUI does not say.

    Both are needed: for a prompt with an area ComfyUI makes a negative one that keeps the identity of the prompt.
    """
    uuids = options.get("uuids") or ()
    return (*(u.int for u in uuids), *options.get("cond_or_uncond", ())) if uuids else ()


def describe_skipped(sampling: Sampling) -> Iterator[str]:
    """What was skipped, a line for each."""
    yield f"shortcuts: {sampling.shortcuts.summary}; {sampling.clock.now} evaluations"
    for name, acted in sampling.acted.items():
        yield f"{name} acted in {acted} calls and ran in {sampling.ran[name]}"
    if sampling.shortcuts.limits_guidance:
        yield (f"the negative half was skipped in {sampling.unguided} of {sampling.halves} evaluations that have one")
