"""`controlnet run --comfyui`: the picture is that of ComfyUI's server for the same prompt, to the last bit.

Needs COMFYUI_DIR as `test_comfyui.py` does. COMFYUI_PACKS is a folder with clones of packs; without it a small pack
that is written here is the only other one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_controlnet_core.workflows import cli, png
from PIL import Image

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to run in"),
]
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PARTS = ("controlnet_core", "nodes", "preprocessors", "workflows", "web", "locales", "__init__.py", "pyproject.toml")
CLONES = ("rgthree-comfy", "ComfyUI-Custom-Scripts")
OTHER_PACK = '''
class Mirror:
    """A node of another pack: mirrors a picture."""
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "times": ("INT", {"default": 1, "min": 0, "max": 3})}}

    def run(self, image, times):
        if times == 3:
            raise RuntimeError("three times is too often")
        print("mirrored")
        return (image.flip(2) if times % 2 else image,)

NODE_CLASS_MAPPINGS = {"TestMirror": Mirror}
'''
TEMPLATES = {
    "canny_to_image": ("CNCore_Sample.steps=2",),
    "depth_and_pose": ("CNCore_Sample.steps=2",),
    "img2img_with_control": ("CNCore_Sample.steps=3",),
}
NATIVE: dict[str, Any] = {
    "1": {"class_type": "CNCore_LoadCheckpoint", "inputs": {"checkpoint": "demo (built in)"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red ball"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    "5": {"class_type": "KSampler", "inputs": {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 4,
        "steps": 3, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}},
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "TestMirror", "inputs": {"image": ["6", 0], "times": 1}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "mirrored"}},
}  # fmt: skip
"""Native nodes, and one of another pack."""


def prompt(**changed: Any) -> dict[str, Any]:
    """The workflow above, with values of node 7 changed."""
    mirror = {**NATIVE["7"], "inputs": {**NATIVE["7"]["inputs"], **changed}}
    return {**NATIVE, "7": mirror}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder of ComfyUI with this pack and others."""
    return make_base(tmp_path_factory.mktemp("comfyui"), CLONES)


def make_base(base: Path, clones: Iterable[str] | None = None) -> Path:
    """Fill a base folder of ComfyUI. clones: packs in COMFYUI_PACKS to copy, default all."""
    pack = base / "custom_nodes" / "comfyui-controlnet-core"
    shutil.rmtree(base / "custom_nodes", ignore_errors=True)
    pack.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, pack / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, pack / part)
    (base / "custom_nodes" / "another_pack").mkdir()
    (base / "custom_nodes" / "another_pack" / "__init__.py").write_text(OTHER_PACK)
    found = sorted(Path(os.environ["COMFYUI_PACKS"]).iterdir()) if "COMFYUI_PACKS" in os.environ else []
    for clone in (path for path in found if path.is_dir() and (clones is None or path.name in clones)):
        shutil.copytree(clone, base / "custom_nodes" / clone.name, ignore=shutil.ignore_patterns(".git"))
    for name in ("models", "input", "user", "output"):
        (base / name).mkdir(exist_ok=True)
    return base


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[str]:
    with serving(base) as address:
        yield address


@contextmanager
def serving(base: Path) -> Iterator[str]:
    """The address of ComfyUI's server over this folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pack = base / "custom_nodes" / "comfyui-controlnet-core"
    program = [python(), str(HERE / "comfyui_host.py"), "--serve", os.environ["COMFYUI_DIR"], str(pack), str(port)]
    log = base / "log.txt"
    given = {**os.environ, "HOST_ARGS": f"--front-end-root {base / 'user'}"}
    with log.open("w") as written:
        process = subprocess.Popen(program, stdout=written, stderr=subprocess.STDOUT, env=given)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or get(f"{address}/object_info/TestMirror"))
        assert process.poll() is None, log.read_text()[-4000:]
        yield address
    finally:
        process.terminate()
        process.wait(30)


def python() -> str:
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


def get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return json.loads(reply.read())
    except OSError:
        return None


def until(found: Any) -> Any:
    for _ in range(1500):
        result = found()
        if result:
            return result
        time.sleep(0.2)
    raise AssertionError("waited too long")


def picture_of_server(server: str, base: Path, text: str) -> np.ndarray:
    """The picture that the server makes of a prompt in its API form."""
    (picture,) = pictures_of_server(server, base, json.loads(text))
    return picture


def pictures_of_server(server: str, base: Path, prompt: Any) -> list[np.ndarray]:
    """The pictures that the server saves for a prompt, in the order of its output nodes."""
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{server}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        number = json.loads(reply.read())["prompt_id"]
    record = until(lambda: (get(f"{server}/history/{number}") or {}).get(number))
    images = [image for shown in record["outputs"].values() for image in shown.get("images", ())]
    saved = [image for image in images if image["type"] == "output"]
    return [np.asarray(Image.open(base / "output" / one["subfolder"] / one["filename"])) for one in saved]


def run(base: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`controlnet` inside the ComfyUI, in a program of its own."""
    program = [python(), str(HERE / "comfyui_inside.py"), os.environ["COMFYUI_DIR"], str(base), *arguments]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(program, capture_output=True, text=True, timeout=600, env=given)


def saved(done: subprocess.CompletedProcess[str]) -> list[Path]:
    """The pictures that a run with --json names, which is all that is on its stdout."""
    assert done.returncode == 0, done.stderr[-3000:]
    return [Path(name) for name in json.loads(done.stdout)["images"]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_the_picture_of_the_server(name: str, base: Path, server: str, tmp_path: Path) -> None:
    settings = [word for setting in TEMPLATES[name] for word in ("--set", setting)]
    (path,) = saved(run(base, "run", name, *settings, "--output", str(tmp_path), "--json"))
    texts = png.read_text(path.read_bytes())
    assert json.loads(texts["workflow"])["nodes"]
    picture = np.asarray(Image.open(path))
    assert picture.std() > 1
    assert np.array_equal(picture, picture_of_server(server, base, texts["prompt"]))


def test_a_report_is_that_of_a_run_without_comfyui(base: Path, tmp_path: Path) -> None:
    """The same steps, and the same norms of what the net adds; the picture is that of a run without a report."""
    words = ("run", "canny_to_image", "--set", "CNCore_Sample.steps=2", "--output", str(tmp_path), "--json")
    plain, recorded = run(base, *words), run(base, *words, "--report", str(tmp_path / "r.json"))
    first, second = (np.asarray(Image.open(saved(done)[0])) for done in (plain, recorded))
    assert np.array_equal(first, second)
    assert cli.main([*words, "--report", str(tmp_path / "own.json"), "--device", "cpu", "--dtype", "fp32"]) == 0
    (ours,), (alone,) = (json.loads((tmp_path / name).read_text()) for name in ("r.json", "own.json"))
    assert ours["evaluations"] == alone["evaluations"] == 2
    assert np.allclose(ours["sigmas"], alone["sigmas"], rtol=1e-4)
    (unit,), (other,) = ours["units"], alone["units"]
    assert (unit["name"], unit["ran"], unit["acted"]) == (other["name"], 2, 2) and unit["seconds"] > 0
    assert np.allclose(np.array(unit["norms"], float), np.array(other["norms"], float), rtol=1e-3)


def test_a_report_of_native_samplers(base: Path, tmp_path: Path) -> None:
    """Each sampling has its report, whichever node samples."""
    file = tmp_path / "work.json"
    file.write_text(json.dumps(prompt()))
    words = ("run", str(file), "--output", str(tmp_path), "--seeds", "4,5", "--report")
    done = run(base, *words, str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    reports = json.loads((tmp_path / "r.json").read_text())
    assert [report["title"].split(", ")[1] for report in reports] == ["seed 4", "seed 5"]
    assert [(len(report["sigmas"]), report["evaluations"], report["units"]) for report in reports] == [(3, 3, [])] * 2
    assert "3 steps, 3 evaluations in" in done.stderr


def test_seeds_and_a_node_of_another_pack(base: Path, server: str, tmp_path: Path) -> None:
    """One process for both seeds: what does not change is taken from the cache, and messages go to stderr."""
    file = tmp_path / "work.json"
    file.write_text(json.dumps(prompt()))
    done = run(base, "run", str(file), "--seeds", "4,5", "--output", str(tmp_path), "--json")
    pictures = saved(done)
    assert len(pictures) == 2
    first, second = (np.asarray(Image.open(path)) for path in pictures)
    assert not np.array_equal(first, second)
    for path, picture in zip(pictures, (first, second), strict=True):
        text = png.read_text(path.read_bytes())["prompt"]
        assert np.array_equal(picture, picture_of_server(server, base, text))
    rows = json.loads(done.stdout)["runs"]
    assert [row["seed"] for row in rows] == [4, 5]
    assert set(rows[0]["executed"]) == set(NATIVE) and set(rows[1]["executed"]) == {"5", "6", "7", "8"}
    assert "mirrored" in done.stderr
    assert "8/8 SaveImage" in done.stderr and "1/8 CNCore_LoadCheckpoint  unchanged" in done.stderr


@pytest.mark.parametrize(
    ("changed", "code", "message"),
    [
        ({"times": 3}, 1, "node 7 (TestMirror) failed: RuntimeError: three times is too often"),
        ({"times": 9}, 2, "node 7 (TestMirror), input times: Value 9 bigger than max of 3"),
    ],
)
def test_a_fault_is_one_line_and_its_exit_code(
    changed: dict[str, Any], code: int, message: str, base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "work.json"
    file.write_text(json.dumps(prompt(**changed)))
    done = run(base, "run", str(file), "--output", str(tmp_path), "--quiet")
    assert done.returncode == code, done.stderr[-3000:]
    # Before it comes what ComfyUI itself logs of a node that fails.
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")


def test_one_good_output_runs_beside_a_bad_one(base: Path, tmp_path: Path) -> None:
    bad = {"9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "never"}}}
    file = tmp_path / "work.json"
    file.write_text(json.dumps({**prompt(), **bad}))
    done = run(base, "run", str(file), "--output", str(tmp_path), "--json")
    assert [path.name for path in saved(done)] == ["mirrored_00001_.png"]
    assert "warning: node 9 (SaveImage), input images" in done.stderr
    done = run(base, "run", str(file), "--output", str(tmp_path), "--strict")
    assert done.returncode == 2


@pytest.mark.skipif("COMFYUI_PACKS" not in os.environ, reason="COMFYUI_PACKS is not set: no clones of packs")
def test_nodes_of_public_packs(base: Path, server: str, tmp_path: Path) -> None:
    """A text node of Custom-Scripts and a switch of rgthree, in a workflow that standalone cannot run."""
    work = prompt()
    work["20"] = {
        "class_type": "StringFunction|pysssss",
        "inputs": {
            "action": "append",
            "tidy_tags": "yes",
            "text_a": "a red ball",
            "text_b": "on green ground",
            "text_c": "",
        },
    }
    work["21"] = {"class_type": "Any Switch (rgthree)", "inputs": {"any_02": ["6", 0]}}
    work["2"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ["20", 0]}}
    work["7"] = {"class_type": "TestMirror", "inputs": {"image": ["21", 0], "times": 1}}
    file = tmp_path / "work.json"
    file.write_text(json.dumps(work))
    (path,) = saved(run(base, "run", str(file), "--output", str(tmp_path), "--json"))
    text = png.read_text(path.read_bytes())["prompt"]
    assert np.array_equal(np.asarray(Image.open(path)), picture_of_server(server, base, text))
    assert cli.main(["run", str(file), "--output", str(tmp_path)]) == 2


def test_rows_are_the_pictures_of_single_runs(base: Path, tmp_path: Path) -> None:
    """Pictures of a folder outside of ComfyUI's input folder, and a broken one that does not stop the others."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(("a", "b")):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 48, 3), np.uint8)).save(
            photos / f"{name}.png"
        )
    (photos / "broken.png").write_bytes(b"no picture")
    work = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
        "2": {"class_type": "TestMirror", "inputs": {"image": ["1", 0], "times": 1}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "mirrored"}},
    }
    file = tmp_path / "work.json"
    file.write_text(json.dumps(work))
    out = tmp_path / "out"
    words = ("run", str(file), "--each", f"1.image={photos}", "--output", str(out))
    done = run(base, *words)
    assert done.returncode != 0, "one row failed"
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows if "error" in row] == ["broken"]
    for name in ("a", "b"):
        source = np.asarray(Image.open(photos / f"{name}.png"))
        assert np.array_equal(np.asarray(Image.open(out / f"{name}.png")), source[:, ::-1])
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".png") == ["a.png", "b.png"]
    assert not [path for path in (base / "input").rglob("*") if path.is_file()], "its own folder stays as it was"
    run(base, *words)
    names = [json.loads(line)["row"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert names == ["a", "b", "broken", "broken"], "finished rows are kept"
