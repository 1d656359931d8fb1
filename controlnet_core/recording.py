"""Tell a `Recorder` what a run does: two wrappers around `ControlledUNet.residuals` and one around `Denoiser.step`.

The image stays the same to the last bit. Without a recorder in the options nothing is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from .control.bound_unit import NetInputs
from .control.plan import describe_settings
from .control.report import Recorder
from .control.residuals import weigh_residual
from .denoise import Denoiser
from .prepare import Prepared
from .run_options import RunOptions

INSIDE = ("attention", "reference")
"""Entries of nets that have no residuals: they act inside the UNet's blocks."""


class RecordNets:
    """Records when nets run and, if the recorder observes, how long they take."""

    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self.inner, self.recorder = inner, recorder

    def __call__(self, net: NetInputs, rows: Tensor, may_run: bool) -> Iterator[Tensor | None]:
        """Yield the residuals of the wrapped function, unchanged."""
        keys = [unit.whole_unit for unit in net.owners]
        for key in keys:
            self.recorder.net_ran(key)
        residuals = self.inner(net, rows, may_run)
        if not self.recorder.observe:
            yield from residuals
            return
        # A residual is computed when it is asked for, so each request is timed by itself.
        for _ in net.net.projections(net.inputs):
            with self.recorder.timing(keys, rows.device):
                residual = next(residuals)
            yield residual


class RecordResiduals:
    """Records which units act and, if the recorder observes, what they add to each block."""

    def __init__(self, inner: Any, options: RunOptions, recorder: Recorder) -> None:
        self.inner, self.options, self.recorder = inner, options, recorder

    def __call__(self, net: NetInputs, rows: Tensor, may_run: bool) -> Iterator[Tensor | None]:
        """Yield the residuals of the wrapped function, unchanged."""
        record_acting(self.options, net)
        for index, residual in enumerate(self.inner(net, rows, may_run)):
            if self.recorder.observe and residual is not None:
                for unit, owner, own in zip(net.units, net.owners, net.split(residual), strict=True):
                    if unit.acts_on(index):
                        scale = None if unit.scales is None else unit.scales[index]
                        added = weigh_residual(own, float(unit.weights[index]), scale)
                        self.recorder.residual(owner.whole_unit, index, added)
            yield residual


def record_acting(options: RunOptions, net: NetInputs, ran: bool = False) -> None:
    """Record that the units of a net act in this evaluation, and optionally that the net ran."""
    if options.recorder is None:
        return
    for unit in net.owners:
        options.recorder.unit(unit.whole_unit, unit.name, describe_settings(unit.whole_unit))
        if ran:
            options.recorder.net_ran(unit.whole_unit)


def record_nets(denoiser: Denoiser, options: RunOptions) -> None:
    """Before accelerations: record each run of a net."""
    if options.recorder is not None:
        denoiser.unet.residuals = RecordNets(denoiser.unet.residuals, options.recorder)


def record_step(denoiser: Denoiser, options: RunOptions) -> None:
    """After accelerations: record what each unit adds in each evaluation, and casts of the latent."""
    recorder = options.recorder
    if recorder is None:
        return
    denoiser.unet.residuals = RecordResiduals(denoiser.unet.residuals, options, recorder)
    step, dtype = denoiser.step, denoiser.prepared.runtime.dtype

    def recorded_step(denoiser: Denoiser, x: Tensor, sigma: Tensor, inputs: Any, cfg: Any) -> Tensor:
        # The latent is cast to the net's dtype, and the prediction back, once for each batch of conditions.
        for _ in inputs.batches:
            recorder.cast("latent to the net", x.dtype, dtype)
            recorder.cast("prediction of the net", dtype, x.dtype)
        for net in (net for batch in inputs.batches for net in batch.nets if net.net.entry in INSIDE):
            record_acting(options, net, ran=True)  # these have no residuals
        return step(denoiser, x, sigma, inputs, cfg)

    denoiser.step = recorded_step


def record_evaluations(denoise: Callable[[Tensor, Tensor], Tensor], options: RunOptions) -> Any:
    """Wrap a function so that its calls are counted; without a recorder, return it unchanged."""
    recorder = options.recorder
    if recorder is None:
        return denoise

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        recorder.evaluation()
        return denoise(x, sigma)

    return counted


def record_casts(prepared: Prepared, options: RunOptions) -> None:
    """Record what was cast when a run was prepared: texts, hints and masks."""
    recorder, dtype = options.recorder, prepared.runtime.dtype
    if recorder is None:
        return
    for condition in prepared.job.conditions:
        recorder.cast("text", condition.text.dtype, dtype)
    for unit in prepared.job.units:
        for hint in unit.hints:
            recorder.cast("hint", hint.picture.dtype, dtype)
        for mask in unit.masks(len(unit.keyframes)):
            recorder.cast("mask", mask.dtype, dtype)
