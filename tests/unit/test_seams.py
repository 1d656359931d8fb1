"""The algorithm runs without its accelerations, and an acceleration is one file and one row of a table."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core import pipeline, speed
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed import Acceleration

ALONE = """
import sys, torch
from importlib.abc import MetaPathFinder

CORE = "comfyui_controlnet_core.controlnet_core"

class Block(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith(f"{CORE}.speed") or name in (f"{CORE}.backend", f"{CORE}.pipeline"):
            raise ImportError(name)

sys.meta_path.insert(0, Block())
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.denoise import Denoiser
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_schedule
from comfyui_controlnet_core.controlnet_core.prepare import prepare
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.sample import SampleSettings, cut_sigmas, sample_latent
"""


def unit_and_texts() -> str:
    """Python code that makes the same inputs here and in the other process."""
    return (
        "torch.manual_seed(0)\n"
        "from comfyui_controlnet_core.controlnet_core.config import DEMO\n"
        "from comfyui_controlnet_core.controlnet_core.models.unet import UNet\n"
        "from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet\n"
        "from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear\n"
        "from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit\n"
        "from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition\n"
        "unet = UNet(DEMO.unet).eval()\n"
        "net = ControlNet.from_unet(unet, DEMO.controlnet).eval()\n"
        "[torch.nn.init.normal_(zero.conv.weight, std=0.05) for zero in net.zeros]\n"
        "unit = ControlUnit(net, torch.rand(1, 3, 128, 128), 0.8, end=0.7)\n"
        "positive = [Condition(torch.randn(1, 77, DEMO.unet.context_dim), (unit,))]\n"
        "negative = [Condition(torch.randn(1, 77, DEMO.unet.context_dim), (unit,))]\n"
    )


def test_the_algorithm_runs_without_any_acceleration(tmp_path: Path) -> None:
    """`denoise.py` alone, with `speed`, `backend` and `pipeline` blocked from import, gives the same latent."""
    result = tmp_path / "alone.pt"
    code = ALONE
    code += unit_and_texts() + (
        "settings, schedule = SampleSettings(seed=3, steps=4, cfg=5.0), scaled_linear()\n"
        "latent = torch.zeros(1, 4, 16, 16)\n"
        "sigmas = cut_sigmas(schedule, settings)\n"
        "job = Job(unet, DEMO, schedule, positive, negative, (1, 4, 16, 16), sigmas.tolist())\n"
        "with torch.inference_mode():\n"
        "    denoise = Denoiser(prepare(job, Runtime()), settings.cfg)\n"
        "    made = sample_latent(denoise, latent, sigmas, settings, schedule)\n"
        f"torch.save(made, {str(result)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    own: dict[str, object] = {"torch": torch}
    exec(unit_and_texts(), own)  # the same inputs, in this process
    model = DiffusionModel(own["unet"], DEMO, scaled_linear())  # type: ignore[arg-type]
    expected = generate(
        model, own["positive"], own["negative"], torch.zeros(1, 4, 16, 16),  # type: ignore[arg-type]
        SampleSettings(seed=3, steps=4, cfg=5.0), backend=Backend(Runtime(pack_weights=False)),
    )  # fmt: skip
    assert torch.equal(torch.load(result, weights_only=True), expected)


TOY = '''
def wrap(denoiser, context):
    """Do every evaluation twice as strongly."""
    inner = denoiser.step

    def step(denoiser, x, sigma, inputs, cfg):
        return 2.0 * inner(denoiser, x, sigma, inputs, cfg)

    denoiser.step = step
'''


def test_an_acceleration_is_one_file_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    spec = spec_from_file_location(f"{speed.__name__}.toy", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, spec.name, module)
    torch.manual_seed(0)
    model = DiffusionModel(UNet(DEMO.unet).eval(), DEMO, scaled_linear())
    text = torch.randn(1, 77, DEMO.unet.context_dim)

    def sample() -> torch.Tensor:
        settings = SampleSettings(steps=1, cfg=1.0)
        latent = torch.zeros(1, 4, 8, 8)
        return generate(model, [Condition(text)], [], latent, settings, backend=Backend(Runtime()))

    plain = sample()
    monkeypatch.setattr(pipeline, "ACCELERATIONS", (*speed.ACCELERATIONS, Acceleration("toy", "step", lambda c: True)))
    torch.testing.assert_close(sample(), 2.0 * plain)
