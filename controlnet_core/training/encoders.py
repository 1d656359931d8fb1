"""What a training reads of its examples in the form that the networks take: latents, hidden states of the captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..checkpoints.load import Checkpoint
from ..errors import CheckpointError, UnfitError
from ..models.label import PictureSize, label_vector, size_kind
from ..models.text_encoder import DualTextEncoder, TextEncoder
from ..models.to_device import to_device_async
from ..models.vae import AutoencoderKL
from .buckets import Size
from .disk_cache import DiskCache
from .examples import Examples
from .latent_cache import LatentCache
from .tar_examples import TarExamples

Conditioner: TypeAlias = Callable[[Sequence[str], Size], tuple[Tensor, Tensor | None]]
"""Captions, (height, width) of the pictures -> text (B, 77, width), and the label vector (B, label_dim) of models that
have one."""


def find_vae(checkpoint: Checkpoint) -> AutoencoderKL:
    """The autoencoder of a base. Raises CheckpointError for a base without one."""
    if checkpoint.vae is None:
        raise CheckpointError(f"the {checkpoint.config.name} checkpoint has no autoencoder: use one that has")
    return checkpoint.vae


def cached_latents(
    vae: AutoencoderKL,
    data: Examples,
    device: torch.device,
    disk: DiskCache | None,
    limit: int,
    read: Callable[[int], Tensor] | None = None,
) -> LatentCache:
    """Rows -> latents (B, 4, h, w), encoded once.

    limit: bytes that are kept in memory. read: row -> picture (1, 3, H, W), instead of from `data`.
    """
    # The rows of a stream never come again.
    limit = 0 if isinstance(data, TarExamples) else limit

    def name(row: int) -> str:
        stamp = data.stamp(row)
        return f"latent {data.size} {device.type} {stamp}" if stamp else ""

    picture = read or (lambda row: data.pictures([row]))
    return LatentCache(lambda row: _encode(vae, picture(row), device), limit, disk, name)


@torch.no_grad()
def _encode(vae: AutoencoderKL, picture: Tensor, device: torch.device) -> Tensor:
    # In full precision always: a probe may be the first to encode a row, and it runs without bfloat16.
    with torch.autocast(device.type, enabled=False):
        return vae.encode(picture.to(device))[0]


def cached_conditioner(
    text: TextEncoder | DualTextEncoder, label_dim: int | None, disk: DiskCache | None, limit: int
) -> Conditioner:
    """Captions are read as they are, without weights in parentheses, and encoded once: half of them are empty.

    limit: bytes that are kept in memory.
    """
    encoders = (text.first, text.second) if isinstance(text, DualTextEncoder) else (text,)
    width = sum(encoder.config.width for encoder in encoders)

    def encode(caption: str) -> Tensor:
        with torch.autocast(text.device.type, enabled=False):
            states = [encoder.states(encoder.tokenize([caption])) for encoder in encoders]
        # One row for the cache: the hidden states of all encoders, then the pooled state of the last.
        return torch.cat([torch.cat([hidden[0] for hidden, _ in states], dim=-1).flatten(), states[-1][1][0]])

    cache = LatentCache(encode, limit, disk, lambda caption: f"text {text.device.type} {caption}")

    def condition(captions: Sequence[str], size: Size) -> tuple[Tensor, Tensor | None]:
        rows = to_device_async(cache(captions), text.device)
        hidden = encoders[0].config.max_length * width
        context, pooled = rows[:, :hidden].unflatten(1, (-1, width)), rows[:, hidden:]
        if label_dim is None:
            return context, None
        if size_kind(pooled.shape[-1], label_dim) is not PictureSize:
            raise UnfitError("a refiner reads an aesthetic score, and no ControlNets are made for it: use its base")
        # SDXL reads the size of a picture and where it was cut. Training pictures are not cut, and have this size.
        return context, label_vector(pooled, PictureSize(*size, 0, 0, *size))

    return condition
