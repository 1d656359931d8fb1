"""Markers in single files: what a model that this package saved tells the tools that read nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import identify
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import SDXL, ModelConfig, NoiseConfig, Parametrization
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize(
    ("parametrization", "noise", "vae"),
    [
        ("eps", NoiseConfig(), {}),
        ("v", NoiseConfig(), {}),
        ("v", NoiseConfig(zero_terminal_snr=True), {}),
        ("v", NoiseConfig("edm", sigma_min=0.002, sigma_max=40.0), {}),
        (
            "edm",
            NoiseConfig("edm", sigma_max=80.0, sigma_data=0.5),
            {"scaling_factor": 0.5, "latent_mean": (0.5, 1.0, 1.5, 2.0), "latent_std": (8.0, 5.0, 6.0, 4.0)},
        ),
    ],
)
def test_a_saved_file_tells_other_tools_what_it_was_trained_on(
    parametrization: Parametrization, noise: NoiseConfig, vae: dict[str, Any], tmp_path: Path
) -> None:
    """By markers: this package's own metadata is taken out before the file is read again."""
    unet = replace(
        SDXL.unet, widths=(32, 32), res_blocks=1, transformer_depth=(0, 1), middle_depth=1, head_dim=16, context_dim=32,
    )  # fmt: skip
    small = replace(SDXL.vae, widths=(32, 32), res_blocks=1, patch=4, **vae)
    config = replace(SDXL, unet=unet, vae=small, parametrization=parametrization, noise=noise)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, config, UNet(unet), AutoencoderKL(small))
    save_file(load_file(path), path)
    found = identify(read_header(path)).config
    assert isinstance(found, ModelConfig)
    assert (found.parametrization, found.noise) == (parametrization, noise)
    assert (found.vae.latent_mean, found.vae.latent_std) == (small.latent_mean, small.latent_std)
