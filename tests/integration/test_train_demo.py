"""`controlnet train-demo`, from stage to stage, as somebody who makes the demo model again would run it."""

from __future__ import annotations

import shutil
from pathlib import Path

import comfyui_controlnet_core
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.workflows import cli

ASSETS = Path(comfyui_controlnet_core.__file__).parent / "controlnet_core" / "assets"


def test_second_passes_go_on_from_the_first_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The first passes take hours: the shipped files stand in for them.
    shutil.copy(ASSETS / "demo_vae.safetensors", tmp_path)
    shutil.copy(ASSETS / "demo_base.safetensors", tmp_path / "base_rough.safetensors")
    shutil.copy(ASSETS / "demo_canny.safetensors", tmp_path / "canny_rough.safetensors")
    assert cli.main(["train-demo", "base", "canny", "--work", str(tmp_path), "--scenes", "8", "--steps", "2"]) == 0
    first = load_checkpoint(tmp_path / "base_rough.safetensors").unet.state_dict()
    second = load_checkpoint(tmp_path / "demo_base.safetensors").unet.state_dict()
    moved = sum(not torch.equal(first[name], second[name]) for name in first)
    assert moved > len(first) // 2
    net, identity = load_controlnet(tmp_path / "demo_canny.safetensors")
    assert identity.kind == "controlnet" and net.config.unet.widths == (64, 96, 128)
    recipe = read_header(tmp_path / "demo_canny.safetensors").metadata["controlnet_core.recipe"]
    assert recipe.startswith("train-demo canny --start fresh: Recipe(steps=3000") and "steps=2," in recipe
    assert "demo_canny.safetensors" in capsys.readouterr().out


def test_a_net_without_its_base_names_the_stage_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["train-demo", "canny", "--work", str(tmp_path), "--scenes", "2", "--steps", "1"])
    assert code == 3
    assert "controlnet train-demo base" in capsys.readouterr().err
