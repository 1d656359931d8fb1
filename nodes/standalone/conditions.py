"""Converts CONDITIONING to the engine's conditions, by ComfyUI's rules.

Options of an entry:
- "control" (a tuple of ControlUnit), "control_apply_to_uncond", "strength", "start_percent", "end_percent";
- "gligen": texts at places, see `text_boxes`;
- "area": (height, width, top, left) in latent cells, or ("percentage", ...) in fractions of the image;
- "mask" with "mask_strength" and "set_area_to_bounds";
- "pooled_output"; for SDXL also "width", "height", "crop_w", "crop_h", "target_width", "target_height", and for its
  refiner "aesthetic_score";
- "unclip_conditioning": pictures that guide SD2.1-unCLIP and SDXL, each {"clip_vision_output", "strength",
  "noise_augmentation"};
- for inpainting and editing models "concat_latent_image" (b, 4, h, w), not scaled, and "concat_mask" (b, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...controlnet_core.conditioning.concat_channels import EDIT, INPAINT, edit_channels, inpaint_channels
from ...controlnet_core.conditioning.condition import Area, Condition
from ...controlnet_core.config import SD21, ModelConfig
from ...controlnet_core.control.unit import ControlStack
from ...controlnet_core.errors import ShapeError, UnfitError
from ...controlnet_core.models.label import PictureSize, ScoredSize, label_vector, size_kind
from ...controlnet_core.models.unclip import PictureHint, unclip_label
from ...controlnet_core.models.vae import scale_latent
from ..values import Conditioning, Latent
from .text_boxes import add_text_boxes

MIN_CELLS = 8
"""Smallest side of an area that is computed from a mask, in latent cells, as in ComfyUI."""
SCORES = {"positive": 6.0, "negative": 2.5}
"""The refiner's aesthetic score where none is given, as in ComfyUI."""


def to_conditions(
    positive: Conditioning,
    negative: Conditioning,
    size: tuple[int, int],
    config: ModelConfig | None = None,
    latent: Latent | None = None,
    seed: int = 0,
) -> tuple[tuple[Condition, ...], tuple[Condition, ...]]:
    """The conditions of both halves of the guidance, for a latent of (height, width) cells.

    config, latent: needed for models that read more than text: a label vector (SDXL), or further input channels
    (inpainting). The samples of `latent` are scaled for the model. seed: of the sampling, for the noise in pictures
    that guide a model. Raises ShapeError for an empty half, and for a text that does not fit the label vector,
    UnfitError for pictures of another image encoder.
    """
    # Both halves are needed before either is complete: areas and shared control go from one to the other.
    halves = []
    for name, conditioning in (("positive", positive), ("negative", negative)):
        if not conditioning:
            raise ShapeError(f"the {name} conditioning is empty: link an encoded prompt")
        halves.append([_condition(text, o, size, config, latent, SCORES[name], seed) for text, o in conditioning])
    first, second = halves
    shared = [c.units for c, (_, o) in zip(first, positive, strict=True) if _is_shared(c, o)]
    first, second = add_text_boxes(first, share_control(second, shared), (positive, negative))
    return tuple(_with_area_of(first, second)), tuple(_with_area_of(second, first))


def _is_shared(condition: Condition, options: dict[str, Any]) -> bool:
    plain = bool(condition.units) and condition.area is None
    # ComfyUI's rule: control of a prompt that is limited to an area is not passed on to the negative prompt.
    return plain and options.get("control_apply_to_uncond", False) is True


def share_control(negative: Sequence[Condition], shared: Sequence[ControlStack]) -> list[Condition]:
    """Give the units of the positive conditions to the negative ones in turn, where no negative one has units."""
    result = list(negative)
    plain = [i for i, c in enumerate(negative) if c.area is None]
    if not plain or any(negative[i].units for i in plain):
        return result
    for index, units in enumerate(shared):
        # As in ComfyUI, in turn: a batch of prompts need not have as many negatives.
        target = plain[index % len(plain)]
        result[target] = replace(negative[target], units=units)
    return result


def _with_area_of(half: Sequence[Condition], other: Sequence[Condition]) -> list[Condition]:
    """This half, with a condition for each area that only the other half has.

    Guidance compares both halves in the same area. The added condition has the text of the smallest condition of this
    half that covers the area.
    """
    result = list(half)
    for area, template in ((c.area, c) for c in other if c.area is not None):
        around = [c for c in result if _covers(c.area, area)]
        if not around:
            continue
        # Areas may be nested: the closest one says best what is wanted there.
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


def _condition(
    text: Tensor, options: dict[str, Any], size: tuple[int, int], config: ModelConfig | None, latent: Latent | None,
    score: float, seed: int,
) -> Condition:  # fmt: skip
    mask = _mask(options, size)
    return Condition(
        text=text,
        units=tuple(options.get("control") or ()),
        strength=float(options.get("strength", 1.0)),
        mask=None if mask is None else mask * float(options.get("mask_strength", 1.0)),
        area=_area(options, mask, size),
        start=float(options.get("start_percent", 0.0)),
        end=float(options.get("end_percent", 1.0)),
        label=None if config is None else _label(options, size, config, score, seed),
        concat=None if config is None or latent is None else _concat_channels(options, config, latent),
    )


def _label(
    options: dict[str, Any], size: tuple[int, int], config: ModelConfig, score: float, seed: int
) -> Tensor | None:
    """The label vector (1, label_dim). SDXL: pooled text and image sizes, by default those of the latent. unCLIP: a
    picture, or zeros without one."""
    label_dim, pooled = config.unet.label_dim, options.get("pooled_output")
    pictures = [
        PictureHint(entry["clip_vision_output"].embeds, entry["strength"], entry["noise_augmentation"])
        for entry in options.get("unclip_conditioning", ())
    ]
    if label_dim is None:
        return None
    if config.name == SD21.name:
        _check_width(pictures, label_dim // 2)
        return unclip_label(pictures, seed) if pictures else torch.zeros(1, label_dim)
    if pooled is None:
        return None
    if pictures:
        # SDXL reads the noised picture where its pooled text would be.
        _check_width(pictures, pooled.shape[-1])
        pooled = unclip_label(pictures, seed, merged_level=0.0)[:, : pooled.shape[-1]]
    height, width = (options.get(name, cells * 8) for name, cells in zip(("height", "width"), size, strict=True))
    placed = (height, width, options.get("crop_h", 0), options.get("crop_w", 0))
    if size_kind(pooled.shape[-1], label_dim) is ScoredSize:
        return label_vector(pooled, ScoredSize(*placed, options.get("aesthetic_score", score)))
    target = (options.get("target_height", height), options.get("target_width", width))
    return label_vector(pooled, PictureSize(*placed, *target))


def _check_width(pictures: Sequence[PictureHint], width: int) -> None:
    """Raise UnfitError for pictures that were read by another encoder than the model was trained with."""
    other = next((hint.embeds.shape[-1] for hint in pictures if hint.embeds.shape[-1] != width), None)
    if other is not None:
        encoder = {768: "ViT-L", 1024: "ViT-H", 1280: "ViT-bigG"}.get(width, f"one of width {width}")
        raise UnfitError(f"the image encoder gives {other} numbers, this model reads {width}: load CLIP {encoder}")


def _concat_channels(options: dict[str, Any], config: ModelConfig, latent: Latent) -> Tensor | None:
    """The further input channels of inpainting and editing models.

    Without a node that sets them, an inpainting model reads the noise mask of the LATENT.
    """
    samples, picture = latent["samples"], options.get("concat_latent_image")
    kind = config.unet.in_channels - config.vae.latent_channels
    if kind == INPAINT:
        shown = samples if picture is None else scale_latent(picture, config.vae)
        return inpaint_channels(options.get("concat_mask", latent.get("noise_mask")), shown, tuple(samples.shape))
    if kind != EDIT:
        return None
    # CosXL's editing model reads a scaled latent, InstructPix2Pix an unscaled one.
    if picture is not None and config.noise.kind == "edm":
        picture = scale_latent(picture, config.vae)
    return edit_channels(picture, tuple(samples.shape))


def _mask(options: dict[str, Any], size: tuple[int, int]) -> Tensor | None:
    mask = options.get("mask")
    if mask is None:
        return None
    mask = mask.float().reshape(-1, 1, *mask.shape[-2:])
    if tuple(mask.shape[-2:]) != size:
        # Bilinear, as in ComfyUI: a soft border of the mask stays soft.
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
    # An area may reach over the border, as when a workflow is used at a smaller size.
    rows, columns = min(height, size[0] - top), min(width, size[1] - left)
    if rows < 1 or columns < 1:
        raise ShapeError(
            f"an area of {width * 8}x{height * 8} at ({left * 8}, {top * 8}) lies outside the image of "
            f"{size[1] * 8}x{size[0] * 8}: move it inside"
        )
    return Area(top, left, rows, columns)


def _bounds(mask: Tensor, size: tuple[int, int]) -> Area:
    """The smallest rectangle around a mask (B, h, w), with sides of MIN_CELLS or more where the image allows it."""
    rows, columns = mask.abs().amax(dim=0).nonzero(as_tuple=True)
    if not len(rows):
        return Area(0, 0, min(MIN_CELLS, size[0]), min(MIN_CELLS, size[1]))
    top, left = int(rows.min()), int(columns.min())
    height = min(max(MIN_CELLS, int(rows.max()) - top + 1), size[0] - top)
    width = min(max(MIN_CELLS, int(columns.max()) - left + 1), size[1] - left)
    return Area(top, left, height, width)
