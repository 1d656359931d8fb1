"""The paper's experiments: how nets begin, the rules that decide what holds, and the page. Nothing is trained."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.models.unet import UNet

FOLDER = Path(__file__).parents[2] / "benchmarks"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a script of the folder; all of them are forgotten afterwards, since their names are short."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER / "paper"))
    names = {path.stem for folder in (FOLDER, FOLDER / "paper") for path in folder.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def fidelity(**fields: Any) -> dict[str, Any]:
    """A row whose mean edge F1 is the same under each prompt, unless `none` is given."""
    score = fields.pop("score")
    prompts = {prompt: [score] for prompt in ("caption", "none", "insufficient", "conflicting")}
    prompts["none"] = [fields.pop("none", score)]
    return {"seed": 0, **fields, "fidelity": prompts}


@pytest.mark.parametrize(("start", "changes"), [("zero", False), ("lite", False), ("gaussian", True)])
def test_only_gaussian_convolutions_change_the_base_at_the_start(load: Load, start: str, changes: bool) -> None:
    torch.manual_seed(0)
    unet = UNet(DEMO.unet)
    net = load("starts").STARTS[start](unet, DEMO.controlnet, 0, True)
    residuals = net(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, 128), torch.rand(1, 3, 64, 64))
    assert bool(residuals.middle.any()) is changes
    # The residuals fit the base, so that the product's trainer and engine take the net.
    assert [r.shape[1:] for r in residuals.skips] == [
        torch.Size(s) for s in ((64, 8, 8), (64, 8, 8), (64, 4, 4), (96, 4, 4), (96, 2, 2), (128, 2, 2))
    ]


def test_each_variant_has_a_folder_of_its_own(load: Load, tmp_path: Path) -> None:
    laboratory = load("laboratory")
    found = laboratory.Laboratory(laboratory.Settings(tmp_path))
    variants = {v for e in load("run").experiments() for v in e.variants}
    assert len(variants) == 11
    assert len({found.folder(variant, seed) for variant in variants for seed in (0, 1)}) == 2 * len(variants)


def test_runs_that_are_not_complete_can_be_left_out(load: Load, tmp_path: Path) -> None:
    laboratory = load("laboratory")
    variants, seeds = load("architecture").VARIANTS, (0, 1)
    every = laboratory.Laboratory(laboratory.Settings(tmp_path, seeds))
    assert len(list(every.runs(variants))) == 6
    laboratory.write_json(every.folder(variants[1], 1) / "row.json", {"complete": True})
    laboratory.write_json(every.folder(variants[2], 0) / "row.json", {"complete": False})
    done = laboratory.Laboratory(laboratory.Settings(tmp_path, seeds, trained_only=True))
    assert list(done.runs(variants)) == [(variants[1], 1)]


def test_held_out_scenes_are_never_drawn(load: Load) -> None:
    scenes, more = (load("laboratory").Scenes(count, {}) for count in (20, 50))
    draw, held_out = scenes.split(0)
    drawn = set(draw(500, 0))
    assert drawn == set(range(20)) and not drawn & set(held_out)
    # The probe's scenes are the same for every size of the data.
    assert [scenes.seed(row) for row in held_out] == [more.seed(row) for row in more.split(0)[1]]


@pytest.mark.parametrize(("other", "holds"), [(0.3, "yes"), (0.79, "no"), (0.9, "no")])
def test_zero_convolutions_have_to_be_clearly_better(load: Load, other: float, holds: str) -> None:
    rows = [fidelity(start="zero", score=0.8), *(fidelity(start=s, score=other) for s in ("gaussian", "lite"))]
    verdicts = load("architecture").judge(rows)
    assert [v.holds for v in verdicts] == [holds, holds]


@pytest.mark.parametrize(("width", "holds"), [(20, "yes"), (400, "no")])
def test_a_jump_is_sudden_and_an_even_rise_is_not(load: Load, width: int, holds: str) -> None:
    sudden = load("sudden")
    probes = [{"step": s, "control": min(max((s - 200 + width / 2) / width, 0.0), 1.0)} for s in range(20, 401, 20)]
    rows = [{"lr": lr, "seed": 0, "probes": probes} for lr in sudden.RATES]
    assert [v.holds for v in sudden.judge(rows)] == [holds]
    assert abs(sudden.jump(rows[0]) - 200) <= 20


def test_a_row_is_made_once(load: Load, tmp_path: Path) -> None:
    laboratory = load("laboratory")
    found = laboratory.Laboratory(laboratory.Settings(tmp_path))
    calls: list[int] = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"seed": len(calls)}

    assert found.once("a row", make) == found.once("a row", make) == {"seed": 1}
    assert found.once("another", make) == {"seed": 2}


@pytest.mark.slow
def test_a_step_of_sd15_costs_what_was_counted_by_hand(load: Load) -> None:
    cost = load("cost")
    base, control = (cost.count(cost.SD15, way, 64, 1) for way in cost.WAYS)
    # 803 GFLOP for the UNet; the backward pass is twice the forward pass.
    assert base["operations"] == pytest.approx(3 * 803e9, rel=0.01)
    # Forward 803 + 283; backward twice 283, and once the decoder, whose weights are locked.
    assert 803 + 3 * 283 < control["operations"] / 1e9 < 2 * 803 + 3 * 283
    assert control["trained"] == 361_279_120


def test_the_page_has_a_row_and_a_figure_for_each_experiment_that_ran(load: Load, tmp_path: Path) -> None:
    experiments = load("run").experiments(["empty_prompts", "data_size"])
    rows = [fidelity(empty=share, score=0.8, none=0.4 + share / 2) for share in (0.0, 0.5, 0.9)]
    report = {"rows": rows, "settings": {"seeds": [0], "steps": 10, "batch": 4, "scored": 1}, "machine": {}}
    (tmp_path / "empty_prompts.json").write_text(json.dumps(report))
    load("page").write_page(tmp_path / "page.md", experiments, tmp_path, tmp_path)
    text = (tmp_path / "page.md").read_text()
    assert "| **yes** | `benchmarks/paper/empty_prompts.py` |" in text
    figures, waiting = text.split("## Not run yet")
    assert "laboratory_empty_prompts.png" in figures and "data_size" not in figures
    assert "data_size.py" in waiting and "empty_prompts" not in waiting
