"""What `controlnet run` says about `--comfyui` before any ComfyUI starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comfyui_controlnet_core.workflows import cli

WORK = {
    "1": {"class_type": "OfAnotherPack", "inputs": {}},
    "2": {"class_type": "OfAThirdPack", "inputs": {"image": ["1", 0]}},
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    path = tmp_path / "work.json"
    path.write_text(json.dumps(WORK))
    return path


def test_unknown_nodes_are_listed_with_the_option(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(work)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Not known without ComfyUI: 'OfAnotherPack', 'OfAThirdPack'" in line
    assert "--comfyui DIR" in line


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--comfyui", "nowhere"], 3, "no folder of ComfyUI"),
        (["--comfyui", "."], 3, "it has no main.py"),
        (["--comfyui"], 2, "set the variable COMFYUI_DIR"),
        (["--comfyui", ".", "--each", "1.image=photos"], 3, "there is no file or folder photos"),
        (["--comfyui", ".", "--report", "r.txt"], 2, "expected a name that ends in .json"),
        (["--comfyui", ".", "--report", "r.json"], 3, "it has no main.py"),
        (["--comfyui", ".", "--measure"], 2, "--measure acts on runs without ComfyUI"),
        (["--comfyui", ".", "--reuse", "2"], 2, "--reuse acts on runs without ComfyUI"),
        (["--comfyui", ".", "--shard", "1/2"], 2, "--zip, --shard and --ray are for the runs of --each"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], code: int, message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(work), *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_variable_names_the_folder(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_DIR", "somewhere")
    assert cli.main(["run", str(work), "--comfyui"]) == 3
    assert "--comfyui somewhere" in capsys.readouterr().err
