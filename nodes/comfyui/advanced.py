"""What Advanced-ControlNet and AnimateDiff-Evolved set on a control object, and how it acts.

Both packs ask an object whether it has `sub_idxs`. If it has, they give it a mask, weights, latent keyframes, timestep
keyframes and context windows. If it has not, they leave these out or refuse the object. Their records are read by
attribute; nothing of the packs is imported.

The rules follow Advanced-ControlNet, so that a workflow gives the same image with either net:

* weights: a factor for each block, taken from the keyframe in force, else from the one before it;
* latent keyframes: a factor for each image of the batch, a default for images without one;
* masks: resized to 8 pixels per latent cell, then to the residual, both bilinear; the last one is repeated;
* a timestep keyframe comes into force when the noise falls to its start, and stays for its guaranteed steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...controlnet_core.errors import ValueRangeError
from .batch_rows import BatchRows

WINDOW_OPTION = "ad_params"
"""Where AnimateDiff-Evolved keeps the context window in the options of a model call."""
ANY_NET = ("universal", "default")
UNLIMITED = float("inf")
INPUTS = ("timestep_keyframes", "latent_keyframe_override", "weights_override", "mask_cond_hint_original")


class AdvancedInputs:
    """Mixin for a control object that takes the inputs of Advanced-ControlNet."""

    weight_types: tuple[str, ...] = ("controlnet",)
    """Kinds of weights that fit the net, by Advanced-ControlNet's names."""
    require_vae = False
    allow_condhint_latents = False
    postpone_condhint_latents_check = False

    # Set by the packs.
    sub_idxs: Sequence[int] | None = None
    full_latent_length = 0
    context_length = 0
    timestep_keyframes: Any = None
    latent_keyframe_override: Any = None
    weights_override: Any = None
    mask_cond_hint_original: Tensor | None = None
    is_advanced = False
    keyframe_state: KeyframeState | None = None

    # ---- what the packs call

    def disarm(self) -> None:
        """Advanced-ControlNet's apply node calls this: its rules hold for the object from now on."""
        self.is_advanced = True

    def set_timestep_keyframes(self, keyframes: Any) -> None:
        """Set a group of timestep keyframes; None takes them away."""
        self.timestep_keyframes = keyframes

    def set_cond_hint_mask(self, mask: Tensor) -> Any:
        """Set a mask (B, H, W); returns itself."""
        self.mask_cond_hint_original = mask
        return self

    def verify_all_weights(self, throw_error: bool = True) -> None:
        """Raise ValueRangeError for weights that are made for another kind of net."""
        frames = self.timestep_keyframes.keyframes if self.timestep_keyframes else ()
        given = [self.weights_override] if self.weights_override else [frame.control_weights for frame in frames]
        for weights in given:
            if weights is not None and weights.weight_type not in (*ANY_NET, *self.weight_types):
                raise ValueRangeError(
                    f"the weights are made for {weights.weight_type}, and this net takes "
                    f"{' or '.join((*self.weight_types, 'universal'))} weights: link a node that makes those"
                )

    # ---- what the control object calls

    def copy_advanced_to(self, other: AdvancedInputs) -> None:
        """Give a copy of the object the same inputs."""
        for name in (*INPUTS, "is_advanced"):
            setattr(other, name, getattr(self, name))

    def begin_advanced(self, percent_to_sigma: Callable[[float], float]) -> None:
        """Begin a run."""
        self.sub_idxs = self.keyframe_state = None
        if any(getattr(self, name) is not None for name in INPUTS):
            self.keyframe_state = KeyframeState(self.timestep_keyframes, percent_to_sigma)

    def end_advanced(self) -> None:
        """End a run."""
        self.sub_idxs = self.keyframe_state = None

    def advanced_factors(self, sigma: float, rows: BatchRows, options: Mapping[str, Any]) -> AdvancedFactors | None:
        """What the inputs do at this noise level; None if there are none."""
        state = self.keyframe_state
        if state is None:
            return None
        state.advance(sigma, options.get("sample_sigmas"))
        weights = self.weights_override or state.weights
        latents = self.latent_keyframe_override or state.latents
        total = self.full_latent_length if rows.windowed and self.full_latent_length else 1 + max(rows.images)
        halves = options.get("cond_or_uncond") or [0] * (1 + max(rows.conditionings))
        uncond = 1.0 if weights is None else weights.uncond_multiplier
        images = _image_factors(latents, state.frame.null_latent_kf_strength, total)
        return AdvancedFactors(
            rows=tuple(
                images[image] * (uncond if halves[half] == 1 else 1.0)
                for half, image in zip(rows.conditionings, rows.images, strict=True)
            ),
            strength=state.frame.strength,
            weights=weights,
            own_mask=self.mask_cond_hint_original,
            keyframe_mask=state.mask,
            images=rows.images,
        )


def context_window(sub_idxs: Sequence[int] | None, options: Mapping[str, Any]) -> Sequence[int] | None:
    """Indices of the images in AnimateDiff-Evolved's context window; None outside of one.

    sub_idxs: what the pack set on the control object.
    """
    return sub_idxs or (options.get(WINDOW_OPTION) or {}).get("sub_idxs")


def _image_factors(latents: Any, other: float, total: int) -> Sequence[float]:
    """A factor for each of `total` images: that of its latent keyframe, or `other`; 1 without keyframes."""
    if latents is None:
        return [1.0] * total
    factors = [other] * total
    for frame in latents.keyframes:
        index = frame.batch_index + (total if frame.batch_index < 0 else 0)
        if 0 <= index < total:
            factors[index] = frame.strength
    return factors


@dataclass(frozen=True)
class Keyframe:
    """The timestep keyframe that is in force if no other is given."""

    start_percent: float = 0.0
    strength: float = 1.0
    null_latent_kf_strength: float = 0.0
    guarantee_steps: int = 0
    inherit_missing: bool = True
    control_weights: Any = None
    latent_keyframes: Any = None
    mask_hint_orig: Tensor | None = None


class KeyframeState:
    """The timestep keyframe in force in a run, with what it took over from those before it."""

    def __init__(self, group: Any, percent_to_sigma: Callable[[float], float]) -> None:
        self.frames = list(group.keyframes) if group else [Keyframe()]
        self.starts = [float(percent_to_sigma(frame.start_percent)) for frame in self.frames]
        self.index, self.steps = -1, 0
        self.frame: Any = Keyframe()
        self.weights: Any = None
        self.latents: Any = None
        self.mask: Tensor | None = None
        self.sigma: float | None = None

    def advance(self, sigma: float, sample_sigmas: Tensor | None) -> None:
        """Advance to a noise level. A second call for the same level changes nothing."""
        if sigma == self.sigma:
            return
        self.sigma = sigma
        highest = UNLIMITED if sample_sigmas is None else float(sample_sigmas.max())
        if self.index < 0 or self.steps >= self._guaranteed(self.index, highest):
            for index in range(self.index + 1, len(self.frames)):
                if self.starts[index] < sigma:
                    break
                self._enter(index)
                if self._guaranteed(index, highest) > 0:
                    break
        self.steps += 1

    def _guaranteed(self, index: int, highest: float) -> int:
        """Number of steps that the keyframe stays; 0 if it begins before this run, as in image to image."""
        return 0 if self.starts[index] > highest else self.frames[index].guarantee_steps

    def _enter(self, index: int) -> None:
        self.index, self.steps, self.frame = index, 0, self.frames[index]
        frame = self.frame
        kept = (self.weights, self.latents, self.mask) if frame.inherit_missing else (None, None, None)
        own = (frame.control_weights, frame.latent_keyframes, frame.mask_hint_orig)
        self.weights, self.latents, self.mask = (b if a is None else a for a, b in zip(own, kept, strict=True))


@dataclass(frozen=True)
class AdvancedFactors:
    """The inputs at one noise level.

    rows: a factor for each row of x. strength: of the timestep keyframe. weights: a record of block weights, or None.
    own_mask: of the apply node, keyframe_mask: of the timestep keyframe, each (B, H, W) or None. images: for each row
    the index of its image.
    """

    rows: tuple[float, ...]
    strength: float
    weights: Any
    own_mask: Tensor | None
    keyframe_mask: Tensor | None
    images: tuple[int, ...]

    @property
    def weight_mask(self) -> Tensor | None:
        """The mask (B, H, W) that weighs fine blocks less, if the weights have one."""
        return None if self.weights is None else self.weights.weight_mask

    @property
    def mask_of_keyframe(self) -> bool:
        """Whether there is a mask that cannot follow a hint that is cut into parts."""
        return self.keyframe_mask is not None or self.weight_mask is not None

    @property
    def has_masks(self) -> bool:
        """Whether `mask` has an effect."""
        return self.own_mask is not None or self.mask_of_keyframe

    def block_weight(self, index: int, count: int, entry: str) -> float:
        """Factor of the residual at an index: the skips from first to last, then the middle. count: of the skips.

        entry: "skips" for a net, "encoder" for an adapter, as in `ControlModel.entry`; any other counts as a net.
        """
        if self.weights is None or self.weight_mask is not None:
            return self.strength
        if self.weights.weight_type == "universal":
            middle = self.weights.extras.get("middle_mult", 1.0)
            own = self.weights.base_multiplier ** _exponent(index, count, entry)
            return self.strength * (middle if index == count else own)
        key = "middle" if index == count else "input" if entry == "encoder" else "output"
        place = 0 if index == count else index
        if key == "input":  # the pack counts an adapter's blocks from the last one
            place = _adapter_places(count) - 1 - index
        lists = {"middle": [None], "output": [None] * count, "input": [None] * _adapter_places(count)}
        return self.strength * self.weights.get(idx=place, control=lists, key=key)

    def mask(
        self, index: int, count: int, entry: str, latent: tuple[int, int], size: tuple[int, int], own: bool = True
    ) -> Tensor:
        """(rows, 1, h, w) on the CPU: the product of all masks at a residual of this size.

        latent: (h, w) of x in latent cells. own: whether the mask of the apply node is one of them.
        """
        product = torch.ones(len(self.images), 1, *size)
        for mask in (self.own_mask if own else None, self.keyframe_mask):
            if mask is not None:
                large = self._at(mask, (8 * latent[0], 8 * latent[1]))
                product = product * F.interpolate(large, size=size, mode="bilinear")
        if self.weight_mask is not None:
            power = 0 if index == count else _exponent(index, count, entry)
            product = product * self._at(self.weight_mask, size) ** power
        return product

    def _at(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """A mask (B, H, W) -> (rows, 1, *size); the last one stands for all images after it."""
        rows = [min(image, len(mask) - 1) for image in self.images]
        return F.interpolate(mask[rows][:, None].float().cpu(), size=size, mode="bilinear")


def _adapter_places(count: int) -> int:
    """Places in the pack's list for an adapter with this many blocks: SDXL's list has an empty one more."""
    return 10 if count == 9 else count


def _exponent(index: int, count: int, entry: str) -> int:
    """The power of the multiplier for a skip: the finer a block is, the higher."""
    if entry != "encoder":
        return count - index
    return (7, 2, 1, 0)[min(3, (index + 12 - _adapter_places(count)) // 3)]
