"""Our autoencoder in ComfyUI's VAE socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...controlnet_core.errors import OutOfMemory, ShapeError
from ...controlnet_core.models.vae import AutoencoderKL
from .host_layers import with_host_layers

TILE = 64
OVERLAP = 16
LIVE_MAPS = 12
"""Feature maps of the largest size that are alive at once, with what the convolutions need beside them."""


class OwnVae(comfy.sd.VAE):
    """Offers what native nodes call; what leaves and enters are unscaled latents, as with native ones.

    The base class's constructor builds only autoencoders that it knows, so it is not called; all that runs
    the model is written here.
    """

    def __init__(self, model: AutoencoderKL) -> None:
        config = model.config
        manage = comfy.model_management
        self.device = manage.vae_device()
        self.output_device = manage.intermediate_device()
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.vae_dtype = manage.vae_dtype(self.device, self.working_dtypes)
        self.downscale_ratio = self.upscale_ratio = config.factor
        self.latent_channels, self.output_channels = config.latent_channels, config.image_channels
        self.latent_dim, self.crop_input, self.disable_offload, self.not_video = 2, True, False, False
        self.downscale_index_formula = self.upscale_index_formula = self.extra_1d_channel = None
        self.size = self.pad_channel_value = self.format_encoded = None
        self.handles_tiling = False
        self.first_stage_model = with_host_layers(model.to(self.vae_dtype))
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=manage.vae_offload_device()
        )

    def throw_exception_if_invalid(self) -> None:
        """The model is always there."""

    def process_input(self, image: Tensor) -> Tensor:
        """[0, 1] -> [-1, 1]."""
        return image * 2.0 - 1.0

    def process_output(self, image: Tensor) -> Tensor:
        """About [-1, 1] -> [0, 1]."""
        return torch.clamp((image + 1.0) / 2.0, 0.0, 1.0)

    def memory_used_decode(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes for one latent of this shape (B, C, h, w)."""
        config = self.first_stage_model.config
        cells = (config.factor // config.patch) ** 2 * shape[-2] * shape[-1]
        return LIVE_MAPS * cells * config.widths[0] * comfy.model_management.dtype_size(dtype)

    def memory_used_encode(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes for one picture of this shape (B, C, H, W)."""
        factor = self.downscale_ratio
        return self.memory_used_decode((1, 1, -(-shape[-2] // factor), -(-shape[-1] // factor)), dtype)

    def decode(self, samples_in: Tensor, vae_options: dict[str, Any] | None = None) -> Tensor:
        """LATENT (B, 4, h, w) -> IMAGE (B, 8h, 8w, 3); in tiles where the device has too little memory."""
        self._check(samples_in)
        pictures = self._in_batches(self._decode, samples_in, self.memory_used_decode)
        return self.decode_tiled(samples_in) if pictures is None else self.process_output(pictures).movedim(1, -1)

    # tile_t, overlap_t: the time of video models, which ComfyUI's nodes give to every VAE.
    def decode_tiled(
        self, samples: Tensor, tile_x: int | None = None, tile_y: int | None = None, overlap: int | None = None,
        tile_t: int | None = None, overlap_t: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Decode in tiles. tile_x, tile_y, overlap: in latent cells; None for the defaults."""
        self._check(samples)
        self._batch(self.memory_used_decode, samples)
        tiles = (tile_x or TILE, tile_y or TILE, OVERLAP if overlap is None else overlap)
        sizes = {"upscale_amount": self.upscale_ratio, "out_channels": self.output_channels}
        pictures = comfy.utils.tiled_scale(samples, self._decode, *tiles, **sizes, output_device=self.output_device)
        return self.process_output(pictures).movedim(1, -1)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """IMAGE (B, H, W, 3), cropped to what the autoencoder divides -> LATENT (B, 4, H/8, W/8)."""
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        latents = self._in_batches(self._encode, pixels, self.memory_used_encode)
        return self.encode_tiled(pixel_samples) if latents is None else latents

    def encode_tiled(
        self, pixel_samples: Tensor, tile_x: int | None = None, tile_y: int | None = None, overlap: int | None = None,
        tile_t: int | None = None, overlap_t: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Encode in tiles. tile_x, tile_y, overlap: in pixels; None for the defaults."""
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        self._batch(self.memory_used_encode, pixels)
        ratio = self.downscale_ratio
        tiles = (tile_x or TILE * ratio, tile_y or TILE * ratio, OVERLAP * ratio if overlap is None else overlap)
        sizes = {"upscale_amount": 1 / ratio, "out_channels": self.latent_channels}
        return comfy.utils.tiled_scale(pixels, self._encode, *tiles, **sizes, output_device=self.output_device)

    def _in_batches(self, run: Callable[[Tensor], Tensor], x: Tensor, memory_used: Any) -> Tensor | None:
        """`run` on as many pictures at once as fit into memory; None where not even one does."""
        try:
            return torch.cat([run(rows) for rows in x.split(self._batch(memory_used, x))])
        except comfy.model_management.OOM_EXCEPTION:
            # The caller retries in tiles after this returns: the exception holds the failed run's tensors.
            return None

    def _check(self, samples: Tensor) -> None:
        if samples.ndim != 4 or samples.shape[1] != self.latent_channels:
            raise ShapeError(
                f"the latent has shape {tuple(samples.shape)}, this autoencoder decodes "
                f"(batch, {self.latent_channels}, height, width): use the VAE of the model that made it"
            )

    def _batch(self, memory_used: Any, x: Tensor) -> int:
        """Bring the model to its device; how many pictures fit there at once."""
        manage = comfy.model_management
        one = max(1, memory_used(tuple(x.shape), self.vae_dtype))
        try:
            manage.load_models_gpu([self.patcher], memory_required=one)
        except manage.OOM_EXCEPTION as error:
            raise OutOfMemory("the device has no memory left for the autoencoder: unload other models") from error
        return max(1, int(manage.get_free_memory(self.device) / one))

    def _decode(self, latent: Tensor) -> Tensor:
        scale = self.first_stage_model.config.scaling_factor
        picture = self.first_stage_model.decode(latent.to(self.device, self.vae_dtype) * scale)
        return picture.to(self.output_device).float()

    def _encode(self, pixels: Tensor) -> Tensor:
        scale = self.first_stage_model.config.scaling_factor
        latent = self.first_stage_model.encode(self.process_input(pixels).to(self.device, self.vae_dtype))
        return (latent / scale).to(self.output_device).float()


@torch.no_grad()
def preview_colours(model: AutoencoderKL | None) -> tuple[list[list[float]], list[float]] | tuple[None, None]:
    """A linear map from scaled latents to colours in [-1, 1] for previews: (factors of 4 channels, bias).

    Each channel's factor is the change of the mean colour that this channel alone makes.
    """
    if model is None:
        return None, None
    channels = model.config.latent_channels
    probe = torch.cat([torch.zeros(1, channels), torch.eye(channels)])[:, :, None, None].expand(-1, -1, 4, 4)
    parameter = next(model.parameters())
    colours = model.decode(probe.to(parameter)).float().mean(dim=(2, 3))
    return (colours[1:] - colours[:1]).tolist(), colours[0].tolist()
