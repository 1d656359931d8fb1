"""Tell a `Recorder` what a run does: two wrappers around `ControlledUNet.residuals` and one around `Denoiser.step`.

The image stays the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .bound_unit import NetInputs
from .plan import words
from .report import Recorder
from .residuals import weigh_residual


class RecordNets:
    """Records when nets run and, if the recorder observes, how long they take."""

    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self.inner, self.recorder = inner, recorder

    def __call__(self, net: NetInputs, rows: Tensor, may_run: bool) -> Iterator[Tensor | None]:
        """The same residuals."""
        keys = [unit.whole_unit for unit in net.owners]
        for key in keys:
            self.recorder.net_ran(key)
        residuals = self.inner(net, rows, may_run)
        if not self.recorder.observe:
            yield from residuals
            return
        for _ in net.net.projections(net.inputs):
            with self.recorder.timing(keys, rows.device):
                residual = next(residuals)
            yield residual


class RecordResiduals:
    """Records which units act and, if the recorder observes, what they add to each block."""

    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self.inner, self.recorder = inner, recorder

    def __call__(self, net: NetInputs, rows: Tensor, may_run: bool) -> Iterator[Tensor | None]:
        """The same residuals."""
        record_acting(self.recorder, net)
        for index, residual in enumerate(self.inner(net, rows, may_run)):
            if self.recorder.observe and residual is not None:
                for unit, owner, own in zip(net.units, net.owners, net.split(residual), strict=True):
                    if unit.acts_on(index):
                        scale = None if unit.scales is None else unit.scales[index]
                        added = weigh_residual(own, float(unit.weights[index]), scale)
                        self.recorder.residual(owner.whole_unit, index, added)
            yield residual


def record_acting(recorder: Recorder, net: NetInputs, ran: bool = False) -> None:
    """Record that the units of a net act in this evaluation, and optionally that the net ran."""
    for unit in net.owners:
        recorder.unit(unit.whole_unit, unit.name, words(unit.whole_unit))
        if ran:
            recorder.net_ran(unit.whole_unit)


def record_nets(denoiser: Any, recorder: Recorder | None) -> None:
    """Before accelerations: record each run of a net."""
    if recorder is not None:
        denoiser.unet.residuals = RecordNets(denoiser.unet.residuals, recorder)


def record_evaluations(denoiser: Any, recorder: Recorder | None) -> None:
    """After accelerations: record what each unit adds in each evaluation, and casts of the latent."""
    if recorder is None:
        return
    denoiser.unet.residuals = RecordResiduals(denoiser.unet.residuals, recorder)
    step, dtype = denoiser.step, denoiser.prepared.runtime.dtype

    def recorded_step(denoiser: Any, x: Tensor, sigma: Tensor, inputs: Any, cfg: Any) -> Tensor:
        for _ in inputs.batches:
            recorder.cast("latent to the net", x.dtype, dtype)
            recorder.cast("prediction of the net", dtype, x.dtype)
        return step(denoiser, x, sigma, inputs, cfg)

    denoiser.step = recorded_step


def record_casts(recorder: Recorder | None, prepared: Any) -> None:
    """Record what was cast when a run was prepared: texts, hints and masks."""
    if recorder is None:
        return
    dtype = prepared.runtime.dtype
    for condition in prepared.job.conditions:
        recorder.cast("text", condition.text.dtype, dtype)
    for unit in prepared.job.units:
        for hint in unit.hints:
            recorder.cast("hint", hint.picture.dtype, dtype)
        if unit.mask is not None:
            recorder.cast("mask", unit.mask.dtype, dtype)
