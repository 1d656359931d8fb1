"""Relatives of the ControlNet in diffusers, with random weights, loaded by this package: the outputs agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.adapters import ADAPTER_RULES
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import LAYOUTS
from comfyui_controlnet_core.controlnet_core.config import AdapterConfig, ControlNetConfig, UNetConfig, UnionConfig
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter, adapter_places
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from installed import is_older
from random_tensors import assert_close, normal, randomise
from safetensors.torch import save_file
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
TIME_IDS, POOLED = 6, 32
XL = UNetConfig(
    widths=(32, 64, 128),
    transformer_depth=(0, 2, 3),
    middle_depth=3,
    head_dim=16,
    context_dim=48,
    linear_projection=True,
    label_dim=POOLED + TIME_IDS * 256,
)
MID = replace(XL, transformer_depth=(0, -1, 1), middle_depth=1)
SMALL = replace(XL, transformer_depth=(0, 0, 0), middle_depth=0, middle_res=1)


def keyword(config: UNetConfig) -> dict[str, Any]:
    """diffusers' arguments; its transformers of depth 0 are ours of depth -1."""
    types = tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.transformer_depth)
    depths = tuple(max(0, depth) for depth in config.transformer_depth)
    return {
        "block_out_channels": config.widths,
        "down_block_types": types,
        "layers_per_block": config.res_blocks,
        "transformer_layers_per_block": depths if config.middle_depth else 1,
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": [config.heads(width) for width in config.widths],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": config.label_dim,
        "conditioning_embedding_out_channels": (16, 32, 96, 256),
    }


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """x, t, text, label vector, and the label as diffusers wants it: pooled text and six numbers."""
    pooled, ids = normal(batch, POOLED, seed=3), torch.tensor([[128.0, 96, 0, 0, 128, 96]]).repeat(batch, 1)
    sinusoid = diffusers.models.embeddings.get_timestep_embedding(
        ids.flatten(), 256, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    label = torch.cat([pooled, sinusoid.reshape(batch, -1)], dim=1)
    x, text = normal(batch, 4, 8, 16, seed=1), normal(batch, 7, 48, seed=2)
    return x, torch.full((batch,), 321.0), text, label, {"text_embeds": pooled, "time_ids": ids}


def compare(ours: Any, theirs: Any) -> None:
    assert len(ours.skips) == len(theirs[0])
    for a, b in zip((*ours.skips, ours.middle), (*theirs[0], theirs[1]), strict=True):
        assert_close(a, b)


# ------------------------------------------------------------------------------------------ SDXL's ControlNets


@pytest.mark.parametrize(("name", "config"), [("full", XL), ("mid", MID), ("small", SMALL)])
@pytest.mark.parametrize("layout", ["diffusers", "cldm"])
@torch.inference_mode()
def test_sdxl_controlnets_of_all_three_sizes(tmp_path: Path, name: str, config: UNetConfig, layout: str) -> None:
    """Depths are read from the keys alone; a transformer without blocks (mid) still runs its projections."""
    middle = "UNetMidBlock2DCrossAttn" if config.middle_depth else "UNetMidBlock2D"
    reference = randomise(diffusers.ControlNetModel(mid_block_type=middle, **keyword(config)))
    if layout == "diffusers":
        reference.save_pretrained(tmp_path / "net")
        net, identity = load_control(tmp_path / "net")
    else:
        to_ours = KeyMap(LAYOUTS["diffusers"].controlnet_rules(config, 8)).to_ours
        to_cldm = KeyMap(LAYOUTS["cldm"].controlnet_rules(config, 8)).to_theirs
        state = {str(to_cldm(str(to_ours(key)))): t.contiguous() for key, t in reference.state_dict().items()}
        save_file(state, tmp_path / "net.safetensors")
        net, identity = load_control(tmp_path / "net.safetensors")
    assert isinstance(net, ControlNet)
    assert (identity.kind, identity.layout) == ("controlnet", layout)
    own = net.config.unet
    assert (own.transformer_depth, own.middle_depth) == (config.transformer_depth, config.middle_depth)
    assert net.fits(replace(XL, context_dim=own.context_dim))
    if layout == "cldm":  # heads and, without a transformer, the width of the text stand in no key
        net = ControlNet(replace(net.config, unet=config)).eval()
        net.load_state_dict(load_control(tmp_path / "net.safetensors")[0].state_dict())
    x, t, text, label, added = inputs(2)
    hint = normal(2, 3, 64, 128, seed=5).sigmoid()
    text = normal(2, 7, net.config.unet.context_dim, seed=2)
    theirs = reference(x, t, text, hint, added_cond_kwargs=added, return_dict=False)
    compare(net(x, t, text, hint, label), theirs)


# ------------------------------------------------------------------------------------------------------- Union


@pytest.mark.parametrize(("types", "count"), [((3,), 6), ((0, 1), 6), ((7,), 8), ((1, 4, 6), 8)])
@torch.inference_mode()
def test_union_of_one_and_several_types(tmp_path: Path, types: tuple[int, ...], count: int) -> None:
    """Six types, and ProMax's eight. The reference's attention runs along the batch, so its rows are alike."""
    reference = randomise(
        diffusers.ControlNetUnionModel(
            num_control_type=count, num_trans_channel=32, num_proj_channel=32, num_trans_head=4, **keyword(XL)
        )
    )
    reference.save_pretrained(tmp_path / "net")
    net, identity = load_control(tmp_path / "net")
    assert isinstance(net, ControlNetUnion)
    assert (identity.kind, f"{count} control types" in identity.details) == ("controlnet-union", True)
    assert net.config.union == UnionConfig(count, 32, 1, 256)
    x, t, text, label, added = inputs(2)
    hints = [normal(1, 3, 64, 128, seed=10 + kind).sigmoid().expand(2, -1, -1, -1) for kind in types]
    present = torch.zeros(2, count)
    present[:, list(types)] = 1.0
    scales = 1.0 if is_older("diffusers", 0, 33) else [1.0] * len(types)
    theirs = reference(x, t, text, hints, present, list(types), scales, added_cond_kwargs=added, return_dict=False)
    compare(net(x, t, text, hints, types, label), theirs)


@torch.inference_mode()
def test_a_batch_of_different_hints_equals_its_singles() -> None:
    config = ControlNetConfig(XL, union=UnionConfig(width=32))
    net = randomise(ControlNetUnion(config))
    x, t, text, label, _ = inputs(2)
    hints = [normal(2, 3, 64, 128, seed=7).sigmoid(), normal(2, 3, 64, 128, seed=8).sigmoid()]
    both = net(x, t, text, hints, (1, 3), label)
    for i in range(2):
        one = slice(i, i + 1)
        single = net(x[one], t[one], text[one], [hint[one] for hint in hints], (1, 3), label[one])
        assert_close(single.middle, both.middle[one])


# ------------------------------------------------------------------------------------------------ T2I-Adapters

ADAPTERS = {
    "full": (AdapterConfig((32, 64, 128, 128)), "full_adapter"),
    "full, gray": (AdapterConfig((32, 64, 128, 128), hint_channels=1), "full_adapter"),
    "xl": (AdapterConfig((32, 64, 128, 128), unshuffle=16), "full_adapter_xl"),
    "light": (AdapterConfig((32, 64, 128, 128), res_blocks=4, light=True), "light_adapter"),
}


def reference_adapter(config: AdapterConfig, kind: str) -> Any:
    channels = list(config.widths[:-1] if config.light else config.widths)
    return randomise(
        diffusers.T2IAdapter(
            in_channels=config.hint_channels,
            channels=channels,
            num_res_blocks=config.res_blocks,
            downscale_factor=config.unshuffle,
            adapter_type=kind,
        )
    )


def original_names(config: AdapterConfig, keys: list[str]) -> dict[str, str]:
    """diffusers' keys -> the original release's, written here by hand: one running index over all levels."""
    names = {}
    for key in keys:
        plain = key.removeprefix("adapter.")
        parts = plain.split(".")
        if config.light:
            names[key] = plain.replace(".resnets.", ".body.")
        elif "resnets" in parts:
            names[key] = ".".join(["body", str(int(parts[1]) * config.res_blocks + int(parts[3])), *parts[4:]])
        elif parts[0] == "body":
            names[key] = ".".join(["body", str(int(parts[1]) * config.res_blocks), *parts[2:]])
        else:
            names[key] = plain
    return names


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("layout", ["diffusers", "original"])
@torch.inference_mode()
def test_adapters_of_all_kinds_in_both_layouts(tmp_path: Path, name: str, layout: str) -> None:
    config, kind = ADAPTERS[name]
    reference = reference_adapter(config, kind)
    state = reference.state_dict()
    names = original_names(config, list(state)) if layout == "original" else {key: key for key in state}
    save_file({names[key]: tensor for key, tensor in state.items()}, tmp_path / "t2i.safetensors")
    net, identity = load_control(tmp_path / "t2i.safetensors")
    assert isinstance(net, Adapter)
    assert net.config == config
    assert (identity.kind, identity.layout) == ("t2i-adapter-light" if config.light else "t2i-adapter", layout)
    hint = normal(2, config.hint_channels, 128, 192).sigmoid()
    for ours, theirs in zip(net(hint), reference(hint), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(("kind", "widths"), [("sd15", (32, 64, 128, 128)), ("sdxl", (32, 64, 128))])
@torch.inference_mode()
def test_features_enter_where_the_reference_adds_them(kind: str, widths: tuple[int, ...]) -> None:
    """The whole UNet with the features: what is added inside its encoder is read by the next block too."""
    from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import DIFFUSERS
    from comfyui_controlnet_core.controlnet_core.models.unet import UNet

    config = UNetConfig(widths=widths, transformer_depth=(1,) * (len(widths) - 1) + (0,), num_heads=4, context_dim=48)
    if kind == "sdxl":
        config = replace(config, transformer_depth=(0, 1, 1))
    types = tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.transformer_depth)
    reference = randomise(
        diffusers.UNet2DConditionModel(
            block_out_channels=widths,
            down_block_types=types,
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(types)),
            cross_attention_dim=48,
            attention_head_dim=4,
        )
    )
    unet = UNet(config).eval()
    to_ours = KeyMap(DIFFUSERS.unet_rules(config)).to_ours
    unet.load_state_dict({str(to_ours(key)): tensor for key, tensor in reference.state_dict().items()})
    adapter = randomise(Adapter(AdapterConfig((32, 64, 128, 128), unshuffle=16 if kind == "sdxl" else 8)))
    features = adapter(normal(2, 3, 128, 128).sigmoid())
    x, t, text = normal(2, 4, 16, 16), torch.full((2,), 500.0), normal(2, 7, 48)
    theirs = reference(x, t, text, down_intrablock_additional_residuals=[f.clone() for f in features]).sample

    places = adapter_places(adapter.config, config)
    assert places is not None
    at = dict(zip(places, features, strict=True))
    emb = unet.embed(t)
    skips = []
    for index, skip in enumerate(unet.encoder.walk(x, unet.encoder.project(emb, text))):
        if index in at:
            skip += at[index]
        skips.append(skip)
    middle = unet.middle(skips[-1], unet.middle.project(emb, text)) + at.get(len(skips), 0.0)
    assert_close(unet.head(unet.decoder(middle, skips, unet.decoder.project(emb, text))), theirs)


def test_the_original_table_follows_the_running_index() -> None:
    keys = [f"body.{n}.block1.weight" for n in range(8)]
    to_ours = KeyMap(ADAPTER_RULES["t2i-adapter", "original"](keys)).to_ours
    assert to_ours("body.5.block2.bias") == "levels.2.res.1.conv2.bias"
    assert to_ours("body.4.down_opt.op.weight") == "levels.2.down.conv.weight"
    assert to_ours("body.5.in_conv.weight") is None
