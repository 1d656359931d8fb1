"""Mask and further hints of a unit as channels of its hint, so that they follow what other packs do with the hint.

Packs that sample a picture in parts crop, roll, repeat or slice `cond_hint_original`, or set `cond_hint` for each
tile. They know nothing of a unit's mask and further hints. As channels of the same tensor these go wherever the hint
goes:

    hint (C) | further hint 1 (C1) | ... | mask 1 (1) | ...

A unit with a hint alone has a plain hint.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.control.hint import crop, mask_at
from ...controlnet_core.errors import ShapeError


@dataclass(frozen=True)
class HintParts:
    """What the channels of a hint hold.

    hint: (B, C, H, W). more: further hints, each (B, C_i, H, W). masks: each (B, H, W), or None for a mask that the
    unit does not have.
    """

    hint: Tensor
    more: tuple[Tensor, ...] = ()
    masks: tuple[Tensor | None, ...] = ()

    def join(self) -> Tensor:
        """One tensor (B, C + ..., H, W) of all parts, at the size of the hint; the hint itself if it is alone."""
        parts = [*self.more, *(mask[:, None].float() for mask in self.masks if mask is not None)]
        if not parts:
            return self.hint
        size = (self.hint.shape[-2], self.hint.shape[-1])
        fitted = [self.hint, *(crop(part.to(self.hint), *size) for part in self.more)]
        fitted += [mask_at(mask, size).to(self.hint) for mask in self.masks if mask is not None]
        # Hints are dealt out to the images of a batch in turn. The common multiple keeps who gets what.
        count = math.lcm(*(len(part) for part in fitted))
        return torch.cat([part.repeat(count // len(part), 1, 1, 1) for part in fitted], dim=1)

    def split(self, joined: Tensor, name: str) -> HintParts:
        """The parts of a tensor that a pack made from `join()`, in the same order.

        Raises ShapeError if the channels are not those of `join()`.
        """
        counts = [part.shape[1] for part in (self.hint, *self.more)]
        counts += [1 for mask in self.masks if mask is not None]
        found = joined.shape[1] if joined.ndim == 4 else None
        if found != sum(counts):
            raise ShapeError(
                f"another pack replaced the hint of {name} by a tensor of shape {tuple(joined.shape)}. Its mask and "
                f"further hints need {sum(counts)} channels: take them away from this unit, or apply the pack's "
                "own mask"
            )
        hint, *others = joined.split(counts, dim=1)
        masks = iter(others[len(self.more) :])
        return HintParts(
            hint,
            tuple(others[: len(self.more)]),
            tuple(None if mask is None else next(masks)[:, 0] for mask in self.masks),
        )

    def mask(self, count: int | None = None) -> Tensor | None:
        """The product of the masks, or of the first `count`, which must have the same size; None without masks."""
        given = [mask for mask in self.masks[:count] if mask is not None]
        return None if not given else math.prod(given[1:], start=given[0])


class JoinedHint:
    """Mixin for a control object of ComfyUI whose `cond_hint_original` has all parts of its hint as channels.

    parts: what the channels hold. joined: the tensor that was made of them; as long as `cond_hint_original` is this
    one, no pack has replaced it.
    """

    parts: HintParts
    joined: Tensor | None = None
    cond_hint_original: Any
    cond_hint: Any
    previous_controlnet: Any
    multigpu_clones: dict[Any, Any]
    copy_to: Any

    def set_parts(self, parts: HintParts) -> None:
        """Make these the channels of the hint."""
        self.parts = parts
        self.joined = self.cond_hint_original = parts.join()

    def shown_hint(self) -> Tensor:
        """The channels that count in this call: those that a pack set for a part of the image, or for all of it."""
        return self.cond_hint_original if self.cond_hint is None else self.cond_hint

    def shallow_copy(self) -> Any:
        """A copy outside of any chain, with containers of its own."""
        twin = copy(self)
        self.copy_to(twin)
        twin.previous_controlnet, twin.cond_hint, twin.multigpu_clones = None, None, {}
        return twin
