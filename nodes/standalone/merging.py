"""ComfyUI's nodes that combine the weights of two models or of two text encoders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...controlnet_core.checkpoints import ldm
from ...controlnet_core.checkpoints.keymap import KeyMap
from ...controlnet_core.checkpoints.lora_places import apply_updates, merge
from ...controlnet_core.errors import UnfitError
from ..fields import clip, model, number, share
from ..node import Node
from .values import AppliedLora, Clip, Model

INPUT_LAYER = "encoder.blocks.0.conv.weight"
"""The convolution that reads the latent."""
log = logging.getLogger(__name__)
Share = Callable[[str], tuple[float, float]]
"""(factor of the first one's weight, factor of the second one's) by our name of the weight."""


@dataclass(frozen=True)
class Sum:
    """A weight times `keep`, plus another one times `add`, as one of the changes of `lora_places.merge`.

    other: None for a weight that the other model has in another shape. It is only multiplied, as in ComfyUI.
    """

    other: Callable[[], Tensor] | None
    keep: float
    add: float

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The sum, float32. strength: of the whole change, always 1."""
        kept = self.keep * weight
        return kept if self.other is None else kept + self.add * self.other().to(weight)


def merge_models(first: Model, second: Model, factors: Share) -> Model:
    """A MODEL with sums of weights, both with their LoRAs. All else is that of the first one.

    Inpainting models read more channels than others, so their first convolution is not added to that of another model.
    Raises UnfitError for two models that differ in the shape of any other weight.
    """
    weights, updates = second.base.unet.state_dict(), [(one.updates, one.strength) for one in second.loras]
    shapes, theirs = _shapes(first.base.unet.state_dict()), _shapes(weights)
    other = {name for name in shapes.keys() | theirs.keys() if shapes.get(name) != theirs.get(name)}
    if other - {INPUT_LAYER}:
        raise UnfitError(
            f"{first.path.name} ({first.identity.summary}) and {second.path.name} ({second.identity.summary}) have "
            "weights of different shapes: merge two models of the same kind"
        )
    if other:
        log.warning("%s reads other channels than %s: %s is not merged", second.path.name, first.path.name, INPUT_LAYER)

    def weight_of(name: str) -> Callable[[], Tensor] | None:
        # Each weight is computed when it is needed, so a chain of merges is rounded once, as in ComfyUI.
        return None if name in other else lambda: apply_updates(name, weights[name], updates)

    changes = {name: Sum(weight_of(name), *factors(name)) for name in shapes}
    return replace(first, loras=(*first.loras, AppliedLora(f"merged with {second.path.name}", changes, 1.0)))


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def merge_texts(first: Clip, second: Clip, keep: float, add: float) -> Clip:
    """A CLIP with sums of weights. Raises UnfitError for two of different shapes."""
    states = [one.state_dict() for one in second.models]
    if [_shapes(one.state_dict()) for one in first.models] != [_shapes(state) for state in states]:
        raise UnfitError("the two text encoders have different shapes: merge two of the same kind")
    merged = []
    for mine, state in zip(first.models, states, strict=True):
        changes = {name: Sum(lambda value=value: value, keep, add) for name, value in state.items()}
        merged.append(merge(mine, [(changes, 1.0)]))
    return first.with_models(merged)


class MergedModelNode(Node):
    """Base of the nodes that return a MODEL of two."""

    CATEGORY = "advanced/model_merging"
    RETURN_TYPES = ("MODEL",)


class ModelMergeSimple(MergedModelNode):
    """Mixes the weights of two models: ratio times the first one, and the rest of the second."""

    INPUTS = (model("model1"), model("model2"), share("ratio", 1.0))

    def run(self, model1: Model, model2: Model, ratio: float) -> tuple[Model]:
        """-> MODEL."""
        return (merge_models(model1, model2, lambda _: (ratio, 1.0 - ratio)),)


class ModelMergeBlocks(MergedModelNode):
    """Mixes the weights of two models, with a ratio for the encoder, one for the middle and one for the decoder. What
    lies outside of them, such as the layers for time, has that of the encoder."""

    INPUTS = (model("model1"), model("model2"), share("input", 1.0), share("middle", 1.0), share("out", 1.0))

    def run(self, model1: Model, model2: Model, input: float, middle: float, out: float) -> tuple[Model]:
        """-> MODEL."""
        # The ratios go by the names of the original release: "out" is also the start of "output_blocks".
        theirs = KeyMap(ldm.unet_rules(model1.base.unet.config)).to_theirs

        def factors(name: str) -> tuple[float, float]:
            start = str(theirs(name))
            ratio = out if start.startswith("out") else middle if start.startswith("middle") else input
            return ratio, 1.0 - ratio

        return (merge_models(model1, model2, factors),)


class ModelMergeSubtract(MergedModelNode):
    """Takes the weights of the second model from those of the first, times a factor."""

    INPUTS = (model("model1"), model("model2"), number("multiplier", 1.0, -10.0, 10.0))

    def run(self, model1: Model, model2: Model, multiplier: float) -> tuple[Model]:
        """-> MODEL: a difference, which another one is added to."""
        return (merge_models(model1, model2, lambda _: (multiplier, -multiplier)),)


class ModelMergeAdd(MergedModelNode):
    """Adds the weights of two models."""

    INPUTS = (model("model1"), model("model2"))

    def run(self, model1: Model, model2: Model) -> tuple[Model]:
        """-> MODEL."""
        return (merge_models(model1, model2, lambda _: (1.0, 1.0)),)


class MergedClipNode(Node):
    """Base of the nodes that return a CLIP of two."""

    CATEGORY = "advanced/model_merging"
    RETURN_TYPES = ("CLIP",)


class CLIPMergeSimple(MergedClipNode):
    """Mixes the weights of two text encoders: ratio times the first one, and the rest of the second."""

    INPUTS = (clip("clip1"), clip("clip2"), share("ratio", 1.0))

    def run(self, clip1: Clip, clip2: Clip, ratio: float) -> tuple[Clip]:
        """-> CLIP."""
        return (merge_texts(clip1, clip2, ratio, 1.0 - ratio),)


class CLIPMergeSubtract(MergedClipNode):
    """Takes the weights of the second text encoder from those of the first, times a factor."""

    INPUTS = (clip("clip1"), clip("clip2"), number("multiplier", 1.0, -10.0, 10.0))

    def run(self, clip1: Clip, clip2: Clip, multiplier: float) -> tuple[Clip]:
        """-> CLIP: a difference, which another one is added to."""
        return (merge_texts(clip1, clip2, multiplier, -multiplier),)


class CLIPMergeAdd(MergedClipNode):
    """Adds the weights of two text encoders."""

    INPUTS = (clip("clip1"), clip("clip2"))

    def run(self, clip1: Clip, clip2: Clip) -> tuple[Clip]:
        """-> CLIP."""
        return (merge_texts(clip1, clip2, 1.0, 1.0),)
