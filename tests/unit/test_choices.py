"""What was asked for and does nothing in a run is said in its report, with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.engine.backend import Backend
from comfyui_controlnet_core.controlnet_core.engine.choices import left_aside
from comfyui_controlnet_core.controlnet_core.engine.condition import Condition
from comfyui_controlnet_core.controlnet_core.engine.job import Job
from comfyui_controlnet_core.controlnet_core.engine.run import Run, Shortcuts
from comfyui_controlnet_core.controlnet_core.engine.runtime import Runtime
from comfyui_controlnet_core.controlnet_core.engine.streams import Streams
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate

CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64), transformer_depth=(1, 1), context_dim=32))
ALL = Runtime(graphs=True, wide=True, compile=True, side_by_side=True)
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


def told(runtime: Runtime, run: Run | None = None, **more: int) -> dict[str, str]:
    run = run or Run(check_every_step=False, side_by_side=Streams(CUDA))
    return dict(line.split(": ", 1) for line in left_aside(job(**more), Backend(runtime), run))


def test_a_run_on_the_processor_says_what_was_asked_for_in_vain() -> None:
    recorder, asked = Recorder(), job()
    model = DiffusionModel(asked.unet, CONFIG, asked.schedule)
    settings = SampleSettings(steps=1, cfg=1.0)
    latent = torch.zeros(asked.shape)
    generate(model, asked.positive, [], latent, settings, backend=Backend(ALL), recorder=recorder)
    assert recorder.report().notes == (
        "no graphs: the device is cpu, graphs need CUDA",
        "no wide blocks: weights are packed for the processor",
        "nothing compiled: weights are packed for the processor",
        "nets not side by side: the device is cpu, which runs one after the other",
    )
    generate(model, asked.positive, [], latent, settings, backend=Backend(Runtime()), recorder=(quiet := Recorder()))
    assert quiet.report().notes == ()


@pytest.mark.parametrize(
    ("runtime", "more", "expected"),
    [
        (replace(ALL, device=CUDA), {}, set()),
        (replace(ALL, memory="streamed"), {}, {"weights are streamed"}),
        (replace(ALL, device=CUDA), {"narrow": True}, {"weights are in float8"}),
        (replace(ALL, pack_weights=False), {}, set()),
    ],
    ids=["cuda", "streamed", "float8", "plain"],
)
def test_why_blocks_stay_as_they_are(runtime: Runtime, more: dict[str, int], expected: set[str]) -> None:
    found = told(runtime, **more)
    assert {found[what] for what in ("no wide blocks", "nothing compiled") if what in found} == expected


def test_why_nets_take_turns() -> None:
    what, cuda = "nets not side by side", replace(ALL, device=CUDA)
    assert what not in told(cuda)
    assert told(cuda, nets=0)[what] == "there is no net"
    shortcuts = Run(Shortcuts(reuse_every=2), side_by_side=Streams(CUDA))
    assert told(cuda, shortcuts)[what] == "they are timed, or left out now and then"
