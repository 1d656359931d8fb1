"""The Fisher information about block strengths: differences against exact derivatives, and against ablation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from colours import colours_of, to_bytes
from comfyui_controlnet_core.controlnet_core.analysis.charts import draw_sensitivity
from comfyui_controlnet_core.controlnet_core.analysis.plots import BAR, SECOND
from comfyui_controlnet_core.controlnet_core.analysis.sensitivity import (
    Sensitivity,
    describe,
    measure,
    sampled_steps,
)
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import Residuals, UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from comfyui_controlnet_core.nodes.example_pictures import VIEWS
from comfyui_controlnet_core.nodes.standalone.host import ASSETS
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 32, 32), num_heads=2, context_dim=32))
BLOCKS = 7


@pytest.fixture(scope="module")
def denoiser() -> Callable[[Tensor, float, Tensor], Tensor]:
    """x, sigma, strengths (7,) -> the prediction of x0 by UNet and ControlNet as they are defined, float64."""
    torch.manual_seed(0)
    unet = UNet(CONFIG.unet)
    net = ControlNet.from_unet(unet, CONFIG.controlnet)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    unet, net = unet.double().eval().requires_grad_(False), net.double().eval().requires_grad_(False)
    context, hint = torch.randn(1, 5, 32, dtype=torch.float64), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    t = torch.tensor([500.0])

    def predict(x: Tensor, sigma: float, strengths: Tensor) -> Tensor:
        scaled = x / (sigma**2 + 1.0) ** 0.5
        skips, middle = net(scaled, t, context, hint)
        weighed = Residuals(tuple(s * r for s, r in zip(strengths, skips, strict=False)), strengths[-1] * middle)
        return x - sigma * unet(scaled, t, context, residuals=weighed)

    return predict


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_differences_agree_with_forward_mode_derivatives(denoiser: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    levels = (0.5, 3.0)
    noisy = [x0 + s * torch.randn(x0.shape, generator=generator, dtype=torch.float64) for s in levels]

    def predict(point: int, factors: tuple[float, ...]) -> Tensor:
        return denoiser(noisy[point], levels[point], torch.tensor(factors, dtype=torch.float64))

    found = measure(predict, x0, BLOCKS, ["low", "high"])
    finer = measure(predict, x0, BLOCKS, ["low", "high"], step=0.02)
    ones = torch.ones(BLOCKS, dtype=torch.float64)
    for point, (x, sigma) in enumerate(zip(noisy, levels, strict=True)):
        error = (denoiser(x, sigma, ones) - x0).square().mean()
        for block in range(BLOCKS):
            direction = torch.eye(BLOCKS, dtype=torch.float64)[block]
            with sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no forward-mode derivative
                _, exact = torch.func.jvp(lambda s, x=x, sigma=sigma: denoiser(x, sigma, s), (ones,), (direction,))
            expected = float(exact.square().sum() / error)
            assert found.by_point[point][block] == pytest.approx(expected, rel=1e-2), (point, block)
            assert finer.by_point[point][block] == pytest.approx(expected, rel=2e-3), (point, block)
        assert found.error[point] == pytest.approx(float(error))


def test_a_linear_response_is_measured_exactly() -> None:
    """x0_predicted = x0 + 1 + sum of (s_b - 1) * b: F_b = b^2 * n / 1."""
    x0 = torch.ones(2, 4, 3, 3)
    told: list[tuple[int, int]] = []

    def predict(point: int, factors: tuple[float, ...]) -> Tensor:
        return x0 + 1.0 + sum((f - 1.0) * b for b, f in enumerate(factors))

    found = measure(predict, x0, 4, ["1", "2"], on_block=lambda done, total: told.append((done, total)))
    assert found.information == pytest.approx([0.0, 36.0, 144.0, 324.0], rel=1e-4)
    assert found.weights == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0], rel=1e-4)
    assert told == [(i, 8) for i in range(1, 9)]


@pytest.mark.slow
def test_a_demo_net_ranks_its_blocks_as_ablation_does() -> None:
    """A short form of `benchmarks/sensitivity.py`: four scenes as one batch, six steps, the canny net.

    By brute force: how far the finished latent moves when one block's weight is 0.
    """
    checkpoint = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32)
    net = load_controlnet(ASSETS / "demo_canny.safetensors", dtype=torch.float32)[0]
    scenes = [render_seed(seed) for seed in range(1_000_100, 1_000_104)]
    hints = np.stack([VIEWS["canny"](scene) for scene in scenes])
    unit = ControlUnit(net, torch.from_numpy(hints).movedim(-1, 1).float())
    text = checkpoint.text_encoder()
    prompts = torch.cat([text.encode(scene.caption) for scene in scenes])
    model, backend = DiffusionModel(checkpoint.unet, checkpoint.config, scaled_linear()), Backend(Runtime())

    def painted(start: Tensor, weights: tuple[float, ...], settings: SampleSettings) -> Tensor:
        units = (replace(unit, block_weights=weights),)
        halves = [Condition(prompts, units)], [Condition(text.encode(""), units)]
        return generate(model, *halves, start, settings, backend=backend)

    def predict(point: int, weights: tuple[float, ...]) -> Tensor:
        step = sampled_steps(12, 4)[point]
        return painted(whole, weights, replace(probe, start_step=step, end_step=step + 1))

    empty, run = torch.zeros(4, 4, 16, 16), SampleSettings(7, 6, 4.0, "dpmpp_2m", "karras")
    probe = SampleSettings(7, 12, cfg=1.0, leftover_noise=False)
    whole = painted(empty, (1.0,) * BLOCKS, run)
    found = measure(predict, whole, BLOCKS, ["2", "5", "8", "11"])
    without = [tuple(float(i != block) for i in range(BLOCKS)) for block in range(BLOCKS)]
    moved = [float((painted(empty, weights, run) - whole).square().mean()) for weights in without]
    assert spearmanr(found.information, moved).statistic >= 0.8, (found.information, moved)


def test_an_empty_latent_is_refused() -> None:
    with pytest.raises(ValueRangeError, match="finished latent"):
        measure(lambda *_: torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), 3, ["1"])


def test_steps_are_spread_evenly() -> None:
    assert sampled_steps(12, 4) == (1, 4, 7, 10)
    assert sampled_steps(3, 8) == (0, 1, 2)
    assert sampled_steps(20, 1) == (10,)


def test_the_figures_in_words_and_as_a_picture() -> None:
    result = Sensitivity((1.0, 4.0, 0.0), ((1.0, 4.0, 0.0),), ("3",), (0.1,))
    text = describe(result, ("0", "1", "mid"))
    assert text.splitlines()[2].split() == ["1", "4", "80.0%", "1.00"]
    assert text.splitlines()[-1] == "weights: 0.50, 1.00, 0.00"
    drawn = draw_sensitivity(result, ("0", "1", "mid"), "net")
    assert {to_bytes(BAR), to_bytes(SECOND)} <= colours_of(drawn)
