"""Hypernetworks written from their description, as hooks on a UNet's layers: no code of the engine's.

Formula and names of weights: webui's training of hypernetworks, as its files show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUNCTIONS = {
    "linear": lambda x: x, "relu": F.relu, "leakyrelu": F.leaky_relu, "elu": F.elu, "swish": F.hardswish,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softsign": F.softsign, "mish": F.mish,
}  # fmt: skip


def random_file(widths: tuple[int, ...], *, normalised: bool = False, **facts: Any) -> dict[Any, Any]:
    """The content of a file: for each width a network of two layers for keys and one for values."""
    generator = torch.Generator().manual_seed(0)

    def network(width: int) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for number, (before, after) in enumerate([(width, 2 * width), (2 * width, width)]):
            index = number * (2 if normalised else 1)
            weight = torch.randn(after, before, generator=generator) * before**-0.5
            tensors[f"linear.{index}.weight"] = weight
            tensors[f"linear.{index}.bias"] = 0.1 * torch.randn(after, generator=generator)
            if normalised:
                tensors[f"linear.{index + 1}.weight"] = 1.0 + 0.1 * torch.randn(after, generator=generator)
                tensors[f"linear.{index + 1}.bias"] = 0.1 * torch.randn(after, generator=generator)
        return tensors

    pairs = {width: (network(width), network(width)) for width in widths}
    return {**pairs, "step": 10, "is_layer_norm": normalised, "use_dropout": False, "name": "a", **facts}


def added(content: Mapping[Any, Any], part: int, x: Tensor) -> Tensor:
    """What the network for keys (part 0) or values (1) adds to x (B, tokens, width); zeros for another width."""
    if x.shape[-1] not in content:
        return torch.zeros_like(x)
    tensors = content[x.shape[-1]][part]
    act = FUNCTIONS[content.get("activation_func", "linear")]
    stems = [key.removesuffix(".weight") for key in tensors if key.endswith(".weight")]
    for number, stem in enumerate(stems):
        weight, bias = tensors[f"{stem}.weight"], tensors[f"{stem}.bias"]
        if weight.ndim == 1:
            x = F.layer_norm(x, weight.shape, weight, bias)
            continue
        x = F.linear(x, weight, bias)
        # Only the last entry of a file goes without an activation. With normalisations that is one of them.
        if number < len(stems) - 1 or content.get("activate_output"):
            x = act(x)
    return x


@contextmanager
def hooked(unet: nn.Module, content: Mapping[Any, Any], strength: float, calls: list[str]) -> Iterator[None]:
    """A UNet all of whose attentions read changed keys and values. calls: gets the names of the layers that ran."""

    def change(name: str, part: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            calls.append(name)
            return (inputs[0] + strength * added(content, part, inputs[0]),)

        return hook

    with ExitStack() as stack:
        for name, module in unet.named_modules():
            parent, _, last = name.rpartition(".")
            if parent.endswith(("attn1", "attn2")) and last in ("k", "v"):
                handle = module.register_forward_pre_hook(change(name, "kv".index(last)))
                stack.callback(handle.remove)
        yield
