"""`controlnet preprocess --shard`, and tars of pictures to tars of hints."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from comfyui_controlnet_core.workflows import cli
from PIL import Image
from sparse_tar import sparse_member


def png(value: int, ending: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, ending)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with in.tar: eleven pictures with captions."""
    monkeypatch.chdir(tmp_path)
    pictures = {f"a/{index:03}.png": png(10 * index) for index in range(10)} | {"b.JPG": png(70, "JPEG")}
    captions = {f"a/{index:03}.txt": b"a plain square" for index in range(10)}
    write_tar(tmp_path / "in.tar", {**pictures, **captions, "a/._000.png": b"of macOS"})
    return tmp_path


@pytest.mark.parametrize("kept", [600, 1500, 1600, 5000])
def test_a_tar_that_was_cut_off_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], kept: int) -> None:
    data = (folder / "in.tar").read_bytes()
    (folder / "cut.tar").write_bytes(data[:kept])
    assert preprocess("cut.tar", "--output", "o") == 3
    assert "cut.tar is damaged or incomplete" in capsys.readouterr().err


def test_a_tar_with_a_damaged_header_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(folder / "in.tar") as archive:
        third = archive.getmembers()[2].offset
    data = bytearray((folder / "in.tar").read_bytes())
    data[third + 148 : third + 154] = b"999999"
    (folder / "in.tar").write_bytes(data)
    assert preprocess("in.tar", "--output", "o") == 3
    assert f"in.tar is damaged or incomplete at byte {third:,}" in capsys.readouterr().err


def preprocess(*options: str) -> int:
    return cli.main(["preprocess", "invert", *options])


def test_a_tar_of_pictures_becomes_a_tar_of_hints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preprocess("in.tar", "--output", "whole") == 0
    said = capsys.readouterr()
    assert "11 made, 0 there already, in whole" in said.out
    assert "in.tar: 10 files are left out, of another type or not readable: a/000.txt, a/001.txt" in said.err
    assert "a/._000.png" not in said.err
    hints = read_tar(folder / "whole" / "in.tar")
    assert list(hints) == [f"a/{index:03}.png" for index in range(10)] + ["b.png"]
    assert np.asarray(Image.open(io.BytesIO(hints["a/003.png"])))[0, 0].tolist() == [225] * 3
    assert [path.name for path in (folder / "whole").iterdir()] == ["in.tar"]
    stamp = (folder / "whole" / "in.tar").stat().st_mtime_ns
    assert preprocess("in.tar", "--output", "whole") == 0
    assert "0 made, 11 there already" in capsys.readouterr().out
    assert (folder / "whole" / "in.tar").stat().st_mtime_ns == stamp
    # In two parts, the second one cut off anywhere and made again.
    assert preprocess("in.tar", "--output", "parts", "--shard", "1/2") == 0
    assert preprocess("in.tar", "--output", "parts", "--shard", "2/2") == 0
    second = folder / "parts" / "in-2of2.tar"
    complete = second.read_bytes()
    for length in range(0, len(complete), 700):
        second.unlink()
        (folder / "parts" / ".in-2of2.tar.part").write_bytes(complete[:length])
        assert preprocess("in.tar", "--output", "parts", "--shard", "2/2") == 0
        assert second.read_bytes() == complete
    assert {**read_tar(folder / "parts" / "in-1of2.tar"), **read_tar(second)} == hints


def test_a_broken_picture_in_a_tar_is_named_and_tried_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = read_tar(folder / "in.tar")
    write_tar(folder / "in.tar", {**members, "a/004.png": b"no picture"})
    for made, kept in ((10, 0), (0, 10)):
        assert preprocess("in.tar", "--output", "out") == 3
        said = capsys.readouterr()
        assert f"{made} made, {kept} there already, 1 failed" in said.out
        assert "1 of 11 inputs have no hint, all others have theirs: " in said.err and "in.tar/a/004.png" in said.err
    assert len(read_tar(folder / "out" / "in.tar")) == 10
    write_tar(folder / "in.tar", members)
    assert preprocess("in.tar", "--output", "out") == 0
    assert len(read_tar(folder / "out" / "in.tar")) == 11


def test_folders_are_sharded_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos").mkdir()
    for index in range(5):
        (folder / "photos" / f"{index}.png").write_bytes(png(index))
    for part, count in (("1/2", 2), ("2/2", 3)):
        assert preprocess("photos", "--output", "out", "--shard", part) == 0
        assert f"{count} made" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "out").iterdir()) == [f"{index}.png" for index in range(5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["invert", "none.tar"], "none.tar"),
        (["invert", "text.tar"], "text.tar"),
        (["invert", "empty.tar"], "empty.tar holds no file of type"),
        (["invert", "twice.tar"], "a.jpg and a.png would both become a.png: rename one"),
        (["invert", "out.tar"], "../a.png leads out of the tar: pack the pictures with plain names"),
        (["invert", "in.tar", "--output", "."], "which would be overwritten"),
        (["invert", "in.tar", "--output", "taken"], "in.tar: this file exists and was not made by this command"),
        (["pose", "in.tar"], "a tar holds pictures, pose reads JSON files: unpack it"),
        (["depth_map", "in.tar", "--normalize", "batch"], "--normalize batch needs all frames at once"),
        (["invert", "in.tar", "--shard", "0/2"], "0/2 is no part of a whole: give K/N"),
    ],
)
def test_bad_tars_end_in_one_line(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.tar").write_text("no tar")
    write_tar(folder / "empty.tar", {"a.txt": b""})
    write_tar(folder / "twice.tar", {"a.jpg": b"", "a.png": b""})
    write_tar(folder / "out.tar", {"../a.png": png(1)})
    (folder / "taken").mkdir()
    write_tar(folder / "taken" / "in.tar", {"a.png": png(3)})
    assert cli.main(["preprocess", *options]) in (2, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_sparse_picture_in_a_tar_takes_no_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.tar").write_bytes(sparse_member("0.png", 2**40) + (folder / "in.tar").read_bytes())
    assert preprocess("in.tar", "--output", "out") == 3
    said = capsys.readouterr()
    assert "11 made" in said.out and "in.tar/0.png has 1,099,511,627,776 bytes, more than its tar" in said.err


def test_a_compressed_tar_is_no_tar(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(folder / "packed.tar", "w:gz") as archive:
        archive.add(folder / "in.tar", "in.png")
    assert preprocess("packed.tar", "--output", "out") == 3
    assert "packed.tar" in capsys.readouterr().err


@pytest.mark.slow
def test_2000_pictures_in_two_parts_survive_kills(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    members = {}
    for index in range(2000):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(buffer, "PNG")
        members[f"{index:05}.png"] = buffer.getvalue()
    write_tar(tmp_path / "in.tar", members)

    def start(output: str, part: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "comfyui_controlnet_core", "preprocess", "canny", "in.tar"]
        return subprocess.Popen([*command, "--output", output, "--shard", part], cwd=tmp_path)

    for part in ("1/2", "2/2"):
        growing = tmp_path / "parts" / f".in-{part[0]}of2.tar.part"
        for goal in (50_000, 300_000):
            process = start("parts", part)
            while process.poll() is None and not (growing.exists() and growing.stat().st_size >= goal):
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert start("parts", part).wait() == 0
    assert start("whole", "1/1").wait() == 0
    parts = {**read_tar(tmp_path / "parts" / "in-1of2.tar"), **read_tar(tmp_path / "parts" / "in-2of2.tar")}
    whole = read_tar(tmp_path / "whole" / "in.tar")
    assert len(whole) == 2000 and list(parts.items()) == list(whole.items())
