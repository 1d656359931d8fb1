"""Control-LoRAs: trained by the same loop, written in the released layout, and the same net when they come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.config import SDXL
from comfyui_controlnet_core.controlnet_core.errors import UnfitError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.derived import ControlLora
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.training.control_lora import make_low_rank, to_control_lora
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import (
    ControlNetTraining,
    TrainingOptions,
    prepare_training,
)
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.export import export
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from safetensors.torch import load_file
from tiny_training import SIZE, make_training_folder, train

RANK = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("lora"))


def opened(folder: Path, state: Path | None = None, **recipe: Any) -> ControlNetTraining:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    numbers = Recipe(**{"steps": 3, "batch": 2, "lr": 1e-2, "ema": 0.0, **recipe})
    return prepare_training(
        base, open_examples(folder / "indexed", SIZE), numbers, TrainingOptions(rank=RANK), state_file=state
    )


def net_inputs() -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(3)
    x, context = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 7, 32, generator=g)
    return x, torch.tensor([400.0, 900.0]), context, torch.rand(2, 3, SIZE, SIZE, generator=g)


def residuals(net: ControlNet) -> list[torch.Tensor]:
    with torch.no_grad():
        found = net(*net_inputs())
    return [*found.skips, found.middle]


def test_low_rank_layers_are_the_layers_of_the_sum_of_their_weights() -> None:
    from comfyui_controlnet_core.controlnet_core.training.control_lora import LowRankConv2d, LowRankLinear

    torch.manual_seed(0)
    x, up = torch.randn(2, 6, 9, 9), torch.randn(5, 2)
    conv = LowRankConv2d(6, 5, 3, stride=2, padding=1)
    conv.up, conv.down = torch.nn.Parameter(up), torch.nn.Parameter(torch.randn(2, 6, 3, 3))
    whole = conv.weight + torch.einsum("or,rihw->oihw", conv.up, conv.down)
    torch.testing.assert_close(conv(x), F.conv2d(x, whole, conv.bias, stride=2, padding=1), rtol=1e-4, atol=1e-5)
    linear = LowRankLinear(9, 5)
    linear.up, linear.down = torch.nn.Parameter(up), torch.nn.Parameter(torch.randn(2, 9))
    whole = linear.weight + linear.up @ linear.down
    torch.testing.assert_close(linear(x), F.linear(x, whole, linear.bias), rtol=1e-4, atol=1e-5)


def test_the_base_is_shared_and_stays_and_the_files_net_is_the_trained_one(folder: Path, tmp_path: Path) -> None:
    training = opened(folder)
    before = {name: tensor.clone() for name, tensor in training.unet.state_dict().items()}
    assert training.net.encoder.blocks[1].res.conv1.weight is training.unet.encoder.blocks[1].res.conv1.weight
    assert training.loop.run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.unet.state_dict().items())
    ups = {name: p for name, p in training.net.named_parameters() if name.endswith(".up")}
    assert len(ups) > 20 and all(bool(p.any()) and p.shape[1] <= RANK for p in ups.values())

    path = tmp_path / "lora.safetensors"
    export(training, path, dtype=torch.float32)
    loaded, identity = load_control(path, dtype=torch.float32)
    assert isinstance(loaded, ControlLora) and identity.kind == "control-lora" and identity.family == "demo"
    # Every weight comes back, and the completed net gives what the trained one gave.
    own = to_control_lora(training.net).weights
    assert loaded.weights.keys() == own.keys() and all(torch.equal(loaded.weights[k], own[k]) for k in own)
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32).unet
    for ours, theirs in zip(residuals(training.net), residuals(loaded.resolve(base)), strict=True):
        assert float(ours.abs().max()) > 0.0
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5 * float(ours.abs().max()))


def test_the_layout_is_the_released_one(folder: Path, tmp_path: Path) -> None:
    """Bare cldm names, `up` (out, rank) and `down` (rank, in, k, k) in place of a weight, half precision."""
    export(opened(folder), tmp_path / "lora.safetensors")
    state = load_file(tmp_path / "lora.safetensors")
    assert state["lora_controlnet"].numel() == 0
    assert state["input_blocks.1.0.in_layers.2.up"].shape == (32, RANK)
    assert state["input_blocks.1.0.in_layers.2.down"].shape == (RANK, 32, 3, 3)
    assert state["time_embed.0.down"].shape == (RANK, 32)
    assert {"input_blocks.1.0.in_layers.2.bias", "input_blocks.1.0.in_layers.0.weight"} <= state.keys()
    assert {"input_hint_block.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.bias"} <= state.keys()
    assert not [key for key in state if key.endswith(".up") and f"{key[:-3]}.weight" in state]
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_the_file_for_sdxl_has_the_size_of_the_released_ones() -> None:
    """377 MB (of 2^20 bytes) at rank 128, by the release's model card: the same weights are whole there."""
    with on_meta():
        unet, net = UNet(SDXL.unet).requires_grad_(False), ControlNet(SDXL.controlnet)
    make_low_rank(net, unet, 128, torch.Generator())
    assert round(2 * sum(p.numel() for p in net.parameters() if p.requires_grad) / 2**20) == 377


def test_a_stopped_control_lora_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    whole = opened(folder)
    whole.loop.run()
    opened(folder, tmp_path / "s.state").loop.run(until=0.0)
    again = opened(folder, tmp_path / "s.state")
    assert again.loop.resume() and again.loop.run()
    own = whole.loop.parameters()
    assert all(torch.equal(p, own[name]) for name, p in again.loop.parameters().items())
    # The locked weights are not in the state.
    assert not [name for name in own if name.endswith("res.conv1.weight")]


def test_the_command_writes_a_control_lora_that_samples(folder: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "lora.safetensors"
    more = ("--kind", "control-lora", "--rank", "2", "--steps", "2", "--json", "--sample-every", "2")
    assert train(folder, output, *more, "--sample-steps", "1") == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(output)]
    assert (tmp_path / "lora_training" / "samples" / "step_000002.png").is_file()
    assert load_control(output)[1].kind == "control-lora"


def test_what_a_control_lora_cannot_be_is_said(folder: Path, tmp_path: Path, capsys: Any) -> None:
    for words, said in (
        (("--rank", "4"), "--rank is of a Control-LoRA: add --kind control-lora"),
        (("--kind", "control-lora", "--rank", "0"), "--rank is 0: expected 1 or more"),
        (("--kind", "control-lora", "--layout", "diffusers"), "only the layout of its release"),
    ):
        assert train(folder, tmp_path / "n.safetensors", "--steps", "1", *words) == 2
        assert said in capsys.readouterr().err
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    data = open_examples(folder / "indexed", SIZE)
    start = ControlNet.from_unet(base.unet, base.config.controlnet)
    with pytest.raises(ValueRangeError, match="starts as its base"):
        prepare_training(base, data, options=TrainingOptions(rank=2), start=start)
    with pytest.raises(ValueRangeError, match="rank is 5000: choose a number from 1 to 4096"):
        make_low_rank(start, base.unet, 5000, torch.Generator())
    wider = load_checkpoint(folder / "base.safetensors", dtype=torch.float32).unet
    lora = to_control_lora(opened(folder).net)
    lora.weights["encoder.blocks.1.res.conv1.up"] = torch.zeros(7, RANK)
    with pytest.raises(UnfitError, match="do not fit a base"):
        lora.resolve(wider)
