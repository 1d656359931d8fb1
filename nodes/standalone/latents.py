"""ComfyUI's nodes on latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..fields import choice, integer, latent, mask, number, side
from ..node import Node
from ..values import Latent
from .resize import CROPS, LATENT_METHODS, resize
from .room import require_room

SAMPLES = latent("samples")
METHOD = choice("upscale_method", LATENT_METHODS)


class LatentNode(Node):
    """Base of the nodes that return a LATENT."""

    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)


class EmptyLatentImage(LatentNode):
    """Makes empty latents to generate images from. Width and height are in pixels."""

    INPUTS = (side("width", 512, 16), side("height", 512, 16), integer("batch_size", 1, 1, 4096))

    def run(self, width: int, height: int, batch_size: int = 1) -> tuple[Latent]:
        """-> LATENT of zeros."""
        shape = (batch_size, 4, height // 8, width // 8)
        require_room(shape)
        return ({"samples": torch.zeros(shape)},)


class LatentUpscale(LatentNode):
    """Resizes latents to a width and height in pixels; 0 keeps the aspect ratio."""

    INPUTS = (SAMPLES, METHOD, side("width", 512), side("height", 512), choice("crop", CROPS))

    def run(self, samples: Latent, upscale_method: str, width: int, height: int, crop: str) -> tuple[Latent]:
        """-> LATENT."""
        if width == 0 and height == 0:
            return (samples,)
        x = samples["samples"]
        # ComfyUI's rounding: a missing side comes from the given one in pixels, and none is below 64.
        if width == 0:
            width = round(x.shape[-1] * max(64, height) / x.shape[-2])
        elif height == 0:
            height = round(x.shape[-2] * max(64, width) / x.shape[-1])
        cells = (max(64, width) // 8, max(64, height) // 8)
        return ({**samples, "samples": resize(x, *cells, upscale_method, crop)},)


class LatentUpscaleBy(LatentNode):
    """Resizes latents by a factor."""

    INPUTS = (SAMPLES, METHOD, number("scale_by", 1.5, 0.01, 8.0))

    def run(self, samples: Latent, upscale_method: str, scale_by: float) -> tuple[Latent]:
        """-> LATENT."""
        x = samples["samples"]
        width, height = round(x.shape[-1] * scale_by), round(x.shape[-2] * scale_by)
        return ({**samples, "samples": resize(x, width, height, upscale_method)},)


class SetLatentNoiseMask(LatentNode):
    """Samples only where the mask is white, and keeps the rest of the latent."""

    CATEGORY = "latent/inpaint"
    INPUTS = (SAMPLES, mask("mask"))

    def run(self, samples: Latent, mask: Tensor) -> tuple[Latent]:
        """-> LATENT."""
        return ({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class LatentCrop(LatentNode):
    """Cuts a rectangle out of latents. Its size and place are in pixels."""

    CATEGORY = "latent/transform"
    INPUTS = (SAMPLES, side("width", 512, 64), side("height", 512, 64), side("x", 0), side("y", 0))

    def run(self, samples: Latent, width: int, height: int, x: int, y: int) -> tuple[Latent]:
        """-> LATENT of 64 pixels or more a side, where the given one has as many."""
        cells = samples["samples"]
        left, top = (min(at // 8, cells.shape[axis] - 8) for at, axis in ((x, 3), (y, 2)))
        return ({**samples, "samples": cells[:, :, top : top + height // 8, left : left + width // 8]},)


class LatentFlip(LatentNode):
    """Mirrors latents."""

    CATEGORY = "latent/transform"
    INPUTS = (SAMPLES, choice("flip_method", ["x-axis: vertically", "y-axis: horizontally"]))

    def run(self, samples: Latent, flip_method: str) -> tuple[Latent]:
        """-> LATENT."""
        return ({**samples, "samples": samples["samples"].flip(2 if flip_method.startswith("x") else 3)},)


class LatentRotate(LatentNode):
    """Turns latents clockwise."""

    CATEGORY = "latent/transform"
    INPUTS = (SAMPLES, choice("rotation", ["none", "90 degrees", "180 degrees", "270 degrees"]))

    def run(self, samples: Latent, rotation: str) -> tuple[Latent]:
        """-> LATENT."""
        turns = ("n", "9", "1", "2").index(rotation[0])
        return ({**samples, "samples": torch.rot90(samples["samples"], k=turns, dims=[3, 2])},)


class LatentBatch(LatentNode):
    """Joins two batches of latents. The second is resized to the size of the first."""

    CATEGORY = "latent/batch"
    INPUTS = (latent("samples1"), latent("samples2"))

    def run(self, samples1: Latent, samples2: Latent) -> tuple[Latent]:
        """-> LATENT in which each row keeps the noise that it had."""
        first, second = samples1["samples"], samples2["samples"]
        if first.shape[1:] != second.shape[1:]:
            second = resize(second, first.shape[3], first.shape[2], "bilinear", "center")
        require_room((len(first) + len(second), *first.shape[1:]))
        indices = [
            index for given in (samples1, samples2) for index in given.get("batch_index", range(len(given["samples"])))
        ]
        return ({**samples1, "samples": torch.cat((first, second)), "batch_index": indices},)


class LatentBatchSeedBehavior(LatentNode):
    """Gives all latents of a batch the same noise, or noise of their own again."""

    CATEGORY = "latent/advanced"
    INPUTS = (SAMPLES, choice("seed_behavior", ["random", "fixed"], default="fixed"))

    def run(self, samples: Latent, seed_behavior: str) -> tuple[Latent]:
        """-> LATENT."""
        result = {name: value for name, value in samples.items() if name != "batch_index"}
        if seed_behavior == "fixed":
            result["batch_index"] = samples.get("batch_index", [0])[:1] * len(samples["samples"])
        return (result,)


class LatentFromBatch(LatentNode):
    """Takes some latents of a batch. They get the same noise as in the whole batch."""

    CATEGORY = "latent/batch"
    INPUTS = (SAMPLES, integer("batch_index", 0, 0, 63), integer("length", 1, 1, 64))

    def run(self, samples: Latent, batch_index: int, length: int) -> tuple[Latent]:
        """-> LATENT with "batch_index"."""
        x = samples["samples"]
        first = min(len(x) - 1, batch_index)
        rows = slice(first, first + min(len(x) - first, length))
        indices = samples.get("batch_index", list(range(len(x))))[rows]
        result = {**samples, "samples": x[rows].clone(), "batch_index": indices}
        mask = samples.get("noise_mask")
        if mask is not None and len(mask) > 1:
            # A batch of masks may be smaller than the batch of latents, and is repeated.
            repeats = math.ceil(len(x) / len(mask))
            result["noise_mask"] = mask.repeat(repeats, 1, 1, 1)[: len(x)][rows]
        return (result,)


class RepeatLatentBatch(LatentNode):
    """Repeats a batch of latents. Each repetition gets different noise."""

    CATEGORY = "latent/batch"
    INPUTS = (SAMPLES, integer("amount", 1, 1, 64))

    def run(self, samples: Latent, amount: int) -> tuple[Latent]:
        """-> LATENT."""
        x = samples["samples"]
        require_room((len(x) * amount, *x.shape[1:]))
        result = {**samples, "samples": x.repeat(amount, 1, 1, 1)}
        mask = samples.get("noise_mask")
        if mask is not None and len(mask) > 1:
            result["noise_mask"] = mask.repeat(amount, 1, 1, 1)
        indices = samples.get("batch_index")
        if indices is not None:
            # Continue counting behind the largest index, so that no two latents share their noise.
            span = max(indices) - min(indices) + 1
            result["batch_index"] = [index + turn * span for turn in range(amount) for index in indices]
        return (result,)
