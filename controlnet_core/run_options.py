"""Options of a run besides the picture: work that may be skipped, a report, and callbacks.

Shortcuts skip work at a price in exactness. Without them every evaluation is computed in full.

reuse_every k          a ControlNet runs at every k-th evaluation
reuse_tolerance e      a ControlNet runs when the scaled latent has moved by more than e (relative L2 norm) since its
                       last run: often while the layout forms, rarely during the details
encoder_every k        the UNet's encoder and all control run at every k-th evaluation, the decoder at each: the
                       encoder's features change little between neighbours (Li et al. 2023, "Faster Diffusion")
deep_every k           the UNet's lower levels, and the ControlNets, run at every k-th evaluation, its top level at
                       each (Ma et al. 2024, "DeepCache")
guidance_start, _end   outside this window of the timestep axis the negative half is not computed (Kynkaanniemi et al.
                       2024, "Applying guidance in a limited interval")

The user judges the error: `controlnet run --measure` and `benchmarks/shortcuts.py` print it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .control.report import Recorder, RunReport
from .errors import ValueRangeError

if TYPE_CHECKING:
    from .diffusion.samplers import Step
    from .runtime.device import Cancelled
    from .runtime.memory import MemoryPlan


@dataclass(frozen=True)
class Shortcuts:
    """What a run may skip. careful: each interval of `speed.clock.STAGES` is one evaluation shorter, so that the
    layout is computed in full.

    Raises ValueRangeError for values out of range.
    """

    reuse_every: int = 1
    reuse_tolerance: float = 0.0
    encoder_every: int = 1
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    deep_every: int = 1
    careful: bool = False

    def __post_init__(self) -> None:
        for name in ("reuse_every", "encoder_every", "deep_every"):
            if getattr(self, name) < 1:
                raise ValueRangeError(
                    f"{name} is {getattr(self, name)}: use 1 for every evaluation, 2 for every second one, and so on"
                )
        if self.careful and max(self.reuse_every, self.encoder_every, self.deep_every) == 1:
            raise ValueRangeError(
                "careful has no effect alone: also set reuse_every (--reuse), deep_every or encoder_every to 2 or more"
            )
        if self.encoder_every > 1 and self.deep_every > 1:
            raise ValueRangeError("encoder_every and deep_every skip the same blocks: set only one of them")
        if not 0.0 <= self.reuse_tolerance < float("inf"):  # also refuses nan
            raise ValueRangeError(f"reuse_tolerance is {self.reuse_tolerance}: use 0 (off) or more, such as 0.1")
        if not 0.0 <= self.guidance_start <= self.guidance_end <= 1.0:
            raise ValueRangeError(
                f"the guidance window is {self.guidance_start} to {self.guidance_end}: use two positions between 0 "
                "(pure noise) and 1 (finished image), the smaller one first"
            )

    @property
    def reuses_nets(self) -> bool:
        """Whether the residuals of a net are continued while the UNet runs as a whole."""
        return self.reuse_every > 1 or self.reuse_tolerance > 0.0

    @property
    def continues_nets(self) -> bool:
        """Whether a net inside its window is skipped in some evaluations."""
        return self.reuses_nets or self.deep_every > 1

    @property
    def shortens_unet(self) -> bool:
        """Whether a part of the UNet is skipped in some evaluations."""
        return self.deep_every > 1 or self.encoder_every > 1

    @property
    def limits_guidance(self) -> bool:
        """Whether the negative half is skipped anywhere."""
        return (self.guidance_start, self.guidance_end) != (0.0, 1.0)

    @property
    def summary(self) -> str:
        """Describe the shortcuts, such as "nets once in 2 evaluations, guidance from 10% to 80%"."""
        every = {"nets": self.reuse_every, "encoder": self.encoder_every, "lower levels": self.deep_every}
        careful = ", carefully" if self.careful else ""
        parts = [f"{what} once in {count} evaluations{careful}" for what, count in every.items() if count > 1]
        if self.reuse_tolerance > 0.0:
            parts.append(f"nets when the latent has moved by {self.reuse_tolerance:.2%}")
        if self.limits_guidance:
            parts.append(f"guidance from {self.guidance_start:.0%} to {self.guidance_end:.0%}")
        return ", ".join(parts) or "nothing is skipped"


EXACT = Shortcuts()


@dataclass(frozen=True)
class RunOptions:
    """Passed through by hosts and nodes as a whole.

    shortcuts: what may be skipped. recorder: collects what ran. on_step: called once in each sampling step, after its
    first evaluation. on_memory: called with the memory plan before anything is computed. cancelled: asked before each
    step whether to stop. part: (index, count) of this run among those that a node makes one after the other.
    """

    shortcuts: Shortcuts = EXACT
    recorder: Recorder | None = None
    on_step: Callable[[Step], None] | None = None
    on_memory: Callable[[MemoryPlan], None] | None = None
    cancelled: Cancelled | None = None
    part: tuple[int, int] = (0, 1)

    @property
    def observes(self) -> bool:
        """Whether residuals and times are measured."""
        return self.recorder is not None and self.recorder.observe

    @property
    def records(self) -> bool:
        """Whether there will be a report."""
        return self.recorder is not None

    @property
    def limits_guidance(self) -> bool:
        """Whether the negative half is skipped anywhere."""
        return self.shortcuts.limits_guidance

    def progress(self, done: int, total: int) -> tuple[int, int]:
        """Steps done and all steps of a node, of those of this run."""
        # A node that samples several times shows one progress bar.
        index, count = self.part
        return index * total + done, count * total

    def with_recorder(self, title: str, observe: bool = False) -> RunOptions:
        """The same run with a report. observe: whether residuals and times are measured."""
        return replace(self, recorder=Recorder(title, observe))

    def report(self) -> RunReport:
        """What happened so far in a run that is recorded."""
        assert self.recorder is not None
        return self.recorder.report()

    def with_shortcuts_of(self, other: RunOptions) -> RunOptions:
        """This run with the shortcuts of `other`."""
        return replace(self, shortcuts=other.shortcuts)

    def exact(self) -> RunOptions:
        """The same run, in which nothing is skipped."""
        return replace(self, shortcuts=EXACT)

    def without_report(self) -> RunOptions:
        """The same run without report and memory callback; `on_step` is still called."""
        return replace(self, recorder=None, on_memory=None)

    def report_step(self, step: Step) -> None:
        """The first evaluation of a step is done."""
        if self.recorder is not None:
            self.recorder.step(float(step.sigma))
        if self.on_step is not None:
            self.on_step(step)

    def report_memory(self, plan: MemoryPlan) -> None:
        """The memory of the run is planned."""
        if self.recorder is not None:
            self.recorder.memory = plan.data()
        if self.on_memory is not None:
            self.on_memory(plan)

    def note(self, *lines: str) -> None:
        """Add lines to the report, such as a choice that has no effect."""
        if self.recorder is not None:
            self.recorder.notes += lines


DEFAULTS = RunOptions()
