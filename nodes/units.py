"""Builds the engine's control units from what nodes describe, and checks that they fit the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..controlnet_core.checkpoints.fit import fits_text, text_widths
from ..controlnet_core.control.unit import ControlUnit, Curve, Hint
from ..controlnet_core.errors import ShapeError, UnfitError, ValueRangeError
from ..controlnet_core.models.control import ControlModel
from .values import Conditioning, ControlSpec, mask_batch

# Every family of Stable Diffusion has a text encoder of its own width, so the width tells which one was used.
BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL", 1280: "SDXL's refiner"}
"""Base models by the width of the text that they read."""


def unit_of(spec: ControlSpec, net: ControlModel, hint: Tensor, name: str, kind: str = "") -> ControlUnit:
    """The engine's unit for a description.

    hint: (B, C, H, W) in [0, 1]. kind: what the hint shows according to the net's own node; used where the
    description does not say it.
    """
    options = spec.options
    return ControlUnit(
        net=net,
        hint=hint,
        strength=spec.strength,
        start=spec.start_percent,
        end=spec.end_percent,
        mask=mask_batch(spec.mask),
        block_weights=spec.block_weights,
        mode=spec.mode,
        name=name,
        kind=options.kind or kind,
        more_hints=tuple(Hint(hint_of(more.image), more.kind) for more in spec.more_hints),
        curve=spec.schedule,
        positive=options.positive,
        negative=options.negative,
        items=options.items or None,
        fit=options.fit,
        pool=options.pool,
        keyframes=() if spec.schedule is None else spec.schedule.unit_keyframes,
    )


def hint_of(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) or (H, W, C) -> hint (B, C, H, W). Raises ShapeError or ValueRangeError."""
    # Some packs send one image without a batch dimension.
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or 0 in image.shape:
        raise ShapeError(f"the hint has shape {tuple(image.shape)}, expected (batch, height, width, 3)")
    # One NaN in a hint would spread over the whole picture, and nothing would say where it came from.
    if not bool(torch.isfinite(image).all()):
        raise ValueRangeError("the hint contains NaN or infinity: check the node that made it")
    return image.float().movedim(-1, 1)


def on_curve(unit: ControlUnit, curve: Curve) -> ControlUnit:
    """The unit with its strength multiplied by a further curve, which may change its values while sampling."""
    own = unit.curve
    return replace(unit, curve=curve if own is None else lambda position: own(position) * curve(position))


def replace_unit(conditioning: Conditioning, old: ControlUnit, new: ControlUnit) -> Conditioning:
    """CONDITIONING of the engine with one unit in the place of another."""
    return [
        [text, {**options, "control": tuple(new if u is old else u for u in options.get("control") or ())}]
        for text, options in conditioning
    ]


def add_units(conditioning: Conditioning, units: Sequence[ControlUnit], *, to_uncond: bool) -> Conditioning:
    """CONDITIONING with further units. Raises UnfitError where a net was made for another base than the text.

    to_uncond: whether a negative prompt without control of its own gets the same units.
    """
    result: Conditioning = []
    for text, options in conditioning:
        for unit in units:
            check_text(unit.net, unit.name, text)
        # A new tuple for each entry: other nodes may use the conditioning that came in.
        control = (*(options.get("control") or ()), *units)
        result.append([text, {**options, "control": control, "control_apply_to_uncond": to_uncond}])
    return result


def check_text(net: ControlModel, name: str, text: Tensor) -> None:
    """Raise UnfitError where the net reads text of another width than this one (1, tokens, width)."""
    given = text.shape[-1]
    if not fits_text(net, given):
        made_for = " or ".join(_base(width) for width in text_widths(net))
        raise UnfitError(
            f"{name} was made for {made_for}, the prompt was encoded by {_base(given)}: "
            f"load a ControlNet made for {_base(given)}, or the checkpoint that this one was made for"
        )


def _base(width: int) -> str:
    return f"{BASES.get(width, 'a model of another family')} ({width} wide text)"
