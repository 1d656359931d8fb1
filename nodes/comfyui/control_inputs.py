"""What nodes and other packs set on our CONTROL_NET: hint, strength, window, and all that our nodes describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.controlnet
import torch
from torch import Tensor

from ...controlnet_core.config import UNetConfig
from ...controlnet_core.control.picture_part import PicturePart
from ...controlnet_core.control.unit import ControlUnit, Curve, Hint
from ...controlnet_core.control.weights import BlockWeights
from ...controlnet_core.errors import ValueRangeError
from ..units import hint_of, on_curve, unit_of
from ..values import ControlSpec, HintSpec, mask_batch
from .advanced import AdvancedInputs
from .bind import FACTOR
from .hint_channels import HintParts, JoinedHint
from .placed_net import SharedNet

UNION_ARGUMENT = "control_type"
"""Where the native node for ControlNet Union leaves the number of the type, in a list."""
OWN_MASKS = 2
"""The first two masks among the channels of the hint always act: the unit's and Advanced-ControlNet's."""
FITS_OF_PARTS = ("crop", "pixel-perfect")
"""Hint fits that packs keep to when they cut the hint into parts."""


class ControlInputs(JoinedHint, AdvancedInputs, comfy.controlnet.ControlNet):
    """The inputs of one unit of control. Some packs act on instances of ComfyUI's `ControlNet` only, so it is one.

    ComfyUI's own nodes set hint, strength and window by `set_cond_hint`, our nodes set the rest by `describe`. Other
    packs replace or crop `cond_hint_original`, or set `cond_hint`, which then is the hint at the size of this call.
    """

    def __init__(self, shared: SharedNet) -> None:
        super().__init__()
        self.shared = shared
        self.control_model = shared.net
        # TiledKSampler puts the hint of a tile there; ComfyUI's own objects had it up to 2024.
        self.device = self.load_device = shared.device
        self.spec = ControlSpec(None, torch.zeros(0))
        self.name = shared.name
        # A further factor of the strength, which may change while sampling.
        self.curve: Curve | None = None
        self.parts: HintParts | None = None  # type: ignore[assignment]

    def set_cond_hint(self, cond_hint: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Set the hint (B, C, H, W), strength and window, as ComfyUI's own nodes do; returns itself."""
        super().set_cond_hint(cond_hint, *args, **kwargs)
        self.parts = HintParts(cond_hint)
        self._join_hint()
        return self

    def describe(self, spec: ControlSpec) -> Any:
        """Set what native nodes do not know, and check all of it; returns itself, as `set_cond_hint` does."""
        self.spec = replace(spec, control_net=None, image=torch.zeros(0))
        self.name = spec.name or self.shared.name
        self.unit()
        self._join_hint()
        return self

    def set_cond_hint_mask(self, mask: Tensor) -> Any:
        """Set the mask (B, H, W) of Advanced-ControlNet's apply node; returns itself."""
        super().set_cond_hint_mask(mask)
        self._join_hint()
        return self

    def _join_hint(self) -> None:
        """Make mask and further hints channels of the hint, so that they follow what other packs do with it."""
        if self.parts is None:
            return
        more = tuple(hint_of(hint.image) for hint in self.spec.more_hints)
        timed = () if self.spec.schedule is None else (k.mask for k in self.spec.schedule.unit_keyframes)
        masks = (mask_batch(self.spec.mask), self.mask_cond_hint_original, *timed)
        self.set_parts(HintParts(self.parts.hint, more, masks))

    def copy(self) -> Any:
        """A copy of the unit that shares its weights."""
        twin = type(self)(self.shared)
        self._copy_inputs(twin)
        return twin

    def _copy_inputs(self, twin: ControlInputs) -> None:
        self.copy_to(twin)
        self.copy_advanced_to(twin)
        twin.spec, twin.name, twin.parts, twin.joined = self.spec, self.name, self.parts, self.joined
        twin.curve = self.curve

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> Any:
        """A copy with weights of its own for another device; ComfyUI's MultiGPU nodes call this."""
        twin = type(self)(self.shared.for_device(load_device))
        self._copy_inputs(twin)
        if autoregister:
            self.multigpu_clones[load_device] = twin
        return twin

    def scale_blocks(self, factors: Sequence[float], base: UNetConfig) -> None:
        """Multiply the block weights, one factor for each block of this base, the middle last."""
        own = self.unit().own_weights(base) or (1.0,) * len(factors)
        weights = BlockWeights(custom=tuple(w * f for w, f in zip(own, factors, strict=True)))
        self.spec = replace(self.spec, block_weights=weights)

    def crop_to(self, part: PicturePart) -> Any:
        """A copy for a part of the picture, with its share of hints and masks; None where its mask is black.

        Raises ValueRangeError where Advanced-ControlNet's keyframes or weights have masks.
        """
        frames = self.timestep_keyframes.keyframes if self.timestep_keyframes else ()
        weights = (self.weights_override, *(frame.control_weights for frame in frames))
        if any(frame.mask_hint_orig is not None for frame in frames) or any(
            given is not None and given.weight_mask is not None for given in weights
        ):
            raise ValueRangeError(
                f"{self.name} has a mask in a timestep keyframe or in its weights, which cannot be cut into tiles: "
                "give the mask to the apply node instead"
            )
        unit, own = part.unit(self.unit()), mask_batch(self.mask_cond_hint_original)
        if unit is None:
            return None
        twin = self.copy()
        more = tuple(HintSpec(hint.picture.movedim(1, -1), hint.kind) for hint in unit.more_hints)
        schedule = self.spec.schedule
        if schedule is not None:
            schedule = replace(schedule, unit_keyframes=unit.keyframes)
        twin.spec = replace(self.spec, mask=unit.mask, more_hints=more, schedule=schedule)
        twin.mask_cond_hint_original = None if own is None else part.mask(own)
        twin.parts, twin.cond_hint = HintParts(unit.hint), None
        twin._join_hint()
        return twin

    def unit(self, part: Tensor | None = None) -> ControlUnit:
        """The engine's record of this unit. Raises ShapeError or ValueRangeError.

        part: the hint that a pack made for a part of the image, with all its channels.
        """
        if part is None and self.cond_hint_original is not self.joined:
            part = self.cond_hint_original
        if part is not None and self.shared.net.reads_latent:
            raise ValueRangeError(
                f"another pack cuts the image into parts, and {self.name} cannot be cut: apply it without that pack"
            )
        start, end = self.timestep_percent_range
        spec = replace(self.spec, strength=self.strength, start_percent=start, end_percent=end)
        types = self.extra_args.get(UNION_ARGUMENT) or ()
        kind = str(types[0]) if types else ""
        parts = self.parts if part is None or self.parts is None else self.parts.split(part, self.name)
        hint = self.cond_hint_original if parts is None else parts.hint
        unit = unit_of(spec, self.shared.net, hint, self.name, kind)
        unit = unit if self.curve is None else on_curve(unit, self.curve)
        if part is None or parts is None:
            return unit
        if unit.fit not in FITS_OF_PARTS:
            raise ValueRangeError(
                f"another pack cuts the hint of {self.name} into parts, and its hint fit is {unit.fit}: bring the hint "
                "to the size of the image yourself, and set the hint fit to crop"
            )
        more = tuple(Hint(image, own.kind) for image, own in zip(parts.more, unit.more_hints, strict=True))
        frames = (replace(k, mask=mask) for k, mask in zip(unit.keyframes, parts.masks[OWN_MASKS:], strict=True))
        return replace(unit, more_hints=more, mask=parts.mask(OWN_MASKS), keyframes=tuple(frames))

    def part_for(self, x: Tensor) -> Tensor | None:
        """The hint that a pack set for this call, if it has the size of x, as ComfyUI's own nets take it."""
        hint = self.cond_hint
        fits = hint is not None and hint.shape[-2:] == (x.shape[-2] * FACTOR, x.shape[-1] * FACTOR)
        return hint if fits else None
