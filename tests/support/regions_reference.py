"""Prompts for regions written out on the layers of a cross attention: no code of the engine's.

Formula: attention couple (laksjdjf 2023). The attention of each text is multiplied by the region's share of the pixel,
and summed; shares sum to 1. Here softmax(q k^T / sqrt(d)) v is written out, before the last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shares(masks: Tensor, weights: Sequence[float], tokens: int) -> Tensor:
    """Masks (R, h, w) of the latent's size -> (1 + R, tokens): the prompt's share first."""
    height, width = masks.shape[-2:]
    step = 1
    while (height // step) * (width // step) > tokens:
        step *= 2
    at = F.avg_pool2d(masks, step).flatten(1) * torch.tensor(weights)[:, None]
    prompt = (1 - at.sum(dim=0)).clamp(min=0)
    both = torch.cat([prompt[None], at])
    return both / both.sum(dim=0)


def couple(
    queries: Tensor, texts: Sequence[Tensor], part: Tensor, layers: tuple[nn.Module, nn.Module], heads: int
) -> Tensor:
    """Tokens (B, N, width), already projected, attend to each text by its share. layers: of keys and of values."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, summed = split(queries), torch.zeros_like(queries)
    for text, share in zip(texts, part, strict=True):
        k, v = (split(layer(text.expand(len(queries), -1, -1))) for layer in layers)
        attention = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v
        summed = summed + attention.transpose(1, 2).flatten(2) * share[None, :, None]
    return summed


@contextmanager
def hooked(
    attentions: Iterable[nn.Module],
    layers: Callable[[nn.Module], tuple[nn.Module, nn.Module, nn.Module, nn.Module, int]],
    texts: Sequence[Tensor],
    masks: Tensor,
    weights: Sequence[float],
    rows: slice = slice(None),
) -> Iterator[None]:
    """A UNet whose cross attentions attend to several texts.

    layers: of an attention those for queries, keys, values and output, and its heads. texts: the prompt's first.
    masks: (R, h, w). rows: those of the batch that are changed.
    """

    def change(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        q, k, v, out, heads = layers(module)
        x = given[0][rows]
        mixed = couple(q(x), texts, shares(masks, weights, x.shape[1]), (k, v), heads)
        result = output.clone()
        result[rows] = out(mixed)
        return result

    hooks = [attention.register_forward_hook(change) for attention in attentions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
