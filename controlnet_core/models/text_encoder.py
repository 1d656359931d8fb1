"""CLIP's text transformer, and the encoder that turns prompts into conditionings.

Source: Radford et al. 2021, section 2.4; Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", section 3.3 (the text's hidden states are the context of every cross-attention).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TextConfig
from ..errors import ShapeError, ValueRangeError
from .prompt import Chunk, empty_chunk, tokenize_prompt
from .tokenizer import END_TOKEN, VOCAB_SIZE, ClipTokenizer, VocabMap, map_ids
from .transfer import sent

Embeddings: TypeAlias = Callable[[int, str], Tensor]
"""Width of a text encoder and name of a textual inversion -> its vectors (n, width)."""
Vector: TypeAlias = tuple[int, int, Tensor]
"""Row, position, and the vector (width,) that stands there."""


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    table: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}
    if name not in table:
        raise ValueRangeError(f"activation {name!r} of the text encoder is not one of {', '.join(table)}")
    return table[name]


class CausalAttention(nn.Module):
    """Self-attention in which a position sees itself and what is before it. (B,N,width) -> (B,N,width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(proj(x)) for proj in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(B,N,width) -> (B,heads,N,width/heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ClipLayer(nn.Module):
    """Pre-norm transformer layer: attention, then a perceptron of four times the width."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = CausalAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, 4 * config.width)
        self.fc2 = nn.Linear(4 * config.width, config.width)
        self.activation = _activation(config.activation)

    def reset_parameters(self, depth: int) -> None:
        """CLIP's initialisation; what adds to the residual stream is scaled down by the model's depth."""
        width = self.norm1.normalized_shape[0]
        for linear in (self.attn.q, self.attn.k, self.attn.v):
            nn.init.normal_(linear.weight, std=width**-0.5)
        for linear in (self.attn.out, self.fc2):
            nn.init.normal_(linear.weight, std=(2 * depth * width) ** -0.5)
        nn.init.normal_(self.fc1.weight, std=(2 * width) ** -0.5)
        for linear in (self.attn.q, self.attn.k, self.attn.v, self.attn.out, self.fc1, self.fc2):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class ClipTextModel(nn.Module):
    """CLIP's text transformer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueRangeError(
                f"text encoder of width {config.width} cannot be split into {config.heads} heads: "
                "choose a width that is a multiple of the heads"
            )
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        layers = [ClipLayer(config) for _ in range(config.layers)]
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
        """Rows of the embedding table -> hidden states and the pooled state.

        ids: (B,N) integers, N at most `config.max_length`.
        skip_last: how many of the last layers the hidden states leave out (0 to layers - 1).
        apply_final_norm: whether the hidden states pass the final normalisation, skipped or not.
        end_positions: (B,) position of each row's end mark; by default that of the first id 49407.
        vectors: (row, position, vector (width,)) of learned words, in place of the embeddings of the ids there.
        Returns hidden (B,N,width) and pooled (B,width): the last layer, normalised, at the end mark, and projected
        where the model has a projection (B,projection).
        Raises ShapeError or ValueRangeError.
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
        for row, position, vector in vectors:
            if vector.shape != x.shape[-1:]:
                raise ShapeError(
                    f"a learned word has a vector of shape {tuple(vector.shape)}, the text encoder is {x.shape[-1]} "
                    "wide: use a textual inversion made for this base"
                )
            x[row, position] = vector.to(x)
        return x

    def _check(self, ids: Tensor, skip_last: int) -> None:
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.max_length:
            raise ShapeError(
                f"token ids have shape {tuple(ids.shape)}, the text encoder takes "
                f"(B, 1 to {self.config.max_length}): cut longer prompts into chunks"
            )
        if not 0 <= skip_last < len(self.layers):
            raise ValueRangeError(
                f"skip_last is {skip_last}, the text encoder has {len(self.layers)} layers: "
                f"choose 0 to {len(self.layers) - 1}"
            )


def first_end(ids: Tensor) -> Tensor:
    """Position of the first end mark in each row of CLIP ids (B,N) -> (B,)."""
    return (ids == END_TOKEN).int().argmax(dim=-1)


class TextEncoder(nn.Module):
    """Prompts in, conditionings out: tokenizer, text transformer, prompt weights.

    `clip_skip` counts as the host's CLIPSetLastLayer does: -1 is the last layer, -2 the one before it; a
    number beyond the first layer means the last. The final normalisation is applied to a skipped layer too,
    as Stable Diffusion 1.x wants it; SDXL wants the layer as it is (`norm_skipped=False`), unless the number lies
    beyond the first layer.

    `encode` is for inference and keeps no gradients. To train, call the module on `tokenize`d captions.
    """

    vocab_map: Tensor | None

    def __init__(
        self,
        model: ClipTextModel,
        tokenizer: ClipTokenizer,
        config: TextConfig,
        vocab_map: VocabMap | None = None,
        *,
        clip_skip: int = -1,
        norm_skipped: bool = True,
        padding: int = END_TOKEN,
    ) -> None:
        super().__init__()
        rows = VOCAB_SIZE if vocab_map is None else vocab_map.rows
        if rows > config.vocab_size:
            raise ShapeError(
                f"the vocabulary needs {rows} rows, the text encoder's embedding table has "
                f"{config.vocab_size}: give it the vocabulary map it was trained with"
            )
        if clip_skip >= 0:
            raise ValueRangeError(
                f"clip_skip is {clip_skip}: choose -1 for the last layer, -2 for the one before it, ..."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.clip_skip = clip_skip
        self.norm_skipped = norm_skipped
        self.padding = padding
        self.register_buffer("vocab_map", None if vocab_map is None else vocab_map.to_tensor())

    @classmethod
    def of(
        cls, model: ClipTextModel, tokenizer: ClipTokenizer, config: TextConfig, vocab_map: VocabMap | None = None
    ) -> TextEncoder:
        """The encoder that reads prompts at the layer and with the padding that `config` says."""
        return cls(
            model,
            tokenizer,
            config,
            vocab_map,
            clip_skip=config.stop_layer,
            norm_skipped=config.norm_skipped,
            padding=config.padding,
        )

    def with_clip_skip(self, clip_skip: int) -> TextEncoder:
        """The same encoder, weights shared, that stops at another layer. Raises ValueRangeError from 0 up."""
        return self._twin(self.model, clip_skip)

    @property
    def models(self) -> tuple[ClipTextModel, ...]:
        """The text transformers in it."""
        return (self.model,)

    def with_models(self, models: Sequence[ClipTextModel]) -> TextEncoder:
        """The same encoder with other transformers, in the order of `models`."""
        (model,) = models
        return self._twin(model, self.clip_skip)

    def _twin(self, model: ClipTextModel, clip_skip: int) -> TextEncoder:
        return TextEncoder(
            model,
            self.tokenizer,
            self.config,
            None if self.vocab_map is None else VocabMap.from_tensor(self.vocab_map),
            clip_skip=clip_skip,
            norm_skipped=self.norm_skipped,
            padding=self.padding,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.token_embedding.weight.device

    @property
    def skip_last(self) -> int:
        """Number of layers left out."""
        return -1 - self.clip_skip if -self.clip_skip <= self.config.layers else 0

    def forward(self, ids: Tensor) -> Tensor:
        """CLIP ids (B,77) -> hidden states (B,77,width), differentiable, at the chosen layer."""
        return self.states(ids)[0]

    def states(self, ids: Tensor, vectors: Sequence[Vector] = ()) -> tuple[Tensor, Tensor]:
        """CLIP ids (B,77), learned vectors in place of some -> hidden states (B,77,width) and pooled (B,width)."""
        ids = sent(ids, self.device)
        rows = ids if self.vocab_map is None else map_ids(self.vocab_map.to(self.device), ids)
        skip = self.skip_last
        return self.model(
            rows,
            skip_last=skip,
            apply_final_norm=self.norm_skipped or -self.clip_skip > self.config.layers,
            end_positions=first_end(ids),
            vectors=vectors,
        )

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Plain captions -> CLIP ids, int64 (B,77) on the CPU. Parentheses are text; 75 tokens are kept."""
        room = self.config.max_length - 2
        rows = []
        for caption in captions:
            ids = [self.tokenizer.start, *self.tokenizer.encode(caption)[:room], self.tokenizer.end]
            rows.append(ids + [self.padding] * (self.config.max_length - len(ids)))
        return torch.tensor(rows, dtype=torch.long, device="cpu").reshape(-1, self.config.max_length)

    def chunks(self, prompt: str, embeddings: Embeddings | None = None) -> tuple[Chunk, ...]:
        """The prompt's chunks of 77 ids with their weights, and the vectors of `embedding:name`."""
        find = None if embeddings is None else partial(embeddings, self.config.width)
        return tokenize_prompt(
            self.tokenizer, prompt, max_length=self.config.max_length, padding=self.padding, find=find
        )

    def encode(self, prompt: str) -> Tensor:
        """Prompt -> float32 (1, 77 * chunks, width) on the weights' device."""
        return self.encode_pooled(prompt)[0]

    def encode_pooled(self, prompt: str, embeddings: Embeddings | None = None) -> tuple[Tensor, Tensor]:
        """Prompt -> hidden states (1, 77 * chunks, width), and pooled (1,width) of the first chunk; float32.

        With weights: (z - z_empty) * w + z_empty at every position, z_empty the state of the empty prompt.
        embeddings: where the vectors of `embedding:name` come from; without it those words are plain text.
        """
        return self.encode_chunks(self.chunks(prompt, embeddings))

    @torch.no_grad()
    def encode_chunks(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """As `encode_pooled`, for a prompt that is cut into chunks already."""
        weighted = any(chunk.weighted for chunk in chunks)
        empty = empty_chunk(max_length=self.config.max_length, padding=self.padding)
        batch = [*chunks, empty] if weighted else chunks
        ids = torch.tensor([chunk.ids for chunk in batch], dtype=torch.long, device="cpu")
        vectors = [(row, *vector) for row, chunk in enumerate(batch) for vector in chunk.vectors]
        hidden, pooled = self.states(ids, vectors)
        z = hidden.float()
        if weighted:
            w = torch.tensor([chunk.weights for chunk in chunks], device=z.device).unsqueeze(-1)
            z_empty = z[-1:]
            z = torch.where(w == 1.0, z[:-1], (z[:-1] - z_empty) * w + z_empty)
        return z.flatten(0, 1).unsqueeze(0), pooled[:1].float()


class DualTextEncoder(nn.Module):
    """SDXL's two text encoders side by side: the states of both next to each other, the pooled text of the second.

    Source: Podell et al. 2023, "SDXL: Improving Latent Diffusion Models", section 2.1.
    """

    def __init__(self, first: TextEncoder, second: TextEncoder) -> None:
        super().__init__()
        self.first, self.second = first, second

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.second.device

    def with_clip_skip(self, clip_skip: int) -> DualTextEncoder:
        """Both encoders, weights shared, stopped at another layer. Raises ValueRangeError from 0 up."""
        return DualTextEncoder(self.first.with_clip_skip(clip_skip), self.second.with_clip_skip(clip_skip))

    @property
    def models(self) -> tuple[ClipTextModel, ...]:
        """Both text transformers."""
        return (*self.first.models, *self.second.models)

    def with_models(self, models: Sequence[ClipTextModel]) -> DualTextEncoder:
        """The same encoder with other transformers, in the order of `models`."""
        first, second = models
        return DualTextEncoder(self.first.with_models([first]), self.second.with_models([second]))

    def encode(self, prompt: str) -> Tensor:
        """Prompt -> float32 (1, 77 * chunks, width of both)."""
        return self.encode_pooled(prompt)[0]

    def encode_pooled(self, prompt: str, embeddings: Embeddings | None = None) -> tuple[Tensor, Tensor]:
        """Prompt -> states (1, 77 * chunks, width of both), and pooled (1, projection) of the second; float32."""
        return self.encode_pair(prompt, prompt, embeddings)

    def encode_pair(
        self, first: str, second: str, embeddings: Embeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `encode_pooled`, with a prompt for each encoder; the shorter one is filled up with empty chunks."""
        chunks = [self.first.chunks(first, embeddings), self.second.chunks(second, embeddings)]
        longest = max(len(rows) for rows in chunks)
        texts, pooled = [], None
        for encoder, rows in zip((self.first, self.second), chunks, strict=True):
            filler = encoder.chunks("") * (longest - len(rows))
            text, pooled = encoder.encode_chunks((*rows, *filler))
            texts.append(text)
        assert pooled is not None
        return torch.cat(texts, dim=-1), pooled
