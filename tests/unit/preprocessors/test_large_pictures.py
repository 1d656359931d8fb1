"""Large pictures: parts of a picture give what the whole gives, in less memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.controlnet_core.limits import Limit
from comfyui_controlnet_core.preprocessors import image_ops
from comfyui_controlnet_core.preprocessors.classic import soft_edge
from comfyui_controlnet_core.workflows import hint_making
from comfyui_controlnet_core.workflows.cli import main
from PIL import Image

from .conftest import make_pictures


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_bands_of_rows_give_the_whole(monkeypatch: pytest.MonkeyPatch, kind: type, channels: int) -> None:
    monkeypatch.setattr(image_ops, "_BAND_PIXELS", 50)
    drawn = np.random.default_rng(0).random((37, 21, channels), np.float32)
    frame = drawn if kind is np.float32 else (drawn * np.iinfo(kind).max).astype(kind)
    rgb = image_ops.rgb_frame(frame)
    assert np.array_equal(image_ops.rgb_bytes(frame), image_ops.to_bytes(rgb))
    assert np.array_equal(image_ops.rgb_unit(frame), image_ops.unit_range(rgb))


@pytest.mark.parametrize("name", ["canny", "soft_edge", "depth_map", "invert", "tile", "blur", "segment_palette"])
def test_bytes_are_the_rounded_hint(name: str) -> None:
    pictures = (make_pictures(2, 24, 40) * 255).astype(np.uint8)
    hints = preprocessors.process(name, pictures)
    assert np.array_equal(preprocessors.process(name, pictures, as_bytes=True), np.rint(hints * 255).astype(np.uint8))


@pytest.mark.parametrize("smoothing", [0, 3])
def test_soft_edges_of_bands_are_those_of_the_picture(monkeypatch: pytest.MonkeyPatch, smoothing: int) -> None:
    picture = (make_pictures(1, 150, 64)[0] * 255).astype(np.uint8)
    whole = soft_edge.soft_edge(picture, smoothing=smoothing)
    monkeypatch.setattr(soft_edge, "_WHOLE_PIXELS", picture.shape[0] * picture.shape[1] - 1)
    made = soft_edge.soft_edge(picture, smoothing=smoothing)
    assert np.abs(made - whole).max() <= (2e-3 if smoothing else 0) and whole.max() > 0.5


def test_few_large_pictures_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("L", (32, 32), value) for value in range(0, 250, 30)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    seen = []
    process = preprocessors.process

    def counted(kind: str, pictures: np.ndarray, **options: object) -> np.ndarray:
        seen.append(len(pictures))
        return process(kind, pictures, **options)

    monkeypatch.setattr(hint_making, "_BATCH_PIXELS", 4 * 32 * 32)
    monkeypatch.setattr(preprocessors, "process", counted)
    assert main(["preprocess", "invert", str(tmp_path / "a.gif"), "--output", str(tmp_path / "out")]) == 0
    assert seen == [4, 4, 1] and len(list((tmp_path / "out").iterdir())) == 9


def test_frames_of_one_range_are_limited_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("L", (32, 32), value) for value in (0, 100, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    words = ["preprocess", "depth_map", str(tmp_path / "a.gif"), "--output", str(tmp_path / "out")]
    assert main([*words, "--normalize", "batch"]) == 0
    monkeypatch.setattr(hint_making, "PICTURE_PIXELS", Limit(2 * 32 * 32, "pixels", "for this test"))
    assert main([*words, "--normalize", "frame", "--overwrite"]) == 0
    assert main([*words, "--normalize", "batch", "--overwrite"]) == 3
    assert "one range over 3 frames needs all of them at once" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["normal_depth", "segment_palette"])
def test_kinds_that_take_much_memory_name_a_resolution(name: str) -> None:
    entry = preprocessors.get(name)
    picture = np.zeros((1, 64, entry.largest // 64 + 1, 1), np.uint8)
    with pytest.raises(preprocessors.PictureError, match="choose a resolution of at most 63"):
        preprocessors.process(name, picture)


def test_a_small_picture_is_not_enlarged_without_end() -> None:
    with pytest.raises(preprocessors.PictureError, match="choose a resolution of at most 8192"):
        preprocessors.process("canny", np.zeros((8, 8, 3), np.uint8), resize="shortest", resolution=16384)
