"""A mask on ComfyUI's own CONTROL_NET objects, of any architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.controlnet
import torch
from torch import Tensor

from ...controlnet_core.control.hint import mask_at
from ...controlnet_core.errors import ShapeError
from ..values import mask_batch
from .advanced import context_window
from .batch_rows import batch_rows
from .hint_channels import HintParts, JoinedHint
from .residuals import Residuals, add_residuals

PASSED_ON = ("strength", "timestep_percent_range", "extra_args", "vae", "extra_concat_orig")
"""Attributes that packs set on the wrapper, and that act in the object inside it."""


class MaskedControl(JoinedHint, comfy.controlnet.ControlBase):
    """A native control object whose residuals are kept where a mask (B, H, W) is white.

    Packs see the wrapper alone. Its hint has the mask as a further channel, so that the mask follows what a pack does
    with the hint. The channel is taken off again before each use of the native object.
    """

    # AnimateDiff-Evolved sets these for its context windows, and refuses objects without them.
    sub_idxs: Sequence[int] | None = None
    full_latent_length = 0
    context_length = 0

    def __init__(self, inner: Any, mask: Tensor) -> None:
        self.inner = inner
        super().__init__()
        inner.copy_to(self)
        self.set_parts(HintParts(inner.cond_hint_original, masks=(mask_batch(mask),)))

    def __getattr__(self, name: str) -> Any:
        # Python asks here only for what the wrapper lacks, such as `control_model`.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def copy(self) -> MaskedControl:
        """A copy of the wrapper and of the native object."""
        twin = self.shallow_copy()
        twin.inner = self.inner.copy()
        return twin

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> MaskedControl:
        """A copy with weights of its own for another device; ComfyUI's MultiGPU nodes call this."""
        twin = self.copy()
        twin.inner = self.inner.deepclone_multigpu(load_device)
        if autoregister:
            self.multigpu_clones[load_device] = twin
        return twin

    def set_cond_hint(self, cond_hint: Tensor, *args: Any, **kwargs: Any) -> MaskedControl:
        """Set hint, strength and window; returns itself."""
        super().set_cond_hint(cond_hint, *args, **kwargs)
        self.inner.set_cond_hint(cond_hint, *args, **kwargs)
        self.set_parts(HintParts(cond_hint, masks=self.parts.masks))
        return self

    def get_models(self) -> list[Any]:
        """Models of the chain and of the native object."""
        return [*super().get_models(), *self.inner.get_models()]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes for activations of the chain and of the native object."""
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Begin a run."""
        super().pre_run(model, percent_to_timestep_function)
        self.sub_idxs = None
        self._pass_on()
        self.inner.pre_run(model, percent_to_timestep_function)

    def cleanup(self) -> None:
        """End a run."""
        super().cleanup()
        self.inner.cleanup()

    def _pass_on(self) -> None:
        for name in PASSED_ON:
            setattr(self.inner, name, getattr(self, name))

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any], batched_number: int, transformer_options: Any
    ) -> Residuals | None:
        """The masked residuals of the native object, added to those of the chain before it."""
        arguments = (x_noisy, t, cond, batched_number, transformer_options)
        previous = None if self.previous_controlnet is None else self.previous_controlnet.get_control(*arguments)
        window = context_window(self.sub_idxs, transformer_options)
        order = batch_rows(len(x_noisy), batched_number, transformer_options, window)
        part = self.shown_hint()
        parts = self.parts if part is self.joined else self.parts.split(part, type(self.inner).__name__)
        images = order.images
        if self.cond_hint is not None and len(part) == len(x_noisy):
            images = tuple(range(len(x_noisy)))  # the pack made a hint for each row
        shown = images[: images.index(images[0], 1)] if order.windowed and images[0] in images[1:] else images
        self._give_hint(parts.hint, shown if order.windowed else None)
        own = self.inner.get_control(*arguments)
        if own is None:
            return previous
        mask, size = parts.masks[0], (x_noisy.shape[-2], x_noisy.shape[-1])
        assert mask is not None
        masked = {
            key: [None if r is None else r * self._mask(mask, r, size, images) for r in residuals]
            for key, residuals in own.items()
        }
        return add_residuals(masked, previous)

    def _give_hint(self, hint: Tensor, images: Sequence[int] | None) -> None:
        """Give the native object the hint of this call. images: those of a context window."""
        self._pass_on()
        if images is not None and len(hint) > 1:
            hint = hint[[image % len(hint) for image in images]]
        if self.cond_hint is not None:
            self.inner.cond_hint = hint
        elif hint is not self.inner.cond_hint_original:
            self.inner.cond_hint_original, self.inner.cond_hint = hint, None

    def _mask(self, mask: Tensor, residual: Tensor, size: tuple[int, int], images: Sequence[int]) -> Tensor:
        """The mask at the size of a residual: a feature map (B, C, h, w), or tokens (B, n, C) of patches."""
        if residual.ndim == 4:
            at = mask_at(mask, (residual.shape[-2], residual.shape[-1]))
        else:
            patch = math.isqrt(size[0] * size[1] // max(1, residual.shape[1]))
            height, width = -(-size[0] // max(1, patch)), -(-size[1] // max(1, patch))
            if residual.ndim != 3 or height * width != residual.shape[1]:
                raise ShapeError(
                    f"{type(self.inner).__name__} gives residuals of shape {tuple(residual.shape)}, which have no "
                    "place in the image that a mask could choose: take the mask away"
                )
            at = mask_at(mask, (height, width)).flatten(1).unsqueeze(-1)
        at = at.to(residual)
        return at if len(at) == 1 else at[[image % len(at) for image in images]]
