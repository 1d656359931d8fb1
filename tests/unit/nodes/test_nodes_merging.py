"""Nodes that combine the weights of two models: sums, ratios by block, chains, models that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import ModelConfig
from comfyui_controlnet_core.controlnet_core.errors import UnfitError
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from torch import Tensor

from .conftest import WORDS, tiny


def write_model(path: Path, config: ModelConfig, seed: int) -> None:
    torch.manual_seed(seed)
    vocab = VocabMap.from_words(ClipTokenizer.load(), WORDS)
    config = replace(config, text=replace(config.text, vocab_size=vocab.rows))
    parts = UNet(config.unet), AutoencoderKL(config.vae), ClipTextModel(config.text)
    path.parent.mkdir(parents=True, exist_ok=True)
    extras = {"vocab_map": vocab.to_tensor()}
    save_checkpoint(path, config, *parts, extras=extras, layout="core", dtype=torch.float16)


@pytest.fixture
def pair(run: Any, host: StandaloneHost, tmp_path: Path) -> tuple[Any, Any]:
    """(MODEL, CLIP) of two files with float16 weights."""
    host.model_folders["checkpoints"] = (tmp_path / "merged",)
    for seed in (1, 2):
        write_model(tmp_path / "merged" / f"{seed}.safetensors", tiny(32), seed)
    loaded = [run("CheckpointLoaderSimple", ckpt_name=f"{seed}.safetensors")[:2] for seed in (1, 2)]
    return tuple(zip(*loaded, strict=True))  # type: ignore[return-value]


def weights(model: Any) -> dict[str, Tensor]:
    return dict(model.diffusion.unet.state_dict())


def test_a_mix_has_the_ratio_of_the_first_model(run: Any, pair: tuple[Any, Any]) -> None:
    first, second = pair[0]
    a, b = weights(first), weights(second)
    mixed = weights(run("ModelMergeSimple", model1=first, model2=second, ratio=0.3)[0])
    for name, weight in mixed.items():
        expected = (0.3 * a[name].float() + 0.7 * b[name].float()).to(a[name].dtype)
        assert torch.equal(weight, expected), name
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_blocks_have_their_own_ratios(run: Any, pair: tuple[Any, Any]) -> None:
    first, second = pair[0]
    a, b = weights(first), weights(second)
    ratios = {"input": 1.0, "middle": 0.0, "out": 0.5}
    mixed = weights(run("ModelMergeBlocks", model1=first, model2=second, **ratios)[0])
    for name in a:
        place = name.partition(".")[0]
        ratio = ratios[{"middle": "middle", "decoder": "out", "norm_out": "out", "conv_out": "out"}.get(place, "input")]
        expected = (ratio * a[name].float() + (1 - ratio) * b[name].float()).to(a[name].dtype)
        assert torch.equal(mixed[name], expected), name


def test_a_difference_is_added_without_rounding_between(run: Any, pair: tuple[Any, Any]) -> None:
    """The first one plus what the second one differs by is the second one, in float32 rounded once."""
    first, second = pair[0]
    (difference,) = run("ModelMergeSubtract", model1=second, model2=first, multiplier=1.0)
    (total,) = run("ModelMergeAdd", model1=first, model2=difference)
    a, b = weights(first), weights(second)
    for name, weight in weights(total).items():
        expected = (a[name].float() + (b[name].float() - a[name].float())).to(a[name].dtype)
        assert torch.equal(weight, expected), name


def test_text_encoders_are_merged(run: Any, pair: tuple[Any, Any]) -> None:
    first, second = pair[1]
    (mixed,) = run("CLIPMergeSimple", clip1=first, clip2=second, ratio=0.25)
    a, b = (one.models[0].state_dict() for one in (first, second))
    for name, weight in mixed.models[0].state_dict().items():
        assert torch.equal(weight, (0.25 * a[name].float() + 0.75 * b[name].float()).to(a[name].dtype)), name


def test_models_of_other_shapes_are_refused(run: Any, pair: tuple[Any, Any], tmp_path: Path) -> None:
    write_model(tmp_path / "merged" / "wide.safetensors", tiny(64), 3)
    model, clip, _ = run("CheckpointLoaderSimple", ckpt_name="wide.safetensors")
    with pytest.raises(UnfitError, match=r"1\.safetensors .* wide\.safetensors .* weights of different shapes"):
        run("ModelMergeAdd", model1=pair[0][0], model2=model)
    with pytest.raises(UnfitError, match="text encoders have different shapes"):
        run("CLIPMergeAdd", clip1=pair[1][0], clip2=clip)


def test_the_first_convolution_of_an_inpainting_model_is_kept(
    run: Any, pair: tuple[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The known recipe: what inpainting training changed, added to another model."""
    config = tiny(32)
    nine = replace(config, unet=replace(config.unet, in_channels=9))
    write_model(tmp_path / "merged" / "inpaint.safetensors", nine, 4)
    model, *_ = run("CheckpointLoaderSimple", ckpt_name="inpaint.safetensors")
    (difference,) = run("ModelMergeSubtract", model1=model, model2=pair[0][0], multiplier=1.0)
    made, kept = (weights(one) for one in (run("ModelMergeAdd", model1=difference, model2=pair[0][1])[0], model))
    assert torch.equal(made["encoder.blocks.0.conv.weight"], kept["encoder.blocks.0.conv.weight"])
    assert not torch.equal(made["conv_out.weight"], kept["conv_out.weight"])
    assert "encoder.blocks.0.conv.weight is not merged" in caplog.text
