"""What holds for every preprocessor that runs through transformers, whatever comes in; small random models."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.catalog.pretrained import PRETRAINED
from comfyui_controlnet_core.preprocessors.entry import Entry
from comfyui_controlnet_core.preprocessors.learned import pretrained
from comfyui_controlnet_core.preprocessors.learned.library import Library

from .conftest import make_pictures
from .tiny_transformers import MAKERS, models, transformers

NEEDS = {
    "depth_zoe": "ZoeDepthForDepthEstimation",
    "depth_pro": "DepthProForDepthEstimation",
    "pose_vitpose": pretrained.VITPOSE.model,
    "pose_vitpose_plus": pretrained.VITPOSE.model,
    "pose_animal": pretrained.VITPOSE.model,
    "depth_anything_v2_metric": pretrained.DEPTH_ANYTHING_METRIC.model,
}
ALL_SHOWN = {"person_score": 0.0, "point_score": 0.0}
QUICK: dict[str, dict[str, Any]] = {
    "segment_sam": {"points": 2}, "pose_vitpose": ALL_SHOWN, "pose_animal": ALL_SHOWN,
    "pose_vitpose_plus": {**ALL_SHOWN, "hands": True, "face": True},
}  # fmt: skip
IMAGE = make_pictures(1, 33, 47)


@pytest.fixture(scope="module", params=PRETRAINED, ids=lambda entry: entry.name)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Entry, Library]:
    entry: Entry = request.param
    needed = NEEDS.get(entry.name)
    if needed and not hasattr(transformers, needed):
        pytest.skip(f"transformers {transformers.__version__} has no {needed}")
    return entry, models(tmp_path_factory.mktemp(entry.name), entry, *MAKERS[entry.name])


def run(kind: tuple[Entry, Library], image: np.ndarray, **options: Any) -> np.ndarray:
    entry, library = kind
    return preprocessors.process(entry, image, library=library, **QUICK.get(entry.name, {}), **options)


def check(hint: np.ndarray, count: int, height: int, width: int) -> None:
    assert hint.shape == (count, height, width, 3) and hint.dtype == np.float32
    assert np.isfinite(hint).all() and hint.min() >= 0.0 and hint.max() <= 1.0


def test_a_batch_equals_its_singles(kind: tuple[Entry, Library]) -> None:
    image = make_pictures(3, 33, 47)
    batch = run(kind, image)
    check(batch, 3, 33, 47)
    for index in range(3):
        single = run(kind, image[index : index + 1])[0]
        # A pixel whose two best classes, or whose edge of a limb, lie within the rounding of a sum may go either way.
        assert (np.abs(batch[index] - single).max(-1) > 1e-3).mean() < 0.002


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (1, 40), (40, 3)])
def test_any_size(kind: tuple[Entry, Library], height: int, width: int) -> None:
    check(run(kind, make_pictures(1, height, width)), 1, height, width)


def test_what_comes_in_other_forms_reads_the_same(kind: tuple[Entry, Library], monkeypatch: pytest.MonkeyPatch) -> None:
    """Words with alpha, gray, values outside of the range; the same seed; no network, no other program."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a preprocessor reached out")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    strange, tame = IMAGE.copy(), IMAGE.copy()
    strange[0, 0, :4] = [[1.004] * 3, [-0.01] * 3, [np.nan] * 3, [np.inf] * 3]
    tame[0, 0, :4] = [[1.0] * 3, [0.0] * 3, [0.0] * 3, [1.0] * 3]
    before = strange.copy()
    expected = run(kind, tame, seed=3)
    check(expected, 1, 33, 47)
    assert np.array_equal(run(kind, strange, seed=3), expected)
    assert np.array_equal(strange, before, equal_nan=True), "the input is left alone"
    alpha = np.full((1, 33, 47, 1), 65535, np.uint16)
    words = np.concatenate([np.rint(tame * 255).astype(np.uint16) * 257, alpha], axis=-1)
    assert np.array_equal(run(kind, words), expected)
    gray = IMAGE[..., :1]
    assert np.array_equal(run(kind, gray), run(kind, np.repeat(gray, 3, axis=-1)))


def test_nothing_is_fetched_when_a_folder_is_opened(
    kind: tuple[Entry, Library], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OneFormer's own processor asks the hub for the names of its classes."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("opening a folder reached out")

    monkeypatch.setattr(socket, "socket", refuse)
    entry, library = kind
    check(preprocessors.process(entry, IMAGE, library=Library(library.folders), **QUICK.get(entry.name, {})), 1, 33, 47)
