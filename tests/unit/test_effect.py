"""Control that does nothing is reported: every reason, and no false alarm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.control.curve import read_curve
from comfyui_controlnet_core.controlnet_core.control.effect import idle_note, idle_notes
from comfyui_controlnet_core.controlnet_core.control.keyframes import UnitKeyframe
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.control.weights import BlockWeights
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.workflows import cli
from torch import Tensor

UNET = replace(DEMO.unet, widths=(32, 32, 64), num_heads=2, context_dim=16)
SCHEDULE = scaled_linear()
SIGMAS = tuple(float(SCHEDULE.sigmas[t]) for t in (999, 750, 500, 250))
BLOCKS = 7


def net(*, trained: bool = True) -> ControlNet:
    torch.manual_seed(1)
    made = ControlNet(replace(DEMO, unet=UNET).controlnet)
    if trained:
        torch.nn.init.constant_(made.zero_conv_middle.conv.bias, 0.1)
    return made


NO_WEIGHTS = BlockWeights((0.0,), 0.0)


def hint(value: float | None = None) -> Tensor:
    return torch.rand(1, 3, 16, 16) if value is None else torch.full((1, 3, 16, 16), value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"strength": 0.0}, "its strength is 0"),
        ({"start": 0.95, "end": 0.99}, "no step is between its start 0.95 and its end 0.99"),
        ({"start": 0.2, "end": 0.6}, ""),
        ({"mask": torch.zeros(1, 8, 8)}, "its mask has no white pixel"),
        ({"mask": torch.eye(8)[None]}, ""),
        ({"items": (0.0, 0.0)}, "its factors for all pictures are 0"),
        ({"items": (0.0, 1.0)}, ""),
        ({"positive": 0.0, "negative": 0.0}, "its factors for both prompts are 0"),
        ({"positive": 0.0}, ""),
        ({"block_weights": (0.0,) * BLOCKS}, "all its block weights are 0"),
        ({"mode": "mid-only", "block_weights": (*(1.0,) * (BLOCKS - 1), 0.0)}, "0 where the mode mid-only acts"),
        ({"curve": read_curve("0:0, 1:0")}, "its strength schedule is 0 at every step"),
        ({"keyframes": (UnitKeyframe(0.0, torch.zeros(1, 8, 8)),)}, "its mask has no white pixel"),
        ({"keyframes": (UnitKeyframe(0.5, torch.zeros(1, 8, 8)),)}, ""),
        ({"keyframes": (UnitKeyframe(0.0, None, NO_WEIGHTS),)}, "those of its keyframes give 0 at every step"),
        ({"keyframes": (UnitKeyframe(0.5, None, NO_WEIGHTS),)}, ""),
        ({"net": net(trained=False)}, "all its zero convolutions are 0"),
        ({"hint": hint(0.0)}, "is all black"),
        ({"hint": hint(1.0)}, "is all white"),
        ({"hint": hint(0.5)}, ""),
    ],
)
def test_every_reason_is_named(changes: dict[str, Any], said: str) -> None:
    unit = ControlUnit(**{"net": net(), "hint": hint(), "name": "edges", **changes})
    note = idle_note(unit, SIGMAS, SCHEDULE, UNET)
    assert (said in note and "edges" in note) if said else note == ""


def test_a_unit_of_both_prompts_is_named_once() -> None:
    unit = ControlUnit(net(), hint(), strength=0.0, name="edges")
    assert idle_notes([unit, unit], SIGMAS, SCHEDULE, UNET) == ["edges had no effect: its strength is 0"]


def workflow(**apply: Any) -> dict[str, Any]:
    numbers = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **apply}
    return {
        "1": {"class_type": "CNCore_LoadCheckpoint", "inputs": {"checkpoint": "demo (built in)"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red ball"}},
        "3": {"class_type": "CNCore_LoadControlNet", "inputs": {"control_net": "demo canny (built in)"}},
        "4": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "5": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {
                **numbers, "positive": ["2", 0], "negative": ["2", 0], "control_net": ["3", 0], "image": ["4", 0],
            },
        },
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "7": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["5", 0], "negative": ["5", 1], "latent_image": ["6", 0], "seed": 1,
                "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("apply", "said"),
    [
        ({"strength": 0.0}, "node 5 (ControlNetApplyAdvanced) had no effect: its strength is 0"),
        ({"strength": 0.0, "own": True}, "node 5 (CNCore_ApplyControlNet) had no effect: its strength is 0"),
        ({"start_percent": 0.9, "end_percent": 0.1}, "had no effect: its window ends before it starts"),
        ({"start_percent": 0.9, "end_percent": 0.95}, "had no effect: no step is between its start 0.9"),
        ({}, ""),
    ],
)
def test_a_run_ends_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], apply: dict[str, Any], said: str
) -> None:
    graph = workflow(**apply)
    if graph["5"]["inputs"].pop("own", False):
        graph["5"]["class_type"] = "CNCore_ApplyControlNet"
        graph["5"]["inputs"]["mode"] = "balanced"
    (tmp_path / "w.json").write_text(json.dumps(graph))
    words = ["--output", str(tmp_path), "--device", "cpu", "--report", str(tmp_path / "r.json")]
    assert cli.main(["run", str(tmp_path / "w.json"), *words]) == 0
    err = capsys.readouterr().err
    assert said in err if said else "no effect" not in err
    (report,) = json.loads((tmp_path / "r.json").read_text())
    assert any("no step" in note for note in report["notes"]) == (apply.get("end_percent") == 0.95)
