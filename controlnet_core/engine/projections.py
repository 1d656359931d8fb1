"""A net's timesteps and text, projected once instead of at every evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.schedule import NoiseSchedule
from ..models import control
from ..models.control import Embed
from ..models.transfer import sent
from ..models.unet import Projected, Shifts, Stack


@dataclass(eq=False)
class Projections:
    """A net's timestep projections by sigma, and its keys and values of the text.

    net: a UNet, or a net with the same parts. embed: in place of `net.embed`. per_row: project a timestep
    for each row of the context, not once for all of them; products of one row are rounded otherwise than
    those of several, which matters to who compares bits.
    """

    net: nn.Module
    schedule: NoiseSchedule
    context: Tensor
    label: Tensor | None
    embed: Embed | None = None
    per_row: bool = False
    shifts: dict[float, tuple[Shifts, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = (name for name in ("encoder", "middle", "decoder") if hasattr(self.net, name))
        self.parts: list[Any] = [getattr(self.net, name) for name in names]
        self.kv = [part.text_kv(self.context) for part in self.parts]

    def announce(self, sigmas: Iterable[float]) -> None:
        """Project the timesteps of these sigmas, all at once."""
        new = [s for s in dict.fromkeys(sigmas) if s not in self.shifts]
        if not new:
            return
        embed = self.embed or self.net.embed
        t = sent(self.schedule.timestep(torch.tensor(new)), self.context.device)
        if self.label is not None or self.per_row:
            for sigma, step in zip(new, t, strict=True):
                emb = embed(step.expand(self.context.shape[0]), self.label)
                self.shifts[sigma] = tuple(part.time_shifts(emb) for part in self.parts)
            return
        emb = embed(t, None)
        projected = [part.time_shifts(emb) for part in self.parts]
        for row, sigma in enumerate(new):
            self.shifts[sigma] = tuple(
                tuple(None if s is None else s[row : row + 1] for s in part) for part in projected
            )

    def at(self, sigma: float) -> Stack:
        """What the net needs besides x at this sigma."""
        self.announce([sigma])
        parts = (Projected(s, kv) for s, kv in zip(self.shifts[sigma], self.kv, strict=True))
        return Stack(*parts)

    def joined(self, others: Sequence[control.Projections]) -> JoinedProjections:
        """The same for the rows of several seats, one after the other."""
        return JoinedProjections((self, *others))


class JoinedProjections:
    """Projections of one net for several seats, row behind row."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts: tuple[Projections, ...] = tuple(parts)
        self.rows = [part.context.shape[0] for part in self.parts]
        self.kv = [_behind(branches, self.rows) for branches in zip(*(part.kv for part in self.parts), strict=True)]
        self.known: dict[float, Stack] = {}
        # A timestep alone is the same for all rows; types and label vectors are each seat's own.
        self.shared = all(p.embed is None and p.label is None and not p.per_row for p in self.parts)

    def at(self, sigma: float) -> Stack:
        """What the net needs besides x at this sigma."""
        if sigma not in self.known:
            self.known[sigma] = self._at(sigma)
        return self.known[sigma]

    def _at(self, sigma: float) -> Stack:
        stacks = [part.at(sigma) for part in self.parts]
        joined = []
        for part, kv in zip(zip(*stacks, strict=True), self.kv, strict=False):
            shifts = part[0].shifts if self.shared else _behind([own.shifts for own in part], self.rows)
            joined.append(Projected(shifts, kv))
        return Stack(*joined)

    def joined(self, others: Sequence[control.Projections]) -> JoinedProjections:
        """These and others."""
        return JoinedProjections((*self.parts, *others))


def _behind(trees: Sequence[Any], rows: Sequence[int]) -> Any:
    """Tuples of tensors, nested alike -> the same, each tensor with the rows of all."""
    if trees[0] is None:
        return None
    if isinstance(trees[0], Tensor):
        return torch.cat([t.expand(n, *t.shape[1:]) for t, n in zip(trees, rows, strict=True)])
    return tuple(_behind(branches, rows) for branches in zip(*trees, strict=True))
