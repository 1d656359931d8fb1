"""Soft edges and scribbles estimated by HED, PiDiNet and TEED."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..classic.soft_edge import safe_steps, to_scribble
from .hed import HED
from .images import infer, to_input, to_maps
from .pidinet import PiDiNet
from .teed import TEED

if TYPE_CHECKING:
    from ..entry import Weights
    from .library import Library


def hed(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], safe: bool = False) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) float32 0..1."""
    net = library.net(weights[0], HED)
    return _graded(to_maps(infer(net, to_input(frames, net))), safe)


def pidinet(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], safe: bool = False) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) float32 0..1."""
    net = library.net(weights[0], PiDiNet)
    # PiDiNet was trained on BGR.
    return _graded(to_maps(infer(net, to_input(frames[..., ::-1], net) / 255.0)), safe)


def teed(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], safe: bool = True) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) float32 0..1."""
    net = library.net(weights[0], TEED)
    return _graded(to_maps(infer(net, to_input(frames, net))), safe)


def hed_scribble(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) uint8 strokes along the edges of HED."""
    return _strokes(hed(frames, library=library, weights=weights))


def pidinet_scribble(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) uint8 strokes along the edges of PiDiNet."""
    return _strokes(pidinet(frames, library=library, weights=weights))


def _graded(maps: np.ndarray, safe: bool) -> np.ndarray:
    return safe_steps(maps) if safe else maps


def _strokes(maps: np.ndarray) -> np.ndarray:
    return np.stack([to_scribble((frame * np.float32(255.0)).astype(np.uint8)) for frame in maps])
