"""What the groups of a run keep and hold, in numbers of values: the same walk as `engine.prepare` makes, on shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import lcm
from typing import TypeAlias

from torch import nn

from ..config import UNetConfig
from ..control.unit import ControlUnit
from ..models.control import ControlModel, Load, Sitting
from .activations import (
    CastForms,
    Forms,
    FusedForms,
    PlainForms,
    Running,
    Turns,
    lower_values,
    skip_values,
    step_values,
    target_cells,
    text_values,
    time_values,
)
from .backend import Backend
from .condition import Condition
from .filters import Use
from .job import Job
from .narrow import is_narrow
from .prepare import unit_runs
from .run import Shortcuts

Members: TypeAlias = tuple[tuple[int, Condition], ...]
TIMES = 2
"""Of so many evaluations a forecast keeps what it continues: its line goes through them."""


class Account:
    """What one job keeps and holds.

    sigmas: those at which it is evaluated, of all that it is prepared for. parts: how many like it a batch has, each
    evaluated for itself. made: how many of them are prepared; the others are alike.
    """

    def __init__(self, job: Job, backend: Backend, sigmas: Iterable[float], parts: int = 1, made: int = 1) -> None:
        self.job, self.backend, self.parts, self.made = job, backend, parts, made
        self.groups: dict[Members, GroupCount] = {}
        moments = {sigma: self._moment(sigma) for sigma in known_sigmas(job)}
        self.moments = {sigma: tuple(group.at(sigma) for group in moments[sigma]) for sigma in dict.fromkeys(sigmas)}

    def _moment(self, sigma: float) -> list[GroupCount]:
        """The groups that are evaluated at a sigma."""
        job = self.job
        acting = [(i, c) for i, c in enumerate(job.conditions) if job.schedule.in_window(sigma, c.start, c.end)]
        groups = []
        for area in dict.fromkeys(condition.area for _, condition in acting):
            members = tuple((i, condition) for i, condition in acting if condition.area == area)
            if members not in self.groups:
                self.groups[members] = GroupCount(members, job, self.backend)
            groups.append(self.groups[members])
        return groups

    @property
    def scenes(self) -> list[Scene]:
        """All that is evaluated in this run, each once."""
        return list(dict.fromkeys(scene for moment in self.moments.values() for scene in moment))

    @property
    def uses(self) -> Iterator[tuple[nn.Module, Use]]:
        """The models with what they are run on."""
        for scene in self.scenes:
            group = scene.group
            yield self.job.unet, Use(group.config, group.rows, group.size, decoder=True)
            for actor in scene.actors:
                if actor.load.blocks is not None:
                    yield actor.net, Use(actor.load.blocks, actor.rows, group.size, decoder=False)

    @property
    def prepared(self) -> int:
        """Values that are kept over the run."""
        return self.made * self._kept

    @property
    def preparing(self) -> int:
        """Most values alive while those are made, group by group."""
        before = most = (self.made - 1) * self._kept
        for group in self.groups.values():
            most = max(most, before + group.making)
            before += group.kept
        return most

    @property
    def _kept(self) -> int:
        return sum(group.kept for group in self.groups.values())

    @property
    def joined(self) -> int:
        """Values of the batches that nets with several hints are run on, made when they first act together."""
        return self.made * sum(scene.joined for scene in self.scenes)

    def carried(self, shortcuts: Shortcuts) -> int:
        """Values that shortcuts keep from one evaluation to the next."""
        return self.parts * sum(scene.carried(shortcuts) for scene in self.scenes)

    @property
    def buffers(self) -> int:
        """Values that graphs keep: a set of buffers for each capture, and all that changes for each sigma."""
        captured = sum(scene.constants + scene.varying for moment in set(self.moments.values()) for scene in moment)
        return captured + self.made * sum(scene.varying for moment in self.moments.values() for scene in moment)


@dataclass(frozen=True, eq=False)
class Seated:
    """A unit on rows of a group. laid: rows of its hint. masks: values of its masks and factors."""

    unit: ControlUnit
    net: ControlModel
    rows: int
    laid: int
    load: Load
    masks: int


class GroupCount:
    """Conditions that are evaluated as one batch."""

    def __init__(self, members: Members, job: Job, backend: Backend) -> None:
        self.job, self.backend, area = job, backend, members[0][1].area
        self.config = job.config.unet
        self.size = (job.shape[-2], job.shape[-1]) if area is None else (area.height, area.width)
        self.rows = len(members) * job.shape[0]
        self.tokens = lcm(*(c.text.shape[1] for _, c in members))  # see `equal_length`
        windows = dict.fromkeys((c.start, c.end) for _, c in members)
        inside = (all(job.schedule.in_window(s, *window) for window in windows) for s in known_sigmas(job))
        self.timesteps = sum(inside)
        self.seated = [self._seat(*run, members) for run in unit_runs(members, len(job.positive))]
        self.scenes: dict[tuple[Seated, ...], Scene] = {}

    def _seat(self, unit: ControlUnit, first: int, last: int, members: Members) -> Seated:
        job, batch = self.job, self.job.shape[0]
        net, rows = self.backend.resolve(unit.net, job.unet), (last - first) * batch
        factor, (height, width) = job.config.vae.factor, self.size
        pictures = min(batch, max(len(hint.picture) for hint in unit.hints))
        sitting = Sitting(
            rows, self.size, (height * factor, width * factor), len(unit.hints), pictures,
            target_cells(self.config, self.size), self.config, unit.pool,
        )  # fmt: skip
        factors = {unit.half(i < len(job.positive)) for i, _ in members[first:last]} | set(unit.items or ())
        each = 1 if factors <= {1.0} and (unit.mask is None or len(unit.mask) == 1) else rows
        masks = 0 if unit.mask is None else each * sum(sitting.cells)
        return Seated(unit, net, rows, sitting.laid, net.load(sitting), masks)

    def at(self, sigma: float) -> Scene:
        """What is evaluated at a sigma."""
        where = (sigma, self.job.schedule, self.config, self.size[0])
        active = tuple(seated for seated in self.seated if any(seated.unit.weights_at(*where)))
        if active not in self.scenes:
            self.scenes[active] = Scene(self, active)
        return self.scenes[active]

    @cached_property
    def kept(self) -> int:
        """Values that are kept."""
        return self._own + sum(self._with(seated) for seated in self.seated)

    @cached_property
    def making(self) -> int:
        """Most values alive while they are made."""
        kept = most = self._own
        for seated in self.seated:
            most = max(most, kept + seated.load.binding)
            kept += self._with(seated)
        return max(most, kept)

    @property
    def _own(self) -> int:
        """The text, and what the UNet makes of it and of the timesteps."""
        text = self.rows * self.tokens * self.config.context_dim
        return text + self.projected(self.config, self.rows, self.timesteps, decoder=True)

    def _with(self, seated: Seated) -> int:
        """What a unit adds to that."""
        load, kept = seated.load, seated.load.kept + seated.masks
        return kept if load.blocks is None else kept + self.projected(load.blocks, seated.rows, self.timesteps)

    def projected(self, config: UNetConfig, rows: int, timesteps: int, decoder: bool = False) -> int:
        """Keys and values of the text, and the projections of timesteps: one per row where there are labels."""
        times = timesteps * (1 if config.label_dim is None else rows)
        return text_values(config, rows, self.tokens, decoder) + time_values(config, times, decoder)


@dataclass(frozen=True)
class Acting:
    """A net that runs, for one unit or for several as one batch. kept: values of its hints and masks."""

    net: ControlModel
    load: Load
    rows: int
    kept: int
    joined: bool


class Scene:
    """A group while the same of its units are active."""

    def __init__(self, group: GroupCount, active: Sequence[Seated]) -> None:
        self.group = group
        by_net: dict[ControlModel, list[Seated]] = {}
        for seated in active:
            by_net.setdefault(seated.net, []).append(seated)
        self.actors = [actor for own in by_net.values() for actor in _actors(own)]

    def step(self, shortcuts: Shortcuts) -> int:
        """Most values alive in an evaluation, beside what is carried."""
        backend, group = self.group.backend, self.group
        beside = backend.runtime.side_by_side and not shortcuts.continues_nets
        turns = Turns(
            shortcuts.continues_nets, shortcuts.encoder_every > 1, beside,
            streams=beside and backend.runtime.device.type == "cuda",
        )  # fmt: skip
        nets = [Running(actor.load, actor.rows, forms_of(actor.net, backend)) for actor in self.actors]
        forms = forms_of(group.job.unet, backend)
        return step_values(group.config, nets, group.rows, group.size, forms, turns)

    def carried(self, shortcuts: Shortcuts) -> int:
        """Values that shortcuts keep from one evaluation to the next."""
        where = (self.group.config, self.group.rows, self.group.size)
        residuals = sum(sum(actor.load.residuals) for actor in self.actors) if shortcuts.continues_nets else 0
        skips = skip_values(*where) if shortcuts.encoder_every > 1 else 0
        lower = lower_values(*where) if shortcuts.deep_every > 1 else 0
        return TIMES * (residuals + skips + lower)

    @property
    def joined(self) -> int:
        """Values of the batches that nets with several hints are run on, made when they first act together."""
        return sum(self._constants(actor, every_timestep=True) for actor in self.actors if actor.joined)

    @property
    def constants(self) -> int:
        """Values that are the same at each evaluation of a run: keys and values, hints and masks."""
        own = text_values(self.group.config, self.group.rows, self.group.tokens, decoder=True)
        return own + sum(self._constants(actor) for actor in self.actors)

    def _constants(self, actor: Acting, every_timestep: bool = False) -> int:
        blocks = actor.load.blocks
        if blocks is None:
            return actor.kept
        labelled = every_timestep and blocks.label_dim is not None
        return actor.kept + self.group.projected(blocks, actor.rows, self.group.timesteps if labelled else 0)

    @property
    def varying(self) -> int:
        """Values that are others at each sigma: the projections of one timestep."""
        shapes = [(self.group.config, self.group.rows, True)]
        shapes += [(actor.load.blocks, actor.rows, False) for actor in self.actors if actor.load.blocks is not None]
        return sum(time_values(c, 1 if c.label_dim is None else rows, decoder) for c, rows, decoder in shapes)


def _actors(seated: Sequence[Seated]) -> list[Acting]:
    """Units of one net share a batch where the net can do so, as in `engine.unit.make_actors`."""
    kinds = {own.load.batch for own in seated}
    if len(seated) == 1 or len(kinds) > 1 or None in kinds:
        return [Acting(own.net, own.load, own.rows, own.load.kept + own.masks, False) for own in seated]
    residuals = tuple(map(sum, zip(*(own.load.residuals for own in seated), strict=True)))
    rows = sum(own.rows for own in seated)
    hints = sum(own.load.kept * own.rows // own.laid for own in seated)
    load = Load(hints, 0, residuals, seated[0].load.blocks)
    return [Acting(seated[0].net, load, rows, hints, True)]


def forms_of(module: nn.Module, backend: Backend) -> Forms:
    """How much the blocks of a model hold, as the backend runs them."""
    forms = FusedForms() if backend.packs else PlainForms()
    return CastForms(forms, backend.packs) if is_narrow(module) else forms


def known_sigmas(job: Job) -> list[float]:
    """The noise levels that are announced, each once; nothing is evaluated at 0."""
    return list(dict.fromkeys(sigma for sigma in job.sigmas if sigma > 0.0))
