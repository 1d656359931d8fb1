"""What saves memory or time changes no gradient: each beside a plain step that is written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import (
    ControlNetTraining,
    TrainingOptions,
    prepare_training,
)
from comfyui_controlnet_core.controlnet_core.training.disk_cache import DiskCache
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from tiny_training import SIZE, make_training_folder

RECIPE = Recipe(steps=1, batch=4)
SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("gradients"))


def fill(net: ControlNet) -> None:
    """Random weights: in a fresh net only the zero convolutions have a gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def flat(net: ControlNet) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def plain(folder: Path) -> torch.Tensor:
    """The gradient of one batch in float32, without anything of the trainer: Zhang et al. 2023, equation 5."""
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    data, text, vae = open_examples(folder / "indexed", SIZE), base.text_encoder(), base.vae
    assert vae is not None
    net = ControlNet.from_unet(base.unet, base.config.controlnet)
    fill(net)
    draw, _ = data.split(RECIPE.seed)
    rows, generator = draw(RECIPE.batch, 0), torch.Generator().manual_seed(SEED)
    kept = (torch.rand(len(rows), generator=generator) >= 0.5).tolist()
    t = torch.randint(0, 1000, (len(rows),), generator=generator).float()
    with torch.no_grad():
        latents = vae.encode(data.pictures(rows))
        context = text(text.tokenize([c if keep else "" for c, keep in zip(data.captions(rows), kept, strict=True)]))
    noise = torch.randn(latents.shape, generator=generator)
    # z_t = (z + sigma eps) / sqrt(1 + sigma^2)
    sigma = scaled_linear().sigma(t)[:, None, None, None]
    noisy = (latents + sigma * noise) / (1.0 + sigma**2).sqrt()
    residuals = net(noisy, t, context, data.hints(rows))
    predicted = base.unet(noisy, t, context, residuals=residuals)
    assert base.config.parametrization == "eps"
    (noise - predicted).square().mean().backward()
    return flat(net)


def trainer(folder: Path, options: TrainingOptions | None = None, *, buckets: bool = False, **how: Any) -> Any:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    data = open_examples(folder / "indexed", SIZE, bucket_multiple=16 if buckets else None)
    return prepare_training(base, data, RECIPE, options, **how)


def gradient(training: ControlNetTraining) -> torch.Tensor:
    fill(training.net)
    training.net.zero_grad()
    training.loop.drawn = 0
    training.loop.loss(torch.Generator().manual_seed(SEED)).backward()
    return flat(training.net)


def test_no_way_to_save_memory_or_time_changes_the_gradient(folder: Path, plain: torch.Tensor, tmp_path: Path) -> None:
    first = trainer(folder, disk=DiskCache(tmp_path, "base"))
    found = gradient(first)
    # Latents and texts are rounded to half precision: their error is below a thousandth, so is the gradient's.
    assert float((found - plain).norm() / plain.norm()) < 2e-3
    first.flush()
    others = {
        "from memory": first,
        "from the disk": trainer(folder, disk=DiskCache(tmp_path, "base")),
        "encoded at each step": trainer(folder, keep_bytes=0),
        "gradient checkpointing": trainer(folder, TrainingOptions(gradient_checkpointing=True)),
        "buckets": trainer(folder, buckets=True),
        "workers": trainer(folder, workers=2),
    }
    for name, training in others.items():
        assert torch.equal(gradient(training), found), name
        training.close()


@pytest.mark.slow
def test_compiled_networks_have_the_same_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_controlnet_core.controlnet_core.training import compiled

    # Traced and run by torch's own operators: this machine may have no compiler.
    compile_ = torch.compile
    backends: list[str] = []

    def traced(model: Any, backend: str = "inductor") -> Any:
        backends.append(backend)
        return compile_(model, backend="eager")

    monkeypatch.setattr(compiled.torch, "compile", traced)
    training = trainer(folder, compiled=True)
    expected = gradient(trainer(folder))
    torch.testing.assert_close(gradient(training), expected, rtol=1e-4, atol=1e-6)
    assert backends == ["inductor"] * 3, "a trial, the UNet and the net"
    assert training.compiled is not None and training.compiled[0] is not training.unet
