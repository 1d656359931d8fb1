"""Our autoencoder in the editor's VAE socket."""

from __future__ import annotations

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
        pictures = []
        try:
            for rows in samples_in.split(self._batch(self.memory_used_decode, samples_in)):
                pictures.append(self.process_output(self._decode(rows)))
        except comfy.model_management.OOM_EXCEPTION:
            pictures = []
        if not pictures:  # outside of the handler, which still holds the failed run's tensors
            return self.decode_tiled(samples_in)
        return torch.cat(pictures).movedim(1, -1)

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """As `decode`, in tiles of so many latent cells; the two times of video models do not count here."""
        self._check(samples)
        self._batch(self.memory_used_decode, samples)
        return self.process_output(
            comfy.utils.tiled_scale(
                samples, self._decode, tile_x or TILE, tile_y or TILE, OVERLAP if overlap is None else overlap,
                upscale_amount=self.upscale_ratio, out_channels=self.output_channels, output_device=self.output_device,
            )
        ).movedim(1, -1)  # fmt: skip

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """IMAGE (B, H, W, 3), cropped to what the autoencoder divides -> LATENT (B, 4, H/8, W/8)."""
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        latents = []
        try:
            for rows in pixels.split(self._batch(self.memory_used_encode, pixels)):
                latents.append(self._encode(rows))
        except comfy.model_management.OOM_EXCEPTION:
            latents = []
        if not latents:  # as in `decode`
            return self.encode_tiled(pixel_samples)
        return torch.cat(latents)

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """As `encode`, in tiles of so many pixels."""
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        self._batch(self.memory_used_encode, pixels)
        ratio = self.downscale_ratio
        overlap = OVERLAP * ratio if overlap is None else overlap
        return comfy.utils.tiled_scale(
            pixels, self._encode, tile_x or TILE * ratio, tile_y or TILE * ratio, overlap,
            upscale_amount=1 / ratio, out_channels=self.latent_channels, output_device=self.output_device,
        )  # fmt: skip

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
