"""Noise that depends on the seed alone: the same numbers as in the editor, and on every machine.

Initial noise is drawn on the CPU in float32 from a generator of its own: the numbers are those of
`torch.manual_seed(seed)` followed by `torch.randn`, without touching torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, cast

import torch

from ..errors import ValueRangeError
from ..models.transfer import sent
from .samplers import Sampler
from .steps import NoiseSource

AncestralSeed = Literal["shifted", "same", "cpu"]
"""Where the noise between the steps comes from.

shifted: drawn on x's device, from seed + 1 where that is the CPU (the first draw would repeat the initial
    noise otherwise) and from seed elsewhere, since other devices' generators give other numbers anyway.
    What the editor does from 0.7.0 on.
same: drawn on x's device from seed. What the editor did before.
cpu: drawn on the CPU from seed + 1 and then moved: the same picture on every device.
"""

FOLLOWS: Mapping[AncestralSeed, str] = MappingProxyType(
    {
        "shifted": "as ComfyUI 0.7.0 and later",
        "same": "as ComfyUI before 0.7.0",
        "cpu": "our own, the same on every device",
    }
)
"""Whose pictures the samplers that add noise give. All other noise is the same in every release."""
COMPARED_WITH = ("0.3.40", "0.3.64", "0.33.0")
"""Releases of the editor in which the same pictures were found."""

_SEEDS = 2**64


def initial_noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> torch.Tensor:
    """float32 N(0, 1) noise of this shape (B,C,H,W) on the CPU.

    With `batch_index` (B integers >= 0) each picture takes its noise from that position in the seed's
    sequence of single pictures, so that one picture of a batch can be made again by itself.
    """
    generator = _generator(seed)
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator)
    if len(batch_index) != shape[0] or min(batch_index, default=0) < 0:
        raise ValueRangeError(
            f"batch_index is {list(batch_index)} for a batch of {shape[0]}: give one position >= 0 for each"
        )
    last = max(batch_index, default=-1)
    draws = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(last + 1)]
    return torch.cat([draws[position] for position in batch_index])


def mask_noise(sampler: Sampler, noise: torch.Tensor, seed: int) -> torch.Tensor:
    """The noise for the part of the latent that a noise mask keeps: the initial noise, or for `ddim` fresh
    noise from seed + 1."""
    if not sampler.fresh_mask_noise:
        return noise
    return torch.randn(noise.shape, generator=_generator(seed + 1)).to(noise)


def noise_source(
    sampler: Sampler,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    seed: int,
    *,
    ancestral: AncestralSeed = "shifted",
) -> NoiseSource | None:
    """The source of noise this sampler asks for; None where it asks for none."""
    if sampler.noise == "ancestral":
        return ancestral_noise(x, seed, ancestral)
    if sampler.noise == "brownian":
        return brownian_noise(x, sigmas, seed)
    return None


def ancestral_noise(x: torch.Tensor, seed: int, convention: AncestralSeed = "shifted") -> NoiseSource:
    """Independent noise at each call, like x in shape, dtype and device."""
    if convention not in ("shifted", "same", "cpu"):
        raise ValueRangeError(f"ancestral noise {convention!r} is unknown: choose shifted, same or cpu")
    device = torch.device("cpu") if convention == "cpu" else x.device
    shift = device.type == "cpu" and convention != "same"
    generator = _generator(seed + shift, device)

    def draw(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator)
        return noise if device == x.device else sent(noise, x.device)

    return draw


def brownian_noise(x: torch.Tensor, sigmas: torch.Tensor, seed: int) -> NoiseSource:
    """Increments of one Brownian path W over sigma, divided by sqrt(|sigma_next - sigma|).

    The path belongs to the seed, not to the steps: with more steps the noise becomes finer, but stays the
    same noise, and the picture converges. The path spans the table's sigmas above 0 and is grown on the
    CPU when it is first asked for.
    """
    table = sigmas.detach().float().cpu()
    path = None

    def increment(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        nonlocal path
        if path is None:
            path = _brownian_path(x, table[table > 0], seed)
        low, high = sorted((float(sigma), float(sigma_next)))
        sign = 1.0 if sigma < sigma_next else -1.0
        return sent(sign * path(low, high) / (sigma_next - sigma).abs().sqrt(), x.device, x.dtype)

    return increment


def _brownian_path(
    x: torch.Tensor, sigmas: torch.Tensor, seed: int
) -> Callable[[float, float], torch.Tensor]:
    """W(high) - W(low) of the seed's path between the lowest and the highest of these sigmas."""
    from torchsde import BrownianTree

    start, end = sigmas.min(), sigmas.max()
    tree = BrownianTree(start, torch.zeros(x.shape, dtype=x.dtype), end, entropy=seed % _SEEDS)
    # The tree resolves sigma to six decimals and warns of queries beyond its rounded ends.
    first, last = round(float(start), 6), round(float(end), 6)

    def between(low: float, high: float) -> torch.Tensor:
        return cast(torch.Tensor, tree(min(max(low, first), last), min(max(high, first), last)))

    return between


def _generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed % _SEEDS)
