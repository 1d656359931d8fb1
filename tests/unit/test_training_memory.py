"""The memory of a training, estimated before it starts, beside what one holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.runtime.tensor_memory import TensorMemory
from comfyui_controlnet_core.controlnet_core.training import memory
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import TrainingOptions, prepare_training
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from comfyui_controlnet_core.controlnet_core.training.memory import TrainingMemory, estimate_training, optimizer_bytes
from few import rows_of
from tiny_training import SIZE, make_training_folder, tiny, train

RECIPE = Recipe(steps=2, batch=4, lr=1e-3)
ERROR = 0.05
"""Largest error of the estimated peak against the memory of a process, as a fraction, at both sizes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("memory"))


def estimate(folder: Path, recipe: Recipe = RECIPE, options: TrainingOptions | None = None) -> TrainingMemory:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    return estimate_training(base, open_examples(folder / "indexed", SIZE), recipe, options)


def held(folder: Path, recipe: Recipe, options: TrainingOptions) -> int:
    """The most that the batches of a real step hold."""
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    training = prepare_training(base, open_examples(folder / "indexed", SIZE), recipe, options)
    generator = torch.Generator().manual_seed(0)
    training.loop.loss(generator).backward()  # encodes what it reads
    for parameter in training.loop.parameters().values():
        parameter.grad = None
    training.loop.drawn = 0
    with TensorMemory() as found:
        for _ in range(recipe.accumulate):
            training.loop._loss().backward()
    return found.peak


@pytest.mark.parametrize(
    ("numbers", "chosen"),
    rows_of(
        [
            ({}, {}),
            ({"bf16": True, "accumulate": 2}, {"gradient_checkpointing": True}),
            ({}, {"rank": 2, "sd_locked": False}),
        ],
        0,
        1,
    ),
    ids=["plain", "bf16, twice, checkpointing", "low rank, unlocked"],
)
def test_a_step_holds_what_was_estimated(folder: Path, numbers: dict[str, Any], chosen: dict[str, Any]) -> None:
    recipe, options = replace(RECIPE, **numbers), TrainingOptions(**chosen)
    found = estimate(folder, recipe, options)
    assert found.is_known
    assert found.step == pytest.approx(held(folder, recipe, options), rel=0.05)


def test_the_weights_and_moments_are_counted(folder: Path) -> None:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    training = prepare_training(base, open_examples(folder / "indexed", SIZE), RECIPE)
    training.loop.run()
    found, tensors = estimate(folder), training.loop.parameters().values()
    assert found.net == sum(p.nbytes for p in tensors) == found.average
    states = (entry for state in training.loop.optimizer.state.values() for entry in state.values())
    assert found.optimizer == sum(entry.nbytes for entry in states if entry.ndim)
    parts = (base.unet, base.vae, base.text_model)
    assert found.base == sum(p.nbytes for part in parts if part is not None for p in part.parameters())
    assert found.peak > found.base + found.net + found.optimizer + found.average + found.step
    assert 0 < found.heap < found.step / 3
    assert optimizer_bytes("adamw8bit", [4096, 1000]) == 2 * (4096 + 4 * 16) + 8 * 1000


@pytest.mark.slow
def test_options_take_less_as_they_say(folder: Path) -> None:
    plain = estimate(folder)
    assert estimate(folder, options=TrainingOptions(gradient_checkpointing=True)).step < 0.8 * plain.step
    assert estimate(folder, replace(RECIPE, bf16=True)).step < plain.step
    assert estimate(folder, replace(RECIPE, batch=1)).step < 0.5 * plain.step
    assert estimate(folder, replace(RECIPE, optimizer="adamw8bit")).optimizer < 0.5 * plain.optimizer
    assert estimate(folder, replace(RECIPE, ema=0.0)).average == 0
    assert estimate(folder, options=TrainingOptions(rank=2)).net < plain.net


def test_only_what_cannot_fit_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    assert train(folder, tmp_path / "net.safetensors", "--steps", "1") == 0
    said = capsys.readouterr().out
    assert said.count("memory: ") == 1 and "1 MB free; more than is free now: stop other programs" in said
    monkeypatch.setattr(memory, "total_bytes", lambda device: 2 * 10**6)
    more = ("--gradient-checkpointing", "--ema", "off", "--batch", "4", "--accumulate", "2")
    assert train(folder, tmp_path / "other.safetensors", "--steps", "1", *more) == 4
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert re.search(r"needs about \d+ MB, and the device has 2 MB: use --batch 1 with --accumulate 8, --bf16", error)
    assert "--gradient-checkpointing" not in error and "--ema" not in error
    assert not (tmp_path / "other_training" / "training.state").exists()


# -------------------------------------------------------------------------------------- beside a process


def wide_base(folder: Path) -> Path:
    """A base of some hundred megabytes, so that the libraries of a process do not hide it."""
    config = tiny()
    config = replace(config, unet=replace(config.unet, widths=(192, 384), transformer_depth=(1, 1), num_heads=4))
    torch.manual_seed(0)
    vocab = VocabMap.from_words(ClipTokenizer.load(), ["a ball"])
    config = replace(config, text=replace(config.text, vocab_size=vocab.rows))
    parts = UNet(config.unet), AutoencoderKL(config.vae), ClipTextModel(config.text)
    path = folder / "wide.safetensors"
    save_checkpoint(path, config, *parts, extras={"vocab_map": vocab.to_tensor()}, layout="core")
    return path


def run_measured(folder: Path, output: Path, *more: str) -> tuple[float, float]:
    """(peak that the command estimates, peak that its process had) in MB."""
    command = [
        sys.executable, "-m", "comfyui_controlnet_core", "train", "--data", str(folder / "indexed"),
        "--output", str(output), "--steps", "3", "--lr", "1e-3", "--device", "cpu", "--sample-every", "0", *more,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    found = re.search(r"memory: ([\d,]+) MB", said)
    assert found is not None
    return float(found[1].replace(",", "")), usage.ru_maxrss * 1024 / 1e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_the_peak_of_a_process_is_near_the_estimate(folder: Path, tmp_path: Path) -> None:
    """Two sizes of pictures, beside a training that is nearly empty: the libraries are no part of the estimate."""
    small = ("--base", str(folder / "base.safetensors"), "--size", "64", "--batch", "1")
    estimated, measured = run_measured(folder, tmp_path / "small.safetensors", *small)
    libraries, base = measured - estimated, str(wide_base(tmp_path))
    for size in ("128", "256"):
        more = ("--base", base, "--size", size, "--batch", "4")
        estimated, measured = run_measured(folder, tmp_path / f"{size}.safetensors", *more)
        print(f"{size} pixels: estimated {estimated:.0f} MB, measured {measured - libraries:.0f} MB")
        assert estimated == pytest.approx(measured - libraries, rel=ERROR)
