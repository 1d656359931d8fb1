"""What was asked for and does nothing in a run is said in its report, with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import (
    DiffusionModel,
    SampleSettings,
    blocked_choices,
    generate,
    run_context,
)
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed import EXACT, Shortcuts

CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64), transformer_depth=(1, 1), context_dim=32))
ALL = Runtime(graphs=True, fused_qkv=True, compile=True, parallel_nets=True)
CUDA = torch.device("cuda")


def job(nets: int = 1, narrow: bool = False) -> Job:
    torch.manual_seed(0)
    unet = UNet(CONFIG.unet).eval()
    units = tuple(ControlUnit(ControlNet.from_unet(unet).eval(), torch.rand(1, 3, 64, 64)) for _ in range(nets))
    if narrow:
        for model in (unet, *(unit.net for unit in units)):
            for p in model.parameters():
                p.data = p.data.to(torch.float8_e4m3fn)
    return Job(unet, CONFIG, scaled_linear(), [Condition(torch.randn(1, 77, 32), units)], [], (1, 4, 8, 8), [1.0])


def told(runtime: Runtime, shortcuts: Shortcuts = EXACT, **more: int) -> dict[str, str]:
    backend = Backend(runtime)
    asked = job(**more)
    context = run_context(asked, backend, RunOptions(shortcuts), checks_each_step=False)
    return dict(line.split(": ", 1) for line in blocked_choices(asked, backend, context))


def test_a_run_on_the_processor_says_what_was_asked_for_in_vain() -> None:
    recorder, asked = Recorder(), job()
    model = DiffusionModel(asked.unet, CONFIG, asked.schedule)
    settings = SampleSettings(steps=1, cfg=1.0)
    latent = torch.zeros(asked.shape)
    generate(model, asked.positive, [], latent, settings, backend=Backend(ALL), options=RunOptions(recorder=recorder))
    assert recorder.report().notes == (
        "nets not in parallel: the device is cpu, which runs one after the other",
        "no graphs: the device is cpu, graphs need CUDA",
        "no fused blocks: weights are packed for the processor",
        "not compiled: weights are packed for the processor",
    )
    generate(
        model,
        asked.positive,
        [],
        latent,
        settings,
        backend=Backend(Runtime()),
        options=RunOptions(recorder=(quiet := Recorder())),
    )
    assert quiet.report().notes == ()


@pytest.mark.parametrize(
    ("runtime", "more", "expected"),
    [
        (replace(ALL, device=CUDA), {}, set()),
        (replace(ALL, memory="streamed"), {}, {"weights are streamed from the host"}),
        (replace(ALL, device=CUDA), {"narrow": True}, {"weights are in float8"}),
        (replace(ALL, pack_weights=False), {}, set()),
    ],
    ids=["cuda", "streamed", "float8", "plain"],
)
def test_why_blocks_stay_as_they_are(runtime: Runtime, more: dict[str, int], expected: set[str]) -> None:
    found = told(runtime, **more)
    assert {found[what] for what in ("no fused blocks", "not compiled") if what in found} == expected


def test_why_nets_take_turns() -> None:
    what, cuda = "nets not in parallel", replace(ALL, device=CUDA)
    assert what not in told(cuda)
    assert told(cuda, nets=0)[what] == "there is no ControlNet"
    assert told(cuda, Shortcuts(reuse_every=2))[what] == "shortcuts skip nets in some evaluations"
