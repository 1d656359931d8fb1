"""MODEL, CLIP and VAE for ComfyUI's sockets.

Models of our own shape, such as the demo model, become ComfyUI's own objects: its UNet, filled with our
weights under its names; its CLIP around our text encoder; its VAE around our autoencoder. None of its
global lists is touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import folder_paths
import torch

from ...controlnet_core.checkpoints import ldm
from ...controlnet_core.checkpoints.detect import Identity
from ...controlnet_core.checkpoints.keymap import KeyMap
from ...controlnet_core.checkpoints.load import Checkpoint, load_checkpoint
from ...controlnet_core.config import UNetConfig
from ...controlnet_core.errors import CheckpointError
from ...controlnet_core.models.unet import UNet
from .text import own_clip
from .vae import OwnVae, preview_colours


def load_host_checkpoint(path: Path, identity: Identity) -> tuple[Any, Any, Any]:
    """What ComfyUI makes of a file. Raises CheckpointError when it knows nothing to make of it."""
    embeddings = folder_paths.get_folder_paths("embeddings")
    try:
        found = comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=True, embedding_directory=embeddings
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"{path.name} is {identity.summary}; neither ComfyUI nor this pack can load it as a checkpoint "
            f"({error}): choose a Stable Diffusion checkpoint",
            path,
        ) from error
    model, clip, vae = found[:3]
    return model, clip, vae


def load_own_checkpoint(path: Path) -> tuple[Any, Any, Any]:
    """A checkpoint of our own shape as ComfyUI's objects; None for a part that the file does not have."""
    checkpoint = load_checkpoint(path)
    vae = None if checkpoint.vae is None else OwnVae(checkpoint.vae)
    clip = None if checkpoint.text_model is None else own_clip(checkpoint.text_encoder())
    model = own_model(checkpoint)
    # How ComfyUI loads a part once more, for another device or without dynamic VRAM (since 0.33).
    model.cached_patcher_init = (load_patcher, (path, "model"))
    for part, name in ((clip, "clip"), (vae, "vae")):
        if part is not None:
            part.patcher.cached_patcher_init = (load_patcher, (path, name))
    return model, clip, vae


def load_patcher(path: Path, part: str, disable_dynamic: bool = False) -> Any:
    """The patcher of one part ("model", "clip" or "vae") of a checkpoint of our own shape, with weights of its own."""
    checkpoint = load_checkpoint(path)
    if part == "model":
        return own_model(checkpoint, disable_dynamic)
    if part == "clip":
        return own_clip(checkpoint.text_encoder()).patcher
    assert checkpoint.vae is not None
    return OwnVae(checkpoint.vae).patcher


def own_model(checkpoint: Checkpoint, disable_dynamic: bool = False) -> Any:
    """MODEL: ComfyUI's UNet of this shape, with the checkpoint's weights.

    disable_dynamic: whether the model stays out of ComfyUI's dynamic VRAM.
    """
    config = checkpoint.config
    manage = comfy.model_management
    load_device = manage.get_torch_device()
    count = sum(p.numel() for p in checkpoint.unet.parameters())
    dtype = manage.unet_dtype(model_params=count, supported_dtypes=OwnModelConfig.supported_inference_dtypes)
    described = OwnModelConfig(native_unet_config(config.unet))
    described.latent_format = OwnLatent(checkpoint)
    described.set_inference_dtype(dtype, manage.unet_manual_cast(dtype, load_device))
    kinds = {"eps": comfy.model_base.ModelType.EPS, "v": comfy.model_base.ModelType.V_PREDICTION}
    model = comfy.model_base.BaseModel(described, kinds[config.parametrization], device=manage.unet_offload_device())
    # Strict, because ComfyUI's own loading reports missing weights in its log only.
    model.diffusion_model.load_state_dict(native_state(checkpoint.unet), strict=True)
    model.diffusion_model.eval()
    plain = comfy.model_patcher.ModelPatcher
    patcher = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    return patcher(model, load_device, manage.unet_offload_device())


def native_state(unet: UNet) -> dict[str, torch.Tensor]:
    """A UNet's weights under the names of the original release, which are ComfyUI's."""
    keymap = KeyMap(ldm.unet_rules(unet.config))
    state = {keymap.to_theirs(name): tensor for name, tensor in unet.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name is not None}


class OwnModelConfig(comfy.supported_models.SD15):
    """SD1.5 in another shape. Not in ComfyUI's list of models, so that detection stays as it is."""

    unet_extra_config: dict[str, Any] = {}

    def clip_target(self, state_dict: dict[str, Any] | None = None) -> None:
        """The text encoder is not one that ComfyUI builds."""


class OwnLatent(comfy.latent_formats.SD15):
    """Scale and preview colours of a model's latents."""

    taesd_decoder_name = None

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.scale_factor = checkpoint.config.vae.scaling_factor
        self.latent_rgb_factors, self.latent_rgb_factors_bias = preview_colours(checkpoint.vae)
        self.taesd_decoder_name = None


class Multiple(int):
    """How many times as wide as the first a level is, where that is no whole number: 96 = 64 * 1.5.

    ComfyUI's UNet multiplies it by the first width and nothing else.
    """

    width: int
    first: int

    def __new__(cls, width: int, first: int) -> Multiple:
        """`width // first` to whoever prints it, exactly `width` when multiplied."""
        number = super().__new__(cls, width // first)
        number.width, number.first = width, first
        return number

    def __getnewargs__(self) -> tuple[int, int]:
        return self.width, self.first

    def __mul__(self, first: int) -> int:
        return self.width

    __rmul__ = __mul__


def native_unet_config(config: UNetConfig) -> dict[str, Any]:
    """The keyword arguments of ComfyUI's UNet for this shape."""
    first = config.widths[0]
    depths = config.transformer_depth
    return {
        "image_size": 32,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": first,
        "channel_mult": tuple(w // first if w % first == 0 else Multiple(w, first) for w in config.widths),
        "num_res_blocks": [config.res_blocks] * len(config.widths),
        "transformer_depth": [depth for depth in depths for _ in range(config.res_blocks)],
        "transformer_depth_output": [depth for depth in depths for _ in range(config.res_blocks + 1)],
        "transformer_depth_middle": config.middle_depth or -1,  # 0 would be an attention without blocks
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config.linear_projection,
        "use_temporal_attention": False,
        "context_dim": config.context_dim,
        # ComfyUI computes the one that is -1 from the other.
        "num_heads": -1 if config.head_dim else config.num_heads,
        "num_head_channels": config.head_dim or -1,
        "legacy": False,
        "adm_in_channels": config.label_dim,
        "num_classes": None if config.label_dim is None else "sequential",
    }
