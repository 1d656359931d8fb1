"""The report of a run: its figures, its words, its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import colours_of, viridis
from comfyui_controlnet_core.controlnet_core.analysis.charts import draw_report
from comfyui_controlnet_core.controlnet_core.control.report import Recorder, describe, summary
from comfyui_controlnet_core.controlnet_core.errors import CoreError, ValueRangeError
from comfyui_controlnet_core.workflows.reporting import Reporter
from comfyui_controlnet_core.workflows.run_reports import report_ending, tell_reports
from PIL import Image


def recorded(observe: bool = True) -> Recorder:
    """Two steps of two evaluations; the net adds 3 to block 0 and, in the first step, 1 and 7 to the middle."""
    recorder = Recorder("heun / normal, seed 1", observe)
    for evaluation in range(4):
        recorder.evaluation()
        recorder.unit("net", "edges", "strength 1")
        recorder.net_ran("net")
        recorder.cast("latent to the net", torch.float32, torch.float16)
        recorder.cast("text", torch.float32, torch.float32)
        if observe:
            recorder.residual("net", 0, torch.full((1, 2, 4, 4), 3.0))
        if observe and evaluation < 2:
            recorder.residual("net", 1, torch.full((1, 2, 2, 2), (1.0, 7.0)[evaluation]))
        if evaluation % 2 == 0:
            recorder.step((14.0, 1.0)[evaluation // 2])
    return recorder


def test_norms_are_root_mean_squares_over_the_evaluations_of_a_step() -> None:
    report = recorded().report()
    (unit,) = report.units
    assert report.sigmas == (14.0, 1.0) and report.evaluations == 4
    assert unit.norms == ((3.0, 5.0), (3.0, None)) and unit.acted == unit.ran == 4
    assert report.casts == (("latent to the net", "float32", "float16", 4),)


def test_without_observing_it_only_counts() -> None:
    (unit,) = recorded(observe=False).report().units
    assert unit.norms == () and unit.seconds is None and unit.ran == 4


def test_words() -> None:
    text = describe(recorded().report())
    assert "edges ran in 4 of 4" in text and "cast 4 times: latent to the net from float32 to float16" in text
    assert text.splitlines()[-1].split() == ["2", "1.000", "3", "-"]
    assert summary(Recorder().report()).startswith("0 steps, 0 evaluations")


def test_the_picture_is_a_heat_map() -> None:
    assert {viridis(1.0), viridis(3.0 / 5.0)} <= colours_of(draw_report(recorded().report()))


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = recorded().report()
    tell_reports([report, report], tmp_path / "new" / "r.json", Reporter())
    data = json.loads((tmp_path / "new" / "r.json").read_text("utf-8"))
    assert [run["units"][0]["norms"] for run in data] == [[[3.0, 5.0], [3.0, None]]] * 2
    tell_reports([report, report], tmp_path / "r.png", Reporter(quiet=True))
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.height == 2 * draw_report(report).shape[0] and np.asarray(picture).std() > 0
    assert capsys.readouterr().err.count("edges ran in 4 of 4") == 2
    with pytest.raises(ValueRangeError, match=r"\.json"):
        report_ending(Path("r.txt"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CoreError, match="could not be written"):
        tell_reports([report], tmp_path / "file" / "r.json", Reporter())
