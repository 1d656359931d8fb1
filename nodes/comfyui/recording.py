"""Tells the recorder of a run what our control objects do. The image stays the same to the last bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.control.plan import describe_settings
from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.run_options import RunOptions

KEY = "controlnet_core_recorder"
"""Where the model's options carry the recorder, if there is one."""
END = object()


def with_recorder(model: Any, options: RunOptions) -> Any:
    """The MODEL, or a clone whose options carry the recorder of a run to our control objects."""
    if options.recorder is None:
        return model
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})[KEY] = options.recorder
    return clone


def record_run(options: Mapping[str, Any], control: Any, given: torch.dtype, used: torch.dtype) -> None:
    """Record that the net of a control object runs. given, used: dtype of the latent that came and of the net."""
    recorder = options.get(KEY)
    if recorder is not None:
        recorder.net_ran(control)
        recorder.cast("latent to the net", given, used)


def record_acting(options: Mapping[str, Any], control: Any, unit: ControlUnit) -> None:
    """Record that a control object acts in this call."""
    recorder = options.get(KEY)
    if recorder is not None:
        recorder.unit(control, control.name, describe_settings(unit))


def record_residuals(
    residuals: Iterator[Tensor | None], options: Mapping[str, Any], control: Any, unit: ControlUnit,
    rows: Sequence[int], device: torch.device,
) -> Iterator[Tensor | None]:  # fmt: skip
    """Yield the weighed residuals (B, C, h, w) unchanged, and record them. rows: those that the unit acts on."""
    recorder = options.get(KEY)
    if recorder is None:
        yield from residuals
        return
    record_acting(options, control, unit)
    for block in itertools.count():
        # A residual is computed when it is asked for, so each request is timed by itself.
        with recorder.timing([control], device):
            residual: Any = next(residuals, END)
        if residual is END:
            return
        if recorder.observe and residual is not None:
            recorder.residual(control, block, residual if len(rows) == len(residual) else residual[list(rows)])
        yield residual
