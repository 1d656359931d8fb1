"""Timesteps and text, projected once per run for every block of a net instead of at every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from .to_device import to_device_async
from .unet import BlockInputs, Shifts, UNetInputs

Embed: TypeAlias = Callable[[Tensor, "Tensor | None"], Tensor]
"""Timesteps (B,), and the label vector if the model has one -> (B, embed_dim)."""


class Timesteps(Protocol):
    """Maps noise levels to timesteps; a `NoiseSchedule` does."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """Sigmas (n,) -> timesteps (n,), float32, possibly fractional."""
        ...


@dataclass(eq=False)
class Projections:
    """Timestep shifts of a net by sigma, and its keys and values of the text.

    net: a UNet, or a net with the same parts. text: (rows, tokens, context_dim). label: (rows, label_dim) or None.
    embed, per_row: see `BindContext`.
    """

    net: nn.Module
    timesteps: Timesteps
    text: Tensor
    label: Tensor | None
    embed: Embed | None = None
    per_row: bool = False
    shifts: dict[float, tuple[Shifts, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = (name for name in ("encoder", "middle", "decoder") if hasattr(self.net, name))
        self.parts: list[Any] = [getattr(self.net, name) for name in names]
        self.kv = [part.text_kv(self.text) for part in self.parts]
        # A timestep alone is the same for all rows. Label vectors and union types belong to single rows.
        self.same_for_all_rows = self.embed is None and self.label is None and not self.per_row

    def prepare(self, sigmas: Iterable[float]) -> None:
        """Project the timesteps of these sigmas in one batch."""
        new = [s for s in dict.fromkeys(sigmas) if s not in self.shifts]
        if not new:
            return
        embed: Any = self.embed or self.net.embed
        t = to_device_async(self.timesteps.timestep(torch.tensor(new)), self.text.device)
        if self.label is not None or self.per_row:
            for sigma, step in zip(new, t, strict=True):
                emb = embed(step.expand(self.text.shape[0]), self.label)
                self.shifts[sigma] = self.time_shifts(emb)
            return
        emb = embed(t, None)
        # All sigmas in one batch, one row each: 20 small products take longer than one with 20 rows.
        projected = self.time_shifts(emb)
        for row, sigma in enumerate(new):
            self.shifts[sigma] = tuple(
                tuple(None if s is None else s[row : row + 1] for s in part) for part in projected
            )

    def time_shifts(self, emb: Tensor) -> tuple[Shifts, ...]:
        """The shifts of each stack for an embedded timestep, (1 or rows, embed_dim)."""
        return tuple(part.time_shifts(emb) for part in self.parts)

    def at(self, sigma: float) -> UNetInputs:
        """What the blocks need besides x at this sigma."""
        # Samplers of higher order evaluate between the steps, so an unknown sigma is normal.
        self.prepare([sigma])
        return UNetInputs(*(BlockInputs(s, kv) for s, kv in zip(self.shifts[sigma], self.kv, strict=True)))


class JoinedProjections:
    """Projections of one net for several units, the rows of one after those of the other."""

    def __init__(self, parts: Sequence[Projections]) -> None:
        self.parts = tuple(parts)
        self.rows = [part.text.shape[0] for part in self.parts]
        self.kv = [_stack_rows(kv, self.rows) for kv in zip(*(part.kv for part in self.parts), strict=True)]
        self.known: dict[float, UNetInputs] = {}

    def at(self, sigma: float) -> UNetInputs:
        """What the blocks need besides x at this sigma."""
        if sigma not in self.known:
            # One tuple per stack of blocks. A ControlNet's third entry, of the decoder, is None.
            stacks = zip(*(part.at(sigma)[: len(self.kv)] for part in self.parts), strict=True)
            inputs = (BlockInputs(self._shifts(stack), kv) for stack, kv in zip(stacks, self.kv, strict=True))
            self.known[sigma] = UNetInputs(*inputs)
        return self.known[sigma]

    def _shifts(self, part: Sequence[BlockInputs]) -> Shifts:
        if all(own.same_for_all_rows for own in self.parts):
            return part[0].shifts
        return _stack_rows([own.shifts for own in part], self.rows)


def _stack_rows(trees: Sequence[Any], rows: Sequence[int]) -> Any:
    """Equally nested tuples of tensors -> the same nesting, the rows of all trees one after the other."""
    if trees[0] is None:
        return None
    if isinstance(trees[0], Tensor):
        return torch.cat([t.expand(n, *t.shape[1:]) for t, n in zip(trees, rows, strict=True)])
    return tuple(_stack_rows(branches, rows) for branches in zip(*trees, strict=True))
