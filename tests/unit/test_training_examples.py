"""Folders of examples: all kinds of picture files are read as people see them, and bad files are found and named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import DamagedFileError, MissingFileError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.examples import read_pixels
from PIL import Image

SIZE = 16
EXIF_ORIENTATION = 274


def picture(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """(H, W, 3) uint8 without any symmetry."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def write_pairs(folder: Path, count: int = 3, below: str = "") -> list[Path]:
    """Equal hints and pictures N.png; returns the pictures."""
    for name in ("source", "target"):
        (folder / name / below).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(picture()).save(folder / name / below / f"{number}.png")
    return [folder / "target" / below / f"{number}.png" for number in range(count)]


def write_index(folder: Path, *lines: str, encoding: str = "utf-8", end: str = "\n") -> None:
    write_pairs(folder)
    (folder / "prompt.json").write_bytes(end.join(lines).encode(encoding))


def entry(prompt: str, number: int = 0) -> str:
    names = {"source": f"source/{number}.png", "target": f"target/{number}.png"}
    return json.dumps({**names, "prompt": prompt}, ensure_ascii=False)


# ------------------------------------------------------------------------------------------ kinds of pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(16, 16), (24, 16)])
def test_pictures_are_turned_as_the_camera_says(orientation: int, shape: tuple[int, int], tmp_path: Path) -> None:
    """The hint is drawn upright; the picture is stored turned, with a tag that says so."""
    upright = picture(*shape)
    backwards = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    turn = Image.Exif()
    turn[EXIF_ORIENTATION] = backwards[orientation]
    stored = Image.fromarray(upright)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    if orientation > 1:
        stored = stored.transpose(turns[orientation])
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    Image.fromarray(upright).save(tmp_path / "source" / "a.png")
    stored.save(tmp_path / "target" / "a.png", exif=turn)
    data = open_examples(tmp_path, SIZE)
    assert np.array_equal(read_pixels(data.examples[0].picture), upright)
    if shape == (SIZE, SIZE):
        assert torch.allclose(data.pictures([0]) / 2 + 0.5, data.hints([0]), atol=1e-6)


def ramp(levels: int, dtype: type) -> np.ndarray:
    return np.linspace(0, levels, SIZE * SIZE).reshape(SIZE, SIZE).astype(dtype)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("gray16.png", lambda path: cv2.imwrite(str(path), ramp(65535, np.uint16))),
        ("gray16.tif", lambda path: Image.fromarray(ramp(65535, np.uint16)).save(path)),
        ("rgb16.png", lambda path: cv2.imwrite(str(path), np.repeat(ramp(65535, np.uint16)[..., None], 3, -1))),
        ("float.tif", lambda path: Image.fromarray(ramp(1, np.float32)).save(path)),
        ("gray8.png", lambda path: Image.fromarray(ramp(255, np.uint8)).save(path)),
    ],
)
def test_deep_hints_keep_their_range(name: str, write: Callable[[Path], object], tmp_path: Path) -> None:
    write_pairs(tmp_path, 0)
    write(tmp_path / "source" / name)
    Image.fromarray(picture()).save(tmp_path / "target" / f"{Path(name).stem}.png")
    hint = open_examples(tmp_path, SIZE).hints([0])
    assert hint.mean().item() == pytest.approx(0.5, abs=0.01)
    assert hint.min() == 0.0 and hint.max() == 1.0


def hidden_colour(mode: str) -> Image.Image:
    """Left half opaque black, right half transparent with a colour behind it."""
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 255))
    image.paste((255, 0, 255, 0), (SIZE // 2, 0, SIZE, SIZE))
    if mode == "P":
        palette = Image.new("P", (SIZE, SIZE), 0)
        palette.putpalette([0, 0, 0, 255, 0, 255])
        palette.paste(1, (SIZE // 2, 0, SIZE, SIZE))
        return palette
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pictures_are_laid_over_white(mode: str, tmp_path: Path) -> None:
    options = {"transparency": 1} if mode == "P" else {}
    hidden_colour(mode).save(tmp_path / "a.png", **options)
    found = read_pixels(tmp_path / "a.png")
    assert (found[:, : SIZE // 2] == 0).all() and (found[:, SIZE // 2 :] == 255).all()


def test_cmyk_pictures_have_their_colours(tmp_path: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), (250, 10, 10)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read_pixels(tmp_path / "a.jpg").reshape(-1, 3).mean(0)
    assert red > 200 and green < 60 and blue < 60


# ------------------------------------------------------------------------------------------------ bad files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_jpeg_cut_short(path: Path) -> None:
    Image.fromarray(picture(64, 64)).save(path, "JPEG")
    cut(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (cut, "cannot be read as a picture"),
    "JPEG cut short": (as_jpeg_cut_short, "cannot be read as a picture"),
    "empty": (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    "text": (lambda path: path.write_text("no picture"), "cannot be read as a picture"),
    "folder": (as_folder, "1.png"),
    "other proportions": (
        lambda path: Image.fromarray(picture(16, 20)).save(path),
        r"the hint 1\.png is 16x16, its picture 20x16",
    ),
    "distances": (
        lambda path: Image.fromarray(ramp(900, np.float32)).save(path, "TIFF"),
        "holds numbers from 0 to 900, expected 0 to 1",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_named_before_the_training_and_can_be_left_out(kind: str, tmp_path: Path) -> None:
    spoil, said = BAD[kind]
    if kind == "folder":
        write_index(tmp_path, *(entry("", number) for number in range(3)))
    spoil(write_pairs(tmp_path)[1])
    with pytest.raises(DamagedFileError, match=rf"1 of 3 examples cannot be used, first: .*{said}.*--skip-bad"):
        open_examples(tmp_path, SIZE)
    faults: list[str] = []
    data = open_examples(tmp_path, SIZE, skip_bad=True, on_fault=faults.append)
    assert [example.picture.name for example in data.examples] == ["0.png", "2.png"]
    assert len(faults) == 1 and "1.png" in faults[0]


def test_all_bad_pictures_are_listed_not_only_the_first(tmp_path: Path) -> None:
    pictures = write_pairs(tmp_path, 5)
    cut(pictures[0])
    pictures[3].write_bytes(b"")
    (tmp_path / "source" / "4.png").unlink()
    faults: list[str] = []
    with pytest.raises(DamagedFileError, match="3 of 5 examples"):
        open_examples(tmp_path, SIZE, on_fault=faults.append)
    assert [name for fault in faults for name in ("0.png", "3.png", "4.png") if name in fault] == [
        "0.png", "3.png", "4.png"
    ]  # fmt: skip


def test_files_that_did_not_change_are_not_read_again(tmp_path: Path) -> None:
    path = write_pairs(tmp_path)[1]
    sizes = tmp_path / "work" / "sizes.json"
    open_examples(tmp_path, SIZE, known_sizes=sizes)
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(open_examples(tmp_path, SIZE, known_sizes=sizes)) == 3  # same time and size: taken from the file
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(DamagedFileError, match=r"1\.png"):
        open_examples(tmp_path, SIZE, known_sizes=sizes)
    sizes.write_text("[1, 2")  # a damaged cache costs time, no more
    with pytest.raises(DamagedFileError, match=r"1\.png"):
        open_examples(tmp_path, SIZE, known_sizes=sizes)


# -------------------------------------------------------------------------------------------------- folders


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    for name in ("source", "target"):
        for number in range(3):
            (tmp_path / name / f"._{number}.png").write_bytes(b"\0\5\26\7 of macOS")
        (tmp_path / name / ".trash").mkdir()
        (tmp_path / name / ".trash" / "9.png").write_bytes(b"")
    assert len(open_examples(tmp_path, SIZE)) == 3


def test_subfolders_are_read_and_paired_by_their_path(tmp_path: Path) -> None:
    """As `controlnet preprocess` writes them: PNG hints in the same subfolders."""
    write_pairs(tmp_path, 2, "a")
    write_pairs(tmp_path, 1, "b/c")
    Image.fromarray(picture()).save(tmp_path / "target" / "b" / "c" / "0.bmp")
    (tmp_path / "target" / "b" / "c" / "0.png").unlink()
    (tmp_path / "target" / "a" / "1.txt").write_text("a ball\n")
    data = open_examples(tmp_path, SIZE)
    pairs = [tuple(path.relative_to(tmp_path).as_posix() for path in (e.picture, e.hint)) for e in data.examples]
    assert pairs == [
        ("target/a/0.png", "source/a/0.png"),
        ("target/a/1.png", "source/a/1.png"),
        ("target/b/c/0.bmp", "source/b/c/0.png"),
    ]
    assert data.captions(range(3)) == ["", "a ball", ""]


def test_linked_subfolders_are_followed_once(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_pairs(elsewhere, 2)
    folder = tmp_path / "data"
    for name in ("source", "target"):
        (folder / name).mkdir(parents=True)
        (folder / name / "linked").symlink_to(elsewhere / name)
        (elsewhere / name / "up").symlink_to(folder / name)  # a circle
    assert len(open_examples(folder, SIZE)) == 2


def test_a_folder_without_examples_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds no examples: expected prompt\.json"):
        open_examples(tmp_path, SIZE)
    write_pairs(tmp_path, 0)
    with pytest.raises(MissingFileError, match="names no examples"):
        open_examples(tmp_path, SIZE)


# ------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_prompts_in_utf8_are_read_with_and_without_a_mark(encoding: str, end: str, tmp_path: Path) -> None:
    prompts = ["ein roter Würfel", "红色的球", "a\u2028b\u2029c\x85d\x0be"]
    lines = [entry(prompt, number).replace("\\u000b", "\\u000b") for number, prompt in enumerate(prompts)]
    write_index(tmp_path, *lines, encoding=encoding, end=end)
    assert open_examples(tmp_path, SIZE).captions(range(3)) == prompts


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-16-le", "shift-jis"])
def test_prompts_in_other_encodings_are_an_error_with_file_and_line(encoding: str, tmp_path: Path) -> None:
    write_index(tmp_path, entry("a ball"), entry("日本", 1), encoding=encoding)
    line = 1 if encoding.startswith("utf-16") else 2
    with pytest.raises(DamagedFileError, match=rf"prompt\.json, line {line}: this is not text in UTF-8: save"):
        open_examples(tmp_path, SIZE)


def test_captions_beside_pictures_are_read_in_the_same_way(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, 1)[0].with_suffix(".txt")
    path.write_bytes(b"\xef\xbb\xbfa r\xc3\xb6d ball\r\n")
    assert open_examples(tmp_path, SIZE).captions([0]) == ["a röd ball"]
    path.write_bytes(b"fine\na r\xf6d ball\n")
    with pytest.raises(DamagedFileError, match=r"0\.txt, line 2: this is not text in UTF-8"):
        open_examples(tmp_path, SIZE)


@pytest.mark.parametrize(
    "line",
    [
        '{"source": 1, "target": "target/0.png", "prompt": ""}',
        '{"source": "source/0.png", "target": "target/0.png", "prompt": null}',
        '{"source": "source/0.png", "target": "target/0.png", "prompt": "\\ud800"}',
        "[" * 100_000,
        "[]",
    ],
)
def test_lines_that_are_no_examples_are_named(line: str, tmp_path: Path) -> None:
    write_index(tmp_path, entry("a ball"), line)
    with pytest.raises(ValueRangeError, match=r"prompt\.json, line 2: expected an object with source"):
        open_examples(tmp_path, SIZE)


def test_names_that_no_file_can_have_are_missing_files(tmp_path: Path) -> None:
    write_index(tmp_path, json.dumps({"source": "a\0b.png", "target": "x" * 300 + ".png", "prompt": ""}))
    with pytest.raises(DamagedFileError, match="there is no file"):
        open_examples(tmp_path, SIZE)
