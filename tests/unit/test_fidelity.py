"""Measures of fidelity against maps whose score is known."""

from __future__ import annotations

import numpy as np
import pytest
from colours import colours_of, to_bytes
from comfyui_controlnet_core.controlnet_core.analysis import fidelity
from comfyui_controlnet_core.controlnet_core.analysis.charts import MARKS, draw_comparison, mark_picture
from comfyui_controlnet_core.controlnet_core.analysis.fidelity import EXTRA, HIT, MISSED
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from matplotlib.colors import to_rgb


def line(column: int, height: int = 20, width: int = 30) -> np.ndarray:
    edges = np.zeros((height, width), bool)
    edges[:, column] = True
    return edges


def test_edges_within_the_tolerance_are_hits() -> None:
    assert fidelity.compare_edges(line(10), line(12), 2.0).score == 1.0
    apart = fidelity.compare_edges(line(10), line(13), 2.0)
    assert apart.score == 0.0 and "0% of the hint's edges" in apart.words
    assert (apart.marks[:, 10] == MISSED).all() and (apart.marks[:, 13] == EXTRA).all()


def test_precision_and_recall_are_told_apart() -> None:
    both = line(5) | line(20)
    result = fidelity.compare_edges(line(5), both, 1.0)
    assert result.score == pytest.approx(2 * 0.5 * 1.0 / 1.5)
    assert result.words.startswith("100% of the hint's edges are in the picture, 50%")
    assert (result.marks[:, 5] == HIT).all() and (result.marks[:, 20] == EXTRA).all()
    assert fidelity.compare_edges(both, line(5), 1.0).score == result.score


def test_empty_edge_maps() -> None:
    nothing = np.zeros((20, 30), bool)
    assert fidelity.compare_edges(nothing, nothing).score == 1.0
    for maps in ((nothing, line(3)), (line(3), nothing)):
        assert fidelity.compare_edges(*maps).score == 0.0


def blocks() -> np.ndarray:
    """Left half blue, right half yellow."""
    hint = np.zeros((8, 8, 3), np.float32)
    hint[:, :4], hint[:, 4:] = (0, 0, 1), (1, 1, 0)
    return hint


def test_segments_are_colours() -> None:
    found = blocks()
    found[:, 4:6] = (0, 0, 1)
    result = fidelity.compare_segments(blocks(), found)
    assert result.score == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert (result.marks == MISSED).sum() == 16 and "75% of all pixels" in result.words
    found[:] = (0, 1, 0)  # a class that the hint does not have
    assert fidelity.compare_segments(blocks(), found).score == 0.0
    with pytest.raises(ValueRangeError, match="segment_palette"):
        fidelity.compare_segments(np.random.default_rng(0).random((30, 30, 3)), found)


def test_segments_by_colour_need_no_names() -> None:
    picture = np.full((8, 8, 3), 0.2)
    picture[:, 4:] = (0.9, 0.5, 0.5)
    assert fidelity.compare_segments_by_colour(blocks(), picture).score == 1.0
    shuffled = np.random.default_rng(0).permutation(picture.reshape(-1, 3)).reshape(8, 8, 3)
    assert fidelity.compare_segments_by_colour(blocks(), shuffled).score < 0.6


def test_depth_is_compared_up_to_scale_and_shift() -> None:
    hint = np.tile(np.linspace(0, 1, 50), (20, 1))
    result = fidelity.compare_depth(hint, 0.3 * hint + 0.4)
    assert result.score == 1.0 and "0.000" in result.words
    wrong = hint.copy()
    wrong[:10] = wrong[:10, ::-1]
    assert fidelity.compare_depth(hint, wrong).score < 0.3
    flat = fidelity.compare_depth(hint, np.full_like(hint, 0.5))  # no scale helps: the error is that of the mean
    assert float(flat.words.split()[3]) == pytest.approx(np.abs(hint - 0.5).mean(), abs=1e-3)


def test_normals_are_compared_by_their_angle() -> None:
    front = np.broadcast_to(np.float64([0.5, 0.5, 1.0]), (6, 6, 3)).copy()
    angle = np.radians(30.0)
    turned = np.broadcast_to((np.float64([np.sin(angle), 0.0, np.cos(angle)]) + 1) / 2, (6, 6, 3)).copy()
    assert fidelity.compare_normals(front, front).score == 1.0
    result = fidelity.compare_normals(front, turned)
    assert result.score == 0.0 and result.words == "mean angle 30.0 degrees"
    assert fidelity.compare_normals(front, turned, 30.1).score == 1.0
    front[:3] = 0.0
    assert (fidelity.compare_normals(front, turned).marks[:3] == 0).all()
    with pytest.raises(ValueRangeError, match="black everywhere"):
        fidelity.compare_normals(np.zeros((2, 2, 3)), turned[:2, :2])


def test_the_picture_shows_hits_and_misses() -> None:
    result = fidelity.compare_edges(line(5) | line(20), line(5) | line(28), 1.0)
    shown = mark_picture(np.zeros((20, 30, 3)), result.marks)
    for column, mark in ((5, HIT), (20, MISSED), (28, EXTRA)):
        assert np.allclose(shown[:, column], to_rgb(MARKS[mark][0]))
    drawn = draw_comparison(line(5)[..., None].astype(float), np.zeros((20, 30, 3)), result)
    assert {to_bytes(colour) for colour, _ in MARKS.values()} <= colours_of(drawn)
