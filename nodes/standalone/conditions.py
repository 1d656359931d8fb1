"""The host's form of CONDITIONING, read as the engine's conditions; the rules are the host's.

An entry's options: "control" (a tuple of ControlUnit), "control_apply_to_uncond", "area" in latent cells
(height, width, top, left) or ("percentage", ...) as shares, "strength", "mask" with "mask_strength" and
"set_area_to_bounds", "start_percent", "end_percent", "pooled_output"; of SDXL also "width", "height",
"crop_w", "crop_h", "target_width", "target_height", and "aesthetic_score" of its refiner; of inpainting and
editing models "concat_latent_image" (b, 4, h, w), not scaled, and "concat_mask" (b, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...controlnet_core.config import ModelConfig
from ...controlnet_core.control.unit import ControlStack
from ...controlnet_core.engine.concat import EDIT, INPAINT, edit_channels, inpaint_channels
from ...controlnet_core.engine.condition import Area, Condition
from ...controlnet_core.errors import ShapeError
from ...controlnet_core.models.label import PictureSize, ScoredSize, label_vector, size_kind
from ...controlnet_core.models.vae import scale_latent
from ..values import Conditioning, Latent

MIN_CELLS = 8
SCORES = {"positive": 6.0, "negative": 2.5}
"""The refiner's aesthetic score where none is given, by half."""


def to_conditions(
    positive: Conditioning,
    negative: Conditioning,
    size: tuple[int, int],
    config: ModelConfig | None = None,
    latent: Latent | None = None,
) -> tuple[tuple[Condition, ...], tuple[Condition, ...]]:
    """Both halves for a latent of (height, width) cells.

    config: of the model, where it may read more than text: a label vector, or channels beside the latent.
    latent: the LATENT to be sampled, its samples scaled for that model. Raises ShapeError for an empty half, and
    for a text that the label vector cannot be made from.
    """
    label_dim = None if config is None else config.unet.label_dim
    halves = []
    for name, conditioning in (("positive", positive), ("negative", negative)):
        if not conditioning:
            raise ShapeError(f"the {name} conditioning is empty: link an encoded prompt")
        score = SCORES[name]
        halves.append(
            [
                replace(
                    _condition(text, options, size),
                    label=_label(options, size, label_dim, score),
                    beside=None if config is None or latent is None else _beside(options, config, latent),
                )
                for text, options in conditioning
            ]
        )
    shared = [c.units for c, (_, o) in zip(halves[0], positive, strict=True) if _is_shared(c, o)]
    return tuple(_with_area_of(halves[0], halves[1])), tuple(_with_area_of(share_control(halves[1], shared), halves[0]))


def _is_shared(condition: Condition, options: dict[str, Any]) -> bool:
    plain = bool(condition.units) and condition.area is None
    return plain and options.get("control_apply_to_uncond", False) is True


def share_control(negative: Sequence[Condition], shared: Sequence[ControlStack]) -> list[Condition]:
    """Negatives that no unit controls get the units of the positives, one after the other."""
    result = list(negative)
    plain = [i for i, c in enumerate(negative) if c.area is None]
    if not plain or any(negative[i].units for i in plain):
        return result
    for index, units in enumerate(shared):
        target = plain[index % len(plain)]
        result[target] = replace(negative[target], units=units)
    return result


def _with_area_of(half: Sequence[Condition], other: Sequence[Condition]) -> list[Condition]:
    """This half, with a condition added for each area of the other half that it has none for.

    What guides an area is compared in that area: the text is that of the smallest area around it.
    """
    result = list(half)
    for area, template in ((c.area, c) for c in other if c.area is not None):
        around = [c for c in result if _covers(c.area, area)]
        if not around:
            continue
        smallest = min(around, key=lambda c: float("inf") if c.area is None else c.area.height * c.area.width)
        if smallest.area != area:
            result.append(replace(template, text=smallest.text, label=smallest.label))
    return result


def _covers(outer: Area | None, inner: Area) -> bool:
    if outer is None:
        return True
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and outer.top + outer.height >= inner.top + inner.height
        and outer.left + outer.width >= inner.left + inner.width
    )


def _condition(text: Tensor, options: dict[str, Any], size: tuple[int, int]) -> Condition:
    mask = _mask(options, size)
    return Condition(
        text=text,
        units=tuple(options.get("control") or ()),
        strength=float(options.get("strength", 1.0)),
        mask=None if mask is None else mask * float(options.get("mask_strength", 1.0)),
        area=_area(options, mask, size),
        start=float(options.get("start_percent", 0.0)),
        end=float(options.get("end_percent", 1.0)),
    )


def _label(options: dict[str, Any], size: tuple[int, int], label_dim: int | None, score: float) -> Tensor | None:
    """The label vector (1, label_dim): pooled text and the size that was asked for, the latent's by default."""
    pooled = options.get("pooled_output")
    if label_dim is None or pooled is None:
        return None
    height, width = (options.get(name, cells * 8) for name, cells in zip(("height", "width"), size, strict=True))
    placed = (height, width, options.get("crop_h", 0), options.get("crop_w", 0))
    if size_kind(pooled.shape[-1], label_dim) is ScoredSize:
        return label_vector(pooled, ScoredSize(*placed, options.get("aesthetic_score", score)))
    target = (options.get("target_height", height), options.get("target_width", width))
    return label_vector(pooled, PictureSize(*placed, *target))


def _beside(options: dict[str, Any], config: ModelConfig, latent: Latent) -> Tensor | None:
    """What inpainting and editing models read beside the latent; without a node for it, the LATENT's own mask."""
    samples, picture = latent["samples"], options.get("concat_latent_image")
    kind = config.unet.in_channels - config.vae.latent_channels
    if kind == INPAINT:
        shown = samples if picture is None else scale_latent(picture, config.vae)
        return inpaint_channels(options.get("concat_mask", latent.get("noise_mask")), shown, tuple(samples.shape))
    if kind != EDIT:
        return None
    if picture is not None and config.noise.kind == "edm":  # CosXL's editing model; the others read it unscaled
        picture = scale_latent(picture, config.vae)
    return edit_channels(picture, tuple(samples.shape))


def _mask(options: dict[str, Any], size: tuple[int, int]) -> Tensor | None:
    mask = options.get("mask")
    if mask is None:
        return None
    mask = mask.float().reshape(-1, 1, *mask.shape[-2:])
    if tuple(mask.shape[-2:]) != size:
        mask = F.interpolate(mask, size=size, mode="bilinear")
    return mask[:, 0]


def _area(options: dict[str, Any], mask: Tensor | None, size: tuple[int, int]) -> Area | None:
    if mask is not None and options.get("set_area_to_bounds"):
        return _bounds(mask, size)
    area = options.get("area")
    if area is None:
        return None
    if area[0] == "percentage":
        height, width, top, left = (round(a * s) for a, s in zip(area[1:], size * 2, strict=True))
        area = (max(1, height), max(1, width), top, left)
    height, width, top, left = (int(a) for a in area)
    rows, columns = min(height, size[0] - top), min(width, size[1] - left)
    if rows < 1 or columns < 1:
        raise ShapeError(
            f"an area of {width * 8}x{height * 8} at ({left * 8}, {top * 8}) lies outside the picture of "
            f"{size[1] * 8}x{size[0] * 8}: move it inside"
        )
    return Area(top, left, rows, columns)


def _bounds(mask: Tensor, size: tuple[int, int]) -> Area:
    """The smallest rectangle around a mask (B, h, w), at least 8 cells where the picture has them."""
    rows, columns = mask.abs().amax(dim=0).nonzero(as_tuple=True)
    if not len(rows):
        return Area(0, 0, min(MIN_CELLS, size[0]), min(MIN_CELLS, size[1]))
    top, left = int(rows.min()), int(columns.min())
    height = min(max(MIN_CELLS, int(rows.max()) - top + 1), size[0] - top)
    width = min(max(MIN_CELLS, int(columns.max()) - left + 1), size[1] - left)
    return Area(top, left, height, width)
