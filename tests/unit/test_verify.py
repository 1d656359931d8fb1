"""`controlnet verify`: what it finds out about sound, damaged and wrong files, and the report that it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core import controlnet_core
from comfyui_controlnet_core.controlnet_core.checkpoints.embeddings import read_embedding
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_unet, load_vae
from comfyui_controlnet_core.controlnet_core.checkpoints.reference import NoReference, compare_with_diffusers
from comfyui_controlnet_core.controlnet_core.checkpoints.save import (
    LayoutName,
    save_checkpoint,
    save_controlnet,
)
from comfyui_controlnet_core.controlnet_core.checkpoints.verify import verify_file
from comfyui_controlnet_core.controlnet_core.config import DEMO, ControlNetConfig, ModelConfig, TextConfig
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.workflows import cli
from comfyui_controlnet_core.workflows.commands import verify
from fuzz.diffusers_folder import save_folder
from PIL import Image
from torch import nn

UNET = replace(DEMO.unet, widths=(32, 64), res_blocks=1, transformer_depth=(1, 0), num_heads=2, context_dim=32)
MODEL = ModelConfig(
    "tiny",
    UNET,
    replace(DEMO.vae, widths=(32, 32), patch=1),
    TextConfig(width=32, layers=1, heads=2, vocab_size=40),
)
ASSETS = Path(controlnet_core.__file__).parent / "assets"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a ControlNet in several layouts, and one with NaN in it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    parts = UNet(UNET), AutoencoderKL(MODEL.vae), ClipTextModel(MODEL.text)
    net = ControlNet(ControlNetConfig(UNET))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    layouts: tuple[LayoutName, ...] = ("core", "ldm", "diffusers")
    for layout in layouts:
        save_checkpoint(folder / f"model-{layout}.safetensors", MODEL, *parts, layout=layout)
        save_controlnet(folder / f"net-{layout}.safetensors", net, layout=layout)
    save_folder(folder / "unet", parts[0])
    nn.init.constant_(net.zero_convs[1].conv.bias, float("nan"))
    save_controlnet(folder / "nan.safetensors", net)
    return folder


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_sound_files_pass_and_agree_with_diffusers(models: Path, layout: str) -> None:
    pytest.importorskip("diffusers")
    for name, networks in (("model", ("UNet", "AutoencoderKL")), ("net", ("ControlNet",))):
        report = verify_file(models / f"{name}-{layout}.safetensors")
        states = {check.name: check.state for check in report.checks}
        assert report.passed, report.lines()
        assert {states[f"diffusers: {network}"] for network in networks} == {"passed"}
        assert {states[f"finite: {network}"] for network in networks} == {"passed"}
    folder = verify_file(models / "unet")
    assert folder.passed and folder.digest == "" and len(verify_file(models / "nan.safetensors").digest) == 64


def test_a_layout_that_diffusers_does_not_read_is_not_compared(models: Path) -> None:
    report = verify_file(models / "net-core.safetensors")
    assert report.passed
    assert [check.state for check in report.checks][-1] == "skipped"


@pytest.mark.parametrize("load", [load_unet, load_vae])
def test_a_network_with_another_weight_differs_from_diffusers(models: Path, load: type) -> None:
    pytest.importorskip("diffusers")
    path = models / "model-ldm.safetensors"
    model = load(path)
    assert "equal within" in compare_with_diffusers(model, path)
    weight = next(weight for weight in model.parameters() if weight.ndim == 4)
    weight.data = weight.data * 1.05
    with pytest.raises(CheckpointError, match="differ from diffusers"):
        compare_with_diffusers(model, path)
    with pytest.raises(NoReference):
        compare_with_diffusers(ClipTextModel(MODEL.text), path)


def test_what_is_wrong_with_a_file_is_a_failed_check(models: Path, tmp_path: Path) -> None:
    failed = {c.name: c.text for c in verify_file(models / "nan.safetensors").checks if c.state == "failed"}
    assert "1 of 5 outputs have NaN or infinity" in failed["finite: ControlNet"]
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((models / "net-ldm.safetensors").read_bytes()[:5000])
    (check,) = verify_file(cut).checks
    assert (check.name, check.state) == ("readable", "failed") and "cut.safetensors" in check.text
    write_safetensors(tmp_path / "other.safetensors", {"layers.0.wq.weight": torch.zeros(2)})
    (check,) = verify_file(tmp_path / "other.safetensors").checks
    assert (check.name, check.state) == ("recognised", "failed")


def test_what_is_no_network_is_checked_for_its_values(tmp_path: Path) -> None:
    lora, word = tmp_path / "lora.safetensors", tmp_path / "word.safetensors"
    write_safetensors(lora, {f"lora_unet_a.lora_{end}.weight": torch.ones(2, 2) for end in ("up", "down")})
    write_safetensors(word, {"emb_params": torch.tensor([[1.0, float("inf")]])})
    assert verify_file(lora).passed
    assert read_embedding(word).vectors["emb_params"].shape == (1, 2)
    assert not verify_file(word).passed


# ----------------------------------------------------------------------------------------- the command


def test_the_command_writes_a_report_and_ends_with_3_on_failure(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(models / name) for name in ("model-ldm.safetensors", "nan.safetensors")]
    out = tmp_path / "out"
    options = ["--output", str(out), "--no-picture", "--device", "cpu"]
    assert cli.main(["verify", files[0], *options]) == 0
    assert cli.main(["verify", *files, *options, "--json"]) == 3
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not facts["ok"] and [file["path"] for file in facts["files"]] == ["model-ldm.safetensors", "nan.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == ["report_00001.md", "report_00002.md"]
    text = (out / "report_00002.md").read_text()
    assert "## nan.safetensors" in text and "| finite: ControlNet | failed |" in text
    assert str(models) not in text, "a report that is published names no private folders"


def test_a_net_is_tried_on_the_checkpoint_that_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "STEPS", 1)
    monkeypatch.setattr(verify, "SIZE", 64)
    options = ["--output", str(tmp_path), "--device", "cpu", "--dtype", "fp32", "--json"]
    assert (
        cli.main(["verify", *(str(ASSETS / f"demo_{name}.safetensors") for name in ("canny", "base")), *options]) == 0
    )
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert [picture["state"] for picture in pictures] == ["passed", "passed"]
    made = {path.name: Image.open(path).convert("RGB") for path in tmp_path.glob("*.png")}
    assert made.keys() == {"demo_base_00001.png", "demo_canny_00001.png"}
    assert all(picture.size == (64, 64) for picture in made.values())
    assert made["demo_base_00001.png"].tobytes() != made["demo_canny_00001.png"].tobytes()


def test_a_net_without_its_checkpoint_gets_no_picture(models: Path, tmp_path: Path) -> None:
    files = [str(ASSETS / "demo_canny.safetensors"), str(models / "model-ldm.safetensors")]
    cli.main(["verify", *files, "--output", str(tmp_path), "--device", "cpu"])
    text = (tmp_path / "report_00001.md").read_text()
    assert "- picture: demo_canny.safetensors: skipped, no checkpoint among the files fits: give one too" in text
