"""Depth Anything V2: the same random weights in ours and in transformers give the same disparity."""

from __future__ import annotations

import re

import pytest
import torch
from comfyui_controlnet_core.preprocessors.learned.depth_anything import DepthAnything, DepthConfig

transformers = pytest.importorskip("transformers")

CONFIG = DepthConfig(width=48, depth=5, heads=3, taps=(0, 2, 3, 4), features=16, widths=(8, 12, 16, 24), grid=6)

RULES = (
    (r"pretrained\.cls_token", r"backbone.embeddings.cls_token"),
    (r"pretrained\.pos_embed", r"backbone.embeddings.position_embeddings"),
    (r"pretrained\.mask_token", r"backbone.embeddings.mask_token"),
    (r"pretrained\.patch_embed\.proj\.", r"backbone.embeddings.patch_embeddings.projection."),
    (r"pretrained\.blocks\.(\d+)\.attn\.proj\.", r"backbone.encoder.layer.\1.attention.output.dense."),
    (r"pretrained\.blocks\.(\d+)\.ls([12])\.gamma", r"backbone.encoder.layer.\1.layer_scale\2.lambda1"),
    (r"pretrained\.blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"backbone.encoder.layer.\1.\2."),
    (r"pretrained\.norm\.", r"backbone.layernorm."),
    (r"depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"depth_head\.scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}."),
    (
        r"depth_head\.scratch\.refinenet(\d)\.out_conv\.",
        lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.projection.",
    ),
    (
        r"depth_head\.scratch\.refinenet(\d)\.resConfUnit(\d)\.conv(\d)\.",
        lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.residual_layer{m[2]}.convolution{m[3]}.",
    ),
    (r"depth_head\.scratch\.output_conv1\.", r"head.conv1."),
    (r"depth_head\.scratch\.output_conv2\.0\.", r"head.conv2."),
    (r"depth_head\.scratch\.output_conv2\.2\.", r"head.conv3."),
)


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our (official) names -> the names of transformers' state dict."""
    out = {}
    for key, value in state.items():
        found = re.fullmatch(r"pretrained\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key)
        if found:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"backbone.encoder.layer.{found[1]}.attention.attention.{name}.{found[2]}"] = part
            continue
        for pattern, replacement in RULES:
            other, count = re.subn("^" + pattern, replacement, key)
            if count:
                out[other] = value
                break
    return out


def newer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of transformers 4 -> those of releases that flattened the attention."""
    short = {
        "attention.query": "q_proj",
        "attention.key": "k_proj",
        "attention.value": "v_proj",
        "output.dense": "o_proj",
    }
    for old, new in short.items():
        state = {key.replace(f".attention.{old}.", f".attention.{new}."): value for key, value in state.items()}
    return state


def reference() -> torch.nn.Module:
    backbone = transformers.Dinov2Config(
        hidden_size=CONFIG.width,
        num_hidden_layers=CONFIG.depth,
        num_attention_heads=CONFIG.heads,
        image_size=CONFIG.grid * 14,
        patch_size=14,
        out_indices=[tap + 1 for tap in CONFIG.taps],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=CONFIG.width,
        neck_hidden_sizes=list(CONFIG.widths),
        fusion_hidden_size=CONFIG.features,
        head_hidden_size=32,
    )
    return transformers.DepthAnythingForDepthEstimation(config).eval()


@pytest.mark.parametrize("seed", range(3))
def test_same_weights_same_disparity(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours = DepthAnything(CONFIG).eval()
    for value in ours.state_dict().values():
        scale = 0.3 if value.ndim < 2 else value[0].numel() ** -0.5
        value.copy_(torch.randn(value.shape, generator=generator) * scale)
    theirs = reference()
    state = renamed(ours.state_dict())
    if not any(".attention.attention." in key for key in theirs.state_dict()):
        state = newer(state)
    missing = set(theirs.state_dict()) ^ set(state)
    assert not missing, f"transformers and this package name these keys otherwise: {sorted(missing)[:3]}"
    theirs.load_state_dict(state)
    picture = torch.randn(2, 3, CONFIG.grid * 14, CONFIG.grid * 14, generator=generator)
    with torch.no_grad():
        a, b = ours(picture)[:, 0], theirs(picture).predicted_depth
    assert a.shape == b.shape and b.std() > 0
    assert float((a - b).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max()))
