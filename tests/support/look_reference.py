"""reference_only and reference_adain written from their published description, on hooks: no code of the engine's.

lllyasviel (2023), in sd-webui-controlnet: the UNet first runs on the noised reference and each place keeps what it
sees; in the second run the self attention reads both, and chosen blocks get mean and deviation of the reference. A
style fidelity s keeps the share s of the plain result in the negative half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Layers = Callable[[nn.Module], tuple[nn.Module, nn.Module, nn.Module, nn.Module, int]]


def attention(x: Tensor, context: Tensor, layers: tuple[nn.Module, nn.Module, nn.Module, nn.Module, int]) -> Tensor:
    """Attention of tokens x (B, N, width) to a context (B, M, width), written out."""
    to_q, to_k, to_v, out, heads = layers
    q, k, v = (
        layer(t).unflatten(-1, (heads, -1)).transpose(1, 2)
        for layer, t in ((to_q, x), (to_k, context), (to_v, context))
    )
    weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
    return out((weights @ v).transpose(1, 2).flatten(2))


def adain(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """x (B, C, h, w) with the mean and variance (B, C, 1, 1) of another picture."""
    own = x.var(dim=(2, 3), keepdim=True, unbiased=False).clamp(min=1e-6).sqrt()
    return (x - x.mean(dim=(2, 3), keepdim=True)) / own * variance.clamp(min=1e-6).sqrt() + mean


@contextmanager
def hooked(
    run_reference: Callable[[], Any], attentions: Sequence[nn.Module], layers: Layers, blocks: Sequence[nn.Module],
    fidelity: float, negative: slice,
) -> Iterator[None]:  # fmt: skip
    """A UNet in its second run. run_reference: its first. attentions, blocks: that keep what they see and are changed.
    fidelity: style fidelity. negative: rows of the negative half."""
    seen: dict[nn.Module, Any] = {}

    def keep_tokens(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        seen[module] = given[0].clone()

    def keep_moments(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        seen[module] = output.mean(dim=(2, 3), keepdim=True), output.var(dim=(2, 3), keepdim=True, unbiased=False)

    def share(plain: Tensor, changed: Tensor) -> Tensor:
        result = changed.clone()
        result[negative] = fidelity * plain[negative] + (1 - fidelity) * changed[negative]
        return result

    def read_tokens(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        x = given[0]
        return share(output, attention(x, torch.cat([x, seen[module]], dim=1), layers(module)))

    def read_moments(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        return share(output, adain(output, *seen[module]))

    first = [a.register_forward_hook(keep_tokens) for a in attentions]
    first += [b.register_forward_hook(keep_moments) for b in blocks]
    run_reference()
    for hook in first:
        hook.remove()
    second = [a.register_forward_hook(read_tokens) for a in attentions]
    second += [b.register_forward_hook(read_moments) for b in blocks]
    try:
        yield
    finally:
        for hook in second:
            hook.remove()
