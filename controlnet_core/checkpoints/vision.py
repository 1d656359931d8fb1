"""Load CLIP's image encoder: from its own file, in the names of transformers or OpenCLIP, or out of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..config import VisionConfig
from ..errors import CheckpointError, UnfitError
from ..models.module_tree import on_meta
from ..models.vision_encoder import ClipVisionModel
from .headers import read_header
from .io import read_tensors

HEADS = 16
"""Heads of all published encoders from L upwards. Their number does not follow from the shapes of the weights."""
OPENAI_LAYERS = 24
"""OpenAI's encoders have up to 24 layers and the approximate activation, OpenCLIP's larger ones the exact one."""
_TRANSFORMERS = (
    ("vision_model.embeddings.class_embedding", "class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "patches."),
    ("vision_model.embeddings.position_embedding.", "position_embedding."),
    ("vision_model.pre_layrnorm.", "norm_in."),
    ("vision_model.post_layernorm.", "norm_out."),
    ("visual_projection.", "projection."),
    ("vision_model.encoder.layers.", "layers."),
    (".self_attn.q_proj.", ".attn.q."),
    (".self_attn.k_proj.", ".attn.k."),
    (".self_attn.v_proj.", ".attn.v."),
    (".self_attn.out_proj.", ".attn.out."),
    (".layer_norm", ".norm"),
    (".mlp.fc", ".fc"),
)
_OPEN_CLIP = (
    ("transformer.resblocks.", "layers."),
    (".attn.out_proj.", ".attn.out."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".mlp.c_fc.", ".fc1."),
    (".mlp.c_proj.", ".fc2."),
    ("ln_pre.", "norm_in."),
    ("ln_post.", "norm_out."),
    ("conv1.", "patches."),
)
_OWN = re.compile(r"(class_embedding|patches|position_embedding|norm_in|norm_out|projection|layers)\b.*")


def load_vision_encoder(path: str | Path) -> ClipVisionModel:
    """Return the image encoder of a file. Raises CheckpointError for a damaged file, UnfitError for another kind."""
    header = read_header(path)
    for prefix in ("", "visual.", "embedder.model.visual."):
        if f"{prefix}transformer.resblocks.0.attn.in_proj_weight" in header.tensors:
            keys = [key for key in header.tensors if key.startswith(prefix)]
            found = {key.removeprefix(prefix): tensor for key, tensor in read_tensors(header, keys).items()}
            return _build(_from_open_clip(found), Path(path))
    if "vision_model.pre_layrnorm.weight" not in header.tensors:
        raise UnfitError(f"{Path(path).name} holds no CLIP image encoder: load one, such as CLIP-ViT-H", path)
    keys = [key for key in header.tensors if key.startswith(("vision_model.", "visual_projection."))]
    return _build(
        {_renamed(key, _TRANSFORMERS): value for key, value in read_tensors(header, keys).items()}, Path(path)
    )


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        key = key.replace(old, new)
    return key


def _from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = _renamed(key, _OPEN_CLIP)
        stem, fused, kind = name.partition(".attn.in_proj_")
        if fused:
            # OpenCLIP keeps queries, keys and values in one matrix.
            found |= {f"{stem}.attn.{part}.{kind}": own for part, own in zip("qkv", value.tensor_split(3), strict=True)}
        elif name == "positional_embedding":
            found["position_embedding.weight"] = value
        elif name == "proj":
            found["projection.weight"] = value.T
        else:
            found[name] = value
    return found


def _build(tensors: dict[str, Tensor], path: Path) -> ClipVisionModel:
    tensors = {key: value for key, value in tensors.items() if _OWN.fullmatch(key)}
    try:
        config = _config({key: tuple(value.shape) for key, value in tensors.items()})
        with on_meta():
            model = ClipVisionModel(config)
        model.load_state_dict(tensors, assign=True)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path.name} is no complete CLIP image encoder ({reason}): load another file", path
        ) from error
    return model.eval().requires_grad_(False)


def _config(shapes: Mapping[str, tuple[int, ...]]) -> VisionConfig:
    width, channels, patch, _ = shapes["patches.weight"]
    if channels != 3 or width % HEADS:
        raise ValueError(f"{channels} channels and a width of {width}")
    layers = sum(re.fullmatch(r"layers\.\d+\.norm1\.weight", key) is not None for key in shapes)
    side = round((shapes["position_embedding.weight"][0] - 1) ** 0.5) * patch
    return VisionConfig(
        width=width,
        layers=layers,
        heads=HEADS,
        hidden=shapes["layers.0.fc1.weight"][0],
        patch=patch,
        side=side,
        activation="quick_gelu" if layers <= OPENAI_LAYERS else "gelu",
        projection=shapes["projection.weight"][0] if "projection.weight" in shapes else None,
    )
