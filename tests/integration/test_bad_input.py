"""Broken, foreign and hostile files through the command: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet
from comfyui_controlnet_core.controlnet_core.config import DEMO, ModelConfig
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.workflows import cli
from few import few_of
from file_limit import file_limit
from PIL import Image
from torch import nn

TINY = replace(
    DEMO,
    unet=replace(DEMO.unet, widths=(32, 32, 32), context_dim=32),
    vae=replace(DEMO.vae, widths=(32, 32)),
    text=replace(DEMO.text, width=32, layers=1, heads=2),
    hint_widths=(16, 16, 32, 32),
)
OTHER_BASE = replace(TINY.unet, context_dim=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one sound checkpoint and nets that are sound, foreign, and full of NaN."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet = UNet(TINY.unet)
    save_model(folder / "checkpoints" / "good.safetensors", TINY, unet)
    net = ControlNet.from_unet(unet)
    (folder / "controlnet").mkdir()
    save_controlnet(folder / "controlnet" / "good.safetensors", net, family="demo")
    nn.init.constant_(net.zero_convs[0].conv.weight, float("nan"))
    save_controlnet(folder / "controlnet" / "nan.safetensors", net, family="demo")
    save_controlnet(folder / "controlnet" / "foreign.safetensors", ControlNet.from_unet(UNet(OTHER_BASE)))
    return folder


def save_model(path: Path, config: ModelConfig, unet: UNet) -> None:
    path.parent.mkdir(exist_ok=True)
    vocab = {"vocab_map": VocabMap.from_words(ClipTokenizer.load(), ["a red ball"]).to_tensor()}
    save_checkpoint(path, config, unet, AutoencoderKL(config.vae), ClipTextModel(config.text), extras=vocab)


class Desk:
    """A working folder: writes workflows, runs the command in it, returns (code, line on stderr)."""

    def __init__(self, folder: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.models, self.capsys = folder, models, capsys
        (folder / "input").mkdir()
        self.picture("hint.png", Image.new("RGB", (64, 64), (255, 0, 0)))

    def picture(self, name: str, image: Image.Image) -> None:
        image.save(self.folder / "input" / name)

    def run(self, **changes: Any) -> tuple[int, str]:
        """Run the small workflow with "node.input" values changed."""
        graph = workflow()
        for key, value in changes.items():
            node, name = key.split("__")
            graph[node]["inputs"][name] = value
        (self.folder / "w.json").write_text(json.dumps(graph))
        folders = ["--input", str(self.folder / "input"), "--models", str(self.models), "--output", str(self.out)]
        code = cli.main(["run", str(self.folder / "w.json"), "--quiet", "--device", "cpu", *folders])
        err = self.capsys.readouterr().err.strip()
        assert "\n" not in err
        return code, err

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def saved(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if self.out in path.parents and path.is_file())


def workflow() -> dict[str, Any]:
    """One step from a hint to a picture, in the API form."""
    return {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "good.safetensors"}},
        "net": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "good.safetensors"}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red ball", "clip": ["load", 1]}},
        "hint": {"class_type": "LoadImage", "inputs": {"image": "hint.png"}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "control": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {
                "positive": ["text", 0],
                "negative": ["text", 0],
                "control_net": ["net", 0],
                "image": ["hint", 0],
                "strength": 1.0,
                "start_percent": 0.0,
                "end_percent": 1.0,
            },
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["load", 0],
                "positive": ["control", 0],
                "negative": ["control", 1],
                "latent_image": ["empty", 0],
                "seed": 1,
                "steps": 1,
                "cfg": 2.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "a"}},
    }


@pytest.fixture
def desk(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, models, capsys)


def test_the_workflow_itself_is_sound(desk: Desk) -> None:
    assert desk.run() == (0, "")
    assert [path.name for path in desk.saved()] == ["a_00001_.png"]


# ---- model files ------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, (str(self.target), "w"))


def damaged(good: bytes) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of model files that are none."""
    yield "cut.safetensors", good[: len(good) // 2]
    yield "head.safetensors", good[:100]
    yield "zero.safetensors", b""
    yield "length.safetensors", b"\xff" * 8 + good[8:]
    yield "header.safetensors", good[:8] + b"\0" * 200 + good[208:]
    yield "text.safetensors", b"this is no model\n" * 50
    yield "cut.ckpt", b"PK\x03\x04" + b"\0" * 100
    yield "text.pth", b"this is no model\n" * 50


def test_damaged_model_files(desk: Desk, models: Path) -> None:
    good = (models / "checkpoints" / "good.safetensors").read_bytes()
    for name, content in damaged(good):
        path = models / "checkpoints" / name
        path.write_bytes(content)
        code, line = desk.run(load__ckpt_name=name)
        path.unlink()
        assert code == 3, (name, line)
        assert line.startswith("error: node load (CheckpointLoaderSimple)")
        assert name in line
    assert desk.saved() == []


def test_a_pickle_that_would_run_code_does_not(desk: Desk, models: Path) -> None:
    trap = desk.folder / "trap"
    for name in ("bomb.ckpt", "bomb.pth"):
        path = models / "controlnet" / name
        path.write_bytes(pickle.dumps({"state_dict": Bomb(trap)}))
        code, line = desk.run(net__control_net_name=name)
        path.unlink()
        assert code == 3, line
        assert name in line
    torch.save({"state_dict": Bomb(trap)}, models / "controlnet" / "bomb2.pth")
    code, line = desk.run(net__control_net_name="bomb2.pth")
    (models / "controlnet" / "bomb2.pth").unlink()
    assert code == 3, line
    assert not trap.exists()


def test_a_model_of_another_kind_and_a_net_for_another_base(desk: Desk, models: Path) -> None:
    (models / "checkpoints" / "net.safetensors").write_bytes((models / "controlnet" / "good.safetensors").read_bytes())
    code, line = desk.run(load__ckpt_name="net.safetensors")
    (models / "checkpoints" / "net.safetensors").unlink()
    assert code == 3
    assert "ControlNet" in line
    code, line = desk.run(net__control_net_name="foreign.safetensors")
    assert code == 3
    assert "foreign" in line
    assert "64" in line
    assert "32" in line
    assert desk.saved() == []


def test_nan_weights_are_reported_with_the_nets_name(desk: Desk) -> None:
    code, line = desk.run(net__control_net_name="nan.safetensors")
    assert code == 3
    assert "nan" in line.lower()
    assert "nan.safetensors" in line or "control net nan" in line.lower() or "nan (" in line.lower()
    assert desk.saved() == []


# ---- pictures ---------------------------------------------------------------------------------------------

HINTS = {
    "gray": Image.new("L", (64, 64), 200),
    "rgba": Image.new("RGBA", (64, 64), (255, 0, 0, 128)),
    "palette": Image.new("P", (64, 64), 3),
    "two_values": Image.new("1", (64, 64), 1),
    "sixteen_bit": Image.fromarray(np.full((64, 64), 40_000, np.uint16)),
    "one_pixel": Image.new("RGB", (1, 1), (9, 9, 9)),
    "odd": Image.new("RGB", (63, 71), (9, 9, 9)),
    "wide": Image.new("RGB", (300, 20), (9, 9, 9)),
}


@pytest.mark.parametrize("name", few_of(HINTS, "odd", "sixteen_bit", "palette", "rgba"))
def test_hints_of_all_kinds_and_sizes_are_brought_to_fit(desk: Desk, name: str) -> None:
    desk.picture(f"{name}.png", HINTS[name])
    assert desk.run(hint__image=f"{name}.png") == (0, "")
    with Image.open(desk.saved()[0]) as picture:
        assert picture.size == (64, 64)


def test_pictures_that_are_none(desk: Desk) -> None:
    (desk.folder / "input" / "text.png").write_text("this is no picture")
    good = (desk.folder / "input" / "hint.png").read_bytes()
    (desk.folder / "input" / "cut.png").write_bytes(good[: len(good) // 2])
    for name in ("text.png", "cut.png"):
        code, line = desk.run(hint__image=name)
        assert code in (2, 3), line
        assert name in line


# ---- paths and disks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"hint__image": "../secret.png"},
        {"hint__image": "..\\secret.png"},
        {"hint__image": "sub/../../secret.png"},
        {"hint__image": "/etc/passwd"},
        {"hint__image": "../secret.png [output]"},
        {"load__ckpt_name": "../controlnet/good.safetensors"},
        {"net__control_net_name": "/etc/passwd.safetensors"},
        {"save__filename_prefix": "../escaped"},
        {"save__filename_prefix": "..\\escaped"},
        {"save__filename_prefix": "sub/../../escaped"},
        {"save__filename_prefix": "/tmp/escaped"},
    ],
)
def test_paths_that_leave_their_folder_are_refused(desk: Desk, changes: dict[str, str]) -> None:
    desk.picture("hint.png", HINTS["gray"])
    (desk.folder / "secret.png").write_bytes((desk.folder / "input" / "hint.png").read_bytes())
    code, line = desk.run(**changes)
    assert code == 2, line
    assert "leaves" in line
    assert not list(desk.folder.glob("escaped*"))
    assert desk.saved() == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as POSIX does")
def test_a_full_disk_leaves_no_half_written_picture(desk: Desk) -> None:
    (desk.folder / "w.json").write_text(json.dumps(workflow()))
    with file_limit(3000):  # the picture has more, the workflow less
        code, line = desk.run()
    assert code in (1, 3), line
    assert line.startswith("error: node save (SaveImage)")
    assert desk.saved() == []
    assert desk.run() == (0, "")
