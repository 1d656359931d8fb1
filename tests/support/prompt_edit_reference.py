"""Prompt-to-prompt written out on the layers of a cross attention: no code of the engine's.

Formulas: Hertz et al. 2022, section 3.2. M are the maps of the prompt, M* those of the edited prompt, A the place in
the prompt of each token of the edited prompt (None for a token that was added), c the weight of each:

    word swap         M
    new words         M*[j] where A(j) is None, M[A(j)] elsewhere
    re-weighting      c(j) M[j]

Here all maps are computed at the queries of the edited picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Layers = tuple[nn.Module, nn.Module, nn.Module, nn.Module, int]


def edited_attention(
    x: Tensor, prompt: Tensor, edited: Tensor, places: Sequence[int | None], weights: Sequence[float], layers: Layers
) -> Tensor:
    """Tokens (B, N, width) attend to an edited prompt. prompt, edited: (1, tokens, text width)."""
    to_q, to_k, to_v, to_out, heads = layers

    def split(t: Tensor) -> Tensor:
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    def maps(text: Tensor) -> Tensor:
        q, k = split(to_q(x)), split(to_k(text.expand(len(x), -1, -1)))
        return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)

    own, other = maps(prompt), maps(edited)
    columns = [
        weight * (other[..., j] if place is None else own[..., place])
        for j, (place, weight) in enumerate(zip(places, weights, strict=True))
    ]
    seen = torch.stack(columns, dim=-1) @ split(to_v(edited.expand(len(x), -1, -1)))
    return to_out(seen.transpose(1, 2).flatten(2))


@contextmanager
def hooked(
    attentions: Iterable[nn.Module],
    layers: Callable[[nn.Module], Layers],
    prompt: Tensor,
    edited: Tensor,
    places: Sequence[int | None],
    weights: Sequence[float],
) -> Iterator[None]:
    """A UNet whose cross attentions attend to an edited prompt."""

    def change(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        return edited_attention(given[0], prompt, edited, places, weights, layers(module))

    hooks = [attention.register_forward_hook(change) for attention in attentions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
