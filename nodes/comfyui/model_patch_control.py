"""ComfyUI's model-patch controls as a CONTROL_NET, with window, schedule, mask and factors for the halves.

ControlNets for diffusion transformers (Qwen-Image DiffSynth, Z-Image Fun) change the model's tokens after its blocks.
ComfyUI keeps them as patches of a MODEL with a strength, and knows no more about them. Here ComfyUI's own node makes
the patches. They are put into the options of a call of the model, weighed for that call, so nothing is left on the
model.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.controlnet
import comfy.model_management
import torch
from torch import Tensor

from ...controlnet_core.control.hint import mask_at
from ...controlnet_core.errors import UnfitError, ValueRangeError
from ..values import ControlSpec, mask_batch
from .batch_rows import BatchRows, batch_rows, row_factors
from .hint_channels import HintParts, JoinedHint
from .model_config import base_config
from .native_controlnet import requests
from .residuals import Residuals

APPLY_NODE = "QwenImageDiffsynthControlnet"
"""ComfyUI's node that makes the patches, for both kinds of models."""
KINDS = ("QwenImageBlockWiseControlNet", "ZImage_Control")
"""Classes of model patches that this node takes."""
SUPPORTED = ("schedule", "positive", "negative", "items")
"""Fields of a description that act on a transformer, besides strength, window and mask."""
PATCH_SIDE = 2
"""Latent cells per side of a token, in Qwen-Image and in Z-Image."""


@dataclass
class PatchCollector:
    """Stands for a MODEL where ComfyUI's node adds its patches.

    patches: those that were added, in order, with the name of the place where the model calls them.
    """

    patches: list[tuple[str, Any]] = field(default_factory=list)

    def clone(self) -> PatchCollector:
        """Return itself, because it is made for one call of the node."""
        return self

    def set_model_double_block_patch(self, patch: Any) -> None:
        """Collect a patch that runs after each block."""
        self.patches.append(("double_block", patch))

    def set_model_noise_refiner_patch(self, patch: Any) -> None:
        """Collect a patch that runs after each block that refines the noisy image."""
        self.patches.append(("noise_refiner", patch))


@dataclass(frozen=True)
class Inpainting:
    """Inputs of nets that were trained for inpainting: IMAGE, and MASK (B, H, W), white where to paint."""

    image: Tensor | None = None
    mask: Tensor | None = None


class ModelPatchControl(JoinedHint, comfy.controlnet.ControlBase):
    """A MODEL_PATCH with a hint, as one unit of control.

    Packs that sample a picture in parts cut the hint; the mask is a channel of it, so it is cut as well.
    """

    def __init__(self, model_patch: Any, vae: Any, inpainting: Inpainting) -> None:
        super().__init__()
        kind = type(getattr(model_patch, "model", None)).__name__
        if kind not in KINDS:
            raise UnfitError(
                f"the model patch is a {kind}, expected one of {', '.join(KINDS)} (Qwen-Image DiffSynth, Z-Image Fun): "
                "use the native node for its kind"
            )
        self.model_patch, self.vae, self.inpainting = model_patch, vae, inpainting
        self.name = kind
        self.spec = ControlSpec(None, torch.zeros(0))
        self.patches: list[tuple[str, Any]] = []
        self.made_from: Tensor | None = None  # the tensor that the patches were made from
        self.shown: Tensor | None = None  # its channels that the net sees
        self.percent_to_sigma: Callable[[float], Any] = float

    # ---- inputs

    def set_cond_hint(self, cond_hint: Tensor, *args: Any, **kwargs: Any) -> ModelPatchControl:
        """Set the hint (B, 3, H, W), strength and window; returns itself."""
        super().set_cond_hint(cond_hint, *args, **kwargs)
        self.set_parts(HintParts(cond_hint))
        return self

    def describe(self, spec: ControlSpec) -> ModelPatchControl:
        """Set the rest of what our nodes say; returns itself. Raises ValueRangeError for what it cannot do."""
        for name, what in requests(spec).items():
            if name not in SUPPORTED:
                raise ValueRangeError(
                    f"{self.name} changes a transformer, which has no {what}: leave that out. Strength, window, "
                    "schedule, mask and factors work"
                )
        self.spec = spec
        self.set_parts(HintParts(self.parts.hint, masks=(mask_batch(spec.mask),)))
        return self

    def set_parts(self, parts: HintParts) -> None:
        """Make these the channels of the hint, and encode it."""
        super().set_parts(parts)
        self._make_patches(self.cond_hint_original)

    def _make_patches(self, source: Tensor) -> None:
        """ComfyUI's patches for a hint with its mask. Encoding takes seconds, so equal hints are not encoded anew."""
        hint = self.parts.split(source, self.name).hint
        self.made_from = source
        if self.shown is not None and self.shown.shape == hint.shape and torch.equal(self.shown, hint):
            return
        node = sys.modules["nodes"].NODE_CLASS_MAPPINGS.get(APPLY_NODE)
        if node is None:
            raise UnfitError(f"this release of ComfyUI has no node {APPLY_NODE}: update it")
        made, inpainting = PatchCollector(), self.inpainting
        node().diffsynth_controlnet(
            made, self.model_patch, self.vae, hint.movedim(1, -1), 1.0, inpainting.image, inpainting.mask
        )
        self.patches, self.shown = made.patches, hint

    def copy(self) -> ModelPatchControl:
        """A copy of the unit that shares weights and the encoded hint."""
        twin = self.shallow_copy()
        # One patch may hang at two places, and keeps what it computed for the next block.
        twins = {id(patch): copy.copy(patch) for _, patch in self.patches}
        twin.patches = [(place, twins[id(patch)]) for place, patch in self.patches]
        return twin

    # ---- a run

    def get_models(self) -> list[Any]:
        """Patchers of the whole chain."""
        return [*super().get_models(), self.model_patch]

    def pre_run(self, model: Any, percent_to_timestep_function: Callable[[float], Any]) -> None:
        """Begin a run. Raises UnfitError for Stable Diffusion, whose UNet would ignore the patches."""
        super().pre_run(model, percent_to_timestep_function)
        if base_config(model) is not None:
            raise UnfitError(f"{self.name} controls a diffusion transformer, the model is Stable Diffusion")
        self.percent_to_sigma = percent_to_timestep_function

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any], batched_number: int, transformer_options: Any
    ) -> Residuals | None:
        """The residuals of the chain. The own patches go into the options of this call."""
        previous, options = None, transformer_options
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, options)
        sigma = float(t.flatten()[0])
        strength = self._strength(sigma)
        order = batch_rows(len(x_noisy), batched_number, options)
        given = self.spec.options
        rows = row_factors(order, options, lambda p: given.positive if p else given.negative, given.items or (1.0,))
        if strength == 0.0 or not any(rows):
            return previous
        source = self.shown_hint()
        if source is not self.made_from:
            loaded = comfy.model_management.loaded_models(only_currently_used=True)
            self._make_patches(source)
            comfy.model_management.load_models_gpu(loaded)  # the VAE may have taken their place
        weights = self._weights(source, rows, order, x_noisy)
        patches = dict(options.get("patches") or {})
        for place, patch in self.patches:
            patch.to(x_noisy.device)
            patches[place] = [*patches.get(place, ()), WeighedPatch(patch, strength, weights)]
        options["patches"] = patches  # a new one: that of the model's options is shared by all calls
        return previous

    def _strength(self, sigma: float) -> float:
        """The strength at a noise level; 0 outside of the window."""
        if self.timestep_range is not None and not self.timestep_range[1] <= sigma <= self.timestep_range[0]:
            return 0.0
        curve = self.spec.schedule
        return self.strength * (1.0 if curve is None else curve(position(sigma, self.percent_to_sigma)))

    def _weights(self, source: Tensor, rows: Sequence[float], order: BatchRows, x: Tensor) -> Tensor | None:
        """Factors (rows, tokens, 1) of what the patches add to the tokens; None if all of them are 1."""
        mask = self.parts.split(source, self.name).mask()
        if mask is None and all(row == 1.0 for row in rows):
            return None
        factors = torch.tensor(rows, device=x.device)[:, None, None]
        if mask is None:
            return factors
        height, width = (-(-side // PATCH_SIDE) for side in x.shape[-2:])
        at = mask_at(mask, (height, width)).flatten(1)[..., None]
        return factors * at[[image % len(at) for image in order.images]].to(x.device)


class WeighedPatch:
    """A patch of ComfyUI whose effect on the tokens is multiplied.

    weights: (rows, tokens, 1) or (rows, 1, 1), for the first tokens; None for the patch as it is.
    """

    def __init__(self, patch: Any, strength: float, weights: Tensor | None) -> None:
        self.patch, self.strength, self.weights = patch, strength, weights

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        """Called by the model after a block. given["img"]: the tokens (rows, tokens, width)."""
        self.patch.strength = self.strength
        if self.weights is None:
            return self.patch(given)
        before = given["img"].clone()
        tokens = given["img"]
        changed = self.patch({**given}).get("img", tokens)  # some patches change the tokens in place
        count = before.shape[1] if self.weights.shape[1] == 1 else self.weights.shape[1]
        added = (changed[:, :count] - before[:, :count]) * self.weights.to(before.dtype)
        # In place, since not every model takes tokens back.
        tokens[:, :count] = before[:, :count] + added
        return {**given, "img": tokens}

    def to(self, device_or_dtype: Any) -> WeighedPatch:
        """ComfyUI moves the patches of a model to its device."""
        self.patch.to(device_or_dtype)
        return self


def position(sigma: float, percent_to_sigma: Callable[[float], Any]) -> float:
    """The position of a noise level from 0 (pure noise) to 1, where `percent_to_sigma` falls to it.

    By bisection, since models have no function for this direction.
    """
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(percent_to_sigma(middle)) > sigma else (low, middle)
    return (low + high) / 2
