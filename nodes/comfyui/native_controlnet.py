"""Native CONTROL_NET objects, of any architecture the editor loads, under our apply nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.controlnet
import torch
from torch import Tensor

from ...controlnet_core.checkpoints.detect import Identity
from ...controlnet_core.control.hint import mask_at
from ...controlnet_core.errors import CheckpointError, ShapeError, ValueRangeError
from ..values import ControlSpec, UnitOptions
from .residuals import Residuals, add_residuals

NEEDED = ("copy", "set_cond_hint", "set_previous_controlnet", "get_control")


def load(path: Path, identity: Identity) -> Any:
    """The editor's own object for a file that we do not read. Raises CheckpointError when it reads it neither."""
    likely = identity.kind == "unknown" or identity.kind.startswith(("controlnet", "t2i-adapter"))
    found = comfy.controlnet.load_controlnet(str(path)) if likely else None
    if found is None:
        raise CheckpointError(
            f"{path.name} is {identity.summary}; expected a ControlNet. Choose a file from models/controlnet that "
            "was made for your checkpoint",
            path,
        )
    return found


def is_control(net: Any) -> bool:
    """Whether an object offers what the editor asks of a CONTROL_NET."""
    return all(callable(getattr(net, name, None)) for name in NEEDED)


def make(spec: ControlSpec, hint: Tensor) -> Any:
    """A native control object with what the spec says.

    Raises ValueRangeError for what a native net cannot do.
    """
    net, name = spec.net, spec.name or type(spec.net).__name__
    for what, wanted in unknown_to_the_editor(spec).items():
        if wanted:
            raise ValueRangeError(
                f"{name} was loaded by the editor, which knows strength, window and mask, but no {what}: load it with "
                "Load ControlNet (ControlNet Core) if it is one for Stable Diffusion, or leave that out"
            )
    if getattr(net, "latent_format", None) is not None:
        raise ValueRangeError(
            f"{name} reads its hint through a VAE, which Apply ControlNet does not have: use the native Apply "
            "ControlNet node and link the VAE there"
        )
    control = net.copy().set_cond_hint(hint, spec.strength, (spec.start, spec.end))
    return control if spec.mask is None else MaskedControl(control, spec.mask)


def unknown_to_the_editor(spec: ControlSpec) -> dict[str, bool]:
    """What a native net cannot do, and whether the spec asks for it."""
    options, plain = spec.options, UnitOptions()
    return {
        f"mode {spec.mode}": spec.mode != "balanced",
        "block weights": spec.block_weights is not None,
        "strength schedule": spec.schedule is not None,
        "further hints": bool(spec.hints),
        f"hint fit {options.fit}": options.fit != plain.fit,
        "hint type here (it has a node of its own, SetUnionControlNetType)": options.kind != plain.kind,
        "factor for each half": (options.positive, options.negative) != (plain.positive, plain.negative),
        "factor for each picture": bool(options.items),
        "averaging over the picture": options.pool,
    }


class MaskedControl(comfy.controlnet.ControlBase):
    """A native control object whose residuals are kept where a mask (B, H, W) is white."""

    def __init__(self, inner: Any, mask: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.mask = mask.float().reshape(-1, *mask.shape[-2:])
        self.extra_hooks = getattr(inner, "extra_hooks", None)

    def copy(self) -> MaskedControl:
        """The same, with a copy of the native object."""
        return MaskedControl(self.inner.copy(), self.mask)

    def set_cond_hint(self, *args: Any, **kwargs: Any) -> MaskedControl:
        """Passed on to the native object."""
        self.inner.set_cond_hint(*args, **kwargs)
        return self

    def set_extra_arg(self, argument: str, value: Any = None) -> None:
        """Passed on to the native object."""
        self.inner.set_extra_arg(argument, value)

    def get_models(self) -> list[Any]:
        """Models of the chain and of the native object."""
        return [*super().get_models(), *self.inner.get_models()]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes for activations of the chain and of the native object."""
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Begin a run."""
        super().pre_run(model, percent_to_timestep_function)
        self.inner.pre_run(model, percent_to_timestep_function)

    def cleanup(self) -> None:
        """End a run."""
        super().cleanup()
        self.inner.cleanup()

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any], batched_number: int, transformer_options: Any
    ) -> Residuals | None:
        """The native residuals, masked, behind those of the chain."""
        arguments = (x_noisy, t, cond, batched_number, transformer_options)
        previous = None if self.previous_controlnet is None else self.previous_controlnet.get_control(*arguments)
        own = self.inner.get_control(*arguments)
        if own is None:
            return previous
        size, pictures = (x_noisy.shape[-2], x_noisy.shape[-1]), x_noisy.shape[0] // batched_number
        masked = {
            key: [None if r is None else r * self._mask(r, size, pictures) for r in residuals]
            for key, residuals in own.items()
        }
        return add_residuals(masked, previous)

    def _mask(self, residual: Tensor, size: tuple[int, int], pictures: int) -> Tensor:
        """The mask at the size of a residual: a feature map (B, C, h, w), or tokens (B, n, C) of patches."""
        if residual.ndim == 4:
            at = mask_at(self.mask, (residual.shape[-2], residual.shape[-1]))
        else:
            patch = math.isqrt(size[0] * size[1] // max(1, residual.shape[1]))
            height, width = -(-size[0] // max(1, patch)), -(-size[1] // max(1, patch))
            if residual.ndim != 3 or height * width != residual.shape[1]:
                raise ShapeError(
                    f"{type(self.inner).__name__} gives residuals of shape {tuple(residual.shape)}, which have no "
                    "place in the picture that a mask could choose: take the mask away"
                )
            at = mask_at(self.mask, (height, width)).flatten(1).unsqueeze(-1)
        at = at.to(residual)
        rows = [row % pictures % at.shape[0] for row in range(residual.shape[0])]
        return at if at.shape[0] == 1 else at[rows]
