"""Load CtrLoRA: both files and the VAE, in a run; wrong and damaged files end in one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.config import UNetConfig
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, CoreError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.hint_through_vae import HintThroughVae
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from ctrlora_files import save_base, save_lora
from safetensors.torch import load_file, save_file
from torch import Tensor

BASE = UNetConfig(
    widths=(64, 96, 128), res_blocks=1, transformer_depth=(1, 1, 0), num_heads=8, context_dim=128, middle_depth=1
)
"""The shape of the demo model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ with a base and a LoRA in controlnet/."""
    path = tmp_path_factory.mktemp("models")
    (path / "controlnet").mkdir()
    save_base(path / "controlnet", BASE)
    save_lora(path / "controlnet", BASE)
    return path


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Any:
    classes = build_nodes(StandaloneHost(output_dir=tmp_path, models_dirs=(folder,), device="cpu", dtype="fp32"))

    def run(name: str, **inputs: Any) -> Any:
        cls: Any = classes[name]
        with torch.inference_mode():
            return getattr(cls(), cls.FUNCTION)(**inputs)

    return run


def loaded(run: Any, base: str = "base.safetensors", lora: str = "lora.safetensors") -> tuple[Any, ...]:
    model, clip, vae = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    (net,) = run("CNCore_LoadCtrLoRA", base=base, lora=lora, vae=vae)
    return model, clip, vae, net


def test_a_run_follows_hint_lora_window_and_mask(run: Any) -> None:
    model, clip, vae, net = loaded(run)
    (plain,) = run("CNCore_LoadCtrLoRA", base="base.safetensors", lora="none", vae=vae)
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))

    def sampled(net: Any, hint: Tensor = hint, **unit: Any) -> Tensor:
        given = {
            "positive": positive, "negative": negative, "control_net": net, "image": hint, "strength": 0.2,
            "start_percent": 0.0, "end_percent": 1.0, "mode": "balanced", **unit,
        }  # fmt: skip
        halves = run("CNCore_ApplyControlNet", **given)
        settings = {"seed": 3, "steps": 1, "cfg": 2.0, "sampler": "euler", "scheduler": "normal", "denoise": 1.0}
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        given = {"model": model, "positive": halves[0], "negative": halves[1], "latent": latent, **settings}
        return run("CNCore_Sample", **given)[0]["samples"]

    made, without = sampled(net), sampled(net, strength=0.0)
    for other in (sampled(plain), sampled(net, hint.flip(1)), without):
        assert float((made - other).abs().max()) > 1e-3
    assert torch.equal(sampled(net, mask=torch.zeros(1, 64, 64)), without)
    assert torch.equal(
        sampled(net, hint.repeat_interleave(2, 1).repeat_interleave(2, 2)), made
    )  # resized to the latent


def test_the_vae_reads_the_hint_itself() -> None:
    """What the VAE makes of an image, 2 image - 1, is the hint in [0, 1]; the latent is scaled for SD1.x."""
    seen = []

    def encode(image: Tensor) -> Tensor:
        seen.append(2 * image - 1)
        return torch.ones(1, 4, 2, 2)

    hint = torch.rand(1, 3, 16, 16)
    latent = HintThroughVae(encode)(hint)
    torch.testing.assert_close(seen[0].movedim(-1, 1), hint)
    assert latent.unique().tolist() == pytest.approx([0.18215])


def test_inspect_says_what_both_files_are(folder: Path) -> None:
    base, lora = (inspect_file(folder / "controlnet" / f"{name}.safetensors") for name in ("base", "lora"))
    assert base.loadable and base.identity.kind == "ctrlora-base" and base.identity.folder == "controlnet"
    assert lora.loadable and lora.identity.kind == "ctrlora" and "rank 4" in lora.identity.summary


def damaged(folder: Path, name: str, drop: str = "", reshape: str = "") -> str:
    state = load_file(folder / "controlnet" / f"{name}.safetensors")
    state = {k: v for k, v in state.items() if not (drop and k.endswith(drop))}
    state |= {k: v[..., :1].contiguous() for k, v in state.items() if reshape and k.endswith(reshape)}
    save_file(state, folder / "controlnet" / "damaged.safetensors")
    return "damaged.safetensors"


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("lora", {"drop": "zero_convs.1.0.bias"}, "has weights missing: zero_convs.1.conv.bias"),
        ("lora", {"drop": "time_embed.0.lora_layer.up.weight"}, "has weights without its other half"),
        ("lora", {"reshape": "time_embed.0.lora_layer.up.weight"}, "has weights of a wrong shape"),
        ("base", {"drop": "input_blocks.0.0.bias"}, "has weights missing: encoder.blocks.0.conv.bias"),
        ("base", {"reshape": "time_embed.2.weight"}, "has weights of a wrong shape"),
    ],
)
def test_damaged_files_end_in_one_clear_line(
    run: Any, folder: Path, name: str, how: dict[str, str], words: str
) -> None:
    file = damaged(folder, name, **how)
    with pytest.raises(CheckpointError) as caught:
        loaded(run, **{name: file})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_files_in_the_wrong_place_are_named(run: Any) -> None:
    with pytest.raises(CheckpointError, match="expected a base ControlNet of CtrLoRA"):
        loaded(run, base="lora.safetensors")
    with pytest.raises(CheckpointError, match="expected a CtrLoRA"):
        loaded(run, lora="base.safetensors")
    with pytest.raises(CoreError, match="CtrLoRA"):
        run("CNCore_LoadControlNet", control_net="lora.safetensors")
