"""Prepare once: all that does not depend on x.

`prepare` turns conditions and sigmas into a `Prepared`: texts laid out in rows, keys and values of
the text in every cross attention, the timestep's projection for every sigma, embedded hints, and the
plan of which net acts at which sigma with which weight per block. `engine.evaluate` does the rest.

Everything is keyed by sigma and not by step: samplers of higher order evaluate between the steps.
A sigma that was not announced is prepared when it is met. Conditions outside their window take no rows: a
`Moment` is what is computed while the same conditions are inside theirs.

What is prepared refers to twins of the nets, never to the modules that came in, so that the backend may keep it
without keeping those alive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..config import ModelConfig
from ..control.unit import ControlUnit
from ..diffusion.schedule import NoiseSchedule
from ..errors import ShapeError
from ..models.control import check_base
from ..models.unet import UNet, check_context
from .backend import Backend
from .blend import Blend, make_blend
from .concat import check_channels
from .condition import Area, Condition, crop, equal_length
from .cut import Cut
from .job import Job
from .projections import Projections
from .seat import Seat
from .unit import Actor, PreparedUnit, make_actors, seat_unit


@dataclass(frozen=True, eq=False)
class Group:
    """Conditions that are evaluated in one batch: the same rectangle of the picture.

    Rows are ordered condition by condition, each with the whole batch of pictures. beside: (rows, C, h, w),
    further channels that the UNet reads.
    """

    area: Area | None
    members: tuple[tuple[int, Condition], ...]
    projections: Projections
    units: tuple[PreparedUnit, ...]
    beside: Tensor | None = None
    known_actors: dict[tuple[PreparedUnit, ...], tuple[Actor, ...]] = field(default_factory=dict)

    def active(self, sigma: float) -> tuple[PreparedUnit, ...]:
        """Units that cost anything at this sigma: in their window, and of some strength."""
        return tuple(unit for unit in self.units if unit.is_active(sigma))

    def actors(self, sigma: float) -> tuple[Actor, ...]:
        """The nets that run at this sigma, each with its units."""
        active = self.active(sigma)
        if active not in self.known_actors:
            self.known_actors[active] = make_actors(active)
        return self.known_actors[active]


@dataclass(frozen=True, eq=False)
class Moment:
    """What is computed while the same conditions are in their windows, and how it becomes a half of the guidance.

    negative: None where there is no guidance.
    """

    groups: tuple[Group, ...]
    positive: Blend
    negative: Blend | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that `evaluate` needs besides x and sigma.

    positives: the number of conditions of the positive half, which come first. latent: (B, h, w). announced: the
    sigmas that are known before the run.
    """

    unet: UNet
    config: ModelConfig
    schedule: NoiseSchedule
    conditions: tuple[Condition, ...]
    positives: int
    latent: tuple[int, int, int]
    announced: tuple[float, ...]
    backend: Backend
    known_moments: dict[tuple[int, ...], Moment] = field(default_factory=dict)
    moments: dict[float, Moment] = field(default_factory=dict)

    def at(self, sigma: float) -> Moment:
        """What is to be computed at this sigma, prepared when the conditions that act at it are first met."""
        if sigma not in self.moments:
            acting = tuple(i for i, c in enumerate(self.conditions) if self.schedule.in_window(sigma, c.start, c.end))
            if acting not in self.known_moments:
                self.known_moments[acting] = _moment(self, acting)
            self.moments[sigma] = self.known_moments[acting]
        return self.moments[sigma]


def prepare_once(job: Job, backend: Backend) -> Prepared:
    """As `prepare`, but what the backend prepared for one of its last jobs is used again where it is the same."""
    key, owners = job.key()
    return backend.once(key, owners, lambda: prepare(job, backend))


def prepare(job: Job, backend: Backend, pictures: range | None = None) -> Prepared:
    """Everything constant of a run, or of a run on some pictures of the batch.

    Raises UnfitError for a ControlNet of another base, and ShapeError for texts, hints or masks that do not fit; hints
    and masks are looked at for the sigmas that are known.
    """
    check_job(job)
    config, batch = job.config, job.shape[0]
    placed = [replace(c, units=tuple(backend.place(unit, job.unet) for unit in c.units)) for c in job.conditions]
    if pictures is not None:
        cut = Cut(pictures, batch)
        placed = [cut.condition(condition) for condition in placed]
    prepared = Prepared(
        backend.optimise(job.unet), config, job.schedule, tuple(placed), len(job.positive),
        (batch if pictures is None else len(pictures), job.shape[-2], job.shape[-1]),
        tuple(dict.fromkeys(float(s) for s in job.sigmas if float(s) > 0.0)), backend,
    )  # fmt: skip
    for sigma in prepared.announced:
        prepared.at(sigma)
    return prepared


def check_job(job: Job) -> None:
    """Raise UnfitError for a ControlNet of another base, and ShapeError for texts and pictures that do not fit."""
    config = job.config
    for condition in job.conditions:
        check_channels(config.name, config.unet.in_channels, job.shape[1], condition.beside)
        check_context(condition.text, config.unet)
    for unit in job.units:
        check_base(unit.net, unit.name or "the ControlNet", config.unet, f"the model {config.name}")


def _moment(prepared: Prepared, acting: tuple[int, ...]) -> Moment:
    """For the conditions of these indices. Groups that other moments have as well are shared with them."""
    members = [(index, prepared.conditions[index]) for index in acting]
    made = {group.members: group for moment in prepared.known_moments.values() for group in moment.groups}
    groups = []
    for area in dict.fromkeys(condition.area for _, condition in members):
        inside = tuple((index, condition) for index, condition in members if condition.area == area)
        groups.append(made.get(inside) or _group(prepared, area, inside))
    halves = [[m for m in members if (m[0] < prepared.positives) is positive] for positive in (True, False)]
    positive, negative = (make_blend(half, prepared.latent, prepared.backend.runtime.device) for half in halves)
    return Moment(tuple(groups), positive, negative if len(prepared.conditions) > prepared.positives else None)


def _group(prepared: Prepared, area: Area | None, members: tuple[tuple[int, Condition], ...]) -> Group:
    config, backend, batch = prepared.config, prepared.backend, prepared.latent[0]
    context, label = _texts(members, config, batch, backend)
    projections = Projections(prepared.unet, prepared.schedule, context, label)
    windows = {(condition.start, condition.end) for _, condition in members}
    sigmas = tuple(s for s in prepared.announced if all(prepared.schedule.in_window(s, *window) for window in windows))
    projections.announce(sigmas)
    units = []
    for unit, first, last in unit_runs(members, prepared.positives):
        rows = slice(first * batch, last * batch)
        own_label = None if label is None else label[rows]
        seat = Seat(
            unit, prepared.latent, area, context[rows], own_label, prepared.schedule, sigmas, config.vae.factor,
            backend, config.unet,
        )  # fmt: skip
        halves = (unit.half(i < prepared.positives) for i, _ in members[first:last])
        units.append(seat_unit(seat, unit.net, rows, halves, config.unet))
    return Group(area, members, projections, tuple(units), _beside(members, area, backend))


def _texts(
    members: tuple[tuple[int, Condition], ...], config: ModelConfig, batch: int, backend: Backend
) -> tuple[Tensor, Tensor | None]:
    """Text (rows, tokens, context_dim) and, where the model has one, label vector (rows, label_dim)."""
    texts = equal_length([c.text for _, c in members])
    context = torch.cat([t.expand(batch, -1, -1) for t in texts]).to(backend.runtime.device, backend.runtime.dtype)
    if config.unet.label_dim is None:
        return context, None
    if any(c.label is None for _, c in members):
        raise ShapeError(f"the model {config.name} reads a label vector, and a condition has none: encode its text")
    return context, torch.cat([c.label.expand(batch, -1) for _, c in members if c.label is not None]).to(context)


def _beside(members: tuple[tuple[int, Condition], ...], area: Area | None, backend: Backend) -> Tensor | None:
    """The further channels (rows, C, h, w) of a group's rectangle."""
    found = [crop(c.beside, area) for _, c in members if c.beside is not None]
    return torch.cat(found).to(backend.runtime.device, backend.runtime.dtype) if found else None


def unit_runs(
    members: tuple[tuple[int, Condition], ...], positives: int
) -> Iterable[tuple[ControlUnit, int, int]]:
    """Each distinct unit with the runs [first, last) of group members it acts on.

    Runs of neighbouring conditions, so that a unit's rows stay a view.
    """
    for unit in dict.fromkeys(u for _, c in members for u in c.units):
        acts = [unit in c.units and unit.half(i < positives) != 0.0 for i, c in members]
        position = 0
        while position < len(acts):
            last = position
            while last < len(acts) and acts[last]:
                last += 1
            if last > position:
                yield unit, position, last
            position = last + 1
