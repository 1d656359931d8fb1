"""Half precision with a loss scale, the 8-bit optimiser, and other weights and noises than the paper's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.config import NoiseConfig
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_schedule, scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import MissingPackageError, NonFiniteError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import (
    ControlNetTraining,
    TrainingOptions,
    prepare_training,
)
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.loop import Loop, Recipe
from comfyui_controlnet_core.controlnet_core.training.optimizers import check_fp16
from comfyui_controlnet_core.controlnet_core.training.processes import Processes
from comfyui_controlnet_core.controlnet_core.training.step import min_snr_weights, noise_losses, offset_noise
from tiny_training import SIZE, make_training_folder, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("precision"))


def opened(
    folder: Path,
    options: TrainingOptions | None = None,
    state: Path | None = None,
    processes: Processes | None = None,
    **recipe: Any,
) -> ControlNetTraining:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    numbers = Recipe(**{"steps": 3, "batch": 2, "lr": 1e-3, **recipe})
    return prepare_training(
        base,
        open_examples(folder / "indexed", SIZE),
        numbers,
        options,
        state_file=state,
        processes=processes or Processes(),
    )


def bits(loop: Loop) -> torch.Tensor:
    both = {**loop.parameters(), **{f"average.{name}": value for name, value in loop.average.items()}}
    return torch.cat([p.detach().flatten() for p in both.values()])


def stopped_and_continued(folder: Path, state: Path, **recipe: Any) -> tuple[Loop, Loop]:
    whole = opened(folder, **recipe).loop
    assert whole.run()
    opened(folder, state=state, **recipe).loop.run(until=0.0)
    again = opened(folder, state=state, **recipe).loop
    assert again.resume() and again.step == 1 and again.run()
    return whole, again


# ------------------------------------------------------------------------------------- half precision


def test_a_gradient_that_overflows_skips_its_step_and_halves_the_scale() -> None:
    """The gradient 1e35 times 65536 is infinite in float32; it becomes finite when the scale is 2048."""
    module = torch.nn.Linear(2, 2, bias=False)
    before, moved = module.weight.detach().clone(), []
    loop = Loop({"m": module}, lambda g: (module.weight * 1e35).sum(), Recipe(steps=7, lr=1e-2, fp16=True))
    assert loop.scaler.get_scale() == 65536.0
    loop.run(every=1, on_step=lambda step: moved.append(not torch.equal(module.weight, before)))
    assert moved == [False] * 5 + [True] * 2
    assert loop.scaler.get_scale() == 2048.0
    # Adam counts the steps that were taken, for its correction of the first ones.
    assert int(loop.optimizer.state[module.weight]["step"]) == 2


def test_a_gradient_that_is_never_finite_stops_the_run() -> None:
    module = torch.nn.Linear(2, 2)
    loop = Loop(
        {"m": module}, lambda g: (module.weight - module.weight.detach()).sqrt().sum(), Recipe(steps=60, fp16=True)
    )
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        loop.run(every=1)
    assert loop.step < 40


def test_fp16_follows_full_precision_and_continues_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    whole, again = stopped_and_continued(folder, tmp_path / "s.state", fp16=True)
    assert torch.equal(bits(whole), bits(again))
    assert whole.scaler.state_dict() == again.scaler.state_dict()
    assert whole.scaler.state_dict()["_growth_tracker"] == 3, "three steps without overflow"
    plain = opened(folder).loop
    plain.run()
    assert all(p.dtype == torch.float32 for p in whole.parameters().values())
    fresh = bits(opened(folder).loop)
    moved, other = bits(plain) - fresh, bits(whole) - fresh
    assert not torch.equal(moved, other)
    assert float(torch.cosine_similarity(moved, other, dim=0)) > 0.9


def test_devices_without_half_precision_are_refused() -> None:
    check_fp16(torch.device("cpu"))
    with pytest.raises(ValueRangeError, match=r"meta does not train in fp16 .*: use bf16, or full precision"):
        check_fp16(torch.device("meta"))
    with pytest.raises(ValueRangeError, match="choose one of them"):
        Recipe(steps=1, fp16=True, bf16=True)


# ---------------------------------------------------------------------------------------- the optimiser


def test_the_8_bit_optimiser_continues_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    whole, again = stopped_and_continued(folder, tmp_path / "s.state", optimizer="adamw8bit")
    assert torch.equal(bits(whole), bits(again))
    moments = [state["state1"] for state in whole.optimizer.state.values()]
    assert {moment.dtype for moment in moments} == {torch.uint8, torch.float32}
    assert all(moment.dtype == torch.uint8 for moment in moments if moment.numel() >= 4096)


def test_the_8_bit_optimiser_without_its_library_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    assert train(folder, tmp_path / "net.safetensors", "--steps", "1", "--optimizer", "adamw8bit") == 3
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert said.endswith("pip install bitsandbytes, or choose adamw")
    with pytest.raises(ValueRangeError, match="choose one of adamw, adamw8bit"):
        opened(folder, optimizer="sgd")
    with pytest.raises(MissingPackageError, match="needs bitsandbytes"):
        opened(folder, optimizer="adamw8bit")


def test_the_optimiser_of_a_training_does_not_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.safetensors"
    assert train(folder, output, "--steps", "1", "--fp16", "--min-snr", "5", "--noise-offset", "0.1") == 0
    more = ("--steps", "2", "--min-snr", "5", "--noise-offset", "0.1")
    assert train(folder, output, *more) == 0, "the precision may change"
    assert "fp16 was True, is False" in capsys.readouterr().out
    assert train(folder, output, *more, "--optimizer", "adamw8bit") in (2, 3)
    assert train(folder, output, "--steps", "2", "--noise-offset", "0.1") == 2
    assert "min_snr was 5.0, is 0.0" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- the loss


def test_min_snr_weights_are_those_of_the_paper() -> None:
    """From the betas, without sigma: SNR = alpha_bar / (1 - alpha_bar)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1.0 - betas)
    t = torch.tensor([0.0, 10.0, 300.0, 700.0, 999.0])
    snr = (alpha_bar / (1.0 - alpha_bar))[t.long().numpy()]
    sigma = scaled_linear().sigma(t)
    eps, v = min_snr_weights(sigma, 5.0, "eps"), min_snr_weights(sigma, 5.0, "v")
    np.testing.assert_allclose(eps.numpy(), np.minimum(snr, 5.0) / snr, rtol=1e-4)
    np.testing.assert_allclose(v.numpy(), np.minimum(snr, 5.0) / (snr + 1.0), rtol=1e-4)
    assert float(eps[0]) < 0.01 and float(eps[-1]) == 1.0


def test_the_weights_count_in_the_loss(folder: Path) -> None:
    def loss(**options: Any) -> float:
        training = opened(folder, TrainingOptions(**options), batch=4)
        # This seed draws a timestep of low noise.
        return float(training.loop.loss(torch.Generator().manual_seed(5)).detach())

    plain, weighted, same = loss(), loss(min_snr=5.0), loss(min_snr=1000.0)
    assert 0.0 < weighted < same <= plain
    assert loss(noise_offset=0.1) != plain
    with pytest.raises(ValueRangeError, match=r"noise_offset is 2.0: choose a number from 0 to 1"):
        TrainingOptions(noise_offset=2.0)


def test_offset_noise_moves_whole_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 4, 8, 8, generator=generator)
    change = offset_noise(noise, 0.1, generator) - noise
    assert float(change.flatten(2).std(-1).max()) < 1e-6
    assert float(change[..., 0, 0].std()) == pytest.approx(0.1, rel=0.05)


def test_processes_share_the_offsets_of_a_batch(folder: Path) -> None:
    def gradient(processes: Processes) -> torch.Tensor:
        training = opened(folder, TrainingOptions(noise_offset=0.5, min_snr=5.0), processes=processes, batch=4)
        training.loop.loss(torch.Generator().manual_seed(5)).backward()
        found = (p.grad for p in training.loop.parameters().values())
        return torch.cat([grad.flatten() for grad in found if grad is not None])

    halves = torch.stack([gradient(Processes(2, index)) for index in (0, 1)])
    torch.testing.assert_close(halves.mean(0), gradient(Processes()), rtol=1e-4, atol=1e-6)


def test_at_zero_terminal_snr_a_v_model_learns_the_picture_from_pure_noise() -> None:
    """Lin et al. 2023, section 3.2: at the last timestep v is minus the latent, and there is a loss for it."""
    schedule = make_schedule(NoiseConfig(zero_terminal_snr=True))
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t = torch.tensor([999.0, 999.0])
    losses = noise_losses(lambda x, s: -latents, latents, t, noise, schedule, "v")
    assert float(losses.max()) < 1e-5
    assert float(noise_losses(lambda x, s: noise, latents, t, noise, schedule, "v").min()) > 0.5
