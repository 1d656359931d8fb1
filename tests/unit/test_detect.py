"""What a file is: one generated sample per row of the table of key layouts, and the bad cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import controlnet_xs
from comfyui_controlnet_core.controlnet_core.checkpoints.adapters import ADAPTER_RULES
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import (
    SD2_V_KEY,
    WITHOUT_CONFIG,
    Identity,
    KeyIndex,
    identify,
    identify_file,
)
from comfyui_controlnet_core.controlnet_core.checkpoints.fileconfig import (
    CONFIG_KEY,
    config_from_json,
    config_to_json,
    refine_unet,
)
from comfyui_controlnet_core.controlnet_core.checkpoints.files import Header, TensorInfo
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file, problem
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap, add_prefix
from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import (
    DIFFUSERS,
    LDM,
    Layout,
    checkpoint_rules,
    usual_texts,
)
from comfyui_controlnet_core.controlnet_core.checkpoints.open_clip import fuse
from comfyui_controlnet_core.controlnet_core.checkpoints.signatures import DETAILS, SIGNATURES
from comfyui_controlnet_core.controlnet_core.config import (
    DEMO,
    EMPTY,
    SD15,
    SD21,
    SDXL_REFINER,
    AdapterConfig,
    ControlNetConfig,
    ControlNetXSConfig,
    DerivedConfig,
    ModelConfig,
    NoiseConfig,
    UNetConfig,
    UnionConfig,
)
from comfyui_controlnet_core.controlnet_core.config import SDXL as SDXL_MODEL
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.controlnet_xs import ControlNetXS
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from lllite_reference import random_file
from torch import nn

Shapes = dict[str, tuple[int, ...]]

SD2, SDXL, REFINER = SD21.unet, SDXL_MODEL.unet, SDXL_REFINER.unet


def header_of(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> Header:
    """A header without a file."""
    path = Path("sample.safetensors")
    infos = {key: TensorInfo(shape, torch.float16, path, key) for key, shape in shapes.items()}
    return Header(path, "safetensors", infos, metadata or {}, 0)


def with_markers(header: Header, folder: Path, value: float = 40.0) -> Header:
    """The header, its small tensors with numbers about the training in a real file."""
    markers = {key: torch.full(info.shape, value) for key, info in header.tensors.items() if key.startswith("edm_")}
    path = folder / "markers.safetensors"
    if markers:
        write_safetensors(path, markers)
    infos = {key: replace(info, file=path) if key in markers else info for key, info in header.tensors.items()}
    return replace(header, tensors=infos)


@cache
def outline(kind: type[nn.Module], config: Any) -> nn.Module:
    """A model without memory; many samples here have the same one."""
    with on_meta():
        return kind(config)


def unet_shapes(config: UNetConfig, layout: Layout = LDM, prefix: str = "") -> Shapes:
    state = outline(UNet, config).state_dict()
    keymap = KeyMap(layout.unet_rules(config))
    return {f"{prefix}{keymap.to_theirs(key)}": tuple(tensor.shape) for key, tensor in state.items()}


def net_shapes(
    config: UNetConfig, layout: Layout = LDM, prefix: str = "", channels: int = 3, union: UnionConfig | None = None
) -> Shapes:
    net = ControlNetConfig(unet=config, hint_channels=channels, union=union)
    state = outline(ControlNetUnion if union else ControlNet, net).state_dict()
    keymap = KeyMap(add_prefix(layout.controlnet_rules(config, 8), prefix))
    return {str(keymap.to_theirs(key)): tuple(tensor.shape) for key, tensor in state.items()}


def lora_shapes(config: UNetConfig, rank: int = 64) -> Shapes:
    """Pairs for the large weights of the copy; what no base has, and vectors, whole."""
    shapes: Shapes = {"lora_controlnet": (0,)}
    for key, shape in net_shapes(config).items():
        if len(shape) < 2 or key.startswith(("zero_convs.", "input_hint_block.", "middle_block_out.")):
            shapes[key] = shape
        else:
            stem = key.removesuffix(".weight")
            shapes |= {f"{stem}.up": (shape[0], rank), f"{stem}.down": (rank, *shape[1:])}
    return shapes


def checkpoint_shapes(config: ModelConfig, layout: Layout = LDM) -> Shapes:
    """A file of this model, with the tensors of OpenCLIP's text encoders as they are kept."""
    texts = usual_texts(layout, config)
    kinds = {"unet": UNet, "vae": AutoencoderKL, "text": ClipTextModel, "text2": ClipTextModel}
    configs = {name: getattr(config, name) for name in kinds}
    parts = {f"{name}.": outline(kinds[name], part) for name, part in configs.items() if part is not None}
    keymap = KeyMap(checkpoint_rules(layout, config.unet, len(config.vae.widths), texts))
    state = {
        str(keymap.to_theirs(prefix + key)): tensor
        for prefix, module in parts.items()
        for key, tensor in module.state_dict().items()
    }
    return {key: tuple(tensor.shape) for key, tensor in fuse(state).items()}


@dataclass(frozen=True)
class Sample:
    """Shapes of a generated file, and what it has to be recognised as."""

    shapes: Shapes
    kind: str
    family: str
    layout: str
    details: tuple[str, ...] = ()
    supported: bool = False


def adapter_sample(config: AdapterConfig, layout: str, family: str, *details: str, prefix: str = "") -> Sample:
    """A T2I-Adapter's keys and shapes under the names of a layout."""
    kind = "t2i-adapter-light" if config.light else "t2i-adapter"
    state = outline(Adapter, config).state_dict()
    keymap = KeyMap(ADAPTER_RULES[kind, layout](f"body.{n}.block1.weight" for n in range(4 * config.res_blocks)))
    shapes = {f"{prefix}{keymap.to_theirs(key)}": tuple(tensor.shape) for key, tensor in state.items()}
    return Sample(shapes, kind, family, layout, details, supported=True)


XS15 = ControlNetXSConfig()
XS21 = ControlNetXSConfig(
    widths=(4, 8, 16, 16), heads=(1, 1, 2, 2), context_dim=1024, linear_projection=True, time_mix=1.0,
    middle_groups=(16, 16),
)  # fmt: skip
XSXL = ControlNetXSConfig(
    (320, 640, 1280), (32, 64, 128), transformer_depth=(0, 2, 10), middle_depth=10, heads=(1, 1, 2), context_dim=2048,
    linear_projection=True, time_mix=1.0,
)  # fmt: skip
"""The released ControlNet-XS nets: 53M for SD1.5, 14M for SD2.1, 48M for SDXL."""


def xs_sample(config: ControlNetXSConfig, layout: str, family: str, prefix: str = "") -> Sample:
    """A ControlNet-XS's keys and shapes under the names of a layout."""
    state = outline(ControlNetXS, config).state_dict()
    keymap = KeyMap(controlnet_xs.rules(config.unet, 2 * len(config.hint_widths), layout))
    shapes = {f"{prefix}{keymap.to_theirs(key)}": tuple(tensor.shape) for key, tensor in state.items()}
    return Sample(shapes, "controlnet-xs", family, layout, supported=True)


def lllite_sample(family: str, *details: str, **places: tuple[int, int]) -> Sample:
    """A ControlNet-LLLite with networks in the second transformer block of SDXL's places, in the first of others.

    places: width of the tokens, and pixels of the hint per token.
    """
    named = {f"{place}_transformer_blocks_{int(family == 'sdxl')}": shape for place, shape in places.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in random_file(named).items()}
    return Sample(shapes, "controlnet-lllite", family, "kohya", details, supported=True)


LDM_UNET = "model.diffusion_model."
BLOCK = "input_blocks.4.1.transformer_blocks.0"
MODEL_BLOCK = f"{LDM_UNET}{BLOCK}"
DOWN = "down_blocks.1.attentions.0.transformer_blocks.0"
KOHYA = f"lora_unet_{DOWN.replace('.', '_')}"
LIGHT = AdapterConfig(res_blocks=4, light=True)
MID = replace(SDXL, transformer_depth=(0, 0, 1), middle_depth=1)
SMALL_NET = replace(SDXL, transformer_depth=(0, 0, 0), middle_depth=0, middle_res=1)

SAMPLES: dict[str, Sample] = {
    # full checkpoint: SD1.5, SD2.x, SDXL, refiner, variants
    "sd15": Sample(checkpoint_shapes(SD15), "checkpoint", "sd15", "ldm", supported=True),
    "sd15 without text_model": Sample(
        {key.replace("text_model.", ""): shape for key, shape in checkpoint_shapes(SD15).items()},
        "checkpoint",
        "sd15",
        "ldm",
        supported=True,
    ),
    "sd15 with vae. as its prefix": Sample(
        {key.replace("first_stage_model.", "vae."): shape for key, shape in checkpoint_shapes(SD15).items()},
        "checkpoint",
        "sd15",
        "ldm",
        supported=True,
    ),
    "sd15 diffusers": Sample(checkpoint_shapes(SD15, DIFFUSERS), "checkpoint", "sd15", "diffusers", supported=True),
    "sd2": Sample(
        {key: shape for key, shape in checkpoint_shapes(SD21).items() if SD2_V_KEY not in key},
        "checkpoint",
        "sd2",
        "ldm",
        supported=True,
    ),
    "sd2 in the sgm layout": Sample(
        {
            key.replace("cond_stage_model.", "conditioner.embedders.0."): shape
            for key, shape in checkpoint_shapes(SD21).items()
            if SD2_V_KEY not in key
        },
        "checkpoint",
        "sd2",
        "ldm",
        supported=True,
    ),
    "sdxl": Sample(checkpoint_shapes(SDXL_MODEL), "checkpoint", "sdxl", "ldm", supported=True),
    "sdxl diffusers": Sample(
        checkpoint_shapes(SDXL_MODEL, DIFFUSERS), "checkpoint", "sdxl", "diffusers", supported=True
    ),
    "sdxl refiner": Sample(checkpoint_shapes(SDXL_REFINER), "checkpoint", "sdxl-refiner", "ldm", supported=True),
    "sdxl v-prediction": Sample(
        {**unet_shapes(SDXL, LDM, LDM_UNET), "v_pred": (0,), "ztsnr": (0,)},
        "checkpoint",
        "sdxl",
        "ldm",
        ("v-prediction", "zero terminal SNR"),
        supported=True,
    ),
    "sdxl edm": Sample(
        {**unet_shapes(SDXL, LDM, LDM_UNET), "edm_mean": (4,), "edm_std": (4,)},
        "checkpoint",
        "sdxl",
        "ldm",
        ("EDM",),
        supported=True,
    ),
    "sdxl edm v-prediction": Sample(
        {**unet_shapes(SDXL, LDM, LDM_UNET), "edm_vpred.sigma_max": ()},
        "checkpoint",
        "sdxl",
        "ldm",
        ("EDM v-prediction",),
        supported=True,
    ),
    "sd15 v-prediction": Sample(
        {**checkpoint_shapes(SD15), "v_pred": (0,)},
        "checkpoint",
        "sd15",
        "ldm",
        ("v-prediction",),
        supported=True,
    ),
    "inpaint": Sample(
        unet_shapes(replace(SD15.unet, in_channels=9), LDM, LDM_UNET),
        "checkpoint",
        "sd15",
        "ldm",
        ("inpainting",),
        supported=True,
    ),
    "instruct pix2pix": Sample(
        unet_shapes(replace(SD15.unet, in_channels=8), LDM, LDM_UNET),
        "checkpoint",
        "sd15",
        "ldm",
        ("InstructPix2Pix",),
        supported=True,
    ),
    "inpaint diffusers unet": Sample(
        unet_shapes(replace(SD15.unet, in_channels=9), DIFFUSERS),
        "unet",
        "sd15",
        "diffusers",
        ("inpainting",),
        supported=True,
    ),
    # ControlNet, cldm and diffusers
    "cldm": Sample(
        net_shapes(SD15.unet, LDM, "control_model."),
        "controlnet",
        "sd15",
        "cldm",
        ("3 hint channels",),
        supported=True,
    ),
    "cldm plain": Sample(
        net_shapes(SD2, LDM, channels=1), "controlnet", "sd2", "cldm", ("1 hint channels",), supported=True
    ),
    "cldm with its base": Sample(
        {**net_shapes(SD15.unet, LDM, "control_model."), **checkpoint_shapes(SD15)},
        "controlnet",
        "sd15",
        "cldm",
        ("3 hint channels",),
        supported=True,
    ),
    "diffusers net": Sample(
        net_shapes(SD15.unet, DIFFUSERS),
        "controlnet",
        "sd15",
        "diffusers",
        ("3 hint channels",),
        supported=True,
    ),
    "diffusers sdxl net": Sample(
        net_shapes(SDXL, DIFFUSERS), "controlnet", "sdxl", "diffusers", ("3 hint channels",), supported=True
    ),
    # SDXL mid / small
    "sdxl mid cldm": Sample(
        net_shapes(MID, LDM),
        "controlnet",
        "sdxl",
        "cldm",
        ("3 hint channels", "mid"),
        supported=True,
    ),
    "sdxl small cldm": Sample(
        net_shapes(SMALL_NET, LDM),
        "controlnet",
        "sdxl",
        "cldm",
        ("3 hint channels", "small"),
        supported=True,
    ),
    "sdxl mid diffusers": Sample(
        net_shapes(replace(MID, transformer_depth=(0, EMPTY, 1)), DIFFUSERS),
        "controlnet",
        "sdxl",
        "diffusers",
        ("3 hint channels", "mid"),
        supported=True,
    ),
    "sdxl small diffusers": Sample(
        net_shapes(SMALL_NET, DIFFUSERS),
        "controlnet",
        "sdxl",
        "diffusers",
        ("3 hint channels", "small"),
        supported=True,
    ),
    # difference, Control-LoRA, CtrLoRA, Union
    "difference": Sample(
        {**net_shapes(SD15.unet, LDM, "control_model."), "difference": ()},
        "controlnet-difference",
        "sd15",
        "cldm",
        ("3 hint channels",),
        supported=True,
    ),
    "control-lora": Sample(lora_shapes(SDXL), "control-lora", "sdxl", "cldm", ("3 hint channels",), supported=True),
    "control-lora sd15": Sample(
        lora_shapes(SD15.unet), "control-lora", "sd15", "cldm", ("3 hint channels",), supported=True
    ),
    "ctrlora": Sample(
        {
            f"control_model.{BLOCK}.attn2.to_k.lora_layer.down.weight": (128, 768),
            f"control_model.{BLOCK}.attn2.to_k.lora_layer.up.weight": (320, 128),
            "control_model.zero_convs.0.0.weight": (320, 320, 1, 1),
        },
        "ctrlora",
        "sd15",
        "cldm",
        ("rank 128",),
        supported=True,
    ),
    "ctrlora base": Sample(
        {k: v for k, v in net_shapes(SD15.unet, LDM, "control_model.").items() if "input_hint_block." not in k},
        "ctrlora-base",
        "sd15",
        "cldm",
        supported=True,
    ),
    "union": Sample(
        net_shapes(SDXL, DIFFUSERS, union=UnionConfig()),
        "controlnet-union",
        "sdxl",
        "diffusers",
        ("3 hint channels", "6 control types"),
        supported=True,
    ),
    "union promax cldm": Sample(
        net_shapes(SDXL, LDM, "control_model.", union=UnionConfig(types=8)),
        "controlnet-union",
        "sdxl",
        "cldm",
        ("3 hint channels", "8 control types"),
        supported=True,
    ),
    # T2I-Adapters
    "t2i full": adapter_sample(AdapterConfig(), "original", "sd15", "pixel unshuffle 8"),
    "t2i gray, nested": adapter_sample(
        AdapterConfig(hint_channels=1, kernel=3), "original", "sd15", "pixel unshuffle 8", prefix="adapter."
    ),
    "t2i sdxl": adapter_sample(
        AdapterConfig(unshuffle=16, conv_down=True),
        "original",
        "sdxl",
        "pixel unshuffle 16",
        "downsampling by convolution",
    ),
    "t2i diffusers": adapter_sample(
        AdapterConfig(unshuffle=16, hint_channels=1), "diffusers", "sdxl", "pixel unshuffle 16", prefix="adapter."
    ),
    "t2i light": adapter_sample(LIGHT, "original", "sd15", "pixel unshuffle 8"),
    "t2i light diffusers": adapter_sample(LIGHT, "diffusers", "sd15", "pixel unshuffle 8", prefix="adapter."),
    "t2i style": Sample({"style_embedding": (1, 8, 1024)}, "t2i-style", "", "original"),
    "coadapter fuser": Sample(
        {"spatial_feat_mapping.sketch.0.weight": (768, 320), "seq_proj.sketch.0.weight": (768, 1024)},
        "coadapter-fuser",
        "",
        "original",
    ),
    # other relatives
    "lllite": lllite_sample("sdxl", "dimension 8", input_blocks_4_1=(640, 16), input_blocks_7_1=(1280, 32)),
    "lllite of any base": lllite_sample("", "dimension 8", input_blocks_4_1=(640, 16)),
    "lllite for sd15": lllite_sample("sd15", "dimension 8", input_blocks_1_1=(320, 8)),
    "lllite of another layer": Sample(
        {
            "lllite_unet_down_blocks_1_attn1_to_q.conditioning1.0.weight": (16, 3, 4, 4),
            "lllite_unet_down_blocks_1_attn1_to_q.conditioning1.2.weight": (32, 16, 4, 4),
        },
        "controlnet-lllite",
        "",
        "kohya",
    ),
    "sparsectrl": Sample(
        {
            **net_shapes(SD15.unet, DIFFUSERS),
            "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,),
            "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.norms.0.weight": (320,),
        },
        "sparsectrl",
        "sd15",
        "diffusers",
        ("hints are pictures",),
        supported=True,
    ),
    "svd net": Sample(
        {
            "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
            "controlnet_down_blocks.0.weight": (320, 320, 1, 1),
            "down_blocks.0.resnets.0.temporal_res_block.norm1.weight": (320,),
        },
        "svd-controlnet",
        "",
        "diffusers",
    ),
    "controlnet-xs": xs_sample(XS15, "original", "sd15"),
    "controlnet-xs diffusers": xs_sample(XS21, "diffusers", "sd2"),
    "controlnet-xs sdxl": xs_sample(XSXL, "diffusers", "sdxl"),
    "controlnet-xs as saved in training": xs_sample(XSXL, "original", "sdxl", prefix="control_model."),
    "controlnet-xs of another form": Sample(
        {"control_model.enc_zero_convs_out.0.weight": (320, 32, 1, 1)}, "controlnet-xs", "", "original"
    ),
    "controlnet-xs with its base": Sample(
        {"control_to_base_for_conv_in.weight": (320, 4, 1, 1), "base_conv_in.weight": (4, 4, 3, 3)},
        "controlnet-xs",
        "",
        "diffusers",
    ),
    "uni-controlnet local": Sample(
        {"local_adapter.zero_convs.0.0.weight": (320, 320, 1, 1)}, "uni-controlnet", "", "original"
    ),
    "uni-controlnet global": Sample(
        {"global_adapter.global_content_adapter.0.weight": (3072, 768)}, "uni-controlnet", "", "original"
    ),
    # everyday files beside control
    "lora kohya": Sample(
        {f"{KOHYA}_attn2_to_k.lora_down.weight": (16, 768), f"{KOHYA}_attn2_to_k.lora_up.weight": (640, 16)},
        "lora",
        "sd15",
        "kohya",
        ("rank 16",),
        supported=True,
    ),
    "dora": Sample(
        {
            f"{KOHYA}_attn2_to_k.lora_down.weight": (16, 2048),
            f"{KOHYA}_attn2_to_k.lora_up.weight": (640, 16),
            f"{KOHYA}_attn2_to_k.dora_scale": (640, 1),
        },
        "lora",
        "sdxl",
        "kohya",
        ("DoRA", "rank 16"),
        supported=True,
    ),
    "lora diffusers": Sample(
        {f"unet.{DOWN}.attn2.to_k.lora_A.weight": (16, 1024), f"unet.{DOWN}.attn2.to_k.lora_B.weight": (640, 16)},
        "lora",
        "sd2",
        "diffusers",
        ("rank 16",),
        supported=True,
    ),
    "loha": Sample(
        {f"lora_unet_x.hada_{part}": (8, 8) for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
        "lora",
        "",
        "kohya",
        ("rank 8",),
        supported=True,
    ),
    "lokr": Sample({f"lora_unet_x.lokr_{part}": (8, 8) for part in ("w1", "w2")}, "lora", "", "kohya", supported=True),
    "oft": Sample({"lora_unet_x.oft_blocks": (4, 8, 8)}, "lora", "", "kohya"),
    **{
        name: Sample(shapes, "textual-inversion", family, layout, details, supported=True)
        for name, shapes, family, layout, details in (
            ("textual inversion", {"emb_params": (4, 768)}, "sd15", "original", ("4 vectors",)),
            ("textual inversion pt", {"string_to_param.*": (2, 1024)}, "sd2", "original", ("2 vectors",)),
            ("textual inversion sdxl", {"clip_l": (4, 768), "clip_g": (4, 1280)}, "", "sdxl", ("4 vectors",)),
            ("textual inversion diffusers", {"<cat-toy>": (768,)}, "", "diffusers", ()),
        )
    },
    "ip-adapter": Sample(
        {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        "ip-adapter",
        "sd15",
        "original",
    ),
    "motion module": Sample(
        {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)},
        "motion-module",
        "",
        "original",
    ),
    "flux": Sample({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "flux", "", "original"),
    "sd3": Sample({f"{LDM_UNET}joint_blocks.0.context_block.attn.qkv.weight": (4608, 1536)}, "sd3", "", "original"),
    "flux net": Sample({"controlnet_blocks.0.weight": (3072, 3072)}, "controlnet-dit", "", "diffusers"),
    "unet ldm": Sample(unet_shapes(SD15.unet), "unet", "sd15", "ldm", supported=True),
    "unet diffusers": Sample(unet_shapes(SDXL, DIFFUSERS), "unet", "sdxl", "diffusers", supported=True),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_layout_is_recognised(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    identity = identify(with_markers(header_of(sample.shapes), tmp_path))
    assert (identity.kind, identity.family, identity.layout) == (sample.kind, sample.family, sample.layout)
    assert set(identity.details) == set(sample.details)
    assert identity.supported == sample.supported
    assert bool(identity.problem) != identity.supported
    assert (identity.config is not None) == (identity.supported and identity.kind not in WITHOUT_CONFIG)


SMALL = [name for name, sample in SAMPLES.items() if not sample.supported and len(sample.shapes) < 10]


@pytest.mark.parametrize("name", SMALL)
def test_a_kind_that_cannot_be_loaded_says_what_it_is(name: str, tmp_path: Path) -> None:
    """Through a real file; the rows that are full networks are tested by their header alone, above."""
    sample = SAMPLES[name]
    path = tmp_path / "sample.safetensors"
    write_safetensors(path, {key: torch.zeros(shape) for key, shape in sample.shapes.items()})
    report = inspect_file(path)
    assert not report.loadable
    assert report.identity.title in report.identity.summary
    assert "this version does not" in report.problem
    assert any(report.identity.summary in line for line in report.lines())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sd15", SD15),
        ("sd15 diffusers", SD15),
        ("sd15 v-prediction", replace(SD15, parametrization="v")),
        ("sd2", replace(SD21, parametrization="eps")),
        ("sd2 in the sgm layout", replace(SD21, parametrization="eps")),
        ("sdxl", SDXL_MODEL),
        ("sdxl diffusers", SDXL_MODEL),
        ("sdxl refiner", SDXL_REFINER),
        ("cldm", SD15.controlnet),
        ("diffusers net", SD15.controlnet),
        ("cldm plain", ControlNetConfig(unet=SD2, hint_channels=1)),
        ("diffusers sdxl net", ControlNetConfig(unet=SDXL)),
        ("unet diffusers", SDXL),
        ("sdxl mid cldm", ControlNetConfig(unet=MID)),
        ("sdxl mid diffusers", ControlNetConfig(unet=replace(MID, transformer_depth=(0, EMPTY, 1)))),
        ("sdxl small diffusers", ControlNetConfig(unet=replace(SMALL_NET, linear_projection=False))),
        ("union", ControlNetConfig(unet=SDXL, union=UnionConfig())),
        ("t2i gray, nested", AdapterConfig(hint_channels=1, kernel=3)),
        ("t2i sdxl", AdapterConfig(unshuffle=16, conv_down=True)),
        ("t2i light diffusers", LIGHT),
        ("difference", DerivedConfig(768)),
        ("control-lora", DerivedConfig(2048)),
        ("controlnet-xs", XS15),
        ("controlnet-xs diffusers", XS21),
        ("controlnet-xs sdxl", XSXL),
        ("controlnet-xs as saved in training", XSXL),
    ],
)
def test_shapes_give_the_config(name: str, config: object) -> None:
    assert identify(header_of(SAMPLES[name].shapes)).config == config


@pytest.mark.parametrize(
    ("name", "parametrization", "noise"),
    [
        ("sdxl", "eps", NoiseConfig()),
        ("sdxl v-prediction", "v", NoiseConfig(zero_terminal_snr=True)),
        ("sdxl edm", "edm", NoiseConfig("edm", False, 0.002, 80.0, 0.5)),
        ("sdxl edm v-prediction", "v", NoiseConfig("edm", False, 0.002, 40.0, 1.0)),
    ],
)
def test_markers_tell_what_was_trained(name: str, parametrization: str, noise: NoiseConfig, tmp_path: Path) -> None:
    config = identify(with_markers(header_of(SAMPLES[name].shapes), tmp_path)).config
    assert isinstance(config, ModelConfig)
    assert (config.parametrization, config.noise) == (parametrization, noise)
    assert config.text2 == SDXL_MODEL.text2


def test_every_signature_is_reached_by_a_row_or_is_rare(tmp_path: Path) -> None:
    """No signature is hidden by one above it: the samples reach every kind of the table but these."""
    headers = (header_of(sample.shapes) for sample in SAMPLES.values())
    reached = {identify(with_markers(header, tmp_path)).kind for header in headers}
    rest = {signature.kind for signature in SIGNATURES} - reached
    others = {"vae", "taesd", "clip-vision", "text-encoder", "upscaler", "gligen", "hypernetwork", "svd"}
    assert rest == {*others, "controlnet-hunyuan", "controlnet-cascade"}
    assert {kind for detail in DETAILS for kind in detail.kinds} <= {row.kind for row in SIGNATURES}


def test_a_t2i_adapter_pickled_below_adapter(tmp_path: Path) -> None:
    path = tmp_path / "t2i.pth"
    weights = {"conv_in.weight": torch.zeros(4, 64, 1, 1), "body.0.block1.weight": torch.zeros(4, 4, 1, 1)}
    torch.save({"adapter": weights}, path)
    assert identify_file(path).kind == "t2i-adapter"


def test_a_difference_marked_by_a_plain_value(tmp_path: Path) -> None:
    path = tmp_path / "diff.pth"
    weights = {"control_model.zero_convs.0.0.weight": torch.zeros(1)}
    torch.save({**weights, "difference": True}, path)
    assert identify_file(path).kind == "controlnet-difference"


@pytest.mark.parametrize(("std", "predicts_v"), [(0.2, True), (0.05, False)])
def test_sd2_that_predicts_v_is_told_by_the_spread_of_one_bias(tmp_path: Path, std: float, predicts_v: bool) -> None:
    path = tmp_path / "sd2.safetensors"
    bias = torch.linspace(-1.0, 1.0, 320)
    weights = {
        f"{LDM_UNET}input_blocks.0.0.weight": torch.zeros(1, 4),
        f"{LDM_UNET}out.2.weight": torch.zeros(1),
        f"{MODEL_BLOCK}.attn2.to_k.weight": torch.zeros(1, 1024),
        f"{LDM_UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias": bias / bias.std() * std,
    }
    write_safetensors(path, weights)
    identity = identify_file(path)
    assert identity.family == "sd2"
    assert ("v-prediction" in identity.details) == predicts_v


def test_the_config_in_the_metadata_wins() -> None:
    """Heads cannot be seen in shapes, and neither can a name."""
    shapes = net_shapes(DEMO.unet, LDM, "control_model.")
    bare = identify(header_of(shapes))
    assert (bare.family, bare.config) == ("custom", ControlNetConfig(unet=replace(DEMO.unet, num_heads=8)))
    metadata = {
        CONFIG_KEY: config_to_json(ControlNetConfig(unet=DEMO.unet)),
        "controlnet_core.family": "demo",
    }
    told = identify(header_of(shapes, metadata))
    assert (told.family, told.config) == ("demo", ControlNetConfig(unet=DEMO.unet))
    assert "ControlNet for the demo model" in told.summary


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        "{}",
        '{"type": "VAEConfig"}',
        '{"type": "ModelConfig"}',
        '{"type": "ControlNetConfig", "x": 1}',
    ],
)
def test_a_wrong_config_in_the_metadata_is_a_problem_and_no_crash(text: str) -> None:
    identity = identify(header_of(net_shapes(DEMO.unet), {CONFIG_KEY: text}))
    assert identity.kind == "controlnet"
    assert not identity.supported
    assert "controlnet_core.config" in identity.problem


CONFIGS = [SD15, DEMO, SD15.controlnet, SDXL, SD15.vae, SD15.text, ControlNetConfig(union=UnionConfig()), LIGHT]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_survives_json(config: object) -> None:
    assert config_from_json(config_to_json(config), type(config)) == config  # type: ignore[arg-type]


def test_a_config_of_an_earlier_version_is_read() -> None:
    text = config_to_json(SD15)
    assert text.count("norms_stop_layer") == 1
    assert config_from_json(text.replace("norms_stop_layer", "norm_skipped"), ModelConfig) == SD15


def test_an_incomplete_net_is_recognised_with_its_problem() -> None:
    shapes = net_shapes(SD15.unet)
    del shapes["input_blocks.0.0.weight"]
    identity = identify(header_of(shapes))
    assert (identity.kind, identity.supported) == ("controlnet", False)
    assert "missing" in identity.problem


@pytest.mark.parametrize("axes", [0, 1])
@pytest.mark.parametrize("name", SAMPLES)
def test_weights_that_lost_their_axes_are_a_problem_and_no_crash(name: str, axes: int, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    header = header_of({key: shape[:axes] for key, shape in sample.shapes.items()})
    identity = identify(with_markers(header, tmp_path))
    said = problem(header, identity)
    if sample.supported and sample.kind not in WITHOUT_CONFIG:
        assert identity.kind == sample.kind and not identity.supported
        assert "expected at least" in said and "axes" in said
        assert "{" not in identity.summary


def test_unknown_files_show_what_their_keys_look_like() -> None:
    identity = identify(header_of({"layers.0.wq.weight": (8, 8), "layers.0.wk.weight": (8, 8)}))
    assert identity.kind == "unknown"
    assert identity.summary.startswith("not a model this package knows; its keys look like layers.0.wq.weight")


def test_the_summary_names_kind_family_and_layout() -> None:
    words = identify(header_of(SAMPLES["cldm"].shapes)).summary
    assert words == "ControlNet for Stable Diffusion 1.x (cldm layout, 3 hint channels)"
    assert Identity("unknown", "what", "unknown").summary == "what"


@pytest.mark.parametrize(
    ("entries", "heads"),
    [
        ({"attention_head_dim": 8}, (8, None)),
        ({"attention_head_dim": [5, 10, 20, 20]}, (8, 64)),
        ({"num_attention_heads": 4, "attention_head_dim": 8}, (4, None)),
        ({"attention_head_dim": [8, 8, 8, 8]}, (8, None)),
        ({}, (8, None)),
    ],
)
def test_heads_of_a_diffusers_config(entries: dict, heads: tuple[int, int | None]) -> None:
    found = refine_unet(SD15.unet, entries)
    assert (found.num_heads, found.head_dim) == heads


@pytest.mark.parametrize(
    ("entry", "value"),
    [("norm_num_groups", 16), ("resnet_time_scale_shift", "scale_shift"), ("act_fn", "relu")],
)
def test_other_arithmetic_is_refused(entry: str, value: object) -> None:
    """Shapes do not show it: the weights would load and the pictures be wrong."""
    with pytest.raises(CheckpointError, match=f"its config says {entry} = {value!r}"):
        refine_unet(SD15.unet, {entry: value})


def test_needles_are_anchored() -> None:
    index = KeyIndex(["net.a.weight", "b.weight"])
    assert index.find("^a.weight$") is None
    assert index.find("^a.weight$", "net.") == "net.a.weight"
    assert index.find("^^b.", "net.") == "b.weight"
    assert index.find("weight$") == "net.a.weight"
    assert index.find("a.weigh") == "net.a.weight"
    assert index.find("a.weigh$") is None
