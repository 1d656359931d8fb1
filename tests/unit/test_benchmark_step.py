"""What the step benchmark keeps and says, and the weights that its peers share. Nothing is timed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("load", "measure", "openvino_peer", "peers", "render", "step")
CASE = {"dtype": "fp32", "shape": "sd15", "size": 256, "batch": 1, "error": None, "first": 1.0, "other_seed": 0.001}
OPTIONS = dict.fromkeys(("graphs", "side_by_side", "wide", "compile"), False)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)
        if before[name] is not None:
            sys.modules[name] = before[name]


def row(engine: str, nets: int, seconds: float, run: str = "now") -> dict[str, Any]:
    prepare = 0.1 if engine == "ours" else None
    return {
        **CASE, **OPTIONS, "engine": engine, "nets": nets, "seconds": seconds, "spread": 0.0,
        "peak_bytes": 4e6 * seconds, "prepare": prepare, "run": run, "machine": {},
    }  # fmt: skip


def test_a_further_net_is_counted_by_its_operations(scripts: dict[str, ModuleType]) -> None:
    render = scripts["render"]
    share = render.NET_OF_UNET
    rows = [row("ours", 0, 2.0), row("ours", 3, 2.0 + 3 * 2.0 * share), row("diffusers", 3, 8.0)]
    assert render.further_net(rows, rows[1]) == pytest.approx(1.0)
    assert render.further_net(rows, rows[0]) is None
    assert render.further_net(rows, row("ours", 3, 4.0, run="another process")) is None
    printed = render.table(rows).splitlines()
    assert [cell.strip() for cell in printed[3].split("|")][7:11] == [f"{rows[1]['seconds'] / 8.0:.2f}", "", "", "1.00"]
    text = render.claims(rows).splitlines()[1]
    ratio = rows[1]["seconds"] / 8.0
    assert f"peak memory {ratio:.2f} of that of diffusers" in text and "nothing is prepared again" in text
    assert render.plot(rows).size[0] == render.WIDTH  # over nets; size and batch have one value each


def test_rows_take_the_place_of_those_of_the_same_case(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    keep, file = scripts["step"].keep, tmp_path / "rows.json"
    keep(file, [row("ours", 0, 1.0, "first"), row("ours", 1, 2.0, "first")])
    keep(file, [row("ours", 1, 3.0, "second"), {**row("ours", 1, 4.0, "second"), "graphs": True}])
    found = json.loads(file.read_text())
    assert [(r["nets"], r["seconds"], r["graphs"]) for r in found] == [(0, 1.0, False), (1, 3.0, False), (1, 4.0, True)]


def test_the_load_runs_while_something_is_measured_and_not_after(scripts: dict[str, ModuleType]) -> None:
    with scripts["load"].busy(1) as loops:
        assert loops and all(loop.poll() is None for loop in loops)
    assert all(loop.poll() is not None for loop in loops)


def test_times_under_load_stand_beside_the_quiet_ones(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, loads = scripts["step"], [0]

    @contextmanager
    def pretended_load(per_core: int) -> Iterator[None]:
        loads.append(per_core)
        yield
        loads.pop()

    monkeypatch.setattr(step, "busy", pretended_load)
    monkeypatch.setattr(step, "seconds", lambda call, device: (call(), 2.0 + loads[-1])[1])
    outputs = {"ours": torch.full((1, 4, 2, 2), 1.5), "OpenVINO": torch.ones(1, 4, 2, 2)}
    steps = {name: lambda name=name: outputs[name] for name in outputs}
    ours, _ = step.measure(steps, 3, torch.device("cpu"), torch.full((1, 4, 2, 2), 2.0), [2])
    assert ours["error"] == 0.25 and ours["seconds"] == 2.0
    assert ours["busy"] == [{"per_core": 2, "seconds": 4.0, "spread": 0.0, "ratio": 2.0}]
    shown = {**row("ours", 0, 2.0), **ours}
    assert "2 busy per core: 4.000 s (0.000), 2.00 of the quiet time" in step.line(shown)
    assert "2 busy processes per core: 2.00 of the quiet time" in scripts["render"].claims([shown])


def test_peers_share_weights_that_are_equal(scripts: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(8, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    second[0].load_state_dict(first.state_dict())
    expected = {name: value.clone() for name, value in second.state_dict().items()}
    pool = scripts["peers"].Pool(torch.device("cpu"))
    pool.share(first)
    pool.share(second)
    assert second[0].weight.data_ptr() == first.weight.data_ptr() != second[1].weight.data_ptr()
    assert all(torch.equal(value, expected[name]) for name, value in second.state_dict().items())
    apart = scripts["peers"].Pool(torch.device("cuda"))  # there each peer moves its own
    before = second[1].weight.data_ptr()
    assert apart.share(second)[1].weight.data_ptr() == before
