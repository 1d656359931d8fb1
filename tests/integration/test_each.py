"""`controlnet run --each`: many pictures, prompts and seeds in one run, a manifest, shards, kills."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_controlnet_core.nodes import folders
from comfyui_controlnet_core.nodes.standalone import files
from comfyui_controlnet_core.workflows import cli
from comfyui_controlnet_core.workflows.combinations import Combinations
from comfyui_controlnet_core.workflows.each_run import open_runner
from comfyui_controlnet_core.workflows.each_sources import Entry, read_sources
from comfyui_controlnet_core.workflows.formats import Document
from comfyui_controlnet_core.workflows.locks import try_lock
from comfyui_controlnet_core.workflows.manifest import Manifest
from comfyui_controlnet_core.workflows.png import read_text
from comfyui_controlnet_core.workflows.reporting import Reporter
from comfyui_controlnet_core.workflows.row_log import UNFINISHED
from comfyui_controlnet_core.workflows.shards import Shard
from PIL import Image

SMALL = ["--set", "CNCore_Sample.steps=1", "--set", "EmptyLatentImage.width=64", "--device", "cpu", "--quiet"]
NO_MODEL = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "gone.png"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "ComfyUI"}},
}


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def shows(path: Path, value: int) -> bool:
    """Whether a picture has this value, up to what truncation to bytes takes."""
    return bool((np.abs(pixels(path).astype(int) - value) <= 1).all())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with w.json and twelve pictures in photos/, of the values 0, 10, ... 110."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.json").write_text(json.dumps(NO_MODEL))
    for index in range(12):
        picture(tmp_path / "photos" / ("sub" if index > 9 else ".") / f"p{index}.png", 10 * index)
    return tmp_path


def run(*options: str) -> int:
    return cli.main(["run", "w.json", "--device", "cpu", "--quiet", *options])


def test_options_that_change_pictures_make_the_rows_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = ("--each", "1.image=photos/sub", "--output", "out")
    options = (
        (), ("--dtype", "fp32"), ("--dtype", "bf16"), ("--reuse", "2"), ("--reuse", "2", "--careful"),
        ("--reuse-tolerance", "0.1"), ("--encoder-every", "2"), ("--deep-every", "2"), ("--guidance", "0.1", "0.8"),
        ("--set", "3.filename_prefix=x"),
    )  # fmt: skip
    same = (("--memory", "streamed"), ("--chunk", "1"), ("--no-winograd",), ())
    for more, done in [*((more, 2) for more in options), *((more, 0) for more in (*options, *same))]:
        assert run(*once, *more) == 0
        assert f"{done} rows done, {2 - done} done before" in capsys.readouterr().out, more


def test_files_that_a_workflow_names_make_the_rows_again(folder: Path) -> None:
    """A model of another folder or content, an embedding, and a picture that all rows share."""
    loads = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}}
    text = {"class_type": "CLIPTextEncode", "inputs": {"text": "a embedding:word, b", "clip": ["4", 1]}}
    mask = {"class_type": "LoadImage", "inputs": {"image": "shared.png"}}
    document = Document("w.json", {**NO_MODEL, "4": loads, "5": text, "6": mask})
    names = ("one/checkpoints/m.safetensors", "two/checkpoints/m.safetensors", "one/embeddings/word.pt")
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(bytes([index]) * 200_000)
    picture(folder / "shared.png", 1)

    def key(models: str = "one") -> str:
        args = cli.build_parser("run").parse_args(
            ["run", "w.json", "--each", "1.image=photos", "--models", models, "--input", ".", "--device", "cpu"]
        )
        entries = read_sources(args.each, args.input, folder / "out").entries
        return open_runner(args, document, {}, Reporter()).key(Combinations(entries, (None,), paired=False)[0])

    first = key()
    assert key("two") != first
    (folder / "one/checkpoints/m.safetensors").touch()
    assert key() == first
    seen = {first}
    for name in ("one/checkpoints/m.safetensors", "one/embeddings/word.pt", "shared.png", "photos/p0.png"):
        data = bytearray((folder / name).read_bytes())
        data[-1] += 1
        (folder / name).write_bytes(data)
        seen.add(key())
    assert len(seen) == 5
    # Another picture of the folder is the business of its own row.
    picture(folder / "photos" / "p5.png", 9)
    assert key() in seen


def test_each_picture_of_a_folder_gets_a_result_of_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--each", "1.image=photos", "--output", "out") == 0
    assert "12 rows done, 0 done before" in capsys.readouterr().out
    names = [f"p{index}" for index in range(10)] + ["sub/p10", "sub/p11"]
    for index, name in enumerate(names):
        assert shows(folder / "out" / f"{name}.png", 255 - 10 * index)
    found = lines(folder / "out")
    assert [line["row"] for line in found] == names
    assert found[0]["files"] == ["p0.png"] and found[0]["inputs"] == {"1.image": "photos/p0.png"}
    assert found[0]["settings"] == [] and found[0]["seconds"] >= 0 and "error" not in found[0]
    assert not list((folder / "out" / UNFINISHED).iterdir())
    # The second time nothing is left to do, and no file is written.
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.png")}
    assert run("--each", "1.image=photos", "--output", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 12
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.png")} == before
    assert lines(folder / "out") == found


def test_a_broken_picture_fails_alone_and_is_tried_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos" / "p3.png").write_bytes(b"no picture")
    assert run("--each", "1.image=photos", "--output", "out") == 3
    error = capsys.readouterr().err
    assert "1 of 12 rows failed, the others are done: p3: node 1" in error and "manifest.jsonl" in error
    (failed,) = (line for line in lines(folder / "out") if "error" in line)
    assert failed["row"] == "p3" and "p3.png" in failed["error"] and "files" not in failed
    assert len(list((folder / "out").rglob("*.png"))) == 11
    picture(folder / "photos" / "p3.png", 7)
    assert run("--each", "1.image=photos", "--output", "out") == 0
    assert "1 rows done, 11 done before" in capsys.readouterr().out
    assert shows(folder / "out" / "p3.png", 248)


def test_a_changed_picture_or_lost_result_is_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--each", "1.image=photos", "--output", "out") == 0
    picture(folder / "photos" / "p1.png", 200)
    (folder / "out" / "p2.png").unlink()
    assert run("--each", "1.image=photos", "--output", "out") == 0
    assert "2 rows done, 10 done before" in capsys.readouterr().out
    assert shows(folder / "out" / "p1.png", 55) and (folder / "out" / "p2.png").exists()
    assert len(list((folder / "out").rglob("*.png"))) == 12


def test_shards_are_the_whole_and_no_file_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    picture(folder / "out" / "p5.png", 1)
    for part in ("1/3", "2/3", "3/3"):
        assert run("--each", "1.image=photos", "--output", "out", "--shard", part) == 0
        assert "4 rows done" in capsys.readouterr().out
    assert shows(folder / "out" / "p5.png", 1)
    assert shows(folder / "out" / "p5-2.png", 205)
    assert len(list((folder / "out").rglob("*.png"))) == 13


def test_several_pictures_of_a_row_are_told_apart(folder: Path) -> None:
    mask = {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}
    more = {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "mask"}}
    (folder / "w.json").write_text(json.dumps({**NO_MODEL, "4": mask, "5": more}))
    for index in range(12):
        picture(folder / "other" / "photos" / ("sub" if index > 9 else ".") / f"p{index}.png", 100 + index)
    # Two folders of one name, paired.
    options = ("--each", "1.image=photos", "--each", "4.image=other/photos", "--zip", "--output", "out")
    assert run(*options) == 0
    assert shows(folder / "out" / "p7_ComfyUI.png", 185)
    assert shows(folder / "out" / "sub" / "p10_mask.png", 110)
    assert lines(folder / "out")[7]["inputs"] == {"1.image": "photos/p7.png", "4.image": "photos_2/p7.png"}


def test_prompts_and_seeds_give_the_pictures_of_single_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text('style,prompt\nx,"a red ball, shiny"\ny,a blue cube\n')
    base = ["run", "canny_to_image", *SMALL]
    target = "CNCore_EncodePrompt.prompt"
    assert cli.main([*base, "--each", f"{target}=prompts.csv", "--seeds", "2", "--output", "many"]) == 0
    found = lines(tmp_path / "many")
    assert [line["row"] for line in found] == ["prompts_0001_seed2", "prompts_0002_seed2"]
    assert [line["seed"] for line in found] == [2, 2]
    single = [*base, "--set", f"{target}=a red ball, shiny", "--seeds", "2", "--output", "one"]
    assert cli.main(single) == 0
    (alone,) = (tmp_path / "one").glob("*.png")
    assert np.array_equal(pixels(alone), pixels(tmp_path / "many" / "prompts_0001_seed2.png"))
    assert not np.array_equal(pixels(alone), pixels(tmp_path / "many" / "prompts_0002_seed2.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--each", "1.image"], "--each 1.image: expected NODE.INPUT=SOURCE"),
        (["--each", "1.image=nowhere"], "there is no file or folder nowhere: check the path"),
        (["--each", "1.image=empty"], "empty holds no file of type"),
        (["--each", "1.image=rows.csv"], "rows.csv, line 2: has no column 'image', only a, b: name one"),
        (["--each", "1.image=rows.csv:c"], "rows.csv, line 2: has no column 'c'"),
        (["--each", "1.image=bad.jsonl"], "bad.jsonl, line 2: is no JSON"),
        (["--each", "1.image=list.jsonl:a"], "list.jsonl, line 1: a holds [1], expected a text or a number"),
        (["--each", "1.image=blank.txt"], "blank.txt has no lines: write one value a line"),
        (
            ["--each", "1.image=w.json"],
            "w.json is no source: give a folder of pictures, or a .txt, .jsonl or .csv file",
        ),
        (["--each", "1.image=photos", "--each", "1.image=rows.csv:a"], "1.image has a source already"),
        (["--each", "9.image=photos"], 'the workflow has no node "9"'),
        (["--each", "1.nothing=photos"], "has no input nothing: it has image"),
        (["--each", "2.image=photos"], "takes image from node 1"),
        (["--each", "1.image=photos", "--each", "3.filename_prefix=rows.csv:a", "--zip"], "have 12, 2 entries"),
        (["--each", "1.image=twice.csv:a"], "twice.csv: has several columns 'a': give each its own name"),
        (["--each", "1.image=commas.csv:a"], "commas.csv, line 3: has 3 values for 2 columns: put a text that holds"),
        (["--each", "1.image=utf16.txt"], "utf16.txt, line 1: this is not text in UTF-8: save the file as UTF-8"),
        (["--each", "1.image=photos", "--set", "1.image=b.png"], "--set 1.image and --each set the same input"),
        (["--each", "1.image=photos", "--shard", "4/3"], "4/3 is no part of a whole: give K/N"),
        (["--each", "1.image=photos", "--report", "r.json"], "--report and --measure are for single runs"),
        (["--zip"], "--zip, --shard and --ray are for the runs of --each"),
    ],
)
def test_bad_options_end_in_one_line(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    (folder / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "twice.csv").write_text("a,b,a\n1,2,3\n")
    (folder / "commas.csv").write_text("a,b\nx,1,,\nred, on grass,2\n")
    (folder / "utf16.txt").write_text("a red ball", "utf-16")
    (folder / "bad.jsonl").write_text('{"image": "x"}\n{"image": \n')
    (folder / "list.jsonl").write_text('{"a": [1]}\n')
    (folder / "blank.txt").write_text("\n \n")
    assert run(*options) in (2, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (folder / "output").exists()


def test_a_wrong_workflow_is_refused_before_the_first_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {**NO_MODEL, "2": {"class_type": "ImageInvert", "inputs": {}}}
    (folder / "w.json").write_text(json.dumps(broken))
    assert run("--each", "1.image=photos") == 2
    assert "node 2 (ImageInvert), input image: is needed but missing" in capsys.readouterr().err
    assert not (folder / "output").exists()


def test_the_input_folder_is_listed_once_for_all_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []

    def list_files(*args: Any) -> tuple[str, ...]:
        listed.append(1)
        return folders.list_files(*args)

    monkeypatch.setattr(files, "list_files", list_files)
    assert run("--each", "1.image=photos", "--input", ".", "--output", "out") == 0
    assert len(list((folder / "out").rglob("*.png"))) == 12 and len(listed) == 1


def test_combinations_are_all_pairs_or_paired() -> None:
    sources = [[Entry(name, {"a": name}) for name in "xyz"], [Entry(name, {"b": name}) for name in ("1", "2")]]
    rows = Combinations(sources, (7, 8), paired=False)
    assert len(rows) == 12
    assert [rows[index].name for index in range(5)] == [f"x_{n}_seed{s}" for n in "12" for s in (7, 8)] + ["y_1_seed7"]
    assert rows[11].values == {"a": "z", "b": "2"} and rows[11].seed == 8
    paired = Combinations([sources[0], sources[0]], (None,), paired=True)
    assert [paired[index].name for index in range(len(paired))] == ["x", "y", "z"]


def test_parts_are_the_whole() -> None:
    for length in range(8):
        for count in range(1, 6):
            parts = [list(Shard(number, count).of(range(length))) for number in range(1, count + 1)]
            assert list(itertools.chain(*parts)) == list(range(length))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_names_of_pictures_differ(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b/a.png", "10.png", "9.png"):
        picture(tmp_path / "photos" / name, 0)
    (tmp_path / "photos" / "._a.png").write_text("of macOS")
    (tmp_path / "photos" / "b" / "a.txt").write_text("a caption")
    notes: list[str] = []
    options = [f"1.image={tmp_path / 'photos'}"]
    (entries,) = read_sources(options, tmp_path, tmp_path / "out", notes.append).entries
    assert len(notes) == 1 and "1 file is left out" in notes[0] and notes[0].endswith(f": {Path('b/a.txt')}")
    assert [entry.name for entry in entries] == ["9", "10", "a_jpg", "a_png", "b/a"]
    assert entries[0].values == {"1.image": "photos/9.png"}


def test_a_row_is_locked_and_a_cut_line_is_ignored(tmp_path: Path) -> None:
    with try_lock(tmp_path / "lock") as first, try_lock(tmp_path / "lock") as second:
        assert first and not second
    with try_lock(tmp_path / "lock") as again:
        assert again
    manifest, other = Manifest(tmp_path), Manifest(tmp_path)
    (tmp_path / "a.png").touch()
    manifest.append({"key": "1", "files": ["a.png"]})
    with manifest.path.open("ab") as file:
        file.write(b'{"key": "2", "fi')
    assert not manifest.is_finished("2")
    other.append({"key": "3", "files": ["a.png"]})
    other.append({"key": "4", "files": ["gone.png"]})
    other.append({"key": "5", "error": "it broke"})
    assert [manifest.is_finished(key) for key in "12345"] == [True, False, True, False, False]


@pytest.mark.slow
def test_200_pictures_survive_five_kills_and_two_processes(tmp_path: Path) -> None:
    draw = random.Random(0)
    (tmp_path / "photos").mkdir()
    for index in range(200):
        noise = np.random.default_rng(index).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "photos" / f"p{index}.png")
    (tmp_path / "photos" / "p77.png").write_bytes(b"no picture")
    assert cli.main(["run", "canny_to_image", *SMALL, "--output", str(tmp_path / "first")]) == 0
    (first,) = (tmp_path / "first").glob("*.png")
    workflow = json.loads(read_text(first.read_bytes())["prompt"])
    workflow["5"] = {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    command = [sys.executable, "-m", "comfyui_controlnet_core", "run", "w.json", "--device", "cpu", "--quiet"]
    command += ["--each", "LoadImage.image=photos"]

    def start(output: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, "--output", output], cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    def finished() -> int:
        path = tmp_path / "killed" / "manifest.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    for _ in range(5):
        process, goal = start("killed"), finished() + draw.randrange(5, 25)
        while finished() < goal:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    both = [start("killed"), start("killed")]
    # One of them may end while the other one makes the last row.
    assert {process.wait() for process in both} <= {0, 3} and start("killed").wait() == 3
    assert start("whole").wait() == 3
    names = {path.name for path in (tmp_path / "whole").glob("*.png")}
    assert len(names) == 199 and names == {path.name for path in (tmp_path / "killed").glob("*.png")}
    for name in names:
        assert np.array_equal(pixels(tmp_path / "whole" / name), pixels(tmp_path / "killed" / name))
    rows = [line["row"] for line in lines(tmp_path / "killed") if "error" not in line]
    assert len(rows) == len(set(rows)) == 199
