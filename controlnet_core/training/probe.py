"""The probe: does a net in training follow its hint?

The loss does not show it: it is noisy, and falls long before the net obeys. The probe compares the loss with the right
hints and with exchanged ones. Source: Zhang et al. 2023, section 3.3 ("sudden convergence").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Control has appeared when the hint lowers the loss by 2 %, three standard errors away from chance.
APPEARED, CERTAIN = 0.02, 3.0
# At these noise levels the layout of a picture is decided, so the hint has its largest effect there.
PROBE_TIMESTEPS = (500.0, 700.0, 850.0, 950.0)
# Smallest number of losses that a probe compares: with few examples, more noises are drawn.
PROBE_DRAWS = 32
HELD_OUT, HELD_OUT_SHARE = 32, 0.05
# With fewer examples than this none is held out: the training needs all of them, and the probe uses them too.
ALL_TRAINED = 8

AT_ONCE = 8
"""Rows of a batch of the probe: it needs no more memory than a step."""

LossesFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(latents, noise, timesteps (B,), hints) -> one loss for each row (B,), on the CPU. B is at most `AT_ONCE`."""


@dataclass(frozen=True)
class Probe:
    """Loss on held-out examples with their own hints and with those of others.

    right, wrong: mean losses. control: fraction by which the right hint lowers the loss, 0 for a fresh net. certainty:
    control in standard errors.
    """

    step: int
    right: float
    wrong: float
    control: float
    certainty: float

    @property
    def appeared(self) -> bool:
        """Whether the net follows its hint, see `APPEARED`."""
        return self.control >= APPEARED and self.certainty >= CERTAIN


def count_held_out(count: int) -> tuple[int, bool]:
    """How many of `count` examples the probe uses, and whether the training uses them too."""
    if count < ALL_TRAINED:
        return count, True
    return min(HELD_OUT, max(2, round(count * HELD_OUT_SHARE))), False


def split_rows(count: int) -> tuple[Tensor, tuple[int, ...]]:
    """Rows to train on, and rows that are held out for the probe; the same in every run."""
    held, trained_too = count_held_out(count)
    if trained_too:
        return torch.arange(count), tuple(range(count))
    # Seeded by the count alone: a continued training holds out the same examples.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return order[held:], tuple(order[:held].tolist())


def run_probe(step: int, latents: Tensor, hints: Tensor, losses: LossesFunction) -> Probe:
    """Compare the losses at fixed noise. latents (B, 4, h, w), hints (B, 3, H, W), B >= 2, on the device."""
    # A generator of its own: probes must not change the random numbers of the training.
    generator = torch.Generator().manual_seed(0)
    count = len(latents)
    # Each timestep as often as the others.
    repeats = math.ceil(PROBE_DRAWS / (count * len(PROBE_TIMESTEPS)))
    draws = repeats * len(PROBE_TIMESTEPS)
    noise = torch.cat([torch.randn(latents.shape, generator=generator) for _ in range(draws)])
    timesteps = torch.tensor(PROBE_TIMESTEPS).repeat(repeats).repeat_interleave(count)
    own = torch.arange(count).repeat(draws)
    # Never rolled by a multiple of the batch, so no example gets its own hint.
    other = torch.cat([torch.arange(count).roll(1 + draw % (count - 1)) for draw in range(draws)])
    found: list[tuple[Tensor, Tensor]] = []
    for part in torch.arange(len(own)).split(AT_ONCE):
        rows = latents[own[part]], noise[part].to(latents.device), timesteps[part]
        # Batches of one size: for a fresh net both losses are the same to the bit.
        found.append((losses(*rows, hints[own[part]]), losses(*rows, hints[other[part]])))
    right, wrong = (torch.cat(part) for part in zip(*found, strict=True))
    share = 1.0 - right / wrong
    error = float(share.std()) / len(share) ** 0.5
    control = float(share.mean())
    return Probe(step, float(right.mean()), float(wrong.mean()), control, control / error if error else 0.0)


def first_control(history: Sequence[Probe]) -> Probe | None:
    """The first of two probes in a row that both find control; None before that."""
    return next((a for a, b in pairwise(history) if a.appeared and b.appeared), None)
