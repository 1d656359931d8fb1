"""ComfyUI's nodes that combine the weights of two models or of two text encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ...controlnet_core.checkpoints import ldm
from ...controlnet_core.checkpoints.keymap import KeyMap
from ...controlnet_core.checkpoints.lora_places import apply_updates, merge
from ...controlnet_core.errors import UnfitError
from ..fields import clip, model, number, share
from ..node import Node
from .values import AppliedLora, Clip, Model

Share = Callable[[str], tuple[float, float]]
"""(factor of the first one's weight, factor of the second one's) by our name of the weight."""


@dataclass(frozen=True)
class Sum:
    """A weight times `keep`, plus another one times `add`, as one of the changes of `lora_places.merge`."""

    other: Callable[[], Tensor]
    keep: float
    add: float

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The sum, float32. strength: of the whole change, always 1."""
        other = self.other().to(weight)
        if other.shape != weight.shape:
            raise UnfitError(f"weights of {tuple(weight.shape)} and {tuple(other.shape)} cannot be merged")
        return self.keep * weight + self.add * other


def merge_models(first: Model, second: Model, factors: Share) -> Model:
    """A MODEL with sums of weights, both with their LoRAs. All else is that of the first one.

    Raises UnfitError for two models of different shapes.
    """
    if first.base.unet.config != second.base.unet.config:
        raise UnfitError(
            f"{first.path.name} ({first.identity.summary}) and {second.path.name} ({second.identity.summary}) have "
            "different shapes: merge two models of the same kind"
        )

    weights, updates = second.base.unet.state_dict(), [(one.updates, one.strength) for one in second.loras]

    def weight_of(name: str) -> Callable[[], Tensor]:
        # Each weight is computed when it is needed, so a chain of merges is rounded once, as in ComfyUI.
        return lambda: apply_updates(name, weights[name], updates)

    changes = {name: Sum(weight_of(name), *factors(name)) for name in first.base.unet.state_dict()}
    name = f"merged with {second.path.name}"
    return replace(first, loras=(*first.loras, AppliedLora(name, changes, 1.0)))


def merge_texts(first: Clip, second: Clip, keep: float, add: float) -> Clip:
    """A CLIP with sums of weights. Raises UnfitError for two of different shapes."""
    if [one.config for one in first.models] != [one.config for one in second.models]:
        raise UnfitError("the two text encoders have different shapes: merge two of the same kind")
    merged = []
    for mine, other in zip(first.models, second.models, strict=True):
        changes = {name: Sum(lambda value=value: value, keep, add) for name, value in other.state_dict().items()}
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
