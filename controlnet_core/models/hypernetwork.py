"""Hypernetworks: small networks that change the keys and values of all attentions of a base (NovelAI 2022).

In front of the layers for keys and values of each attention, for tokens or a text x of a width that the file has:

    keys = K(x + strength * h_k(x)),    values = V(x + strength * h_v(x))

The self attention reads the picture's tokens, so its networks have the widths of the UNet's levels; the cross attention
reads the text, so its networks have the width of the text. Queries are not changed. Several hypernetworks act one after
the other: the second reads what the first has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from ..config import UNetConfig
from .control import BindContext, ControlModel, FixedInputs, Place, RowScale
from .gligen import block_places, block_widths
from .layers import AttentionChange

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
}
"""By their names in files. What files call swish is computed as hard swish, as in ComfyUI."""


@dataclass(frozen=True)
class HypernetworkConfig:
    """sizes: for each width, the output widths of the layers of h_k and of h_v. activation: a key of `ACTIVATIONS`.

    normalised: whether a layer normalisation follows each layer. activates_output: whether an activation also follows
    the last layer.
    """

    sizes: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]
    activation: str = "linear"
    normalised: bool = False
    activates_output: bool = False


class Perceptron(nn.Module):
    """h_k or h_v: (B, tokens, width) -> the same shape."""

    def __init__(self, width: int, sizes: tuple[int, ...], config: HypernetworkConfig) -> None:
        super().__init__()
        inputs = (width, *sizes[:-1])
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(inputs, sizes, strict=True))
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in sizes) if config.normalised else None
        self.activation = ACTIVATIONS[config.activation]()
        # Files with normalisations have an activation at their end in any case: ComfyUI takes the last normalisation
        # for the last layer, and released files were used like that.
        self.activates_output = config.activates_output or config.normalised

    def forward(self, x: Tensor) -> Tensor:
        for index, linear in enumerate(self.linears):
            x = linear(x)
            if self.activates_output or index < len(self.linears) - 1:
                x = self.activation(x)
            if self.norms is not None:
                x = self.norms[index](x)
        return x


class Hypernetwork(nn.Module):
    """The weights of a file: for each width a pair of networks, for keys and for values."""

    def __init__(self, config: HypernetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.pairs = nn.ModuleDict(
            {
                str(width): nn.ModuleList(Perceptron(width, sizes, config) for sizes in both)
                for width, both in config.sizes.items()
            }
        )


class _Fields(NamedTuple):
    own: tuple[nn.Module, nn.Module] | None
    text: tuple[nn.Module, nn.Module] | None
    read: Tensor
    strength: float
    scale: RowScale


class HypernetworkChange(_Fields, AttentionChange):
    """The change of one transformer block. own, text: the networks for its width and for that of the text, if any.

    read: the text of the prompt, (rows, tokens, width). A named tuple, so that the tensors of an evaluation are found.
    """

    __slots__ = ()

    def self_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Change what the layers for keys and values of the self attention read."""
        if self.own is None:
            return query, key, value
        changed = (
            self.scale.add(tokens, lambda x, net=net: self.strength * net(x))
            for net, tokens in zip(self.own, (key, value), strict=True)
        )
        return (query, *changed)  # type: ignore[return-value]

    def text_inputs(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Change what the layers for keys and values of the cross attention read."""
        if self.text is None:
            return keys, values
        for_keys, for_values = self.text
        return keys + self.strength * for_keys(keys), values + self.strength * for_values(values)

    def text_output(self, output: Tensor, query: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Attend to the prompt anew: its keys and values were made before the run, without this change."""
        if self.text is None:
            return output
        read = self.read.to(query.dtype)
        return self.scale.add(output, lambda own: attend(query[self.scale.rows], read) - own)


class HypernetworkControl(ControlModel):
    """A hypernetwork as a kind of control, for all rows of a batch. Its hint is not read."""

    entry = "attention"
    config: HypernetworkConfig

    def __init__(self, weights: Hypernetwork, strength: float) -> None:
        """strength: any number; a negative one takes away what the networks add."""
        super().__init__()
        self.config, self.weights, self.strength = weights.config, weights, strength

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        return f"a base with widths among {sorted(self.config.sizes)}"

    def fits(self, config: UNetConfig) -> bool:
        """Whether any attention of the base reads tokens or texts of a width that the file has."""
        return bool({config.context_dim, *block_widths(config)} & set(self.config.sizes))

    def bind(self, context: BindContext) -> FixedInputs:
        """Keep the text of the prompt, and list widths and places of the transformer blocks of the base."""
        return FixedInputs((context.text, block_widths(context.base), tuple(block_places(context.base))))

    def attention_change(
        self, inputs: tuple[Tensor, tuple[int, ...], tuple[Place, ...]], place: Place, scale: RowScale
    ) -> HypernetworkChange | None:
        """The networks for the width of this block and for that of the text."""
        text, widths, places = inputs
        own, for_text = self._pair(widths[places.index(place)]), self._pair(text.shape[-1])
        if own is None and for_text is None:
            return None
        return HypernetworkChange(own, for_text, text, self.strength, scale)

    def _pair(self, width: int) -> tuple[nn.Module, nn.Module] | None:
        if str(width) not in self.weights.pairs:
            return None
        keys, values = self.weights.pairs[str(width)]  # type: ignore[misc]
        return keys, values
