"""The losses that a training step minimises, and how nets are initialised. The loop has the optimiser."""

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
from ..models.to_device import to_device_async
from ..models.unet import Residuals, UNet
from ..models.union import ControlNetUnion
from ..models.vae import AutoencoderKL

Predict: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> the prediction of the noise or of v."""
TimestepDraw: TypeAlias = Callable[[int, torch.Generator], Tensor]
"""(batch, generator) -> timesteps (batch,) in 0..999."""


def uniform_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """All timesteps with equal probability, as in the diffusion loss."""
    return torch.randint(0, 1000, (batch,), generator=generator).float()


def high_noise_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """1000 sqrt(u), u uniform in 0..1: more of the high noise levels, where the layout of a picture is decided.

    A ControlNet controls the layout. At low noise the latent shows it already, so those steps teach little.
    """
    return (1000.0 * torch.rand(batch, generator=generator).sqrt()).floor().clamp(max=999.0)


def noise_losses(
    predict: Predict,
    latents: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    parametrization: Parametrization,
) -> Tensor:
    """|| noise - predict(z_t, t) ||^2 of each picture, (B,) (Zhang et al. 2023, equation 5); of v for v models.

    latents, noise: (B, C, h, w) on the device of the models. t: (B,), may be on the CPU.
    """
    sigma = to_device_async(schedule.sigma(t), latents.device)
    noisy = add_noise(latents, noise, sigma)
    target = training_target(parametrization, latents, noise, sigma)
    predicted = predict(scale_input(noisy, sigma), to_device_async(t, latents.device))
    return F.mse_loss(predicted, target, reduction="none").flatten(1).mean(1)


def min_snr_weights(sigma: Tensor, gamma: float, parametrization: Parametrization) -> Tensor:
    """Weights of the losses at noise levels sigma (B,): low noise, where there is little to learn, counts less.

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4, with the
    signal to noise ratio 1 / sigma^2: min(SNR, gamma) / SNR for predictions of the noise, min(SNR, gamma) / (SNR + 1)
    for v. gamma: 5 in the paper.
    """
    snr = sigma**-2.0
    return snr.clamp(max=gamma) / (snr + (0.0 if parametrization == "eps" else 1.0))


def offset_noise(noise: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Noise (B, C, h, w) plus strength times one number for each picture and channel, so that brightness is learned.

    Source: Guttenberg 2023, "Diffusion with Offset Noise". strength: 0.1 there.
    """
    return noise + strength * torch.randn((*noise.shape[:2], 1, 1), generator=generator)


def base_predictor(unet: UNet, context: Tensor) -> Predict:
    """The UNet without control, as a function of (x, t)."""
    return lambda x, t: unet(x, t, context)


def control_predictor(
    unet: UNet,
    net: ControlNet,
    context: Tensor,
    hint: Tensor,
    only_middle: bool = False,
    label: Tensor | None = None,
) -> Predict:
    """The UNet with the residuals of a ControlNet, as a function of (x, t).

    context: text (B, 77, width). hint: (B, 3, H, W) in [0, 1]. only_middle: leave out the residuals of the skips.
    label: the label vector of models that have one (SDXL).
    """
    # The locked encoder keeps no activations, because nothing before the sum with the residuals needs a gradient.
    # This is why the paper reports 23 % more memory than for training without control, and not 100 %.

    def predict(x: Tensor, t: Tensor) -> Tensor:
        residuals = net(x, t, context, hint, label)
        if only_middle:
            residuals = Residuals(tuple(torch.zeros_like(r) for r in residuals.skips), residuals.middle)
        return unet(x, t, context, label, residuals=residuals)

    return predict


def union_predictor(
    unet: UNet, net: ControlNetUnion, context: Tensor, hints: Sequence[Tensor], types: Sequence[int]
) -> Predict:
    """The UNet with the residuals of a ControlNet Union, as a function of (x, t).

    hints: one (B, C, H, W) for each type in `types`, the numbers of the types.
    """
    return lambda x, t: unet(x, t, context, residuals=net(x, t, context, hints, types))


def autoencoder_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator, kl_weight: float) -> Tensor:
    """|| x - x' ||_1 + || x - x' ||_2^2, the first also of the gradients along both axes, and the KL term per value.

    images: (B, 3, H, W) in [-1, 1]. kl_weight: factor of the KL term.
    """
    mean, logvar = vae.moments(images)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    latent = mean + noise * (0.5 * logvar).exp()
    restored = vae.decode(latent * vae.config.scaling_factor)
    difference = restored - images
    # The gradients keep edges in place; the fidelity of edge control is measured by them.
    across = difference.diff(dim=3).abs().mean() + difference.diff(dim=2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return difference.abs().mean() + difference.square().mean() + across + kl_weight * kl


def initialise_hint_encoder(net: ControlNet, last_std: float, generator: torch.Generator) -> None:
    """Initialise the hint encoder for a short training, in place: its signal passes all eight layers from the start.

    last_std: standard deviation of the last convolution, which the paper starts at 0. The output of the net stays 0,
    since its zero convolutions are not changed.
    """
    # The default initialisation with SiLU shrinks the signal by about 0.4 per layer, a thousandfold over eight layers.
    # He's initialisation keeps its size; 1.2 makes up for what SiLU takes.
    *convs, last = (part for part in net.hint.convs if isinstance(part, nn.Conv2d))
    for conv in convs:
        std = (2.0 / (conv.in_channels * 9)) ** 0.5 * 1.2
        nn.init.normal_(conv.weight, std=std, generator=generator)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    nn.init.normal_(last.weight, std=last_std, generator=generator)


def initialise_union(net: ControlNetUnion, start: ControlNet) -> None:
    """Copy the weights of a trained ControlNet into a Union, in place.

    The Union's own layers end in zeros, so whatever the types, it starts with the residuals that `start` gives for the
    sum of the embedded hints.
    """
    for name, part in start.named_children():
        net.get_submodule(name).load_state_dict(part.state_dict())
    for last in (net.union.projection, net.union.type_embed.linear2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
