"""ComfyUI's nodes that make and change masks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields import MAX_SIDE, choice, image, integer, mask, share, side, switch
from ..node import Node
from ..pictures import show_images
from .room import require_room

MASK = mask("mask")


def as_masks(mask: Tensor) -> Tensor:
    """A mask of any number of dimensions as (B, H, W)."""
    return mask.reshape(-1, *mask.shape[-2:])


class MaskEditNode(Node):
    """Base of the nodes that return a MASK."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)


class SolidMask(MaskEditNode):
    """Makes a mask of one value."""

    INPUTS = (share("value", 1.0), side("width", 512, 1, step=1), side("height", 512, 1, step=1))

    def run(self, value: float, width: int, height: int) -> tuple[Tensor]:
        """-> MASK."""
        require_room((1, height, width))
        return (torch.full((1, height, width), value),)


class CropMask(MaskEditNode):
    """Cuts a rectangle out of a mask."""

    INPUTS = (
        MASK, side("x", 0, step=1), side("y", 0, step=1), side("width", 512, 1, step=1),
        side("height", 512, 1, step=1),
    )  # fmt: skip

    def run(self, mask: Tensor, x: int, y: int, width: int, height: int) -> tuple[Tensor]:
        """-> MASK."""
        return (as_masks(mask)[:, y : y + height, x : x + width],)


class MaskComposite(MaskEditNode):
    """Combines a mask with another one that is put on it at a position."""

    INPUTS = (
        mask("destination"), mask("source"), side("x", 0, step=1), side("y", 0, step=1),
        choice("operation", ["multiply", "add", "subtract", "and", "or", "xor"]),
    )  # fmt: skip

    def run(self, destination: Tensor, source: Tensor, x: int, y: int, operation: str) -> tuple[Tensor]:
        """-> MASK."""
        result, source = as_masks(destination).clone(), as_masks(source)
        place = result[:, y : y + source.shape[1], x : x + source.shape[2]]
        source = source[:, : place.shape[1], : place.shape[2]]
        place.copy_(combine(place, source, operation))
        return (result.clamp(0.0, 1.0),)


def combine(a: Tensor, b: Tensor, operation: str) -> Tensor:
    """Combine two masks; the logical operations round them first."""
    if operation in ("multiply", "add", "subtract"):
        return getattr(torch, operation)(a, b)
    return getattr(torch, f"logical_{operation}")(a.round(), b.round()).float()


class FeatherMask(MaskEditNode):
    """Fades a mask out towards its sides."""

    INPUTS = (
        MASK, side("left", 0, step=1), side("top", 0, step=1), side("right", 0, step=1), side("bottom", 0, step=1)
    )  # fmt: skip

    def run(self, mask: Tensor, left: int, top: int, right: int, bottom: int) -> tuple[Tensor]:
        """-> MASK."""
        result = as_masks(mask).clone()
        height, width = result.shape[-2:]
        for axis, length, count, far in ((2, width, left, 0), (2, width, right, 1), (1, height, top, 0),
                                         (1, height, bottom, 1)):  # fmt: skip
            ramp = torch.ones(length)
            count = min(count, length)
            for at in range(count):
                # As ComfyUI 0.33: earlier releases faded the first line instead of the last one of a far side.
                ramp[-1 - at if far else at] *= (at + 1.0) / count
            result *= ramp.reshape((-1, 1) if axis == 1 else (1, -1))
        return (result,)


class GrowMask(MaskEditNode):
    """Widens the white part of a mask by some pixels; a negative number narrows it."""

    INPUTS = (MASK, integer("expand", 0, -MAX_SIDE, MAX_SIDE, step=1), switch("tapered_corners", True))

    def run(self, mask: Tensor, expand: int, tapered_corners: bool) -> tuple[Tensor]:
        """-> MASK."""
        grown = as_masks(mask)[:, None]
        # Narrowing white is widening black.
        grown = -grown if expand < 0 else grown
        for _ in range(abs(expand)):
            wider = widen(grown, tapered_corners)
            if torch.equal(wider, grown):
                break
            grown = wider
        return ((-grown if expand < 0 else grown)[:, 0],)


def widen(x: Tensor, tapered: bool) -> Tensor:
    """(B, 1, H, W): the largest value of each pixel and its 8 neighbours, or its 4 neighbours if tapered."""
    if not tapered:
        return F.max_pool2d(x, 3, stride=1, padding=1)
    rows = F.max_pool2d(x, (3, 1), stride=1, padding=(1, 0))
    return torch.maximum(rows, F.max_pool2d(x, (1, 3), stride=1, padding=(0, 1)))


class ThresholdMask(MaskEditNode):
    """Makes a mask white where it is above a value, and black elsewhere."""

    INPUTS = (MASK, share("value", 0.5))

    def run(self, mask: Tensor, value: float) -> tuple[Tensor]:
        """-> MASK."""
        return ((mask > value).float(),)


class ImageColorToMask(MaskEditNode):
    """Makes a mask of the pixels of one colour, given as 0xRRGGBB."""

    INPUTS = (image("image"), integer("color", 0, 0, 0xFFFFFF, step=1, display_mode="color"))

    def run(self, image: Tensor, color: int) -> tuple[Tensor]:
        """-> MASK."""
        wanted = torch.tensor([color >> shift & 0xFF for shift in (16, 8, 0)])
        levels = (image[..., :3].clamp(0.0, 1.0) * 255.0).round().int()
        return ((levels == wanted).all(dim=-1).float(),)


class MaskPreview(Node):
    """Shows a mask. Without ComfyUI it is written into the folder temp in the output folder."""

    CATEGORY = "mask"
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    INPUTS = (MASK,)
    HIDDEN = ("prompt", "extra_pnginfo")

    def run(self, mask: Tensor, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        """-> the written files, for the editor."""
        picture = as_masks(mask)[..., None].expand(-1, -1, -1, 3)
        return {"ui": show_images(self.host, picture, "mask", prompt=prompt, extra=extra_pnginfo)}
