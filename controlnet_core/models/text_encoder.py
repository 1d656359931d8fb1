"""CLIP's text transformer, and the encoder that turns prompts into conditionings.

Sources: Radford et al. 2021, section 2.4; Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", section 3.3 (every cross-attention reads the hidden states of the text).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TextConfig, VisionConfig
from ..errors import ShapeError, ValueRangeError
from .layers import Attention, quick_gelu
from .prompt import Section, tokenize_prompt
from .to_device import to_device_async
from .tokenizer import END_TOKEN, VOCAB_SIZE, ClipTokenizer, VocabMap, map_ids

Embeddings: TypeAlias = Callable[[int, str], Tensor]
"""(width of a text encoder, name of a textual inversion) -> its vectors (n, width)."""
Vector: TypeAlias = tuple[int, int, Tensor]
"""(row, position, vector (width,) used there in place of the embedding)."""


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class CausalAttention(Attention):
    """Self-attention in which each position reads itself and those before it. (B,N,width) -> (B,N,width)."""

    # Padding comes after the end mark, so the causal mask hides it and no other mask is needed.
    causal = True


class ClipLayer(nn.Module):
    """Pre-norm transformer layer: attention, then a perceptron `hidden` wide. (B,N,width) -> (B,N,width)."""

    def __init__(self, config: TextConfig | VisionConfig, hidden: int, attention: type[Attention]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = attention(config.width, config.width, config.heads, bias=True)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)
        if config.activation not in ACTIVATIONS:
            choices = ", ".join(ACTIVATIONS)
            raise ValueRangeError(f"text encoder activation {config.activation!r} is unknown: choose one of {choices}")
        self.activation = ACTIVATIONS[config.activation]

    def reset_parameters(self, depth: int) -> None:
        """Initialise as CLIP does. depth: number of layers."""
        width = self.norm1.normalized_shape[0]
        attn, inner = self.attn, width**-0.5
        # `out` and `fc2` add to the residual stream. Smaller weights keep its variance independent of the depth.
        added = (2 * depth * width) ** -0.5
        stds = {attn.q: inner, attn.k: inner, attn.v: inner, attn.out: added, self.fc2: added}
        for linear, std in {**stds, self.fc1: (2 * width) ** -0.5}.items():
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, self.attn.kv(y))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class ClipTextModel(nn.Module):
    """CLIP's text transformer. Raises ValueRangeError if the heads do not divide the width."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueRangeError(
                f"a text encoder {config.width} wide cannot be split into {config.heads} heads: choose a width that is "
                "a multiple of the number of heads"
            )
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        layers = [ClipLayer(config, 4 * config.width, CausalAttention) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.norm_out = nn.LayerNorm(config.width)
        self.projection = None if config.projection is None else nn.Linear(config.width, config.projection, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)
        for layer in layers:
            layer.reset_parameters(config.layers)

    def forward(
        self,
        ids: Tensor,
        *,
        skip_last: int = 0,
        apply_final_norm: bool = True,
        end_positions: Tensor | None = None,
        vectors: Sequence[Vector] = (),
    ) -> tuple[Tensor, Tensor]:
        """Compute hidden states and the pooled state from rows of the embedding table.

        ids: (B,N) integers, N at most `config.max_length`.
        skip_last: how many of the last layers the hidden states leave out (0 to layers - 1).
        apply_final_norm: whether the hidden states pass the final normalisation, skipped or not.
        end_positions: (B,) position of each row's end mark; by default that of the first id 49407.
        vectors: of textual inversions, in place of the embeddings at their positions.

        Returns hidden (B,N,width) and pooled: the normalised last layer at the end mark, (B,width), or its projection
        (B,projection) in models that have one. Raises ShapeError or ValueRangeError.
        """
        self._check(ids, skip_last)
        if end_positions is None:
            end_positions = first_end(ids)
        x = self._embed(ids, vectors) + self.position_embedding.weight[: ids.shape[1]]
        hidden = x
        for depth, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if depth == len(self.layers) - skip_last:
                hidden = x
        last = self.norm_out(x)
        pooled = last[torch.arange(len(ids), device=x.device), end_positions]
        if self.projection is not None:
            pooled = self.projection(pooled)
        if apply_final_norm:
            hidden = last if skip_last == 0 else self.norm_out(hidden)
        return hidden, pooled

    def _embed(self, ids: Tensor, vectors: Sequence[Vector]) -> Tensor:
        x = self.token_embedding(ids)
        # In place: x is a fresh tensor, not the table itself.
        for row, position, vector in vectors:
            if vector.shape != x.shape[-1:]:
                raise ShapeError(
                    f"a textual inversion has vectors of shape {tuple(vector.shape)}, the text encoder needs "
                    f"({x.shape[-1]},): use one that was made for this base"
                )
            x[row, position] = vector.to(x)
        return x

    def _check(self, ids: Tensor, skip_last: int) -> None:
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.max_length:
            raise ShapeError(
                f"token ids have shape {tuple(ids.shape)}, the text encoder takes "
                f"(B, 1 to {self.config.max_length}): cut longer prompts into sections"
            )
        if not 0 <= skip_last < len(self.layers):
            raise ValueRangeError(
                f"skip_last is {skip_last}, the text encoder has {len(self.layers)} layers: "
                f"choose 0 to {len(self.layers) - 1}"
            )


def first_end(ids: Tensor) -> Tensor:
    """Position of the first end mark in each row of CLIP ids (B,N) -> (B,)."""
    # argmax returns the first of equal values. The later ones are padding.
    return (ids == END_TOKEN).int().argmax(dim=-1)


class TextEncoder(nn.Module):
    """Prompts in, conditionings out: tokenizer, text transformer, prompt weights.

    config: also says at which layer prompts are read, see `TextConfig`. vocab_map: for a model with a reduced
    vocabulary. Raises ShapeError if the vocabulary does not fit the model, ValueRangeError for a `stop_layer` >= 0.

    `encode` is for inference and keeps no gradients. To train, call the module on `tokenize`d captions.
    """

    vocab_map: Tensor | None

    def __init__(
        self, model: ClipTextModel, tokenizer: ClipTokenizer, config: TextConfig, vocab_map: VocabMap | None = None
    ) -> None:
        super().__init__()
        rows = VOCAB_SIZE if vocab_map is None else vocab_map.rows
        if rows > config.vocab_size:
            raise ShapeError(
                f"the vocabulary needs {rows} rows, the text encoder's embedding table has "
                f"{config.vocab_size}: give it the vocabulary map it was trained with"
            )
        if config.stop_layer >= 0:
            raise ValueRangeError(
                f"clip_skip is {config.stop_layer}: choose -1 for the last layer, -2 for the one before it, ..."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.padding = config.padding
        # A buffer, so that it is saved with the weights and moves with them.
        self.register_buffer("vocab_map", None if vocab_map is None else vocab_map.to_tensor())
        self.vocabulary = vocab_map

    def with_clip_skip(self, clip_skip: int) -> TextEncoder:
        """Make an encoder with the same weights that stops at another layer, -1 for the last.

        Raises ValueRangeError for 0 and above.
        """
        return self._copy(self.model, replace(self.config, stop_layer=clip_skip))

    @property
    def models(self) -> tuple[ClipTextModel, ...]:
        """The text transformers in it."""
        return (self.model,)

    def with_models(self, models: Sequence[ClipTextModel]) -> TextEncoder:
        """Make the same encoder with other transformers, in the order of `models`."""
        (model,) = models
        return self._copy(model, self.config)

    def _copy(self, model: ClipTextModel, config: TextConfig) -> TextEncoder:
        return TextEncoder(model, self.tokenizer, config, self.vocabulary)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.token_embedding.weight.device

    def forward(self, ids: Tensor) -> Tensor:
        """CLIP ids (B,77) -> hidden states (B,77,width) at the chosen layer, differentiable."""
        return self.states(ids)[0]

    def states(self, ids: Tensor, vectors: Sequence[Vector] = ()) -> tuple[Tensor, Tensor]:
        """CLIP ids (B,77) -> hidden states (B,77,width) and pooled (B,width). vectors: of textual inversions."""
        ids = to_device_async(ids, self.device)
        rows = ids if self.vocab_map is None else map_ids(self.vocab_map.to(self.device), ids)
        stop = self.config.stop_layer
        # ComfyUI's CLIPSetLastLayer: a number beyond the first layer means the last one, with its normalisation.
        beyond = -stop > self.config.layers
        return self.model(
            rows,
            skip_last=0 if beyond else -1 - stop,
            apply_final_norm=beyond or self.config.norms_stop_layer,
            end_positions=first_end(ids),
            vectors=vectors,
        )

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Plain captions -> CLIP ids, int64 (B,77) on the CPU. Parentheses are text; tokens after the 75th are cut."""
        room = self.config.max_length - 2
        rows = []
        for caption in captions:
            ids = [self.tokenizer.start, *self.tokenizer.encode(caption)[:room], self.tokenizer.end]
            rows.append(ids + [self.padding] * (self.config.max_length - len(ids)))
        return torch.tensor(rows, dtype=torch.long, device="cpu").reshape(-1, self.config.max_length)

    def sections(self, prompt: str, embeddings: Embeddings | None = None) -> tuple[Section, ...]:
        """Cut a prompt into sections of 77 ids with their weights, and the vectors of `embedding:name`."""
        find = None if embeddings is None else partial(embeddings, self.config.width)
        return tokenize_prompt(
            self.tokenizer, prompt, max_length=self.config.max_length, padding=self.padding, find=find
        )

    def encode(self, prompt: str) -> Tensor:
        """Prompt -> hidden states, float32 (1, 77 * sections, width), on the weights' device."""
        return self.encode_pooled(prompt)[0]

    def encode_pooled(self, prompt: str, embeddings: Embeddings | None = None) -> tuple[Tensor, Tensor]:
        """Prompt -> hidden states (1, 77 * sections, width), and pooled (1,width) of the first section; float32.

        embeddings: where the vectors of `embedding:name` come from; without it those words are plain text.
        """
        return self.encode_sections(self.sections(prompt, embeddings))

    @torch.no_grad()
    def encode_sections(self, sections: Sequence[Section]) -> tuple[Tensor, Tensor]:
        """Encode a prompt that is already cut into sections; returns what `encode_pooled` returns."""
        weighted = any(section.weighted for section in sections)
        batch = (*sections, *self.sections("")) if weighted else sections
        ids = torch.tensor([section.ids for section in batch], dtype=torch.long, device="cpu")
        vectors = [(row, *vector) for row, section in enumerate(batch) for vector in section.vectors]
        hidden, pooled = self.states(ids, vectors)
        z = hidden.float()
        if weighted:
            # ComfyUI's meaning of a weight: scale the distance from the empty prompt, position by position.
            w = torch.tensor([section.weights for section in sections], device=z.device).unsqueeze(-1)
            z_empty = z[-1:]
            # torch.where keeps positions of weight 1 free of rounding.
            z = torch.where(w == 1.0, z[:-1], (z[:-1] - z_empty) * w + z_empty)
        # As in ComfyUI, sections follow one another in the states, and only the first one is pooled.
        return z.flatten(0, 1).unsqueeze(0), pooled[:1].float()


class DualTextEncoder(nn.Module):
    """SDXL's two text encoders (Podell et al. 2023, section 2.1).

    The hidden states of both are concatenated along the width. The pooled text is that of the second.
    """

    def __init__(self, first: TextEncoder, second: TextEncoder) -> None:
        super().__init__()
        self.first, self.second = first, second

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.second.device

    def with_clip_skip(self, clip_skip: int) -> DualTextEncoder:
        """Make encoders with the same weights that stop at another layer. Raises ValueRangeError for 0 and above."""
        return DualTextEncoder(self.first.with_clip_skip(clip_skip), self.second.with_clip_skip(clip_skip))

    @property
    def models(self) -> tuple[ClipTextModel, ...]:
        """Both text transformers."""
        return (*self.first.models, *self.second.models)

    def with_models(self, models: Sequence[ClipTextModel]) -> DualTextEncoder:
        """Make the same encoder with other transformers, in the order of `models`."""
        first, second = models
        return DualTextEncoder(self.first.with_models([first]), self.second.with_models([second]))

    def encode(self, prompt: str) -> Tensor:
        """Prompt -> hidden states, float32 (1, 77 * sections, width of both)."""
        return self.encode_pooled(prompt)[0]

    def encode_pooled(self, prompt: str, embeddings: Embeddings | None = None) -> tuple[Tensor, Tensor]:
        """Prompt -> states (1, 77 * sections, width of both), and pooled (1, projection) of the second; float32."""
        return self.encode_pair(prompt, prompt, embeddings)

    def encode_pair(self, first: str, second: str, embeddings: Embeddings | None = None) -> tuple[Tensor, Tensor]:
        """Encode a prompt for each encoder. The shorter one is filled up with empty sections."""
        sections = [self.first.sections(first, embeddings), self.second.sections(second, embeddings)]
        longest = max(len(rows) for rows in sections)
        states = [
            encoder.encode_sections((*rows, *encoder.sections("") * (longest - len(rows))))
            for encoder, rows in zip((self.first, self.second), sections, strict=True)
        ]
        return torch.cat([hidden for hidden, _ in states], dim=-1), states[1][1]
