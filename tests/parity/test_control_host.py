"""The real host's residuals for Control-LoRA, difference files and T2I-Adapters, and ours: they agree.

The host runs in a program of its own (`host_control.py`). Needs COMFYUI_DIR; COMFYUI_PYTHON names the
interpreter of that installation where it is another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import ldm
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.derived import save_control_lora
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.config import ControlNetConfig, UNetConfig
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.derived import DerivedControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.training.control_lora import make_low_rank, to_control_lora
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set"),
]

CONFIG = UNetConfig(widths=(64, 128, 256, 256), head_dim=64, context_dim=64)
RANK = 3
DESCRIBED = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "use_temporal_attention": False,
    "context_dim": 64, "num_heads": -1, "num_head_channels": 64, "legacy": False, "adm_in_channels": None,
}  # fmt: skip


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = {key: 0.3 if len(shape) < 2 else torch.Size(shape[1:]).numel() ** -0.5 for key, shape in shapes.items()}
    return {key: torch.randn(shape, generator=generator) * scales[key] for key, shape in shapes.items()}


def named(module: torch.nn.Module, rules: Any) -> dict[str, tuple[int, ...]]:
    keymap = KeyMap(rules)
    return {str(keymap.to_theirs(key)): tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def control_shapes() -> dict[str, tuple[int, ...]]:
    return named(ControlNet(ControlNetConfig(CONFIG)), ldm.controlnet_rules(CONFIG))


def control_lora() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"lora_controlnet": (0,)}
    for key, shape in control_shapes().items():
        if len(shape) < 2 or key.startswith(("zero_convs.", "input_hint_block.", "middle_block_out.")):
            shapes[key] = shape
        else:
            stem = key.removesuffix(".weight")
            shapes |= {f"{stem}.up": (shape[0], RANK), f"{stem}.down": (RANK, *shape[1:])}
    del shapes["input_blocks.4.0.in_layers.0.weight"]  # what the file lacks is the base's own
    return random_state(shapes, 1)


def base_of_seed(seed: int) -> UNet:
    unet = UNet(CONFIG).eval()
    unet.load_state_dict(random_state({k: tuple(v.shape) for k, v in unet.state_dict().items()}, seed))
    return unet


def trained_lora() -> dict[str, Tensor]:
    """The file that a training writes, with random numbers in everything that is trained."""
    unet = base_of_seed(0).requires_grad_(False)
    net = ControlNet.from_unet(unet, ControlNetConfig(CONFIG))
    make_low_rank(net, unet, RANK, torch.Generator().manual_seed(4))
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for name, values in random_state({name: tuple(p.shape) for name, p in trained.items()}, 5).items():
        trained[name].data.copy_(values)
    with tempfile.TemporaryDirectory() as folder:
        save_control_lora(Path(folder) / "lora.safetensors", to_control_lora(net), CONFIG)
        return {key: tensor.clone() for key, tensor in load_file(Path(folder) / "lora.safetensors").items()}


def difference() -> dict[str, Tensor]:
    state = random_state(control_shapes(), 2)
    return {**{f"control_model.{key}": tensor for key, tensor in state.items()}, "difference": torch.tensor(1.0)}


def adapter(unshuffle: int, conv_down: bool) -> dict[str, Tensor]:
    """A T2I-Adapter in the original layout. The host makes its widths from the first: 1, 2, 4, 4 times."""
    widths = (32, 64, 128, 128)
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        shapes.update({f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)})

    conv("conv_in", 32, 3 * unshuffle**2, 3)
    halved = (2,) if unshuffle == 16 else (1, 2, 3)
    for n in range(8):
        level, first = n // 2, n % 2 == 0
        before = widths[max(0, level - 1)]
        if first and before != widths[level]:
            conv(f"body.{n}.in_conv", widths[level], before, 1)
        if first and level in halved and conv_down:
            conv(f"body.{n}.down_opt.op", before, before, 3)
        conv(f"body.{n}.block1", widths[level], widths[level], 3)
        conv(f"body.{n}.block2", widths[level], widths[level], 1)
    return random_state(shapes, 3 + unshuffle)


CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "control-lora": control_lora,
    "control-lora, trained": trained_lora,
    "difference": difference,
    "adapter": lambda: adapter(8, conv_down=False),
    "adapter conv": lambda: adapter(8, conv_down=True),
    "adapter xl": lambda: adapter(16, conv_down=False),
}
SIZE = (10, 14)
"""Odd from the second level on: 5 x 7, then 3 x 4."""


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    height, width = SIZE
    return {
        "x": torch.randn(2, 4, height, width, generator=generator) * 5.0,
        "hint": torch.rand(1, 3, 8 * height, 8 * width, generator=generator),
        "t": torch.full((2,), 600.0),
        "text": torch.randn(2, 7, 64, generator=generator),
    }


@pytest.fixture(scope="module")
def base() -> UNet:
    return base_of_seed(0)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, base: UNet) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("host")
    to_theirs = KeyMap(ldm.unet_rules(CONFIG)).to_theirs
    tensors = {f"base.{to_theirs(key)}": tensor for key, tensor in base.state_dict().items()}
    tensors |= {f"{name}/{key}": tensor for name, make in CASES.items() for key, tensor in make().items()}
    save_file({**tensors, **inputs()}, folder / "cases.safetensors", {"unet": json.dumps(DESCRIBED)})
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    program = Path(__file__).with_name("host_control.py")
    out = folder / "out.safetensors"
    command = [python, str(program), os.environ["COMFYUI_DIR"], str(folder / "cases.safetensors"), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return load_file(out)


def ours(path: Path, base: UNet) -> list[Tensor]:
    net, _ = load_control(path)
    given = inputs()
    if isinstance(net, Adapter):
        return list(net(net.divisible(given["hint"])))
    assert isinstance(net, DerivedControlNet)
    complete = net.resolve(base)
    sigma = scaled_linear().sigma(given["t"])[0]
    hint = given["hint"].expand(2, -1, -1, -1)
    found = complete(scale_input(given["x"], sigma), given["t"], given["text"], hint)
    return [*found.skips, found.middle]


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_results_differ_between_tools_the_residuals_are_the_hosts(
    tmp_path: Path, name: str, base: UNet, host: dict[str, Tensor]
) -> None:
    save_file(CASES[name](), tmp_path / "control.safetensors")
    mine = ours(tmp_path / "control.safetensors", base)
    theirs = [tensor for key, tensor in sorted(host.items(), key=lambda item: int(item[0].rsplit(".", 1)[1]))
              if key.rsplit(".", 1)[0] == name]  # fmt: skip
    if name.startswith("adapter"):  # there its features are listed from the last one, but for the middle's
        mine = [*mine[2::-1], mine[3]] if name.endswith("xl") else mine[::-1]
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape[1:] == b.shape[1:]
        assert float((a - b).abs().max() / b.abs().max()) <= 1e-4
