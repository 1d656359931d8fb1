"""Encodes and decodes pictures, in tiles where memory does not suffice for a whole picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ...controlnet_core.backend import Backend
from ...controlnet_core.errors import CheckpointError, OutOfMemory, ShapeError
from ...controlnet_core.memory_estimate import decode_bytes
from ...controlnet_core.models.vae import AutoencoderKL, scale_latent, unscale_latent
from ...controlnet_core.runtime.device import channels_last
from ...controlnet_core.runtime.memory import MB, free_bytes, plan_decoding
from ...controlnet_core.speed import bytes_to_come
from ..tiles import run_in_tiles
from .values import Vae


def decode_latents(
    vae: Vae | None,
    samples: Tensor,
    backend: Backend,
    tile: int | None = None,
    overlap: int = 8,
    on_note: Callable[[str], None] = lambda text: None,
) -> Tensor:
    """Latents (B, 4, h, w) -> IMAGE (B, 8h, 8w, 3) in [0, 1].

    tile, overlap: sides of a tile and of the overlap of two tiles, in latent cells. Without `tile` the free memory
    decides, and `on_note` is called where tiles are used. Raises CheckpointError where there is no autoencoder.
    """
    model = _placed(vae, backend)
    assert vae is not None  # checked by _placed
    rows = len(samples)
    if tile is None:
        rows, tile = _plan(vae, model, samples, backend, on_note)
    with torch.inference_mode(), _named_memory_error(samples):
        # The batch is decoded in parts: a decoder needs far more memory for an image than the UNet for its latent.
        pictures = []
        for part in scale_latent(samples, model.config).split(rows):
            x = _on_device(part, backend)
            decoded = model.decode(x) if tile is None else model.decode_tiled(x, tile, overlap)
            pictures.append(decoded.float().add(1.0).div(2.0).clamp(0.0, 1.0).movedim(1, -1).cpu())
        return torch.cat(pictures)


def encode_pictures(
    vae: Vae | None, pixels: Tensor, backend: Backend, tile: int | None = None, overlap: int = 64
) -> Tensor:
    """IMAGE (B, H, W, C), cropped to a multiple of the autoencoder's factor -> latents (B, 4, H/8, W/8).

    tile, overlap: sides of a tile and of the overlap of two tiles, in pixels. As in ComfyUI, a picture in tiles is
    encoded three times, also with wide and with tall tiles, and the mean is taken, so that no seam shows.
    """
    model = _placed(vae, backend)
    # Three channels: ComfyUI passes images with alpha through many nodes.
    pixels = crop_to_multiple(pixels[..., :3], model.config.factor)

    def encode(part: Tensor) -> Tensor:
        latents = model.encode(_on_device(part * 2.0 - 1.0, backend))
        return unscale_latent(latents.float().cpu(), model.config)

    pictures = pixels.movedim(-1, 1)
    with torch.inference_mode(), _named_memory_error(pixels):
        if tile is None:
            return encode(pictures)
        config = model.config
        shapes = ((tile, tile), (tile // 2, tile * 2), (tile * 2, tile // 2))
        made = [run_in_tiles(pictures, encode, s, overlap, 1 / config.factor, config.latent_channels) for s in shapes]
        return (made[0] + made[1] + made[2]) / 3.0


def crop_to_multiple(pixels: Tensor, factor: int) -> Tensor:
    """(B, H, W, C) cropped at the centre to multiples of `factor`. Raises ShapeError for a picture below `factor`."""
    height, width = pixels.shape[1:3]
    if height < factor or width < factor:
        raise ShapeError(f"the picture is {width}x{height}, at least {factor}x{factor} is needed: enlarge it")
    top, left = height % factor // 2, width % factor // 2
    return pixels[:, top : top + height // factor * factor, left : left + width // factor * factor]


def _placed(vae: Vae | None, backend: Backend) -> AutoencoderKL:
    if vae is None:
        raise CheckpointError("the checkpoint has no autoencoder (VAE): load one with VAELoader")
    return backend.optimise(vae.model)


def _on_device(x: Tensor, backend: Backend) -> Tensor:
    return channels_last(x.to(backend.runtime.device, backend.runtime.dtype))


def _plan(
    vae: Vae, model: AutoencoderKL, samples: Tensor, backend: Backend, on_note: Callable[[str], None]
) -> tuple[int, int | None]:
    """Number of latents to decode at a time, and the side of a tile; None to decode without tiles."""
    runtime = backend.runtime
    size, free = (samples.shape[-2], samples.shape[-1]), free_bytes(runtime.device)
    if free is not None:
        # Weights are packed at their first use, so their copies do not show in the used memory yet.
        free -= bytes_to_come(model.decoder)
    needed = partial(decode_bytes, vae.model, runtime.dtype)
    rows, tile = plan_decoding(needed, len(samples), size, free)
    if tile is not None:
        height, width = (side * model.config.factor for side in size)
        whole = needed(1, size) / MB
        on_note(f"memory: to decode {width}x{height} takes {whole:,.0f} MB at once: in tiles of {tile} cells")
    return rows, tile


@contextmanager
def _named_memory_error(x: Tensor) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device has no memory left for a picture of shape {tuple(x.shape)}: use a smaller picture or batch, "
            "or VAEDecodeTiled"
        ) from error
