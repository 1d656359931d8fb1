"""What a command writes: never over an input, never over a file of another program, and no stray files."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import PathError
from comfyui_controlnet_core.nodes.folders import (
    list_files,
    publish,
    temporary_file,
)
from comfyui_controlnet_core.nodes.pictures import save_pictures
from comfyui_controlnet_core.preprocessors import pose as poses
from comfyui_controlnet_core.workflows import cli
from file_limit import file_limit
from PIL import Image

API: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a workflow, its picture, and a photo that has nothing to do with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.json").write_text(json.dumps(API))
    (tmp_path / "input").mkdir()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "input" / "photo.png")
    for name in ("photo.jpg", "photo.png"):
        Image.new("RGB", (8, 8), (0, 200, 0)).save(tmp_path / name)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- nothing of the user is replaced --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "w.json", "--report", "w.json"], "the run reads w.json"),
        (["run", "w.json", "--report", "w.json", "--overwrite"], "the run reads w.json"),
        (["run", "w.json", "--report", "input/photo.png", "--overwrite"], "the run reads input/photo.png"),
        (["run", "w.json", "--report", "link.json", "--overwrite"], "the run reads w.json"),
        (["run", "w.json", "--report", "photo.png"], "give --overwrite"),
        (["run", "w.json", "--report", "notes.json"], "give --overwrite"),
        (["preprocess", "canny", "photo.jpg", "--output", "."], "give --overwrite"),
        (["preprocess", "canny", "photo.jpg", "photo.png", "--output", "."], "both be written"),
        (["preprocess", "canny", "photo.png", "--output", ".", "--overwrite"], "the run reads photo.png"),
        (["preprocess", "invert", "sub/photo.jpg", "photo.png", "--output", "sub", "--overwrite"], "both be written"),
        (
            ["preprocess", "invert", "photo.jpg", "--mask", "photo.png", "--output", ".", "--overwrite"],
            "reads photo.png",
        ),
        (["preprocess", "canny", "input", "--output", "input", "--overwrite"], "the run reads"),
        (["preprocess", "pose", "poses", "--output", "hints"], "both be written"),
        (
            ["preprocess", "pose", "photo.json", "--canvas", "photo.png", "--output", ".", "--overwrite"],
            "reads photo.png",
        ),
        (["preprocess", "invert", "a.gif", "a_00000.png", "--output", "hints"], "both be written"),
    ],
)
def test_a_file_of_the_user_is_not_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (folder / "sub").mkdir()
    (folder / "poses").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "sub" / "photo.jpg")
    (folder / "link.json").symlink_to(folder / "w.json")
    (folder / "notes.json").write_text('{"mine": true}')
    pose = poses.template_pose("standing", 32, 32)
    for name, frames in (("a", [pose, pose]), ("a_00000", [pose])):
        (folder / "poses" / f"{name}.json").write_text(json.dumps(poses.write_poses(frames)))
    (folder / "photo.json").write_text(json.dumps(poses.write_poses([pose])))
    Image.new("L", (8, 8)).save(folder / "a.gif", save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    Image.new("RGB", (8, 8)).save(folder / "a_00000.png")
    before = contents(folder)
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert contents(folder) == before


def test_own_files_are_replaced_and_others_with_overwrite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second run replaces the report of the first
        for name in ("r.json", "r.png"):
            assert cli.main(["run", "w.json", "--quiet", "--report", name]) == 0
        assert cli.main(["preprocess", "canny", "photo.jpg", "--output", "hints", "--set", "low=10"]) == 0
        assert cli.main(["preprocess", "canny", "photo.jpg", "--output", "hints", "--set", "low=20"]) == 0
    assert cli.main(["run", "w.json", "--quiet", "--report", "photo.png", "--overwrite"]) == 0
    assert cli.main(["preprocess", "invert", "photo.jpg", "--output", "input", "--overwrite"]) == 0
    assert Image.open(folder / "input" / "photo.png").getpixel((0, 0)) == (255, 55, 255)
    assert capsys.readouterr().err == ""


def test_a_numbered_name_is_taken_by_one_run_only(tmp_path: Path) -> None:
    """Two runs that finish at the same time: the second finds the name taken and uses the next."""
    first, second = temporary_file(tmp_path), temporary_file(tmp_path)
    assert first != second
    for path in (first, second):
        path.write_text(path.name)
    names = [tmp_path / f"{n}.txt" for n in range(3)]
    taken = [publish(path, iter(names)) for path in (first, second)]
    assert taken == names[:2]
    assert sorted(tmp_path.iterdir()) == names[:2]


# ---- temporary files of killed runs ----------------------------------------------------------------------


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_temporary_files_of_killed_runs_are_removed(folder: Path) -> None:
    machine = temporary_file(folder).name.split("-")[1]
    dead, alive = dead_process(), os.getpid()
    stray = [f".cncore-{machine}-{dead}-0a1b.tmp", f"..cncore-{machine}-{dead}-0a1b.tmp.{dead}.tmp"]
    kept = [f".cncore-{machine}-{alive}-0a1b.tmp", f".cncore-00000000-{dead}-0a1b.tmp", ".other.tmp", ".cncore-x.tmp"]
    for place in (folder, folder / "hints", folder / "output" / "temp"):
        place.mkdir(parents=True, exist_ok=True)
        for name in (*stray, *kept):
            (place / name).write_text("")
    assert cli.main(["run", "w.json", "--quiet", "--report", "r.json"]) == 0
    assert cli.main(["preprocess", "invert", "photo.jpg", "--output", "hints"]) == 0
    for place in (folder, folder / "hints", folder / "output" / "temp"):
        assert {path.name for path in place.glob(".*")} == set(kept)


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_killed_preprocess_leaves_whole_hints_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index}.png")
    command = [sys.executable, "-m", "comfyui_controlnet_core", "preprocess", "invert", "in", "--chunk", "1"]
    child = subprocess.Popen([*command, "--output", "out"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list(tmp_path.glob("out/*.png"))) < 2:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (tmp_path / "out" / temporary_file(tmp_path).name.replace(str(os.getpid()), str(child.pid))).write_text("torn")
    for path in tmp_path.glob("out/*.png"):
        with Image.open(path) as picture:
            picture.load()
    subprocess.run([*command, "--output", "out"], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{n}.png" for n in range(12))


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as POSIX does")
@pytest.mark.parametrize("name", ["SaveImage", "CNCore_SaveControlNet", "CNCore_ConvertControlNet"])
def test_a_full_disk_ends_a_node_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    net = "demo canny (built in)"
    inputs: dict[str, dict[str, Any]] = {
        "SaveImage": {"images": ["1", 0]},
        "CNCore_SaveControlNet": {"control_net": ["3", 0], "layout": "core", "dtype": "fp16"},
        "CNCore_ConvertControlNet": {"control_net_name": net, "layout": "core", "dtype": "fp16"},
    }
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 1}},
        "2": {"class_type": name, "inputs": {**inputs[name], "filename_prefix": "a"}},
        "3": {"class_type": "CNCore_LoadControlNet", "inputs": {"control_net": net}},
    }
    (folder / "full.json").write_text(json.dumps(graph))
    with file_limit(100):
        assert cli.main(["run", "full.json", "--quiet", "--device", "cpu"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: node 2 ({name}): ") and "(File too large)" in line
    assert not [path for path in (folder / "output").rglob("*") if path.is_file()]


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as POSIX does")
def test_a_full_disk_ends_preprocess_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.bmp")
    with file_limit(3000):
        assert cli.main(["preprocess", "invert", "noise.bmp", "--output", "hints"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "noise.png could not be written (File too large)" in line
    assert list((folder / "hints").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as POSIX does")
def test_a_full_disk_ends_verify_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with file_limit(50):
        assert cli.main(["verify", "--no-picture", "a.png", "--output", "report"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "could not be written (File too large)" in line
    assert list((folder / "report").iterdir()) == []


def test_a_full_disk_is_named_wherever_it_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main([]) == 3
    assert "make room, or choose another folder" in capsys.readouterr().err


# ---- links and home folders -------------------------------------------------------------------------------


def test_linked_folders_are_read_and_cycles_end(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    for name in ("disk/a.pt", "disk/deep/b.pt", "disk/.hidden.pt", "models/c.pt"):
        (tmp_path / name).write_text("")
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "deep" / "up").symlink_to(tmp_path / "models")
    (tmp_path / "disk" / "self").symlink_to(tmp_path / "disk")
    began = time.perf_counter()
    names = list_files([tmp_path / "models"], frozenset({".pt"}))
    assert time.perf_counter() - began < 5
    assert {"c.pt", "linked/a.pt", "linked/deep/b.pt"} <= set(names)
    assert len(names) < 20


def test_linked_folders_of_pictures_are_preprocessed(folder: Path) -> None:
    (folder / "all").mkdir()
    (folder / "all" / "linked").symlink_to(folder / "input")
    assert cli.main(["preprocess", "invert", "all", "--output", "hints"]) == 0
    assert [path.name for path in (folder / "hints" / "linked").iterdir()] == ["photo.png"]


def test_a_linked_folder_in_the_output_folder_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "output" / "sub").symlink_to(tmp_path / "elsewhere")
    image = torch.zeros(1, 8, 8, 3)
    with pytest.raises(PathError, match=r"leaves the folder .* through a link"):
        save_pictures(tmp_path / "output", "sub/a", image)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "linked").symlink_to(tmp_path / "output")  # the output folder itself may be a link
    assert save_pictures(tmp_path / "linked", "a", image)[0]["filename"] == "a_00001_.png"


def test_the_home_folder_is_found_behind_an_equals_sign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "home"
    (home / "models" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    assert cli.main(["preprocess", "invert", "photo.jpg", "--output=~/hints"]) == 0
    words = ["run", "w.json", "--quiet", "--output=~/out", "--models=~/models", "--input=~/in", "--report=~/r.json"]
    (folder / "input").rename(home / "in")
    assert cli.main(words) == 0
    assert (home / "hints" / "photo.png").is_file()
    assert (home / "r.json").is_file()
    assert list((home / "out" / "temp").glob("*.png"))
    assert not list(folder.glob("~*"))


@pytest.mark.parametrize(
    "words",
    [
        ["run", "w.json", "--output=~nosuchuser/x"],
        ["run", "~nosuchuser/w.json"],
        ["inspect", "~nosuchuser/w.json"],
        ["preprocess", "invert", "~nosuchuser/x.png"],
        ["run", "w.json", "--models=~nosuchuser/x"],
    ],
)
def test_the_home_folder_of_an_unknown_user(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert cli.main(words) == 2
    assert "~nosuchuser" in capsys.readouterr().err


@pytest.mark.parametrize("node", ["LoadImage", "SaveImage", "CheckpointLoaderSimple"])
def test_a_path_that_no_system_takes_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], node: str) -> None:
    long = "a/" * 30_000 + "a.png"
    inputs = {
        "LoadImage": {"image": long},
        "SaveImage": {"images": ["1", 0], "filename_prefix": long},
        "CheckpointLoaderSimple": {"ckpt_name": long},
    }
    graph = API | {"3": {"class_type": node, "inputs": inputs[node]}}
    graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    (folder / "w.json").write_text(json.dumps(graph))
    assert cli.main(["run", "w.json", "--quiet", "--strict"]) in (2, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: node ") and len(line) < 2100


@pytest.mark.parametrize("command", [["run"], ["inspect"], ["preprocess", "invert"], ["validate"]])
def test_a_name_that_is_too_long_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert cli.main([*command, "x" * 5000]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
