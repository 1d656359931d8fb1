"""What the training benchmark counts and prints. Nothing is timed."""

from __future__ import annotations

import importlib
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("measure", "training_engines", "training_throughput")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)
        if before[name] is not None:
            sys.modules[name] = before[name]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory as Linux gives it")
def test_the_meter_counts_the_steps_of_each_size_without_the_first(scripts: dict[str, ModuleType]) -> None:
    engines = scripts["training_engines"]
    meter = engines.Meter([64, 128], warm=1, steps=2)
    sizes = []
    with pytest.raises(engines.Enough):
        while True:
            sizes.append(meter.size_of(meter.count))
            # Fresh pages: the heap of a process that ran other tests may hold this much already.
            with mmap.mmap(-1, 30_000_000 if meter.size_of(meter.count) == 128 else 1) as held:
                held[:: mmap.PAGESIZE] = bytes(-(-len(held) // mmap.PAGESIZE))
                meter.step()
    assert sizes == [64, 64, 64, 128, 128, 128]
    small, large = meter.rows()
    assert (small["size"], large["size"]) == (64, 128)
    assert len(small["seconds"]) == len(large["seconds"]) == 2
    assert large["peak"] > small["peak"] + 20_000_000


def test_the_examples_that_were_read_say_which_size_is_due(scripts: dict[str, ModuleType]) -> None:
    """diffusers' loader reads a batch before the step that uses it."""
    engines = scripts["training_engines"]
    meter = engines.Meter([64, 128], warm=1, steps=1)
    data = engines.SizedDataset({64: "abcd", 128: "ABCD"}, meter, batch=2)
    assert "".join(data[row % 4] for row in range(8)) == "abcdABCD"


def test_the_table_sets_steps_per_second_and_memory_side_by_side(scripts: dict[str, ModuleType]) -> None:
    throughput = scripts["training_throughput"]
    shared: dict[str, Any] = {"shape": "sd15", "mode": "cached", "size": 64, "spread": 0.1}
    rows = [
        {"engine": "ours", "seconds": 2.0, "peak_bytes": 8e9, **shared},
        {"engine": "diffusers", "seconds": 3.0, "peak_bytes": 1e10, **shared},
    ]
    assert throughput.table(rows).splitlines()[-1] == (
        "| sd15 | 64 | on | 2.00 (0.10) | 3.00 (0.10) | **1.50** times | 8.00 / 10.00 | **0.80** |"
    )
