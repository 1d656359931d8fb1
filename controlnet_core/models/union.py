"""ControlNet Union (xinsir, 2024): one net for several types of hint, also for several at once.

Each hint is embedded by the one hint encoder. Its mean, plus a learned embedding of its type, goes
through a small network and comes back as one number per channel, added to the embedded hint; the
embedded hints are summed. Which types are present is also told to every block, beside the timestep.

As released, the small network is a transformer whose attention runs along the batch and not along
the hints (its layer reads (sequence, batch, channel) and is given (batch, hint, channel)). With the same
hints in every row, which is how it was trained, each token attends to copies of itself, and
attention is its value projection: so it is computed here, and a batch equals its singles. Nothing of it
depends on x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import ControlNetConfig, UnionConfig
from ..errors import ShapeError, ValueRangeError
from .control import BindContext
from .controlnet import BoundControlNet, ControlNet
from .layers import Mlp, quick_gelu, timestep_embedding
from .to_device import to_device_async
from .unet import Residuals
from .union_types import UNION_CHOICES, union_type


class UnionLayer(nn.Module):
    """One layer of the small network, on one token: value projection and a feed-forward network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width). The gate is x sigmoid(1.702 x), the quick form of GELU."""
        value = self.qkv(self.norm1(x)).tensor_split(3, dim=-1)[2]
        x = x + self.out(value)
        return x + self.fc2(quick_gelu(self.fc1(self.norm2(x))))


class UnionHead(nn.Module):
    """A Union's own weights: type embedding, small network, projection, and the types' part of the timestep."""

    def __init__(self, config: UnionConfig, width: int, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.task_embedding = nn.Parameter(config.width**0.5 * torch.randn(config.types, config.width))
        self.layers = nn.Sequential(*(UnionLayer(config.width) for _ in range(config.layers)))
        self.projection = nn.Linear(config.width, width)
        self.type_embed = Mlp(config.types * config.type_dim, embed_dim)

    def shift(self, hint: Tensor, kind: int) -> Tensor:
        """Embedded hint (B, width, h, w) of type `kind` -> what is added to each channel, (B, width, 1, 1)."""
        token = self.layers(hint.mean(dim=(2, 3)) + self.task_embedding[kind])
        return self.projection(token)[:, :, None, None]

    def embed_types(self, types: Sequence[int]) -> Tensor:
        """-> (1, embed_dim), added to the timestep's embedding."""
        # As released: a type that is present has the sinusoid of 1, every other one that of 0.
        present = torch.zeros(self.config.types)
        present[list(types)] = 1.0
        sinusoids = timestep_embedding(to_device_async(present, self.task_embedding.device), self.config.type_dim)
        return self.type_embed(sinusoids.flatten()[None].to(self.task_embedding.dtype))


class ControlNetUnion(ControlNet):
    """A ControlNet with a `UnionHead`. Without types it embeds the hint plainly, as the host's "auto" does."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        if config.union is None:
            raise ValueError("a ControlNetUnion needs a config with union")
        self.union = UnionHead(config.union, config.unet.widths[0], config.unet.embed_dim)

    def bind(self, context: BindContext) -> BoundControlNet:
        """Embed the hints with their types; project text and timesteps.

        Raises ShapeError for several hints of which one has no type, ValueRangeError for unknown types.
        """
        kinds = context.kinds
        if len(kinds) > 1 and not all(kinds):
            raise ShapeError(
                f"{len(kinds)} hints were given and at least one has no control type: set the type of each hint"
            )
        types = tuple(union_type(kind) for kind in kinds if kind)
        hint = self.embed_hints(context.hints, types, context.size)
        return self._bound(context, hint, context.project(self, lambda t, y: self.embed(t, y, types)))

    def check_types(self, types: Sequence[int]) -> None:
        """Raise ValueRangeError for types that this net does not have."""
        count = self.union.config.types
        for kind in types:
            if not 0 <= kind < count:
                name = UNION_CHOICES[kind] if 0 <= kind < len(UNION_CHOICES) else "unknown"
                raise ValueRangeError(
                    f"control type {kind} ({name}) came, this ControlNet Union knows types 0 to {count - 1}: choose "
                    "one of those, or load the ProMax version, which has 8"
                )

    def embed(self, t: Tensor, y: Tensor | None = None, types: Sequence[int] = ()) -> Tensor:
        """Timesteps (B,), label vector (B, label_dim) or None, and the types of the hints -> (B, embed_dim)."""
        return super().embed(t, y) + self.union.embed_types(types)

    def embed_hints(self, hints: Sequence[Tensor], types: Sequence[int], latent_size: tuple[int, int]) -> Tensor:
        """Hints, each (B, C, 8h, 8w) in [0, 1] with its type -> their sum embedded, (B, widths[0], h, w).

        Raises ShapeError for hints that do not fit, ValueRangeError for types that the net does not have.
        """
        if not hints or (types and len(hints) != len(types)):
            raise ShapeError(f"{len(hints)} hints came with {len(types)} types: give each hint its type")
        self.check_types(types)
        embedded = [self.embed_hint(hint, latent_size) for hint in hints]
        if not types:
            return torch.stack(embedded).sum(dim=0)
        total = torch.zeros((), device=embedded[0].device, dtype=embedded[0].dtype)
        for hint, kind in zip(embedded, types, strict=True):
            total = total + hint + self.union.shift(hint, kind)
        return total

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        hints: Sequence[Tensor],
        types: Sequence[int],
        y: Tensor | None = None,
    ) -> Residuals:
        """Residuals for `UNet.forward`.

        x, t, context, y: see `ControlNet.forward`. hints: each (B, C, 8h, 8w) in [0, 1]. types: one for each hint, or
        none at all. Raises ShapeError or ValueRangeError as `embed_hints` does.
        """
        hint = self.embed_hints(hints, types, (x.shape[-2], x.shape[-1]))
        return self._residuals(x, self.embed(t, y, types), context, hint)
