"""`--ray`: rows and hints on workers of Ray. What needs Ray itself is skipped where it is not installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_controlnet_core.workflows import cli
from comfyui_controlnet_core.workflows.hint_files import Job
from comfyui_controlnet_core.workflows.hint_tasks import split
from comfyui_controlnet_core.workflows.png import read_text
from comfyui_controlnet_core.workflows.ray_pool import LostWorker, PoolSize, RayPool, _size
from PIL import Image

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra `ray`)")
TWO = ["--ray", "--workers", "2", "--worker-cores", "1"]
SMALL = ["--set", "CNCore_Sample.steps=1", "--set", "EmptyLatentImage.width=64", "--device", "cpu"]
LOAD = {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "ComfyUI"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with w.json, photos/ with 40 pictures, the eighth of them broken, and a.tar with all of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(40):
        noise = np.random.default_rng(index).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "photos" / f"p{index}.png")
    (tmp_path / "photos" / "p7.png").write_bytes(b"no picture")
    return tmp_path


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus, "memory": 1e9, **({"GPU": gpus} if gpus else {})}
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "options", "size"),
    [
        ([node(16)], ("auto", None, None), PoolSize(4, 4, 0)),
        ([node(2)], ("auto", None, None), PoolSize(1, 2, 0)),
        ([node(16), node(7)], ("auto", None, 6), PoolSize(3, 6, 0)),
        ([node(16)], ("auto", 3, 1), PoolSize(3, 1, 0)),
        ([node(16, alive=False), node(4)], ("auto", None, 1), PoolSize(4, 1, 0)),
        # A head without GPUs beside two machines with them: a worker for each GPU.
        ([node(8), node(32, 4), node(16, 2)], ("auto", None, None), PoolSize(6, 8, 1)),
        ([node(32, 4)], ("cuda", 2, 1), PoolSize(2, 1, 1)),
        ([node(32, 4)], ("cpu", None, None), PoolSize(8, 4, 0)),
        ([node(4, 8)], ("auto", None, None), PoolSize(4, 1, 1)),
    ],
)
def test_a_worker_has_a_gpu_or_some_cores(nodes: list[Any], options: tuple[Any, ...], size: PoolSize) -> None:
    assert _size(nodes, *options) == size


def test_frames_of_one_file_stay_together() -> None:
    jobs = [
        Job(Path(name), Path(f"{name}{frame}.png"), frame) for name in "abcde" for frame in range(3 * (name == "b"))
    ]
    jobs += [Job(Path(name), Path(f"{name}.png")) for name in "vwxyz"]
    parts = [[job.target.stem for job in task.jobs] for task in split(jobs, 2)]
    assert parts == [["b0", "b1", "b2"], ["v", "w"], ["x", "y"], ["z"]]
    assert not list(split([], 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray", "--workers", "0"], "--workers 0: give 1 or more"),
        (["--worker-cores", "2"], "--worker-cores 2: add --ray"),
        (["--ray", "--device", "cuda:1"], "--device cuda:1: Ray gives each worker its own GPU"),
    ],
)
def test_wrong_options_are_refused_before_ray_starts(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "w.json").write_text(json.dumps({"1": LOAD, "2": SAVE}))
    for words in (["run", "w.json", "--each", "1.image=photos"], ["preprocess", "canny", "photos"]):
        assert cli.main([*words, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preprocess", "canny", "photos", "--ray"]) == 3
    assert "pip install comfyui-controlnet-core[ray]" in capsys.readouterr().err


@needs_ray
@pytest.mark.parametrize(("address", "code"), [("nonsense", 2), ("127.0.0.1:9", 1), ("ray://127.0.0.1:9", 1)])
def test_a_cluster_that_is_not_there(address: str, code: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preprocess", "canny", "photos", "--ray", address]) == code
    assert f"error: --ray {address}: " in capsys.readouterr().err
    assert not (folder / "output").exists()


def workers_of(folder: Path) -> list[int]:
    """Numbers of the processes of Ray that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = b"ray::Worker" in process.joinpath("cmdline").read_bytes()
            if is_worker and process.joinpath("cwd").readlink() == folder:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "comfyui_controlnet_core", *options]


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_lost_worker_and_a_lost_command_lose_and_repeat_nothing(folder: Path) -> None:
    assert cli.main(["run", "canny_to_image", *SMALL, "--output", "first"]) == 0
    (first,) = (folder / "first").glob("*.png")
    # The bundled workflow loads an example of its own.
    workflow = json.loads(read_text(first.read_bytes())["prompt"])
    hint = next(key for key, node in workflow.items() if node["class_type"] == "CNCore_Preprocess")
    workflow[hint]["inputs"]["image"] = ["99", 0]
    (folder / "w.json").write_text(json.dumps({**workflow, "99": LOAD}))
    each = command("run", "w.json", "--each", "99.image=photos", "--device", "cpu", "--output")
    assert subprocess.call([*each, "serial", "--threads", "1"]) == 3
    manifest = folder / "far" / "manifest.jsonl"

    def ended() -> int:
        return manifest.read_bytes().count(b"\n") if manifest.exists() else 0

    def start_until(count: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*each, "far", *TWO])
        wait_for(lambda: process.poll() is not None or (ended() >= count and len(workers_of(folder)) == 2))
        assert process.poll() is None
        return process

    # The command is killed: its workers end with it. Then a worker is killed under the next one.
    process = start_until(5)
    process.kill()
    process.wait()
    wait_for(lambda: not workers_of(folder))
    process = start_until(ended() + 5)
    os.kill(workers_of(folder)[0], signal.SIGKILL)
    assert process.wait() == 3
    lines = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    done = [line["row"] for line in lines if "error" not in line]
    assert len(done) == len(set(done)) == 39
    assert {line["row"] for line in lines if "error" in line} == {"p7"}
    names = {path.name for path in (folder / "serial").glob("*.png")}
    assert len(names) == 39 and names == {path.name for path in (folder / "far").glob("*.png")}
    for name in names:
        assert (folder / "serial" / name).read_bytes() == (folder / "far" / name).read_bytes()


@needs_ray
@pytest.mark.slow
def test_hints_are_those_of_a_serial_run(folder: Path) -> None:
    (folder / "photos" / "p7.png").unlink()
    for name in ("a.tar", "b.tar"):
        subprocess.check_call(["tar", "cf", name, "photos"])
    hints = command("preprocess", "canny", "photos", "a.tar", "b.tar", "--chunk", "4", "--device", "cpu", "--output")
    assert subprocess.call([*hints, "serial"]) == 0
    output = subprocess.check_output([*hints, "far", *TWO], text=True)
    assert "117 made, 0 there already" in output
    names = {path.name for path in (folder / "serial").iterdir()}
    assert len(names) == 41 and names == {path.name for path in (folder / "far").iterdir()}
    for name in names:
        assert (folder / "serial" / name).read_bytes() == (folder / "far" / name).read_bytes()
    assert "0 made, 117 there already" in subprocess.check_output([*hints, "far", *TWO], text=True)


def square_or_die(log: str, cores: int) -> Callable[[int], int]:
    def work(number: int) -> int:
        with Path(log).open("a") as file:
            file.write(f"{number}\n")
        if number == 3:
            os._exit(1)
        return number**2

    return work


@needs_ray
@pytest.mark.slow
def test_what_always_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    pool = RayPool("local", "cpu", 2, 1)
    try:
        found = dict(pool.run(partial(square_or_die, str(tmp_path / "log")), range(8)))
    finally:
        pool.close()
    lost = found.pop(3)
    assert isinstance(lost, LostWorker) and "its worker was lost 3 times" in str(lost)
    assert found == {number: number**2 for number in range(8) if number != 3}
    assert sorted((tmp_path / "log").read_text().split()) == sorted("01233345 6 7".replace(" ", ""))
