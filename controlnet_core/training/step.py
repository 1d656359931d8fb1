"""The losses: what one training step minimises. Pure functions; the loop owns the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Parametrization
from ..diffusion.denoiser import add_noise, scale_input, training_target
from ..diffusion.schedule import NoiseSchedule
from ..models.controlnet import ControlNet
from ..models.transfer import sent
from ..models.unet import Residuals, UNet
from ..models.union import ControlNetUnion
from ..models.vae import AutoencoderKL

TimestepDraw: TypeAlias = Callable[[int, torch.Generator], Tensor]
"""(batch, generator) -> timesteps (batch,) in 0..999."""


def uniform_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """Every timestep equally often: the diffusion loss as it is written."""
    return torch.randint(0, 1000, (batch,), generator=generator).float()


def high_noise_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """1000 sqrt(u): more of the high noise levels, where a picture's layout is decided.

    A ControlNet's work is the layout; at low noise the latent shows it already and the condition
    adds little, so those steps teach little.
    """
    return (1000.0 * torch.rand(batch, generator=generator).sqrt()).floor().clamp(max=999.0)


def noise_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    parametrization: Parametrization,
) -> Tensor:
    """E || noise - predict(z_t, t) ||^2 (Zhang et al. 2023, equation 5); for v models the target is v.

    t may be on the CPU; the rest is on the models' device.
    """
    return noise_losses(predict, latents, t, noise, schedule, parametrization).mean()


def noise_losses(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    parametrization: Parametrization,
) -> Tensor:
    """As `noise_loss`, for each picture of the batch: (B,)."""
    sigma = sent(schedule.sigma(t), latents.device)
    noisy = add_noise(latents, noise, sigma)
    target = training_target(parametrization, latents, noise, sigma)
    predicted = predict(scale_input(noisy, sigma), sent(t, latents.device))
    return F.mse_loss(predicted, target, reduction="none").flatten(1).mean(1)


def base_predictor(unet: UNet, context: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The UNet alone, as a function of (x, t)."""
    return lambda x, t: unet(x, t, context)


def control_predictor(
    unet: UNet,
    net: ControlNet,
    context: Tensor,
    hint: Tensor,
    only_middle: bool = False,
    label: Tensor | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The locked UNet with the ControlNet's residuals; gradients reach only the ControlNet.

    The locked encoder keeps no activations, for nothing in front of the zero convolutions' target
    needs a gradient: that is where the paper's +23 % of memory, and not +100 %, comes from.
    `only_middle` drops the skip residuals. `label`: the label vector of models that have one (SDXL).
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        residuals = net(x, t, context, hint, label)
        if only_middle:
            residuals = Residuals(tuple(torch.zeros_like(r) for r in residuals.skips), residuals.middle)
        return unet(x, t, context, label, residuals=residuals)

    return predict


def union_predictor(
    unet: UNet, net: ControlNetUnion, context: Tensor, hints: Sequence[Tensor], types: Sequence[int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """As `control_predictor`, for a ControlNet Union: each hint (B, C, H, W) with the number of its type."""
    return lambda x, t: unet(x, t, context, residuals=net(x, t, context, hints, types))


def autoencoder_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator, kl_weight: float) -> Tensor:
    """|| x - x' ||_1, the same for the gradients along both axes, and the KL term per latent value.

    images: (B, 3, H, W) in [-1, 1]. The gradient term keeps edges where they are, which is what the
    control of edges is measured by.
    """
    mean, logvar = vae.moments(images)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    latent = mean + noise * (0.5 * logvar).exp()
    restored = vae.decode(latent * vae.config.scaling_factor)
    difference = restored - images
    across = difference.diff(dim=3).abs().mean() + difference.diff(dim=2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return difference.abs().mean() + difference.square().mean() + across + kl_weight * kl


def initialise_hint_encoder(net: ControlNet, last_std: float, generator: torch.Generator) -> None:
    """Weights that carry the hint through all eight layers, for training that has to be short.

    The default initialisation shrinks the signal by about 0.4 per layer with SiLU, a thousandfold
    over eight. He's initialisation keeps it, and the last convolution starts at N(0, last_std)
    instead of 0; a fresh net is still bit-equal to the UNet, since its output zero convolutions are
    at 0.
    """
    for conv in net.hint.convs[:-1]:
        std = (2.0 / (conv.in_channels * 9)) ** 0.5 * 1.2
        nn.init.normal_(conv.weight, std=std, generator=generator)
        nn.init.zeros_(conv.bias)
    nn.init.normal_(net.hint.convs[-1].weight, std=last_std, generator=generator)


def initialise_union(net: ControlNetUnion, start: ControlNet) -> None:
    """The weights of a trained ControlNet; the Union's own end in zeros, so that it starts as that net.

    Whatever its types, a fresh Union then gives the residuals of `start` for the sum of the embedded hints.
    """
    for name, part in start.named_children():
        net.get_submodule(name).load_state_dict(part.state_dict())
    for last in (net.union.projection, net.union.type_embed.linear2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
