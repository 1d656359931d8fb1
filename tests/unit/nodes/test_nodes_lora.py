"""LoRA nodes without ComfyUI: strengths, chains, and messages for files that do not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.errors import UnfitError
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from torch import Tensor

UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
OURS = "middle.transformer.blocks.0.attn1.q.weight"


def lora(host: StandaloneHost, tmp_path: Path, name: str, *modules: str, seed: int = 0) -> dict[str, Tensor]:
    """Write models/loras/NAME with rank 2 updates of modules of width 32; returns up @ down by module."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{module}.lora_{end}.weight": 0.1 * torch.randn(shape, generator=generator)
        for module in modules
        for end, shape in (("up", (32, 2)), ("down", (2, 32)))
    }
    write_safetensors(tmp_path / "loras" / name, tensors)
    host.model_folders["loras"] = (tmp_path / "loras",)
    return {module: tensors[f"{module}.lora_up.weight"] @ tensors[f"{module}.lora_down.weight"] for module in modules}


@pytest.fixture
def loaded(run: Any) -> tuple[Any, Any]:
    model, clip, _ = run("CheckpointLoaderSimple", ckpt_name="sub/tiny.safetensors")
    return model, clip


def weights(model: Any, clip: Any) -> tuple[Tensor, Tensor]:
    return model.diffusion.unet.state_dict()[OURS], clip.model.state_dict()["layers.0.attn.q.weight"]


def test_each_part_has_its_strength(host: StandaloneHost, run: Any, loaded: Any, tmp_path: Path) -> None:
    deltas = lora(host, tmp_path, "a.safetensors", UNET, TEXT)
    before = [weight.clone() for weight in weights(*loaded)]
    changed = run(
        "LoraLoader",
        model=loaded[0], clip=loaded[1], lora_name="a.safetensors", strength_model=0.5, strength_clip=-2.0,
    )  # fmt: skip
    unet, text = weights(*changed)
    torch.testing.assert_close(unet, before[0] + 0.5 * deltas[UNET])
    torch.testing.assert_close(text, before[1] - 2.0 * deltas[TEXT])
    assert all(torch.equal(a, b) for a, b in zip(weights(*loaded), before, strict=True))


def test_a_chain_adds_up_and_is_merged_once_at_its_end(
    host: StandaloneHost, run: Any, loaded: Any, tmp_path: Path
) -> None:
    first = lora(host, tmp_path, "a.safetensors", UNET, seed=1)
    second = lora(host, tmp_path, "b.safetensors", UNET, seed=2)
    (once,) = run("LoraLoaderModelOnly", model=loaded[0], lora_name="a.safetensors", strength_model=0.7)
    (twice,) = run("LoraLoaderModelOnly", model=once, lora_name="b.safetensors", strength_model=0.2)
    base = loaded[0].diffusion.unet.state_dict()[OURS]
    torch.testing.assert_close(twice.diffusion.unet.state_dict()[OURS], base + 0.7 * first[UNET] + 0.2 * second[UNET])
    assert [entry.name for entry in twice.loras] == ["a.safetensors", "b.safetensors"]
    assert "diffusion" not in vars(once), "the link between two loaders was merged for nothing"


def test_a_lora_changes_the_picture_and_strength_0_does_not(
    host: StandaloneHost, run: Any, loaded: Any, tmp_path: Path
) -> None:
    lora(host, tmp_path, "a.safetensors", UNET, TEXT)

    def sampled(strength: float) -> Tensor:
        model, clip = run(
            "LoraLoader",
            model=loaded[0], clip=loaded[1], lora_name="a.safetensors",
            strength_model=strength, strength_clip=strength,
        )  # fmt: skip
        text = run("CLIPTextEncode", clip=clip, text="a red sphere")[0]
        latent = run("EmptyLatentImage", width=64, height=64)[0]
        return run("KSampler", model=model, positive=text, negative=text, latent_image=latent, steps=2)[0]["samples"]

    plain = sampled(0.0)
    assert torch.equal(plain, sampled(0.0))
    assert (plain - sampled(5.0)).abs().max() > 1e-4


def test_a_file_of_which_nothing_fits_is_an_error(host: StandaloneHost, run: Any, loaded: Any, tmp_path: Path) -> None:
    lora(host, tmp_path, "a.safetensors", "lora_unet_double_blocks_0_img_attn_qkv")
    with pytest.raises(UnfitError, match=r"a\.safetensors is LoRA .*none of its updates fits .*double_blocks"):
        run("LoraLoaderModelOnly", model=loaded[0], lora_name="a.safetensors")


def test_updates_that_do_not_fit_are_logged(
    host: StandaloneHost, run: Any, loaded: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora(host, tmp_path, "a.safetensors", UNET, "lora_unet_down_blocks_7_resnets_0_conv1")
    with caplog.at_level(logging.WARNING):
        run("LoraLoaderModelOnly", model=loaded[0], lora_name="a.safetensors")
    assert "1 updates applied; these do not fit: lora_unet_down_blocks_7_resnets_0_conv1" in caplog.text


def test_a_text_encoder_lora_on_the_model_alone_says_that_it_does_nothing(
    host: StandaloneHost, run: Any, loaded: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora(host, tmp_path, "a.safetensors", TEXT)
    with caplog.at_level(logging.WARNING):
        run("LoraLoaderModelOnly", model=loaded[0], lora_name="a.safetensors")
    assert "has no effect here" in caplog.text
