"""Noise that depends on the seed alone: the same numbers as in ComfyUI, and on every machine.

Initial noise is drawn on the CPU in float32 from a generator of its own. The numbers are those of
`torch.manual_seed(seed)` followed by `torch.randn`, and torch's global generator is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from ..errors import ValueRangeError
from ..models.to_device import to_device_async
from .samplers import Sampler
from .steps import NoiseSource

AncestralSeed = Literal["shifted", "same", "cpu"]
"""Where the noise between the steps comes from.

shifted: from seed + 1 on the CPU, where the first draw would otherwise repeat the initial noise, and from seed on
    other devices, whose generators give other numbers anyway. This is what ComfyUI does from 0.7.0 on.
same: from seed on x's device, as ComfyUI did before.
cpu: drawn on the CPU from seed + 1 and then moved: the same picture on every device.
"""

FOLLOWS: Mapping[AncestralSeed, str] = {
    "shifted": "as ComfyUI 0.7.0 and later",
    "same": "as ComfyUI before 0.7.0",
    "cpu": "our own, the same on every device",
}
"""What the ancestral noise agrees with. All other noise is the same in every release."""
COMPARED_WITH = ("0.3.40", "0.3.64", "0.33.0")
"""Releases of ComfyUI in which the same pictures were found."""

_SEEDS = 2**64


@dataclass(frozen=True)
class NoisePart:
    """The place of a tile in a larger latent. The tile takes its noise from the noise of the larger latent.

    seed: seed of the noise of the larger latent. size: (height, width) of the larger latent. top, left: first row and
    column of the tile. All lengths are in latent cells.
    """

    # Two tiles get the same noise where they overlap, so their details agree there.

    seed: int
    size: tuple[int, int]
    top: int
    left: int

    def cut(self, noise: Tensor) -> Tensor:
        """A view of the noise (..., *size) from (top, left) on."""
        return noise[..., self.top :, self.left :]


def initial_noise(
    shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None, part: NoisePart | None = None
) -> Tensor:
    """Draw float32 N(0, 1) noise of this shape (B,C,H,W) on the CPU.

    batch_index: B integers >= 0. Each picture then takes its noise from that position in the seed's sequence of
    single pictures, so that one picture of a batch can be made again alone. Raises ValueRangeError otherwise.
    part: the noise is this part of the noise of a larger latent; `seed` is not used then.
    """
    if part is not None:
        whole = initial_noise((*shape[:-2], *part.size), part.seed, batch_index)
        return part.cut(whole)[..., : shape[-2], : shape[-1]].contiguous()
    generator = _generator(seed)
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator)
    if len(batch_index) != shape[0] or min(batch_index, default=0) < 0:
        raise ValueRangeError(
            f"batch_index is {list(batch_index)} for a batch of {shape[0]}: give one position >= 0 for each picture"
        )
    last = max(batch_index, default=-1)
    draws = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(last + 1)]
    return torch.cat([draws[position] for position in batch_index])


def mask_noise(sampler: Sampler, noise: Tensor, seed: int) -> Tensor:
    """The noise for the part of the latent that a noise mask keeps.

    It is the initial noise, or fresh noise from seed + 1 for `ddim`.
    """
    if not sampler.fresh_mask_noise:
        return noise
    return torch.randn(noise.shape, generator=_generator(seed + 1)).to(noise)


def noise_source(
    sampler: Sampler, x: Tensor, sigmas: Tensor, seed: int, *, ancestral: AncestralSeed = "shifted"
) -> NoiseSource | None:
    """The source of noise that this sampler needs; None if it needs none."""
    if sampler.noise == "ancestral":
        return ancestral_noise(x, seed, ancestral)
    if sampler.noise == "none":
        return None
    return brownian_noise(x, sigmas, seed, x.device if sampler.noise == "brownian_device" else torch.device("cpu"))


def ancestral_noise(x: Tensor, seed: int, convention: AncestralSeed = "shifted") -> NoiseSource:
    """Independent noise at each call, with x's shape, dtype and device.

    Raises ValueRangeError for an unknown convention.
    """
    if convention not in FOLLOWS:
        raise ValueRangeError(f"ancestral noise {convention!r} is unknown: choose one of {', '.join(FOLLOWS)}")
    device = torch.device("cpu") if convention == "cpu" else x.device
    shift = device.type == "cpu" and convention != "same"
    generator = _generator(seed + shift, device)

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        noise = torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator)
        return noise if device == x.device else to_device_async(noise, x.device)

    return draw


def brownian_noise(
    x: Tensor,
    sigmas: Tensor,
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
) -> NoiseSource:
    """Increments of one Brownian path W over sigma, divided by sqrt(|sigma_next - sigma|).

    device: where the path is drawn. On the CPU it is the same for every device that samples.

    The path belongs to the seed, not to the steps. With more steps the noise becomes finer but stays the same noise,
    and the picture converges.
    """
    table = sigmas.detach().float().cpu()
    path = None

    def increment(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        # Built at the first call, which a run that is cancelled early never makes.
        nonlocal path
        if path is None:
            path = _brownian_path(x, table[table > 0], seed, device)
        low, high = sorted((float(sigma), float(sigma_next)))
        sign = 1.0 if sigma < sigma_next else -1.0
        return to_device_async(sign * path(low, high) / (sigma_next - sigma).abs().sqrt(), x.device, x.dtype)

    return increment


def _brownian_path(x: Tensor, sigmas: Tensor, seed: int, device: torch.device) -> Callable[[float, float], Tensor]:
    """W(high) - W(low) of the seed's path, on a device, between the lowest and the highest of these sigmas."""
    from torchsde import BrownianTree

    start, end = sigmas.min(), sigmas.max()
    tree = BrownianTree(start, torch.zeros(x.shape, dtype=x.dtype, device=device), end, entropy=seed % _SEEDS)
    # The tree rounds sigma to six decimals and warns of values beyond its rounded ends.
    first, last = round(float(start), 6), round(float(end), 6)

    def between(low: float, high: float) -> Tensor:
        return cast(Tensor, tree(min(max(low, first), last), min(max(high, first), last)))

    return between


def _generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed % _SEEDS)
