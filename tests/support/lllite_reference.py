"""ControlNet-LLLite written from its published description, on hooks of the layers it changes: no code of the engine's.

Names and formula: kohya-ss/sd-scripts, `docs/train_lllite_README.md`, and the names of the weights in released files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = {8: (4, 2), 16: (4, 4), 32: (4, 4, 2), 64: (4, 4, 4)}
"""Pixels per token -> the convolutions of a network; the last one is of no released file, which end at 32."""
LAYERS = ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn2_to_q")


def random_file(
    places: Mapping[str, tuple[int, int]], seed: int = 0, layers: Sequence[str] = LAYERS, inner: int = 8, embed: int = 6
) -> dict[str, Tensor]:
    """Weights of a file with networks everywhere, `up` included.

    places: "input_blocks_4_1_transformer_blocks_0" and the like -> width of the tokens, pixels per token.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def layer(name: str, out: int, *into: int) -> None:
        fan_in = torch.Size(into).numel()
        state[f"{name}.weight"] = torch.randn(out, *into, generator=generator) * fan_in**-0.5
        state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.2

    for place, (width, pixels) in places.items():
        for own in layers:
            name, kernels = f"lllite_unet_{place}_{own}", KERNELS[pixels]
            for n, kernel in enumerate(kernels):
                out, before = embed if n == len(kernels) - 1 else embed // 2, 3 if n == 0 else embed // 2
                layer(f"{name}.conditioning1.{2 * n}", out, before, kernel, kernel)
            layer(f"{name}.down.0", inner, width)
            layer(f"{name}.mid.0", inner, inner + embed)
            layer(f"{name}.up.0", width, inner)
            state[f"{name}.up.0.weight"] *= 4.0  # so that small bases notice
    return state


def added(state: Mapping[str, Tensor], name: str, x: Tensor, hint: Tensor) -> Tensor:
    """What the network of this name adds to tokens x (B, N, width). hint: (B, 3, H, W) in [0, 1]."""

    def affine(layer: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.{layer}.weight"], state[f"{name}.{layer}.bias"])

    c = hint * 2 - 1
    for n in range(4):
        key = f"{name}.conditioning1.{2 * n}"
        if f"{key}.weight" in state:
            c = F.relu(c) if n else c
            weight = state[f"{key}.weight"]
            c = F.conv2d(c, weight, state[f"{key}.bias"], stride=weight.shape[-1])
    tokens = c.flatten(2).transpose(1, 2).repeat(len(x) // len(c), 1, 1)
    h = F.relu(affine("down.0", x))
    return affine("up.0", F.relu(affine("mid.0", torch.cat([tokens, h], dim=2))))


@contextmanager
def hooked(
    find: Callable[[str], nn.Module],
    state: Mapping[str, Tensor],
    hint: Tensor,
    strength: float = 1.0,
    weigh: Callable[[str, Tensor], Tensor] = lambda name, change: change,
) -> Iterator[None]:
    """A UNet whose layers read what the networks add.

    find: the layer of a name such as "input_blocks_4_1_transformer_blocks_0_attn1_to_q". weigh: changes what is added.
    """

    def change(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> tuple[Tensor, ...]:
        x, *others = inputs
        return x + strength * weigh(name, added(state, name, x, hint)), *others

    names = dict.fromkeys(key.split(".")[0] for key in state)
    hooks = [
        find(name.removeprefix("lllite_unet_")).register_forward_pre_hook(partial(change, name=name)) for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
