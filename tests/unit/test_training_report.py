"""The report page of a training, its curves, its throughput, and the trackers."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.analysis.training_curves import draw_training, running_mean
from comfyui_controlnet_core.controlnet_core.training.loop import Loop, Recipe, Report
from comfyui_controlnet_core.controlnet_core.training.probe import Probe
from comfyui_controlnet_core.controlnet_core.training.work_folder import WorkFolder
from comfyui_controlnet_core.workflows.training_report import write_report
from PIL import Image
from tiny_training import make_training_folder, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("report"))


def reports(count: int) -> list[Report]:
    return [Report(10 * n, 10 * count, 1.0 / n, 0.5, 1e-3, 2.0 * n, 0.25) for n in range(1, count + 1)]


PROBES = [Probe(step, 1.0 - control, 1.0, control, 9.0) for step, control in ((20, 0.0), (40, 0.3), (60, 0.4))]


def test_a_training_ends_with_a_report(folder: Path, tmp_path: Path) -> None:
    more = ("--steps", "2", "--probe-every", "1", "--sample-every", "1", "--sample-steps", "1", "--min-snr", "5")
    assert train(folder, tmp_path / "net.safetensors", *more) == 0
    work = tmp_path / "net_training"
    page = (work / "report.md").read_text()
    assert page.startswith("# net.safetensors\n\nStep 2 of 2. Control has not appeared yet.")
    for line in ("| lr | 0.001 |", "| min_snr | 5.0 |", "| steps | 2 |"):
        assert line in page
    links = re.findall(r"\]\((.+?)\)", page)
    assert links == ["report_curves.png", "samples/step_000001.png", "samples/step_000002.png"]
    assert all(Image.open(work / link).size[0] > 100 for link in links)
    log = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    report = next(entry for entry in log if entry["kind"] == "report")
    assert report["pictures"] == pytest.approx(2 * report["rate"]) and 0.0 < report["waiting"] < 1.0
    assert f"| pictures per second | {report['pictures']:.2f} |" in page


def test_a_stopped_training_has_a_report_too(folder: Path, tmp_path: Path) -> None:
    assert train(folder, tmp_path / "net.safetensors", "--steps", "4", "--minutes", "0") == 0
    page = (tmp_path / "net_training" / "report.md").read_text()
    assert "Step 1 of 4. There was no probe yet." in page and "No samples were made." in page


def test_the_report_without_matplotlib_or_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    work = WorkFolder(tmp_path)
    old = {"kind": "report", "step": 5, "total": 9, "loss": 0.5, "rate": 2.0, "lr": 0.1}
    (tmp_path / "log.jsonl").write_text(json.dumps(old) + "\n")
    page = write_report(work, "net", {"betas": "a|b"}, 5, 9).read_text()
    assert "No curves: pictures of plans and reports need matplotlib" in page
    assert "| pictures per second | not measured |" in page and "| betas | a&#124;b |" in page


def test_the_curves_show_loss_and_probe() -> None:
    full = draw_training(reports(40), PROBES)
    assert full.shape == (608, 760, 3) and draw_training([], []).shape == full.shape
    # Both panels change with their data, and only they.
    top, bottom = full[:300], full[300:]
    other = draw_training(reports(40), [])
    assert np.array_equal(other[:300], top) and not np.array_equal(other[300:], bottom)
    other = draw_training([Report(10 * n, 400, 1.0, 0.5, 1e-3) for n in range(1, 41)], PROBES)
    assert not np.array_equal(other[:300], top) and np.array_equal(other[300:], bottom)


def test_the_running_mean_is_over_a_twentieth() -> None:
    values = np.random.default_rng(0).random(200)
    found = running_mean(values)
    assert found[100] == pytest.approx(values[95:106].mean()) and found[0] == pytest.approx(values[:6].mean())
    assert running_mean(np.array([3.0])).tolist() == [3.0] and running_mean(np.zeros(0)).tolist() == []


def test_waiting_is_the_time_of_loading() -> None:
    module, found = torch.nn.Linear(2, 2), list[Report]()

    def loss(generator: torch.Generator) -> torch.Tensor:
        with loop.loading():
            time.sleep(0.02)
        time.sleep(0.02)
        return module.weight.sum()

    loop = Loop({"m": module}, loss, Recipe(steps=6, batch=5, accumulate=2))
    loop.run(found.append, every=3)
    assert [report.step for report in found] == [3, 6]
    for report in found:
        assert 0.25 < report.waiting < 0.6 and report.pictures == pytest.approx(10 * report.rate)


# ------------------------------------------------------------------------------------------- trackers


def test_tensorboard_gets_the_curves_and_samples(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = ("--steps", "2", "--probe-every", "2", "--sample-every", "2", "--sample-steps", "1")
    assert train(folder, tmp_path / "net.safetensors", *more, "--tracker", "tensorboard") == 0
    events = EventAccumulator(str(tmp_path / "net_training" / "net")).Reload()
    log = [json.loads(line) for line in (tmp_path / "net_training" / "log.jsonl").read_text().splitlines()]
    for kind, names in (("report", ("loss", "lr", "pictures", "waiting")), ("probe", ("control", "right", "wrong"))):
        entry = next(entry for entry in log if entry["kind"] == kind)
        for name in names:
            (point,) = events.Scalars(name)
            assert point.step == 2 and point.value == pytest.approx(entry[name], rel=1e-5)
    (picture,) = events.Images("samples")
    assert (picture.width, picture.height) == Image.open(tmp_path / "net_training/samples/step_000002.png").size


@pytest.mark.parametrize("absent", ["accelerate", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_line(
    absent: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if absent == "accelerate":
        monkeypatch.setitem(sys.modules, "accelerate", None)
    else:
        tracking = pytest.importorskip("accelerate.tracking")
        if any(str(found) == "wandb" for found in tracking.get_available_trackers()):
            pytest.skip("wandb is installed")
    assert train(folder, tmp_path / "net.safetensors", "--steps", "1", "--tracker", "wandb") == 3
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert said.endswith(
        {
            "accelerate": "the tracker wandb needs accelerate: pip install accelerate wandb",
            "wandb": "the tracker wandb is not installed: pip install wandb",
        }[absent]
    )
    assert not (tmp_path / "net_training").exists()
