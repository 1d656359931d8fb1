"""Several threads and bands of rows change nothing but the time: results, order of progress, and how a run ends."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors import parallel
from comfyui_controlnet_core.preprocessors.classic.gaussian import blurred, blurred_planes, reach
from comfyui_controlnet_core.preprocessors.classic.lineart import lineart, median_above
from comfyui_controlnet_core.preprocessors.classic.scribble import xdog
from comfyui_controlnet_core.preprocessors.classic.soft_edge import soft_edge, soft_scribble
from comfyui_controlnet_core.preprocessors.entry import Entry

from .conftest import make_pictures, options_of


def as_bytes(height: int, width: int) -> np.ndarray:
    return np.rint(make_pictures(1, height, width)[0] * 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 512), (40, 1000), (41, 1023), (40, 1024), (30, 2048), (9, 7)])
@pytest.mark.parametrize("sigma", [0.5, 3.0, 5.0, 40.0])
def test_planes_are_those_of_opencv(height: int, width: int, sigma: float) -> None:
    picture = as_bytes(height, width)
    expected = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), sigma)
    assert np.array_equal(np.dstack(list(blurred_planes(picture, sigma))), expected)


def test_reach_is_where_the_kernel_of_opencv_ends() -> None:
    for sigma in (0.1, 0.5, 1.0, 5.0, 6.0, 50.0):
        spot = np.zeros((1, 501), np.float32)
        spot[0, 250] = 1.0
        there = np.flatnonzero(cv2.GaussianBlur(spot, (0, 0), sigma)[0])
        assert there[-1] - 250 == reach(sigma) == 250 - there[0]


def test_bands_of_a_plane_are_the_plane() -> None:
    plane = as_bytes(700, 800)[..., 0]
    whole = blurred(plane, 5.0)
    for threads in (1, 2, 3):
        made = parallel.run_bands(
            lambda rows: blurred(rows, 5.0), plane, reach=reach(5.0), threads=threads, dtype=np.float32
        )
        assert np.array_equal(made, whole)
    cut_too_near = parallel.run_bands(lambda rows: blurred(rows, 5.0), plane, reach=2, threads=2, dtype=np.float32)
    assert not np.array_equal(cut_too_near, whole), "the test has to be able to see a seam"


@pytest.mark.parametrize("threads", [2, 5])
def test_more_threads_for_one_picture(threads: int) -> None:
    picture = as_bytes(701, 523)
    assert np.array_equal(lineart(picture, threads=threads), lineart(picture))
    assert np.array_equal(xdog(picture, threads=threads), xdog(picture))
    small = picture[:90, :70]
    assert np.array_equal(soft_edge(small, threads=threads), soft_edge(small))
    assert np.array_equal(soft_scribble(small, threads=threads), soft_scribble(small))


def test_the_median_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        for scale in (1.0, 30.0, 255.0):
            values = (rng.random((size, size + 1)) * scale).astype(np.float32)
            for case in (values, np.rint(values), np.full_like(values, 8.5), np.zeros_like(values)):
                strokes = case[case > 8.0]
                assert median_above(case, 8.0) == (np.median(strokes) if strokes.size else 0.0)


def test_many_frames_equal_their_singles(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_MIN_PIXELS", 1)  # so that small pictures go to threads too
    image = make_pictures(5, 40, 52)
    seen: list[tuple[int, int, threading.Thread]] = []
    batch = preprocessors.process(
        entry,
        image,
        **options_of(entry, image),
        progress=lambda *counts: seen.append((*counts, threading.current_thread())),
    )
    assert seen == [(done, 5, threading.current_thread()) for done in range(1, 6)]
    for index in range(5):
        single = image[index : index + 1]
        assert np.array_equal(
            batch[index : index + 1], preprocessors.process(entry, single, **options_of(entry, single))
        )


def test_what_a_frame_or_the_progress_raises_ends_the_run() -> None:
    begun: list[int] = []

    def work(index: int) -> None:
        begun.append(index)
        if index == 1:
            raise ValueError("frame 1")

    with pytest.raises(ValueError, match="frame 1"):
        parallel.run_each(work, 500, 2, lambda done: None)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    gate = threading.Event()
    begun.clear()

    def slow(index: int) -> None:
        begun.append(index)
        if index:
            gate.wait(0.2)

    with pytest.raises(KeyboardInterrupt):
        parallel.run_each(slow, 500, 2, stop)
    assert len(begun) < 500


def test_threads_are_limited_by_what_is_in_memory() -> None:
    assert parallel.worker_count(16, 4096 * 4096) <= 2
    assert parallel.worker_count(1, 512 * 512) == 1
    assert parallel.worker_count(16, 64 * 64) == 1
    assert preprocessors.get("lineart").threaded
