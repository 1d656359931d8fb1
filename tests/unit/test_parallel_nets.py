"""Nets beside the encoder give what nets behind it give; on the CPU one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.config import DEMO, AdapterConfig
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed.parallel_nets import Streams
from torch import Tensor

CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64), transformer_depth=(1, 1), context_dim=32))


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert Streams(torch.device("cpu"))(lambda: 1, [lambda: 2, lambda: 3]) == (1, [2, 3])


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_nets_beside_the_encoder_are_nets_behind_it(packed: bool) -> None:
    jobs: list[int] = []

    class Counted(Streams):
        def __call__(self, first: Any, others: Any) -> Any:
            first_made, others_made = super().__call__(first, others)
            if not first_made[0].is_meta:  # the memory estimate runs on meta tensors
                jobs.append(1 + len(others))
            return first_made, others_made

    torch.manual_seed(0)
    unet = UNet(CONFIG.unet).eval()
    nets = [ControlNet.from_unet(unet).eval() for _ in range(2)]
    for net in nets:
        for zero in net.zeros:
            torch.nn.init.normal_(zero.conv.weight, std=0.05)
    adapter = Adapter(AdapterConfig(widths=(32, 64), res_blocks=1)).eval()
    hint, text = torch.rand(1, 3, 64, 64), torch.randn(1, 77, 32)
    units = (
        ControlUnit(nets[0], hint, 0.7),
        ControlUnit(nets[1], 1.0 - hint, 1.2, end=0.6, mask=torch.rand(1, 8, 8)),
        ControlUnit(nets[0], hint.flip(3), 0.5, mode="control"),
        ControlUnit(adapter, hint),
    )
    model = DiffusionModel(unet, CONFIG, scaled_linear())

    def sample(beside: bool) -> tuple[Tensor, list[tuple[int, int]]]:
        recorder = Recorder()
        backend = Backend(Runtime(pack_weights=packed, parallel_nets=beside))
        backend.streams = Counted(backend.runtime.device)
        conditions = [Condition(text, units)], [Condition(-text, units)]
        settings = SampleSettings(steps=3, cfg=4.0)
        made = generate(
            model,
            *conditions,
            torch.zeros(1, 4, 8, 8),
            settings,
            backend=backend,
            options=RunOptions(recorder=recorder),
        )
        return made, [(unit.acted, unit.ran) for unit in recorder.report().units]

    behind, told = sample(False)
    beside, told_beside = sample(True)
    assert float((beside - behind).abs().max()) <= 1e-5 * float(behind.abs().max())
    assert sorted(told_beside) == sorted(told)
    assert jobs == [3, 3, 2]  # the encoder and two nets, one of them for two units; at last one net
