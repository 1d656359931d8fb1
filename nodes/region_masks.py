"""Regions of an image from lines of text, masks, a label map or boxes, for Region Prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..controlnet_core.control.hint import mask_at
from ..controlnet_core.errors import ShapeError, ValueRangeError
from ..preprocessors.palettes import PALETTES, nearest_classes, palette

MOST_REGIONS = 32
"""Each region costs a cross attention in every block."""
MOST_WEIGHT = 10.0
SIDE = 512
"""Longest side of masks in pixels: one per token of an image of 4096 pixels."""
TOLERANCE = 24.0
"""Farthest colour that still counts as a label's, in bytes: borders of a resized map are mixtures of two."""
LINE = re.compile(
    r"\s*(?P<name>[^:(\[]*)(?:\((?P<weight>[^)]*)\))?\s*(?:\[(?P<box>[^\]]*)\])?\s*:(?P<text>.*)", re.DOTALL
)


@dataclass(frozen=True)
class Region:
    """One line. name: a class, a colour such as "#ff0000", or any word. box: left, top, width, height from 0 to 1."""

    title: str
    name: str
    text: str
    weight: float = 1.0
    box: tuple[float, ...] = ()


def read_regions(text: str) -> tuple[Region, ...]:
    """Regions from lines "name (weight) [box]: text", of which weight and box may be left out.

    Raises ValueRangeError that names the line.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueRangeError("there is no region: write one line for each, such as 'sky: stormy clouds'")
    if len(lines) > MOST_REGIONS:
        raise ValueRangeError(f"there are {len(lines):,} regions, at most {MOST_REGIONS} are supported: join some")
    return tuple(_read_line(line, number) for number, line in enumerate(lines, 1))


def _read_line(line: str, number: int) -> Region:
    where = f"line {number} of the regions ({line.strip()[:60]!r})"
    found = LINE.fullmatch(line)
    if found is None or not found["text"].strip():
        raise ValueRangeError(f"{where} has no text: write the region, a colon and its text, such as 'sky: clouds'")
    name = found["name"].strip()
    weights = _numbers(found["weight"] or "1", f"{where}: its weight")
    if len(weights) != 1 or not 0.0 <= weights[0] <= MOST_WEIGHT:
        raise ValueRangeError(f"{where}: its weight is {found['weight']}, expected a number from 0 to {MOST_WEIGHT:g}")
    box = () if found["box"] is None else _numbers(found["box"], f"{where}: its box")
    if box and (len(box) != 4 or not all(0.0 <= side <= 1.0 for side in box) or min(box[2:]) == 0.0):
        raise ValueRangeError(
            f"{where}: its box is [{found['box']}], expected left, top, width and height as fractions from 0 to 1, "
            "such as [0, 0, 1, 0.5] for the upper half"
        )
    return Region(name or f"region {number}", name, found["text"].strip(), weights[0], box)


def _numbers(text: str, what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:  # the same message as for NaN
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueRangeError(f"{what} is {text!r}, expected numbers")
    return numbers


def region_masks(regions: Sequence[Region], masks: Sequence[Tensor], label_map: Tensor | None) -> Tensor:
    """(B, R, H, W) in [0, 1]: the mask of each region, at most `SIDE` on a side.

    masks: MASKs, each (N, H, W); those that are no box and no label take them in order. label_map: IMAGE (B, H, W, 3).
    Raises ValueRangeError or ShapeError for a region that is not found or is empty, and for masks that are left over.
    """
    given = [mask[None] for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
    size = _size_of(label_map, given)
    pixels = None if label_map is None else _colours(label_map)
    left = iter(given)
    parts = []
    for region in regions:
        colour = None if pixels is None or region.box else _label_colours(region.name)
        # Boxes and labels need no mask; the other lines take the linked masks in order.
        if region.box:
            part = _box(region.box, size)
        elif colour is not None:
            assert pixels is not None
            part = _of_colour(pixels, colour)
        else:
            part = next(left, None)
        parts.append(mask_at(_checked(region, part, label_map is not None), size))
    if (more := sum(1 for _ in left)) > 0:
        raise ShapeError(
            f"{more} of {len(given)} masks have no line: {len(regions)} lines were given, write one for each mask"
        )
    batch = max(len(part) for part in parts)
    return torch.cat([part.expand(batch, -1, -1, -1) for part in parts], dim=1)


def _size_of(label_map: Tensor | None, masks: Sequence[Tensor]) -> tuple[int, int]:
    """Height and width of all masks."""
    height, width = (SIDE, SIDE) if not masks else masks[0].shape[-2:]
    if label_map is not None:
        height, width = label_map.shape[-3:-1]
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _checked(region: Region, mask: Tensor | None, has_map: bool) -> Tensor:
    if mask is None:
        known = "no class of the label map" if has_map else "no label map is linked"
        raise ValueRangeError(
            f"the region {region.title} has no place: it is no box, {known}, and no mask is left for it. Link a mask "
            "for each such line, a label map with that class, or write a box: 'name [left, top, width, height]: text'"
        )
    if not bool(torch.isfinite(mask).all()):
        raise ValueRangeError(f"the mask of the region {region.title} contains NaN or infinity: check the node before")
    if not bool((mask > 0).any()):
        raise ValueRangeError(
            f"the region {region.title} is empty, no pixel belongs to it: paint it, or remove its line"
        )
    return mask.float()


def _box(box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """(1, H, W) with a rectangle of ones."""
    left, top, width, height = box
    # By the centres of pixels, so that boxes that share a border never overlap.
    rows, columns = ((torch.arange(side) + 0.5) / side for side in size)
    inside = [
        (at >= first) & (at < first + length) for at, first, length in ((rows, top, height), (columns, left, width))
    ]
    return (inside[0][:, None] & inside[1]).float()[None]


def _colours(label_map: Tensor) -> np.ndarray:
    """IMAGE (B, H, W, C) -> (B, H, W, 3) bytes as int32."""
    if label_map.ndim == 3:
        label_map = label_map[None]
    if label_map.ndim != 4 or label_map.shape[-1] < 3:
        raise ShapeError(f"the label map has shape {tuple(label_map.shape)}, expected an image (batch, H, W, 3)")
    if not bool(torch.isfinite(label_map).all()):
        raise ValueRangeError("the label map contains NaN or infinity: check the node that made it")
    return (label_map[..., :3].float().clamp(0.0, 1.0) * 255.0).round().to(torch.int32).cpu().numpy()


def _label_colours(name: str) -> np.ndarray | None:
    """(N, 3) bytes of a class of any palette, or of a colour such as "#ff0000"; None for other words."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", name):
        return np.array([list(bytes.fromhex(name[1:]))], np.uint8)
    known = (
        table.colours[number]
        for table in map(palette, PALETTES)
        for number, label in enumerate(table.classes)
        if name.lower() in (label, label.removesuffix("-merged"))
    )
    found = list(known)
    return np.array(found) if found else None


def _of_colour(pixels: np.ndarray, colours: np.ndarray) -> Tensor:
    """(B, H, W) with ones where a label map has one of these colours."""
    _, distance = nearest_classes(pixels.reshape(-1, 3), colours)
    return torch.from_numpy((distance <= TOLERANCE).reshape(pixels.shape[:-1])).float()


def soften(masks: Tensor, softness: float) -> Tensor:
    """Masks (B, R, H, W) with soft borders. softness: width of a border as a fraction of the shorter side."""
    # A blurred edge rises from 0.16 to 0.84 within two standard deviations.
    sigma = softness * min(masks.shape[-2:]) / 2
    if sigma <= 0.0:
        return masks
    reach = math.ceil(3 * sigma)
    at = torch.arange(-reach, reach + 1, dtype=masks.dtype)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    flat = masks.reshape(-1, 1, *masks.shape[-2:])
    # Two passes, because a Gaussian is a product of both directions. Borders repeat, or regions would fade out there.
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None, :])
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
    return flat.reshape(masks.shape).clamp(0.0, 1.0)


def describe(regions: Sequence[Region], masks: Tensor) -> str:
    """How much of the image each region has, and which overlap. masks: (B, R, H, W)."""
    inside = masks > 0.5
    lines = [
        f"{region.title}: {float(own.mean()):.0%}" for region, own in zip(regions, masks.movedim(1, 0), strict=True)
    ]
    lines.append(f"the prompt alone: {float((1.0 - masks.sum(dim=1)).clamp(min=0.0).mean()):.0%}")
    for first in range(len(regions)):
        for second in range(first + 1, len(regions)):
            share = float((inside[:, first] & inside[:, second]).float().mean())
            if share > 0.0:
                pair = f"{regions[first].title} and {regions[second].title}"
                lines.append(f"{pair} overlap on {share:.1%}: both texts act there, by their weights")
    return "\n".join(lines)
