"""Files of diffusers and transformers, with random weights, loaded by this package: the outputs agree.

Also: this package's key tables agree with the converter in diffusers, which was written by others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import identify_file
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import DIFFUSERS, LDM
from comfyui_controlnet_core.controlnet_core.checkpoints.load import (
    load_checkpoint,
    load_controlnet,
    load_text_model,
    load_unet,
    load_vae,
)
from comfyui_controlnet_core.controlnet_core.config import (
    SD15,
    ControlNetConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from fuzz.diffusers_folder import save_folder
from random_tensors import assert_close, randomise
from safetensors.torch import save_file
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
UNET = UNetConfig(widths=(32, 64, 64), res_blocks=2, transformer_depth=(1, 1, 0), num_heads=2, context_dim=48)
SD2_LIKE = replace(UNET, num_heads=8, widths=(64, 128, 128), head_dim=64, linear_projection=True)
NET = ControlNetConfig(unet=UNET)
VAE = VAEConfig(widths=(32, 64, 64), res_blocks=1, scaling_factor=0.4)
TEXT = TextConfig(width=48, layers=2, heads=3, vocab_size=90, activation="gelu")


def heads(config: UNetConfig) -> Any:
    """As a diffusers config has them: in `attention_head_dim`, which is their number."""
    return config.num_heads if config.head_dim is None else [width // config.head_dim for width in config.widths]


def down_types(config: UNetConfig) -> tuple[str, ...]:
    return tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.transformer_depth)


def up_types(config: UNetConfig) -> tuple[str, ...]:
    return tuple(kind.replace("Down", "Up") for kind in reversed(down_types(config)))


def common(config: UNetConfig) -> dict[str, Any]:
    return {
        "in_channels": config.in_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.res_blocks,
        "down_block_types": down_types(config),
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": heads(config),
        "use_linear_projection": config.linear_projection,
    }


def reference_unet(config: UNetConfig) -> Any:
    return diffusers.UNet2DConditionModel(up_block_types=up_types(config), **common(config))


def reference_net(config: UNetConfig) -> Any:
    return diffusers.ControlNetModel(**common(config))


def reference_vae(config: VAEConfig) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=config.widths,
        layers_per_block=config.res_blocks,
        down_block_types=("DownEncoderBlock2D",) * len(config.widths),
        up_block_types=("UpDecoderBlock2D",) * len(config.widths),
        latent_channels=config.latent_channels,
        scaling_factor=config.scaling_factor,
    )


def reference_text(config: TextConfig) -> Any:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            vocab_size=config.vocab_size,
            hidden_act=config.activation,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def inputs(config: UNetConfig, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.in_channels, size, size, generator=generator)
    context = torch.randn(2, 7, config.context_dim, generator=generator)
    return x, torch.tensor([3.0, 961.0]), context


@torch.no_grad()
def compare_unets(ours: UNet, reference: Any, size: int) -> None:
    x, t, context = inputs(ours.config, size)
    assert_close(ours(x, t, context), reference(x, t, context).sample)


@torch.no_grad()
def compare_nets(ours: ControlNet, reference: Any, size: int) -> None:
    x, t, context = inputs(ours.config.unet, size)
    hint = torch.rand(2, 3, 8 * size, 8 * size, generator=torch.Generator().manual_seed(2))
    found = ours(x, t, context, hint)
    skips, middle = reference(x, t, context, hint, return_dict=False)
    assert len(found.skips) == len(skips)
    for residual, expected in zip([*found.skips, found.middle], [*skips, middle], strict=True):
        assert_close(residual, expected)


@torch.no_grad()
def compare_autoencoders(ours: AutoencoderKL, reference: Any, size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    scale = ours.config.scaling_factor
    latent = reference.encode(image).latent_dist.mean * scale
    assert_close(ours.encode(image), latent)
    assert_close(ours.decode(latent), reference.decode(latent / scale).sample)


@torch.no_grad()
def compare_texts(ours: nn.Module, reference: Any) -> None:
    ids = torch.randint(3, ours.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(4))
    assert_close(ours(ids)[0], reference(ids).last_hidden_state)


# ------------------------------------------------------------------------- folders, with their config


@pytest.mark.parametrize("config", [UNET, SD2_LIKE], ids=["sd1", "sd2"])
@pytest.mark.parametrize("shard", ["10GB", "400KB"], ids=["single", "sharded"])
def test_unet_folder(tmp_path: Path, config: UNetConfig, shard: str) -> None:
    reference = randomise(reference_unet(config))
    reference.save_pretrained(tmp_path / "unet", max_shard_size=shard)
    shards = list((tmp_path / "unet").glob("*.safetensors"))
    assert (len(shards) > 1) == (shard == "400KB")
    compare_unets(load_unet(tmp_path / "unet"), reference, 8)


@pytest.mark.parametrize("config", [UNET, SD2_LIKE], ids=["sd1", "sd2"])
def test_controlnet_folder(tmp_path: Path, config: UNetConfig) -> None:
    reference = randomise(reference_net(config))
    reference.save_pretrained(tmp_path / "net")
    net, identity = load_controlnet(tmp_path / "net")
    assert (identity.kind, identity.layout, net.config.unet.widths) == ("controlnet", "diffusers", config.widths)
    compare_nets(net, reference, 8)


def test_autoencoder_folder(tmp_path: Path) -> None:
    reference = randomise(reference_vae(VAE))
    reference.save_pretrained(tmp_path / "vae")
    vae = load_vae(tmp_path / "vae")
    assert vae.config == VAE
    compare_autoencoders(vae, reference, 32)


def test_autoencoder_with_the_old_attention_names(tmp_path: Path) -> None:
    reference = randomise(reference_vae(VAE))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = reference.state_dict()
    for new, name in old.items():
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): t for key, t in state.items()}
    assert any(".proj_attn." in key for key in state)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors")
    vae.config = VAE  # a single file does not tell its scaling factor
    compare_autoencoders(vae, reference, 32)


def test_text_encoder_folder(tmp_path: Path) -> None:
    reference = randomise(reference_text(TEXT))
    reference.save_pretrained(tmp_path / "text_encoder")
    text = load_text_model(tmp_path / "text_encoder")
    assert text.config == TEXT
    compare_texts(text, reference)


def test_a_pipeline_folder(tmp_path: Path) -> None:
    """The subfolders of a pipeline, its scheduler's prediction type included."""
    parts = {"unet": reference_unet(UNET), "vae": reference_vae(VAE), "text_encoder": reference_text(TEXT)}
    for name, module in parts.items():
        randomise(module).save_pretrained(tmp_path / "pipe" / name)  # type: ignore[operator]
    diffusers.DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "pipe" / "scheduler")
    (tmp_path / "pipe" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    checkpoint = load_checkpoint(tmp_path / "pipe")
    expected = ModelConfig("custom", UNET, VAE, TEXT, parametrization="v")
    assert replace(checkpoint.config, hint_widths=expected.hint_widths) == expected
    compare_unets(checkpoint.unet, parts["unet"], 8)
    assert checkpoint.vae is not None
    assert checkpoint.text_model is not None
    compare_autoencoders(checkpoint.vae, parts["vae"], 32)
    compare_texts(checkpoint.text_model, parts["text_encoder"])


def test_folders_that_we_write_open_in_diffusers(tmp_path: Path) -> None:
    kinds = {
        "unet": (UNet(UNET), diffusers.UNet2DConditionModel, load_unet, compare_unets),
        "sd2": (UNet(SD2_LIKE), diffusers.UNet2DConditionModel, load_unet, compare_unets),
        "net": (ControlNet(NET), diffusers.ControlNetModel, lambda p: load_controlnet(p)[0], compare_nets),
        "vae": (AutoencoderKL(VAE), diffusers.AutoencoderKL, load_vae, compare_autoencoders),
    }
    for name, (model, reference, load, compare) in kinds.items():
        randomise(model)
        save_folder(tmp_path / name, model)
        opened = reference.from_pretrained(tmp_path / name, low_cpu_mem_usage=False)
        compare(model, opened.eval(), 32 if name == "vae" else 8)
        assert load(tmp_path / name).config == model.config


def test_a_folder_is_refused_for_what_diffusers_has_not(tmp_path: Path) -> None:
    with on_meta():
        vae = AutoencoderKL(replace(VAE, patch=2))
    with pytest.raises(CheckpointError, match="no patches of pixels"):
        save_folder(tmp_path / "vae", vae)
    assert not (tmp_path / "vae").exists()


# ------------------------------------------------------------- single files in the original layouts


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("prefix", ["control_model.", ""], ids=["cldm", "plain"])
def test_a_cldm_file_gives_the_reference_controlnet(tmp_path: Path, form: str, prefix: str) -> None:
    """The reference's weights under cldm's names, in a file without metadata: heads are SD1.5's eight."""
    config = replace(UNET, widths=(64, 128, 128), num_heads=8)
    reference = randomise(reference_net(config))
    to_ours = KeyMap(DIFFUSERS.controlnet_rules(config, 8)).to_ours
    to_cldm = KeyMap(LDM.controlnet_rules(config, 8)).to_theirs
    state = {f"{prefix}{to_cldm(str(to_ours(key)))}": t for key, t in reference.state_dict().items()}
    path = tmp_path / f"net.{form}"
    if form == "pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    net, identity = load_controlnet(path)
    assert identity.layout == "cldm"
    compare_nets(net, reference, 8)


# ------------------------------------------------------------------------- the converter in diffusers


def meta_state(module: nn.Module, to_theirs: Callable[[str], str | None]) -> dict[str, Tensor]:
    return {str(to_theirs(key)): tensor for key, tensor in module.state_dict().items()}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@pytest.mark.parametrize("config", [SD15.unet, UNET, SD2_LIKE], ids=["sd15", "small", "sd2"])
def test_the_unet_tables_agree_with_the_converter(config: UNetConfig) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with on_meta():
        unet = UNet(config)
    ldm = meta_state(unet, KeyMap(LDM.unet_rules(config)).to_theirs)
    entries = {"layers_per_block": config.res_blocks, "up_block_types": up_types(config), "class_embed_type": None}
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in ldm.items()}
    converted = convert_ldm_unet_checkpoint(prefixed, {**entries, "addition_embed_type": None})
    assert shapes(converted) == shapes(meta_state(unet, KeyMap(DIFFUSERS.unet_rules(config)).to_theirs))


def test_the_controlnet_tables_agree_with_the_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    with on_meta():
        net = ControlNet(NET)
    ldm = meta_state(net, KeyMap(LDM.controlnet_rules(UNET, 8)).to_theirs)
    prefixed = {f"control_model.{key}": tensor for key, tensor in ldm.items()}
    converted = convert_controlnet_checkpoint(prefixed, {"layers_per_block": UNET.res_blocks, "class_embed_type": None})
    expected = meta_state(net, KeyMap(DIFFUSERS.controlnet_rules(UNET, 8)).to_theirs)
    assert shapes(converted) == shapes(expected)


@pytest.mark.parametrize("config", [SD15.vae, VAE], ids=["sd15", "small"])
def test_the_autoencoder_tables_agree_with_the_converter(config: VAEConfig) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = len(config.widths)
    with on_meta():
        vae = AutoencoderKL(config)
    ldm = meta_state(vae, KeyMap(LDM.vae_rules(levels)).to_theirs)
    converted = convert_ldm_vae_checkpoint(ldm, {"down_block_types": (0,) * levels, "up_block_types": (0,) * levels})
    keymap = KeyMap(DIFFUSERS.vae_rules(levels))
    expected = {
        str(keymap.to_theirs(key)): tuple(t.flatten(1).shape if keymap.is_linear(key) and t.ndim > 2 else t.shape)
        for key, t in vae.state_dict().items()
    }
    assert {
        key: shape[:2] if ".attentions.0." in key else shape for key, shape in shapes(converted).items()
    } == expected


# ------------------------------------------------------------------------------------ full SD1.5 shape


def reference_on(build: Callable[[Any], Any], config: Any) -> Any:
    """A reference without its own slow initialisation."""
    with on_meta():
        module = build(config)
    return randomise(module.to_empty(device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "config", "load", "compare", "size"),
    [
        (reference_unet, SD15.unet, load_unet, compare_unets, 8),
        (reference_net, SD15.unet, lambda path: load_controlnet(path)[0], compare_nets, 8),
        (reference_vae, SD15.vae, load_vae, compare_autoencoders, 64),
    ],
    ids=["unet", "controlnet", "autoencoder"],
)
def test_full_sd15_shape(
    tmp_path: Path,
    build: Callable[[Any], Any],
    config: Any,
    load: Callable[[Path], nn.Module],
    compare: Callable[[nn.Module, Any, int], None],
    size: int,
) -> None:
    """A file without metadata; all of the config is read from its shapes."""
    reference = reference_on(build, config)
    path = tmp_path / "full.safetensors"
    save_file(reference.state_dict(), path)
    model = load(path)
    assert getattr(model.config, "unet", model.config) == config
    assert identify_file(path).family == ("" if build is reference_vae else "sd15")
    compare(model, reference, size)
    path.unlink()
