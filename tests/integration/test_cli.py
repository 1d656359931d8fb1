"""The command line: exit codes, one-line errors, settings, seeds, pictures that run again, Ctrl-C.

These tests bring node classes of their own, so that they ask the command and not the models.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_controlnet_core.controlnet_core.errors import DamagedFileError, MissingFileError, WorkflowError
from comfyui_controlnet_core.workflows import bundled, cli, model_paths, session, single_run
from comfyui_controlnet_core.workflows.commands import run as run_command
from comfyui_controlnet_core.workflows.commands import validate as validate_command
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WITH_PROC = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")


class Host:
    """Folders only."""

    def __init__(self, output: Path) -> None:
        self.output_dir = output


def classes(host: Host, progress: Any = None) -> dict[str, type]:
    """Noise (a picture from a seed) and SaveImage as the host writes it."""

    class Noise:
        """Pixels from a seed."""

        DESCRIPTION = "Pixels from a seed."
        CATEGORY = "test"
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {
                "required": {
                    "seed": ("INT", {"default": 0, "min": 0}),
                    "size": ("INT", {"default": 4, "max": 64}),
                }
            }

        def run(self, seed: int, size: int) -> tuple[Any]:
            for step in range(3):
                if progress is not None:
                    progress(step + 1, 3)
            return (np.random.default_rng(seed).random((1, size, size, 3)),)

    class SaveImage:
        CATEGORY = "test"
        RETURN_TYPES = ()
        FUNCTION = "run"
        OUTPUT_NODE = True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {
                "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "a"})},
                "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
            }

        def run(self, images: Any, filename_prefix: str, prompt: Any, extra_pnginfo: Any) -> dict[str, Any]:
            host.output_dir.mkdir(parents=True, exist_ok=True)
            name = f"{filename_prefix}_{len(list(host.output_dir.iterdir())) + 1:05}_.png"
            info = PngInfo()
            info.add_text("prompt", json.dumps(prompt))
            for key, value in extra_pnginfo.items():
                info.add_text(key, json.dumps(value))
            pixels = (images[0] * 255).astype(np.uint8)
            Image.fromarray(pixels).save(host.output_dir / name, pnginfo=info)
            return {"ui": {"images": [{"filename": name, "subfolder": "", "type": "output"}]}}

    return {"Noise": Noise, "SaveImage": SaveImage}


WORKFLOW = {
    "version": 0.4,
    "nodes": [
        {
            "id": 1,
            "type": "Noise",
            "title": "Make pixels",
            "mode": 0,
            "inputs": [],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "widgets_values": [5, "randomize", 8],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "mode": 0,
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "outputs": [],
            "widgets_values": ["a"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with w.json in it; the session is the small one above."""
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW))

    def open_session(args: Any, progress: Any = None) -> session.Session:
        host = Host(Path(args.output))
        return session.Session(host, classes(host, progress))  # type: ignore[arg-type]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_command, "open_session", open_session)
    monkeypatch.setattr(validate_command, "open_session", open_session)
    return tmp_path


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


# ---- running --------------------------------------------------------------------------------------------


def test_run_tells_each_node_and_where_the_picture_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "w.json", "--output", "out"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("saved 1 picture in ")
    assert out.rstrip().endswith(str(Path("out/a_00001_.png")))
    lines = err.splitlines()
    assert lines[0].startswith("1/2 Make pixels (Noise)  ")
    assert lines[1].startswith("2/2 SaveImage  ")


def test_a_picture_runs_again_to_the_same_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "w.json", "--set", "Make pixels.seed=11", "--set", "1.size=16", "--json"])
    first = json.loads(capsys.readouterr().out)["images"][0]
    assert cli.main(["run", first, "--json"]) == 0
    second = json.loads(capsys.readouterr().out)["images"][0]
    assert first != second
    assert np.array_equal(pixels(first), pixels(second))
    with Image.open(second) as image:
        assert json.loads(image.text["workflow"])["nodes"][0]["widgets_values"] == [11, "randomize", 16]
        assert json.loads(image.text["prompt"])["1"]["inputs"] == {"seed": 11, "size": 16}


def test_seeds_make_one_picture_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "w.json", "--seeds", "1..3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["seed"] for row in result["runs"]] == [1, 2, 3]
    assert len({pixels(path).tobytes() for path in result["images"]}) == 3


def test_doctor_names_the_editor_whose_noise_is_followed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cpu", "--json"]) == 0
    said = {found["name"]: found["text"] for found in json.loads(capsys.readouterr().out)["findings"]}
    assert said["noise"] == "as ComfyUI 0.7.0 and later; compared with 0.3.40, 0.3.64, 0.33.0"


def test_validate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "w.json"]) == 0
    assert "2 nodes, no problems" in capsys.readouterr().out
    assert cli.main(["validate", "w.json", "--set", "1.size=99"]) == 2
    assert "the most is 64" in capsys.readouterr().err
    assert cli.main(["validate", "w.json", "--set", "1.size=99", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"][0]["input"] == "size"


# ---- what goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run"], 2, "required: FILE"),
        (["run", "w.json", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["paint"], 2, "invalid choice: 'paint'"),
        (["run", "none.json"], 3, "there is no file none.json"),
        (["run", "w.json", "--set", "1.size=99"], 2, "the most is 64"),
        (["run", "w.json", "--set", "9.size=1"], 2, 'no node "9"'),
        (["run", "w.json", "--seeds", "x"], 2, "--seeds x: expected"),
        (["run", "broken.json"], 2, "broken.json is no valid JSON"),
        (["run", "unknown.json"], 2, "node 1 (Painter): this class is not known"),
        (["run", "."], 2, "is a folder"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    (folder / "broken.json").write_text("{")
    (folder / "unknown.json").write_text('{"1": {"class_type": "Painter", "inputs": {}}}')
    assert cli.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line]
    assert line.startswith("error: ")
    assert said in line
    assert not (folder / "output").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "w.json", "--output", "w.json"], "w.json is a file, expected a folder"),
        (["run", "w.json", "--output", "w.json/deep/er"], "w.json is a file, expected a folder"),
        (["validate", "w.json", "--output", "w.json"], "w.json is a file, expected a folder"),
        (["run", "w.json", "--report", "w.json/r.json"], "w.json is a file, expected a folder"),
        (["run", "w.json", "--report", "there.json"], "this is a folder, expected a file"),
        (["run", "w.json", "--report", "r.txt"], "ends in .json"),
        pytest.param(["run", "w.json", "--report", "/proc/r.json"], "/proc is not writable", marks=WITH_PROC),
        (["preprocess", "canny", "a.png", "--output", "w.json"], "w.json is a file, expected a folder"),
        (["train", "--data", ".", "--base", "demo", "--output", "w.json/n.safetensors"], "w.json is a file"),
    ],
)
def test_places_to_write_to_are_looked_at_first(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a node ran")

    monkeypatch.setattr(single_run, "execute", never)
    (folder / "there.json").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    before = sorted(folder.rglob("*"))
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


LOCKED = """
    import os, sys
    from pathlib import Path
    from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
    from comfyui_controlnet_core.workflows.destinations import check_file, check_folder

    if os.getuid() == 0:
        os.setuid(65534)  # root may write anywhere
    for check, name in ((check_folder, "locked"), (check_folder, "locked/out/deeper"), (check_file, "locked/r.json")):
        try:
            check("--to", Path(name))
        except ValueRangeError as error:
            print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_a_folder_that_may_not_be_written_to() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        place = Path(name)
        place.chmod(0o755)
        (place / "locked").mkdir(mode=0o555)
        command = [sys.executable, "-c", textwrap.dedent(LOCKED)]
        said = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(":")[0] for line in said] == ["--to locked", "--to locked/out/deeper", "--to locked/r.json"]
    assert all(line.endswith("locked is not writable: choose another folder") for line in said)


def test_names_of_strangers_do_not_steer_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\u202e\ud800"
    node = {"class_type": f"Noise{evil}", "_meta": {"title": evil}, "inputs": {}}
    (folder / "evil.json").write_text(json.dumps({"1": node, evil: node}))
    assert cli.main(["run", "evil.json"]) == 2
    assert cli.main(["validate", "evil.json"]) == 2
    assert cli.main(["inspect", "evil.json"]) == 0
    out, err = capsys.readouterr()
    for text in (out, err):
        assert "\\x1b]0;owned\\x07\\u202e\\ud800" in text
        assert not set(evil[:1] + evil[-3:]) & set(text)
    good = {**WORKFLOW, "nodes": [{**WORKFLOW["nodes"][0], "title": evil}, WORKFLOW["nodes"][1]]}
    (folder / "good.json").write_text(json.dumps(good))
    assert cli.main(["run", "good.json"]) == 0
    assert "\x1b" not in capsys.readouterr().err


def test_errors_as_json_and_tracebacks_only_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "none.json", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["exit_code"] == 3
    assert cli.main(["run", "none.json", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 4, "out of memory"),
        (RuntimeError("odd"), 1, "unexpected RuntimeError: odd"),
    ],
)
def test_any_end_has_its_code(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    said: str,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise raised

    monkeypatch.setattr(single_run, "execute", broken)
    assert cli.main(["run", "w.json"]) == code
    assert said in capsys.readouterr().err


DRIVER = """
    import sys, time, types
    from comfyui_controlnet_core.workflows import cli, session
    from comfyui_controlnet_core.workflows.commands import run as run_command

    class Wait:
        RETURN_TYPES = ()
        FUNCTION = "run"
        OUTPUT_NODE = True
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})

        def run(self):
            print("waiting", flush=True)
            time.sleep(60)
            return {}

    run_command.open_session = lambda args, progress: session.Session(types.SimpleNamespace(), {"Wait": Wait})
    sys.exit(cli.main(["run", sys.argv[1]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent as a POSIX signal here")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_run_ends_at_once_in_one_line(tmp_path: Path, number: signal.Signals, code: int) -> None:
    file = tmp_path / "wait.json"
    file.write_text('{"1": {"class_type": "Wait", "inputs": {}}}')
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    began = time.perf_counter()
    child.send_signal(number)
    _, err = child.communicate(timeout=20)
    assert child.returncode == code
    assert time.perf_counter() - began < 5
    assert err.splitlines() == ["error: interrupted; what was saved before stays"]


EARLY = """
    import importlib.abc, os, signal, sys
    from comfyui_controlnet_core.workflows.entry import main

    class Press(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.endswith(awaited):
                os.kill(os.getpid(), signal.SIGINT)

    # A shell starts background jobs with SIGINT ignored, and the child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    awaited, sys.argv = sys.argv[1], ["controlnet", "doctor"]
    sys.meta_path.insert(0, Press())
    sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent as a POSIX signal here")
@pytest.mark.parametrize("module", ["workflows.cli", "commands.doctor"])
def test_ctrl_c_while_the_command_is_being_imported(module: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(EARLY), module]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == ["error: interrupted; what was saved before stays"]


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys, time; t = time.process_time()\n"
        "from comfyui_controlnet_core.workflows import cli\n"
        "cli.build_parser('run').format_help(); cli.build_parser().format_help()\n"
        "assert 'torch' not in sys.modules and 'controlnet_core' not in sys.modules\n"
        "print(time.process_time() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5  # 0.05 s of a quiet core
    module = [sys.executable, "-m", "comfyui_controlnet_core", "--help"]
    assert "usage: controlnet" in subprocess.run(module, capture_output=True, text=True, check=True).stdout


def test_the_collector_rests_only_while_torch_is_first_imported() -> None:
    code = (
        "import gc, sys\n"
        "from comfyui_controlnet_core.workflows import cli, session\n"
        "passes = []\n"
        "gc.callbacks.append(lambda phase, info: passes.append(phase))\n"
        "session.open_session(cli.build_parser('run').parse_args(['run', 'canny_to_image']))\n"
        "assert 'torch' in sys.modules and gc.isenabled() and gc.get_freeze_count() > 100_000\n"
        "print(len(passes))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # a collector that does not rest passes 800 times
    import torch  # noqa: F401  (from here on the collector goes on)

    with pytest.raises(KeyError), session.paused_collector():
        assert gc.isenabled()
        raise KeyError
    assert gc.isenabled()


# ---- inspecting -------------------------------------------------------------------------------------------


def test_inspect_a_workflow_and_its_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "w.json"]) == 0
    assert "editor's form 0.4), 2 nodes" in capsys.readouterr().out
    cli.main(["run", "w.json", "--json", "--set", "1.seed=77"])
    picture = json.loads(capsys.readouterr().out)["images"][0]
    assert cli.main(["inspect", picture, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["forms"] == ["prompt", "workflow"]
    assert facts["seeds"] == [77]
    assert facts["nodes"][0] == {"id": "1", "class": "Noise", "title": "Make pixels"}


def test_inspect_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert cli.main(["inspect", str(tmp_path / "x.safetensors")]) == 3
    assert capsys.readouterr().err.startswith("error: ")
    assert cli.main(["inspect", str(tmp_path / "none")]) == 3


# ---- folders ----------------------------------------------------------------------------------------


def test_workflows_are_found_by_path_or_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.json").write_text("{}")
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    for name in ("study", "study.json", "workflows/study.json", str(tmp_path / "study.json")):
        assert bundled.find_workflow(name) == tmp_path / "study.json"
    with pytest.raises(MissingFileError, match="did you mean study"):
        bundled.find_workflow("studi.json")
    with pytest.raises(MissingFileError):
        bundled.find_workflow("elsewhere/study.json")


def test_models_from_a_tree_or_extra_model_paths(tmp_path: Path) -> None:
    (tmp_path / "tree" / "models" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "extra_model_paths.yaml"
    file.write_text(
        "#comment\na111:\n    base_path: other/ui/  # here\n    checkpoints: models/SD\n    loras: |\n"
        "         models/Lora\n         models/LyCORIS\n    vae: 'models/VAE'\n\n"
        "comfyui:\n    is_default: true\n    unet: /abs/unet\n    checkpoints: mine\n"
    )
    roots, kinds = model_paths.model_folders([tmp_path / "tree", file])
    assert roots == (tmp_path / "tree" / "models",)
    ui = tmp_path / "other" / "ui" / "models"
    assert kinds["loras"] == (ui / "Lora", ui / "LyCORIS")
    assert kinds["checkpoints"] == (tmp_path / "mine", ui / "SD")
    assert kinds["vae"] == (ui / "VAE",)
    assert kinds["diffusion_models"] == (Path("/abs/unet"),)
    with pytest.raises(MissingFileError, match="no such folder or file"):
        model_paths.model_folders([tmp_path / "none"])
    (tmp_path / "bad.yaml").write_text("a:\n  ]]]\n")
    with pytest.raises(WorkflowError, match="line 2"):
        model_paths.model_folders([tmp_path / "bad.yaml"])


def kinds_of(tmp_path: Path, text: str) -> tuple[dict[str, list[str]], list[str]]:
    """Folders by kind, relative to the file's own folder, and the warnings."""
    file = tmp_path / "paths.yaml"
    file.write_text(text, "utf-8")
    warnings: list[str] = []
    _, kinds = model_paths.model_folders([file], warnings.append)
    return {k: [f.relative_to(tmp_path).as_posix() for f in v] for k, v in kinds.items()}, warnings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ui:\n  base_path: "ui"\n  "checkpoints": "a b: c"\n', {"checkpoints": ["ui/a b: c"]}),
        ("checkpoints: models/a\nloras: models/b\n", {"checkpoints": ["models/a"], "loras": ["models/b"]}),
        ("base_path: ui\ncheckpoints: a\n", {"checkpoints": ["ui/a"]}),
        ("ui:\n  loras: [a, b]\n  vae:\n    - c\n    - d\n", {"loras": ["a", "b"], "vae": ["c", "d"]}),
        ("x: &x\n  base_path: ui\n  loras: a\ny:\n  <<: *x\n  vae: b\n", {"loras": ["ui/a", "ui/a"], "vae": ["ui/b"]}),
        ("ui:\n  loras: |\n    a # b\n    c\n", {"loras": ["a # b", "c"]}),
    ],
)
def test_extra_model_paths_may_use_all_of_yaml(tmp_path: Path, text: str, expected: dict[str, list[str]]) -> None:
    (tmp_path / "ui").mkdir()
    assert kinds_of(tmp_path, text) == (expected, [])


@pytest.mark.parametrize("text", ["", "ui:\nother:\n  loras:\n"])
def test_extra_model_paths_without_a_folder_are_said(tmp_path: Path, text: str) -> None:
    found, (warning,) = kinds_of(tmp_path, text)
    assert found == {} and "paths.yaml names no folder" in warning


def test_a_base_path_that_does_not_exist_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds, warnings = kinds_of(tmp_path, "ui:\n  base_path: /no/such/folder\nother:\n  loras: a\n")
    assert (kinds, len(warnings)) == ({"loras": ["a"]}, 1)
    assert "ui: base_path /no/such/folder does not exist" in warnings[0]
    assert cli.main(["nodes", "KSampler", "--models", str(tmp_path / "paths.yaml")]) == 0
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path / 'paths.yaml'}, ui: base_path")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "line 1"),
        ("- a\n", "expected sections"),
        ("ui:\n  loras: {a: b}\n", "ui, loras: expected a folder"),
        ("ui: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
        ("a: " + "[" * 5000, "cannot be read as YAML"),
        ("a: 2001-13-40\n", "cannot be read as YAML"),
        ("a: " + "x" * 200_000, "larger than 100 kB"),
    ],
)
def test_broken_extra_model_paths_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        kinds_of(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_folders_that_were_searched(tmp_path: Path) -> None:
    (tmp_path / "tree" / "checkpoints").mkdir(parents=True)
    api = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "gone.safetensors"}}}
    api["2"] = {"class_type": "VAEDecode", "inputs": {"vae": ["1", 2]}}
    api["3"] = {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}
    api["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    api["5"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    (tmp_path / "paths.yaml").write_text("ui:\n  checkpoints: more\n")
    (tmp_path / "w.json").write_text(json.dumps(api))
    models = ["--models", str(tmp_path / "tree"), "--models", str(tmp_path / "paths.yaml")]
    command = [sys.executable, "-m", "comfyui_controlnet_core", "validate", "w.json", *models]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    checkpoint = next(line for line in done.stderr.splitlines() if "gone.safetensors" in line)
    assert f"searched {tmp_path / 'more'}, {tmp_path / 'tree' / 'checkpoints'}" in checkpoint
    picture = next(line for line in done.stderr.splitlines() if "gone.png" in line)
    assert "searched input" in picture


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--chunk", "-1"], "--chunk -1: give a number of pictures"),
        (["--threads", "0"], "--threads 0: give 1 to 1024"),
        (["--memory", "lots"], "invalid choice: 'lots'"),
    ],
)
def test_memory_and_speed_refuse_what_they_cannot_do(
    option: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "canny_to_image", "--output", str(tmp_path), *option]) == 2
    assert said in capsys.readouterr().err


def test_what_was_asked_for_comes_to_the_engine(tmp_path: Path) -> None:
    asked = ["--chunk", "3", "--memory", "streamed", "--graphs", "--side-by-side", "--wide", "--compile"]
    args = cli.build_parser("run").parse_args(["run", "canny_to_image", "--output", str(tmp_path), *asked])
    runtime = session.open_session(args).host.runtime
    assert (runtime.chunk, runtime.memory) == (3, "streamed")
    assert runtime.graphs and runtime.parallel_nets and runtime.fused_qkv and runtime.compile
    plain = session.open_session(cli.build_parser("run").parse_args(["run", "canny_to_image"])).host.runtime
    assert (plain.chunk, plain.memory) == (0, "auto")
    assert not (plain.graphs or plain.parallel_nets or plain.fused_qkv or plain.compile)


def test_an_error_that_a_signal_made_is_the_signal() -> None:
    """While torch reads a tensor, the exception of a signal comes out as a ValueError of torch."""
    damaged = DamagedFileError("net.safetensors is damaged")
    assert cli._for_user(damaged, []) is damaged
    assert cli._for_user(damaged, [signal.SIGTERM]).exit_code == 143
    assert cli._for_user(damaged, [signal.SIGINT]).exit_code == 130
