"""The GPU's benchmark from its parts to its table: on a pretended card, whose times mean nothing."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.speed import fused_qkv
from pretended_card import Card

diffusers = pytest.importorskip("diffusers")
FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}
READ = {
    "ceiling": (), "batch": ("batch 8",), "sdxl": ("SDXL",), "first": ("seconds to the first picture",),
    "peers": ("20 steps, one net", "time of three nets", "three nets: peak memory", "preparing a run"),
}  # fmt: skip
"""How the claims begin that a part has the figures for."""
NAMES = ("gpu", "gpu_goals", "measure", "peers", "step")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with a shape that is quick, and without what only a real card compiles for."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    gpu = importlib.import_module("gpu")
    monkeypatch.setitem(gpu.SHAPES, "tiny", TINY)
    quick = ("default", "graphs, wide, side by side")
    monkeypatch.setattr(gpu, "OURS", {name: gpu.OURS[name] for name in quick})
    assert diffusers.UNet2DConditionModel and diffusers.ControlNetModel  # imported while torch.cuda is its own
    yield gpu
    for name in NAMES:
        sys.modules.pop(name, None)
        if before[name] is not None:
            sys.modules[name] = before[name]


@pytest.mark.parametrize("part", ["ceiling", "peers", "batch", "sdxl", "first"])
@pytest.mark.slow
def test_each_part_runs_and_gives_what_its_claims_read(
    benchmark: ModuleType, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_qkv, "_kernels", lambda device: None)
    goals = importlib.import_module("gpu_goals")
    setup = benchmark.Setup(Card.device, "fp32", "tiny", 64, 2, 1, 1, sides=(32,), compiled=False)
    with Card().install(monkeypatch) as card, torch.inference_mode():
        rows = list(benchmark.PARTS[part](setup))
    assert not card.races
    assert json.loads(json.dumps(rows)) == rows
    if part in ("batch", "sdxl", "first"):
        assert [row["engine"] for row in rows] == [f"ours, {name}" for name in benchmark.OURS]
    if part == "peers":
        assert {row["nets"] for row in rows} == {0, 1, 3}
        errors = [row["error"] for row in rows]
        assert max(errors) < 1e-4
        assert goals.of_memory("diffusers")({part: rows}) > 0
        assert {row["engine"] for row in rows if row["peak_bytes"] is None} == {"ours, graphs, wide, side by side"}
    parts = {"ceiling": [{"tflops": 1.0}], part: rows}
    read = [claim.words for claim in goals.CLAIMS if claim.value(parts) is not None]
    for begin in READ[part]:
        assert any(words.startswith(begin) for words in read), begin


def test_without_a_card_the_table_says_what_is_not_measured(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goals = importlib.import_module("gpu_goals")
    assert benchmark.main(["--table"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| not measured | |") == len(goals.CLAIMS) and "no GPU was measured yet" in printed
    row = {"nets": 1, "steps": 20, "prepare": 0.01, "other_seed": 0.001, "peak_bytes": 10}
    peers = [
        {**row, "engine": "ours, default", "seconds": 0.4}, {**row, "engine": "ours, graphs", "seconds": 0.2},
        {**row, "engine": "ComfyUI", "seconds": 0.6}, {**row, "engine": "diffusers", "seconds": 0.5},
    ]  # fmt: skip
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"machine": {"card": "C"}, "dtype": "bf16", "parts": {"peers": peers}}))
    assert benchmark.main(["--table", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "card C, bf16" in printed
    assert "times as fast as ComfyUI | at least 2.5 | 3.00 | yes |" in printed
    assert "times as fast as diffusers | at least 3 | 2.50 | no |" in printed
    assert "times as fast as diffusers compiled | at least 1.2 | not measured | |" in printed
