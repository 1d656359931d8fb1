"""Memory told from shapes, beside the bytes that are alive when the run is made."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO, AdapterConfig, ControlNetConfig
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.engine.backend import Backend
from comfyui_controlnet_core.controlnet_core.engine.condition import Area, Condition
from comfyui_controlnet_core.controlnet_core.engine.evaluate import evaluate
from comfyui_controlnet_core.controlnet_core.engine.footprint import decode_values, predict
from comfyui_controlnet_core.controlnet_core.engine.job import Job
from comfyui_controlnet_core.controlnet_core.engine.live import LiveTensors
from comfyui_controlnet_core.controlnet_core.engine.memory import _allowed
from comfyui_controlnet_core.controlnet_core.engine.prepare import prepare
from comfyui_controlnet_core.controlnet_core.engine.runtime import Runtime
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL

SCHEDULE = scaled_linear()
SMALL = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64, 96), context_dim=32))
DEEP = replace(
    SMALL,
    unet=replace(
        SMALL.unet, transformer_depth=(0, 1, 2), middle_depth=2, linear_projection=True, label_dim=64, head_dim=32
    ),
)
"""SDXL's pattern: no transformer at the first level, deep ones below, a label vector."""
WITHIN = 0.1


CASES = [
    (SMALL, 0, (1, 16, 16)),
    (SMALL, 2, (2, 24, 16)),
    (DEEP, 1, (3, 16, 16)),
]
"""Shapes, number of nets, (batch, h, w)."""


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("case", range(len(CASES)))
@torch.inference_mode()
def test_prediction_is_what_is_alive(case: int, packed: bool) -> None:
    config, nets, (batch, height, width) = CASES[case]
    torch.manual_seed(0)
    unet = UNet(config.unet).eval()
    net = ControlNet.from_unet(unet, ControlNetConfig(config.unet, hint_widths=(8, 16, 32, 64))).eval()
    pooled = None if config.unet.label_dim is None else torch.randn(1, config.unet.label_dim)
    picture = torch.rand(1, 3, 8 * height, 8 * width)
    units = tuple(ControlUnit(copy(net), picture, 0.7) for _ in range(nets))
    texts = [torch.randn(1, 77, config.unet.context_dim) for _ in range(2)]
    positive, negative = ([Condition(text, units, pooled)] for text in texts)
    backend = Backend(Runtime(pack_weights=packed))
    shape, sigmas = (batch, 4, height, width), [8.0, 4.0, 2.0, 1.0]
    job = Job(unet, config, SCHEDULE, positive, negative, shape, sigmas)
    told = predict(job, backend)
    x, sigma = torch.randn(shape), torch.tensor(4.0)
    evaluate(prepare(job, backend), x, sigma, 5.0)  # packs the weights
    with LiveTensors() as preparing:
        prepared = prepare(job, backend)
    with LiveTensors() as step:
        evaluate(prepared, x, sigma, 5.0)
    found = [preparing.live, preparing.peak, step.peak]
    assert [told.prepared, told.preparing, told.step] == pytest.approx(found, rel=WITHIN)
    assert told.weights == 4 * sum(p.numel() for m in (unet, *[net] * nets) for p in m.parameters())


@torch.inference_mode()
def test_areas_windows_adapters_and_hints_of_their_own() -> None:
    """Two groups, of which one ends; three pictures with hints of their own; a net that sees x, one that does not."""
    torch.manual_seed(0)
    unet = UNet(SMALL.unet).eval()
    net = ControlNet.from_unet(unet, ControlNetConfig(SMALL.unet, hint_widths=(8, 16, 32, 64))).eval()
    adapter = Adapter(AdapterConfig(widths=SMALL.unet.widths, res_blocks=1)).eval()
    pictures, texts = torch.rand(3, 3, 128, 128), torch.randn(3, 1, 77, SMALL.unet.context_dim)
    units = (ControlUnit(net, pictures, 0.7), ControlUnit(adapter, pictures[:1]))
    positive = [Condition(texts[0], units), Condition(texts[1], units[:1], area=Area(0, 0, 16, 8), end=0.6)]
    negative = [Condition(texts[2], units)]
    backend, shape, sigmas = Backend(Runtime(pack_weights=False)), (3, 4, 16, 16), [8.0, 4.0, 0.5]
    job = Job(unet, SMALL, SCHEDULE, positive, negative, shape, sigmas)
    told, x = predict(job, backend), torch.randn(shape)
    with LiveTensors() as preparing:
        prepared = prepare(job, backend)
    steps = []
    for sigma in sigmas:
        with LiveTensors() as step:
            evaluate(prepared, x, torch.tensor(sigma), 5.0)
        steps.append(step.peak)
    assert [told.prepared, told.step] == pytest.approx([preparing.live, max(steps)], rel=WITHIN)


def test_prediction_of_the_autoencoder() -> None:
    rows, height, width = 2, 12, 16
    vae = AutoencoderKL(DEMO.vae).eval()
    latent = torch.randn(rows, 4, height, width).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), LiveTensors() as live:
        vae.decode(latent)
    assert 4 * decode_values(DEMO.vae, rows, (height, width)) == pytest.approx(live.peak, rel=WITHIN)


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    assert _allowed(tmp_path) is None
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 500\ninactive_file 150\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _allowed(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert _allowed(tmp_path) is None
