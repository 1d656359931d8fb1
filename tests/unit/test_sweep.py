"""`controlnet sweep`: values of axes, limits, grid and labels, the CSV, the fidelity, one load for all cells."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import CoreError, ValueRangeError, WorkflowError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.nodes.sweep_grid import read_values as values_of
from comfyui_controlnet_core.workflows import cli, session, several_runs
from PIL import Image

FLOAT, INT, TEXT, CHOICE = "FLOAT", "INT", "STRING", "COMBO"
SIDE = 64


def read_values(kind: str, text: str) -> tuple[str, ...]:
    return values_of(kind, text, "--set")


def test_values_of_an_axis() -> None:
    assert read_values(FLOAT, "0.2..1.0/5") == ("0.2", "0.4", "0.6", "0.8", "1")
    assert read_values(FLOAT, " -1..1/3 ") == ("-1", "0", "1")
    assert read_values(FLOAT, "1, 0.5,1") == ("1", "0.5")
    assert read_values(INT, "3..6") == ("3", "4", "5", "6")
    assert read_values(INT, "0..10/3") == ("0", "5", "10")
    assert read_values(INT, "0..2/9") == ("0", "1", "2")
    assert read_values(INT, f"{2**64 - 2}..{2**64 - 1}") == (str(2**64 - 2), str(2**64 - 1))
    assert read_values(CHOICE, "balanced,prompt") == ("balanced", "prompt")
    assert read_values(TEXT, "a red ball, shiny|a blue ball") == ("a red ball, shiny", "a blue ball")
    assert read_values(TEXT, "1..3") == ("1..3",)


@pytest.mark.parametrize("text", ["0..1", "a..b/3", "0..1e999/3", "nan..1/2", "0..1/0"])
def test_ranges_that_cannot_be_read(text: str) -> None:
    with pytest.raises(WorkflowError, match="is no range"):
        read_values(FLOAT, text)


def test_a_range_is_not_spelled_out_where_it_is_too_long() -> None:
    with pytest.raises(ValueRangeError, match="999999999999999999 cells"):
        read_values(FLOAT, "0..1/999999999999999999")
    with pytest.raises(ValueRangeError, match="cells or more"):
        read_values(INT, f"1..{10**400}")


class Net:
    """A value that counts how often it is loaded."""

    loads: list[int] = []
    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[str]:
        self.loads.append(1)
        return ("net",)


class Paint:
    """A picture that follows the upper part of its hint, as much of it as the strength says."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE",),
                "source": ("IMAGE",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0}),
                "mode": (["plain", "invert", "fail"], {}),
            }
        }

    def run(self, control_net: str, image: Any, source: Any, strength: float, mode: str) -> tuple[Any]:
        if mode == "fail":
            raise CoreError("this cell fails")
        painted = torch.full_like(source, 0.5)
        rows = round(strength * source.shape[1])
        painted[:, :rows] = source[:, :rows]
        return (1.0 - painted if mode == "invert" else painted,)


GRAPH: dict[str, Any] = {
    "1": {"class_type": "Net", "inputs": {}},
    "2": {
        "class_type": "CNCore_ExampleImage",
        "inputs": {"picture": "demo scene 3", "view": "picture", "size": SIDE},
    },
    "3": {"class_type": "CNCore_Preprocess", "inputs": {
        "image": ["2", 0], "kind": "canny", "resolution": 0, "resize": "shortest"}},
    "4": {"class_type": "Paint", "inputs": {
        "control_net": ["1", 0], "image": ["3", 0], "source": ["2", 0], "strength": 1.0, "mode": "plain"}},
    "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "own"}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with w.json, and a session that knows the two nodes above."""

    def open_session(args: Any, progress: Any = None) -> session.Session:
        host = StandaloneHost(tmp_path, Path(args.output), device="cpu", dtype="fp32")
        return session.Session(host, {**build_nodes(host), "Net": Net, "Paint": Paint})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(several_runs, "open_session", open_session)
    Net.loads.clear()
    Path("w.json").write_text(json.dumps(GRAPH))
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_sweep_makes_a_labelled_grid_and_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "Paint.mode=plain,invert", "--set", "Paint.strength=0..1/3"]
    assert cli.main(["sweep", "w.json", *words, "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    grid = pixels(Path(told["grid"]))
    # Two rows of three cells, each with three lines below, and 4 white pixels between them.
    height = SIDE + 3 * 14
    assert grid.shape == (2 * height + 4, 3 * SIDE + 8, 3)
    source = grid[:SIDE, -SIDE:].astype(int)
    assert (grid[:SIDE, :SIDE] == 127).all() and source.std() > 10
    assert abs(255 - source - grid[height + 4 : height + 4 + SIDE, -SIDE:]).max() <= 1
    for top in range(SIDE, height, 14):
        assert (grid[top : top + 14, :SIDE] < 128).any()
    table = rows_of(Path(told["csv"]))
    assert table[0] == ["Paint.mode", "Paint.strength", "fidelity", "measure"] and len(table) == 7
    assert [row[:2] for row in table[1:4]] == [["plain", "0"], ["plain", "0.5"], ["plain", "1"]]
    scores = [float(row[2]) for row in table[1:]]
    assert scores[0] == 0 and 0 < scores[1] < scores[2] == 1 and {row[3] for row in table[1:]} == {"F1"}
    assert [cell["fidelity"] for cell in told["cells"]] == pytest.approx(scores, abs=1e-4)
    # The net is loaded once, and no cell saves a picture of its own.
    assert len(Net.loads) == 1
    assert sorted(path.name for path in (folder / "output").glob("*.*")) == ["w_sweep_00001_.csv", "w_sweep_00001_.png"]


def test_the_grid_carries_the_workflow_of_the_user(folder: Path) -> None:
    assert cli.main(["sweep", "w.json", "--set", "4.strength=0,1", "--set", "4.mode=invert", "--quiet"]) == 0
    with Image.open(folder / "output" / "w_sweep_00001_.png") as image:
        assert image.size == (2 * SIDE + 4, SIDE + 2 * 14)
        prompt = json.loads(image.text["prompt"])  # type: ignore[attr-defined]
    assert set(prompt) == set(GRAPH) and prompt["4"]["inputs"]["mode"] == "invert"


def test_a_sweep_without_a_known_hint_has_no_fidelity(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = json.loads(json.dumps(GRAPH))
    graph["3"]["inputs"]["kind"] = "blur"
    Path("w.json").write_text(json.dumps(graph))
    assert cli.main(["sweep", "w.json", "--set", "4.strength=0,1", "--quiet"]) == 0
    assert "fidelity to the hint is not measured" in capsys.readouterr().err
    table = rows_of(folder / "output" / "w_sweep_00001_.csv")
    assert table[1:] == [["0", "", ""], ["1", "", ""]]


def test_finished_cells_are_saved_when_a_cell_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "w.json", "--set", "4.mode=plain,invert,fail", "--quiet"]) == 1
    assert "this cell fails" in capsys.readouterr().err
    assert [row[0] for row in rows_of(folder / "output" / "w_sweep_00001_.csv")] == ["4.mode", "plain", "invert"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["4.strength=0..1/101"], "this sweep has 101 cells, more than 100: give --yes"),
        (["4.strength=0..1/100", "2.size=1..100"], "this sweep has 10000 cells, more than 100: give --yes"),
        (["4.strength=0..1/200", "2.size=1..100", "--yes"], "this sweep has 20000 cells, at most 10000"),
        (["4.strength=1"], "0 inputs have several values"),
        (["4.strength=0,1", "4.mode=plain,invert", "2.size=64,32"], "3 inputs have several values"),
        (["9.strength=0,1"], 'no node "9"'),
        (["4.nothing=0,1"], "no input nothing"),
        (["4.strength=0,11"], "strength"),
        (["4.mode=plain,other"], "other"),
        (["6.filename_prefix=a|b", "--picture", "1"], "shows no images"),
    ],
)
def test_sweeps_that_are_refused_run_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    given = [part for word in words if "=" in word for part in ("--set", word)]
    assert cli.main(["sweep", "w.json", *given, *(word for word in words if "=" not in word)]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not Net.loads and not (folder / "output").exists()
