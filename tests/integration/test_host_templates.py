"""The editor's own ControlNet templates, as they come, without the editor.

They are not part of this package: the tests need the package comfyui-workflow-templates, or its folder in
COMFYUI_TEMPLATES. The files that the templates name are made here, with random weights of the demo's shape.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import ldm
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet, save_vae
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.workflows import cli
from PIL import Image

CUT = ("EmptyLatentImage.width=64", "EmptyLatentImage.height=64", "KSampler.steps=2")


def templates_folder() -> Path | None:
    """Where the templates are, if they are."""
    if "COMFYUI_TEMPLATES" in os.environ:
        return Path(os.environ["COMFYUI_TEMPLATES"])
    found = importlib.util.find_spec("comfyui_workflow_templates")
    return Path(found.origin).parent / "templates" if found and found.origin else None


FOLDER = templates_folder()
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs comfyui-workflow-templates or COMFYUI_TEMPLATES")


def named_files(name: str) -> Iterator[tuple[str, str]]:
    """(class, file) of the nodes that load a file."""
    assert FOLDER is not None
    loaders = ("CheckpointLoaderSimple", "VAELoader", "ControlNetLoader", "LoadImage", "LoraLoader")
    for node in json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["nodes"]:
        if node["type"] in loaders:
            yield node["type"], node["widgets_values"][0]


def make_files(name: str, models: Path, pictures: Path) -> None:
    """All files that a template names."""
    torch.manual_seed(0)
    unet, vae, text = UNet(DEMO.unet), AutoencoderKL(DEMO.vae), ClipTextModel(DEMO.text)
    vocab = {"vocab_map": VocabMap.from_words(ClipTokenizer.load(), ["a red ball"]).to_tensor()}
    net = ControlNet.from_unet(unet)
    pictures.mkdir()
    for kind, file in named_files(name):
        if kind == "CheckpointLoaderSimple":
            target = new(models / "checkpoints" / file)
            save_checkpoint(target, DEMO, unet, vae, text, extras=vocab)
        elif kind == "VAELoader":
            save_vae(new(models / "vae" / file), vae)
        elif kind == "ControlNetLoader":
            save_controlnet(new(models / "controlnet" / file), net, family="demo")
        elif kind == "LoraLoader":
            write_safetensors(new(models / "loras" / file), lora_tensors(unet, text, file))
        else:
            ramp = np.linspace(0, 255, 96 * 64 * 3).reshape(96, 64, 3).astype(np.uint8)
            Image.fromarray(ramp).save(new(pictures / file))


def lora_tensors(unet: UNet, text: ClipTextModel, seed: str) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 on all attention, in kohya's names."""
    generator = torch.Generator().manual_seed(sum(seed.encode()))
    tensors: dict[str, torch.Tensor] = {}
    parts = (
        ("lora_unet_", KeyMap(ldm.unet_rules(unet.config)), unet),
        ("lora_te_", KeyMap(ldm.clip_rules()), text),
    )
    for prefix, keymap, module in parts:
        for key, weight in module.state_dict().items():
            if "attn" in key and key.endswith(".weight"):
                stem = prefix + str(keymap.to_theirs(key)).removesuffix(".weight").replace(".", "_")
                out, inner = weight.shape
                tensors[f"{stem}.lora_up.weight"] = 0.5 * torch.randn(out, 2, generator=generator)
                tensors[f"{stem}.lora_down.weight"] = 0.5 * torch.randn(2, inner, generator=generator)
    return tensors


def new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("name", ["controlnet_example", "mixing_controlnets", "lora", "lora_multiple"])
def test_template_runs_with_steps_and_size_cut_by_set(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(name, tmp_path / "models", tmp_path / "input")
    folders = [part for key in ("models", "input", "output") for part in (f"--{key}", str(tmp_path / key))]
    settings = [part for setting in CUT for part in ("--set", setting)]
    file = str(FOLDER / f"{name}.json") if FOLDER else ""
    assert cli.main(["run", file, *folders, *settings, "--device", "cpu", "--json"]) == 0
    (path,) = result(capsys)["images"]
    with Image.open(path) as picture:
        assert picture.size == (64, 64)


@pytest.mark.parametrize("name", ["controlnet_example", "mixing_controlnets", "lora_multiple"])
def test_template_without_its_files_names_them_and_where_they_go(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(FOLDER / f"{name}.json") if FOLDER else ""
    assert cli.main(["validate", file, "--models", str(tmp_path), "--json"]) == 3
    said = " ".join(problem["message"] for problem in result(capsys)["problems"])
    for _, named in named_files(name):
        assert named in said
    assert ("models/loras" if name == "lora_multiple" else "models/controlnet") in said


def test_the_loras_of_a_template_are_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seed with the strengths of its two LoRAs at 0 gives another picture."""
    make_files("lora_multiple", tmp_path / "models", tmp_path / "input")
    pictures = []
    for strength in ("1.0", "0.0"):
        changed = (*CUT, *(f"{node}.strength_{part}={strength}" for node in (10, 11) for part in ("model", "clip")))
        settings = [part for setting in changed for part in ("--set", setting)]
        folders = [part for key in ("models", "output") for part in (f"--{key}", str(tmp_path / key))]
        file = str(FOLDER / "lora_multiple.json") if FOLDER else ""
        assert cli.main(["run", file, *folders, *settings, "--device", "cpu", "--json"]) == 0
        with Image.open(result(capsys)["images"][0]) as picture:
            pictures.append(np.asarray(picture).copy())
    assert not np.array_equal(*pictures)


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)
