"""Finds predictions that are not finite, and the net that they come from."""

from __future__ import annotations

import torch
from torch import Tensor

from .conditioning.condition import crop_to_area
from .control.bound_unit import NetInputs
from .denoise import Denoiser, net_residuals
from .diffusion.denoiser import scale_input
from .errors import NonFiniteError
from .sample import Denoise


class FiniteGuard:
    """Checks the predictions of denoisers. every_step: raise at once; otherwise only remember, since reading a result
    makes the host wait for the GPU."""

    def __init__(self, every_step: bool) -> None:
        self.every_step = every_step
        self.finite: Tensor | None = None

    def around(self, denoiser: Denoiser) -> Denoise:
        """The denoiser, checked. Raises NonFiniteError, naming the net at fault, if `every_step`."""

        def checked(x: Tensor, sigma: Tensor) -> Tensor:
            prediction = denoiser(x, sigma)
            finite = torch.isfinite(prediction).all()
            if not self.every_step:
                self.finite = finite if self.finite is None else self.finite & finite
            elif not bool(finite):
                raise NonFiniteError(
                    f"the prediction at sigma {float(sigma):.4g} is not finite, and it comes from "
                    f"{_find_source(denoiser, x, sigma)}: the file may be damaged (try another copy), or its numbers "
                    "are too large for fp16 (try dtype bf16 or fp32)"
                )
            return prediction

        return checked

    @property
    def failed(self) -> bool:
        """Whether a prediction that was remembered was not finite. Waits for the GPU."""
        return self.finite is not None and not bool(self.finite)


def _find_source(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> str:
    """Say where the numbers that are not finite come from: the latent, a net, or the model."""
    prepared = denoiser.prepared
    if not _is_finite(x):
        return "the latent that was given"
    for batch in prepared.inputs_at(float(sigma)).batches:
        part = scale_input(crop_to_area(x, batch.area), sigma, prepared.job.schedule.sigma_data)
        rows = part.repeat(len(batch.conditions), 1, 1, 1).to(prepared.runtime.dtype)
        for net in batch.nets:
            if not all(_is_finite(r) for r in net_residuals(net, rows) if r is not None):
                return _names(net)
    return f"the model {prepared.config.name}"


def _is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _names(net: NetInputs) -> str:
    return " and ".join(dict.fromkeys(unit.name for unit in net.owners))
