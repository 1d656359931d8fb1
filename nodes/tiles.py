"""Runs a network on overlapping tiles of a picture and blends its outputs as ComfyUI does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor


def run_in_tiles(
    x: Tensor, run: Callable[[Tensor], Tensor], tile: tuple[int, int], overlap: int, scale: float, channels: int
) -> Tensor:
    """(B, C, H, W) -> (B, channels, scale * H, scale * W) of `run`, one picture after the other, on the CPU.

    tile: height and width of a tile. overlap: pixels that two tiles share, where their outputs are faded into each
    other. scale: of run's output. A picture that fits into one tile is run as a whole.
    """
    return torch.cat([_one(picture[None], run, tile, overlap, scale, channels) for picture in x])


def _one(
    x: Tensor, run: Callable[[Tensor], Tensor], tile: tuple[int, int], overlap: int, scale: float, channels: int
) -> Tensor:
    sides = (x.shape[-2], x.shape[-1])
    if sides[0] <= tile[0] and sides[1] <= tile[1]:
        return run(x).cpu()
    total = torch.zeros(1, channels, round(sides[0] * scale), round(sides[1] * scale))
    weights = torch.zeros_like(total)
    places = (_starts(side, length, overlap) for side, length in zip(sides, tile, strict=True))
    for top, left in product(*places):
        part = x[:, :, top : top + tile[0], left : left + tile[1]]
        made = run(part).cpu()
        fade = round(overlap * scale)
        window = (_ramp(made.shape[-2], fade)[:, None] * _ramp(made.shape[-1], fade)).expand_as(made)
        y, x0 = round(top * scale), round(left * scale)
        place = (..., slice(y, y + made.shape[-2]), slice(x0, x0 + made.shape[-1]))
        total[place] += made * window
        weights[place] += window
    return total / weights


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    if side <= tile:
        return [0]
    # A last tile that would be no wider than the overlap is left out: the one before it covers it.
    return list(range(0, side - overlap, tile - overlap))


def _ramp(length: int, fade: int) -> Tensor:
    """Weights of a tile along one side: they rise and fall over `fade` cells, also at the border of the picture."""
    weights = torch.ones(length)
    for at in range(fade if fade < length else 0):
        weights[at] *= (at + 1) / fade
        weights[length - 1 - at] *= (at + 1) / fade
    return weights
