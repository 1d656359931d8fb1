"""CLIP's image encoder against transformers: random weights, in the names of transformers and of OpenCLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.vision import load_vision_encoder
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, UnfitError
from comfyui_controlnet_core.controlnet_core.models.vision_encoder import VisionOutput, prepare_pictures
from safetensors.torch import save_file
from torch import Tensor

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-5


def reference(layers: int) -> Any:
    """An encoder of transformers with 48 channels, for pictures of 28 pixels in patches of 7."""
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=layers,
            num_attention_heads=16,
            image_size=28,
            patch_size=7,
            projection_dim=20,
            hidden_act="quick_gelu" if layers <= 24 else "gelu",
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.randn_like(value)
    return model


def open_clip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights in OpenCLIP's names."""
    found = {}
    for key, value in state.items():
        name = key.removeprefix("vision_model.").replace("encoder.layers.", "transformer.resblocks.")
        for old, new in (
            ("embeddings.class_embedding", "class_embedding"), ("embeddings.patch_embedding", "conv1"),
            ("embeddings.position_embedding.weight", "positional_embedding"), ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ("self_attn.out_proj", "attn.out_proj"),
        ):  # fmt: skip
            name = name.replace(old, new)
        if name == "visual_projection.weight":
            found["proj"] = value.T
        elif ".self_attn." in name:
            stem, kind = name.split(".self_attn.")[0], name.rpartition(".")[2]
            parts = [state[key.replace(key.split(".")[-2], f"{part}_proj")] for part in "qkv"]
            found[f"{stem}.attn.in_proj_{kind}"] = torch.cat(parts)
        else:
            found[name] = value
    return {prefix + key: value.contiguous().clone() for key, value in found.items()}


def compare(ours: VisionOutput, theirs: Any) -> None:
    pairs = ((ours.last, theirs.last_hidden_state), (ours.penultimate, theirs.hidden_states[-2]))
    for mine, other in (*pairs, (ours.embeds, theirs.image_embeds)):
        assert float((mine - other).abs().max()) <= TOLERANCE * float(other.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("layers", [2, 26])
@pytest.mark.parametrize("prefix", [None, "", "visual.", "embedder.model.visual."])
def test_states_and_vectors_are_those_of_transformers(tmp_path: Path, layers: int, prefix: str | None) -> None:
    model = reference(layers)
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("position_ids")}
    tensors = {**state, "logit_scale": torch.ones(1)} if prefix is None else open_clip(state, prefix)
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "vision.safetensors")
    ours = load_vision_encoder(tmp_path / "vision.safetensors")
    pictures = prepare_pictures(torch.rand(2, 40, 33, 3), ours.config.side)
    compare(ours(pictures), model(pictures, output_hidden_states=True))


def test_files_that_are_no_image_encoder_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"text_model.weight": torch.ones(2)}, path)
    with pytest.raises(UnfitError, match=r"x\.safetensors holds no CLIP image encoder"):
        load_vision_encoder(path)
    state = {key: value.contiguous() for key, value in reference(2).state_dict().items() if "fc1" not in key}
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is no complete CLIP image encoder"):
        load_vision_encoder(path)
