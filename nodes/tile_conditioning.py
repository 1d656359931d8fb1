"""The prompts of a part of the picture: what of their areas, masks and control lies inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..controlnet_core.control.picture_part import PicturePart
from ..controlnet_core.errors import UnfitError
from .host import Host
from .tile_grid import CELL
from .values import Conditioning, Halves

GLIGEN = "gligen"


def crop_prompts(host: Host, positive: Conditioning, negative: Conditioning, part: PicturePart) -> Halves:
    """Both halves of the guidance for a part of the picture.

    A prompt whose area or mask lies outside the part is left out, so a half may become empty. Raises UnfitError for
    GLIGEN's boxes.
    """
    if part.is_whole:
        return positive, negative
    halves = [
        [[text, cropped] for text, options in half if (cropped := _crop_options(options, part)) is not None]
        for half in (positive, negative)
    ]
    return host.crop_control(halves[0], halves[1], part)


def _crop_options(options: Mapping[str, Any], part: PicturePart) -> dict[str, Any] | None:
    """The options of a prompt for a part; None where it does not act there."""
    if GLIGEN in options:
        raise UnfitError("a prompt has boxes of GLIGEN, which cannot be cut into tiles: remove the node that sets them")
    result = dict(options)
    cells = PicturePart(
        tuple(-(-side // CELL) for side in part.size),  # type: ignore[arg-type]
        part.top // CELL, part.left // CELL, part.height // CELL, part.width // CELL,
    )  # fmt: skip
    area = options.get("area")
    # The bounds of a mask take the place of an area; they are those of its part here.
    if area is not None and not (options.get("mask") is not None and options.get("set_area_to_bounds")):
        result["area"] = _crop_area(area, cells)
        if result["area"] is None:
            return None
    if options.get("mask") is not None:
        mask = options["mask"]
        result["mask"] = _crop_map(mask.float().reshape(-1, 1, *mask.shape[-2:]), cells)[:, 0]
        if not result["mask"].any():
            return None
    # What inpainting and editing models read beside the noise.
    for name, where in (("concat_latent_image", cells), ("concat_mask", part)):
        if isinstance(options.get(name), Tensor):
            result[name] = _crop_map(options[name], where)
    return result


def _crop_area(area: tuple[Any, ...], cells: PicturePart) -> tuple[int, int, int, int] | None:
    """(height, width, top, left) of an area inside a part, in cells; None where nothing of it is inside."""
    if area[0] == "percentage":
        height, width, top, left = (round(a * side) for a, side in zip(area[1:], cells.size * 2, strict=True))
        area = (max(1, height), max(1, width), top, left)
    height, width, top, left = (int(a) for a in area)
    first, begin = max(top, cells.top), max(left, cells.left)
    last, end = min(top + height, cells.top + cells.height), min(left + width, cells.left + cells.width)
    if last <= first or end <= begin:
        return None
    return last - first, end - begin, first - cells.top, begin - cells.left


def _crop_map(x: Tensor, part: PicturePart) -> Tensor:
    """The part of (B, C, H, W), resized bilinearly to the picture first, as hosts resize it to the latent."""
    if tuple(x.shape[-2:]) != part.size:
        x = F.interpolate(x.float(), size=part.size, mode="bilinear")
    return part.cut(x)
