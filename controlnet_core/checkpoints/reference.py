"""The same file in diffusers, an independent implementation: its converter, its network, the same input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.controlnet import ControlNet
from ..models.unet import UNet
from ..models.union import ControlNetUnion
from ..models.vae import AutoencoderKL
from .detect import identify
from .diffusers import VAE_ATTENTION, VAE_ATTENTION_OLD
from .fileconfig import controlnet_entries, unet_entries, vae_entries
from .io import read_header, read_tensors
from .layouts import LAYOUTS, part

TOLERANCE = 1e-3
"""Largest error, relative to the largest output: float32 in two orders of summation differs by about 1e-5."""
SIZE = 16
"""Side of the latent that both networks are given."""
REFERENCES: Mapping[type[nn.Module], tuple[str, str, Callable[[Any], dict[str, Any]]]] = {
    UNet: ("UNet2DConditionModel", "convert_ldm_unet_checkpoint", unet_entries),
    ControlNet: ("ControlNetModel", "convert_controlnet_checkpoint", controlnet_entries),
    AutoencoderKL: ("AutoencoderKL", "convert_ldm_vae_checkpoint", vae_entries),
}
"""By our network: that of diffusers, the converter of its keys, and what makes its config."""


class NoReference(Exception):
    """There is nothing to compare with; the message says why."""


@torch.no_grad()
def compare_with_diffusers(model: nn.Module, path: Path) -> str:
    """Run a UNet, ControlNet or autoencoder and diffusers' network with the weights of the same file.

    Returns the largest relative error in words. Raises CheckpointError when it is above `TOLERANCE`, NoReference
    where there is no such network in diffusers, or no diffusers.
    """
    if not isinstance(model, (UNet, ControlNet, AutoencoderKL)) or isinstance(model, ControlNetUnion):
        raise NoReference("not compared: only UNets, ControlNets and autoencoders are")
    reference = _load_reference(model, path)
    make = torch.Generator().manual_seed(1)
    if isinstance(model, AutoencoderKL):
        picture = torch.rand(1, 3, 8 * SIZE, 8 * SIZE, generator=make) * 2 - 1
        latent, scale = model.cpu().encode(picture), model.config.scaling_factor
        ours = [latent, model.decode(latent)]
        theirs = [reference.encode(picture).latent_dist.mode() * scale, reference.decode(latent / scale).sample]
    else:
        unet = model.config if isinstance(model, UNet) else model.config.unet
        x = torch.randn(1, unet.in_channels, SIZE, SIZE, generator=make)
        inputs = [x, torch.tensor([500.0]), torch.randn(1, 77, unet.context_dim, generator=make)]
        if isinstance(model, UNet):
            ours, theirs = [model.cpu()(*inputs)], [reference(*inputs).sample]
        else:
            inputs.append(torch.rand(1, model.config.hint_channels, 8 * SIZE, 8 * SIZE, generator=make))
            skips, middle = model.cpu()(*inputs)
            expected, last = reference(*inputs, return_dict=False)
            ours, theirs = [*skips, middle], [*expected, last]
    errors = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(ours, theirs, strict=True)]
    if not max(errors) <= TOLERANCE:  # NaN fails too
        raise CheckpointError(f"the outputs differ from diffusers by {max(errors):.2g} of the largest value")
    return f"equal within {max(errors):.2g} of the largest value"


def _load_reference(model: UNet | ControlNet | AutoencoderKL, path: Path) -> Any:
    """The network of diffusers, with the weights that its own converter makes of the file."""
    try:
        import diffusers
        from diffusers.loaders import single_file_utils
    except ImportError as error:
        raise NoReference("not compared: diffusers is not installed") from error
    name, converter, describe = next(row for kind, row in REFERENCES.items() if isinstance(model, kind))
    try:
        entries = describe(model.config)
    except CheckpointError as error:
        raise NoReference("not compared: its shape cannot be described to diffusers") from error
    tensors, layout = _read_part(model, path)
    if layout in ("ldm", "cldm"):
        settings = {**entries, "class_embed_type": None, "addition_embed_type": None}
        tensors = getattr(single_file_utils, converter)(dict(tensors), settings)
    elif layout == "diffusers":
        for (old, _), (new, _) in zip(VAE_ATTENTION_OLD, VAE_ATTENTION, strict=True):
            spelling = f".attentions.0.{old}.", f".attentions.0.{new}."
            tensors = {key.replace(*spelling): tensor for key, tensor in tensors.items()}
    else:
        raise NoReference(f"not compared: diffusers does not read the layout {layout}")
    network = getattr(diffusers, name)(**{key: value for key, value in entries.items() if not key.startswith("_")})
    # LDM keeps the attention of the autoencoder as 1x1 convolutions, diffusers as linear layers
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    state = {key: tensor.float().reshape(shapes.get(key, tensor.shape)) for key, tensor in tensors.items()}
    # Strict here too: a weight that the converter drops would be random, and the comparison would blame us.
    network.load_state_dict(state, strict=True)
    return network.eval()


def _read_part(model: nn.Module, path: Path) -> tuple[Mapping[str, Tensor], str]:
    """The weights of one model in a file, under the names that diffusers' converter expects, and their layout."""
    header = read_header(path)
    identity = identify(header)
    layout = LAYOUTS[identity.layout]
    prefixes, keep = (identity.prefix,), ""
    if isinstance(model, UNet):
        keep = "model.diffusion_model."
        prefixes = layout.unet_prefixes if identity.kind == "checkpoint" else prefixes
    elif isinstance(model, ControlNet):
        keep = "control_model."
    elif identity.kind == "checkpoint":
        prefixes = layout.vae_prefixes
    prefix, names = part(header.shapes, prefixes)
    stored = read_tensors(header, [prefix + name for name in names])
    keep = keep if identity.layout in ("ldm", "cldm") else ""
    return {keep + key.removeprefix(prefix): tensor for key, tensor in stored.items()}, identity.layout
