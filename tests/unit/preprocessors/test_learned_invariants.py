"""What holds for every learned preprocessor, whatever comes in; nets with random weights stand in for the files."""

from __future__ import annotations

import copy
import socket
import subprocess
from typing import Any

import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.catalog.learned import LEARNED
from comfyui_controlnet_core.preprocessors.entry import Entry
from comfyui_controlnet_core.preprocessors.learned.teed import TEED
from few import few_of

from .conftest import Random, make_pictures

IMAGE = make_pictures(1, 20, 28)
NARROW = ("soft_edge_hed", "soft_edge_pidinet", "soft_edge_teed", "lines_mlsd")
"""Those that are quick enough to look at 4096 pixels here."""


@pytest.fixture(
    params=few_of(LEARNED, *(entry for entry in LEARNED if entry.name != "pose_openpose")), ids=lambda e: e.name
)
def learned(request: pytest.FixtureRequest) -> Entry:
    return request.param


def check(hint: Any, height: int, width: int) -> None:
    assert hint.shape == (1, height, width, 3) and hint.dtype == np.float32
    assert np.isfinite(hint).all() and hint.min() >= 0.0 and hint.max() <= 1.0


def test_a_single_pixel(learned: Entry, nets: Random) -> None:
    check(preprocessors.process(learned, make_pictures(1, 1, 1), library=nets), 1, 1)


@pytest.mark.parametrize("name", NARROW)
def test_a_long_picture(name: str, nets: Random) -> None:
    check(preprocessors.process(name, make_pictures(1, 16, 4096), library=nets), 16, 4096)


def test_what_comes_in_other_forms_reads_the_same(
    learned: Entry, nets: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words with alpha, values outside of the range; the same seed; no network, no other program."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a preprocessor reached out")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    strange = IMAGE.copy()
    strange[0, 0, :4] = [[1.004] * 3, [-0.01] * 3, [np.nan] * 3, [np.inf] * 3]
    tame = IMAGE.copy()
    tame[0, 0, :4] = [[1.0] * 3, [0.0] * 3, [0.0] * 3, [1.0] * 3]
    before = strange.copy()
    expected = preprocessors.process(learned, tame, library=nets, seed=3)
    check(expected, 20, 28)
    assert np.array_equal(preprocessors.process(learned, strange, library=nets, seed=3), expected)
    assert np.array_equal(strange, before, equal_nan=True), "the input is left alone"
    alpha = np.full((1, 20, 28, 1), 65535, np.uint16)
    words = np.concatenate([np.rint(tame * 255).astype(np.uint16) * 257, alpha], axis=-1)
    assert np.array_equal(preprocessors.process(learned, words, library=nets), expected)


def test_a_gray_picture_reads_like_its_three_channels(nets: Random) -> None:
    gray = IMAGE.mean(axis=-1, keepdims=True)
    one, three = (preprocessors.process("soft_edge_teed", x, library=nets) for x in (gray, np.repeat(gray, 3, -1)))
    assert np.array_equal(one, three)


class Few(Random):
    """Nets that see two pictures at a time."""

    pixels = 2 * 24 * 32


@pytest.mark.parametrize("name", ["soft_edge_teed", "depth_anything_v2"])
def test_progress_and_interruption_after_each_chunk(name: str, nets: Random) -> None:
    library = Few()
    library.kept = nets.kept
    image, seen, whole = make_pictures(5, 24, 32), [], []

    def note(done: int, total: int) -> None:
        seen.append((done, total))

    hint = preprocessors.process(name, image, library=library, progress=note)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    at_once = preprocessors.process(name, image, library=nets, progress=lambda *counts: whole.append(counts))
    assert np.abs(hint - at_once).max() < 1e-3
    assert whole == [(5, 5)]

    def stop(done: int, total: int) -> None:
        note(done, total)
        raise KeyboardInterrupt

    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        preprocessors.process(name, image, library=library, progress=stop)
    assert seen == [(2, 5)], "the second chunk is not begun"


def test_an_error_names_what_needs_no_files() -> None:
    for entry in LEARNED:
        with pytest.raises(preprocessors.WeightsError) as caught:
            preprocessors.process(entry, IMAGE)
        assert (f"{entry.fallback} needs no weights" in str(caught.value)) == bool(entry.fallback)
    assert {entry.name for entry in LEARNED if not entry.fallback} == {
        "pose_openpose",
        "normal_bae",
        "depth_anything_v2",
    }


def test_hands_that_are_asked_for_and_not_there_are_told_at_once(tmp_path: Any) -> None:
    from comfyui_controlnet_core.preprocessors.learned.library import Library

    (tmp_path / "body_pose_model.pth").touch()  # it would be refused if it were read
    with pytest.raises(preprocessors.WeightsError, match=r"hand_pose_model\.pth was not found"):
        preprocessors.process("pose_openpose", IMAGE, library=Library([tmp_path]), hands=True)


def test_a_net_that_gives_no_numbers_is_an_error_and_no_hint(nets: Random) -> None:
    library = Random()
    library.kept["7_model.pth"] = copy.deepcopy(nets.net(preprocessors.get("soft_edge_teed").weights[0], TEED))
    next(library.kept["7_model.pth"].parameters()).fill_(float("nan"))
    with pytest.raises(preprocessors.WeightsError, match="NaN or infinity"):
        preprocessors.process("soft_edge_teed", IMAGE, library=library, safe=False)
