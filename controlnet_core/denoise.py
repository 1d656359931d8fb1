"""One guided prediction of the image: the algorithm of ControlNet on one page.

    rows = the noisy latent, scaled, once for each text           (positive and negative in one batch)
    skips, middle = the UNet's encoder on these rows
    for each ControlNet: skips, middle += weight * zero convolution (its features)
    h = the UNet's decoder on middle and skips
    x0 = positive and negative prediction, combined by classifier-free guidance

Everything that does not depend on x comes from `prepare`. What one residual adds is in `control/residuals.py`.

Four attributes are seams, each a function that an optional acceleration may surround (see `pipeline`):
`ControlledUNet.residuals`, `.features` and `.decode`, and `Denoiser.step`. They get the object as an argument: a bound
method would make a reference cycle, and memory would be freed late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from .conditioning.condition import crop_to_area
from .control.bound_unit import NetInputs
from .control.exchange import with_exchanges
from .control.reference import with_references
from .diffusion.denoiser import scale_input, to_x0
from .diffusion.guidance import guide, rescale
from .models.layers import repeat_rows
from .models.unet import UNet
from .prepare import BatchInputs, Prepared, StepInputs
from .runtime.device import channels_last


class ControlledUNet:
    """A UNet with its ControlNets: rows in, the UNet's output out. Used by `Denoiser` and by Accelerate in ComfyUI."""

    def __init__(self, unet: UNet) -> None:
        self.unet = unet
        self.residuals: Callable[[NetInputs, Tensor, bool], Iterator[Tensor | None]] = net_residuals
        self.features: Callable[[ControlledUNet, Tensor, BatchInputs, int | None], list[Tensor]] = controlled_features
        self.decode: Callable[[ControlledUNet, Tensor, BatchInputs], Tensor] = decode

    def __call__(self, rows: Tensor, inputs: BatchInputs) -> Tensor:
        """Rows (rows, C, h, w) as the UNet reads them -> its prediction (rows, C, h, w)."""
        blocks = with_references(self.unet, inputs.blocks, inputs.nets)
        blocks, nets = with_exchanges(blocks, inputs.nets)
        inputs = inputs._replace(blocks=blocks, nets=nets)
        return self.unet.head(self.decode(self, rows, inputs))


def decode(model: ControlledUNet, rows: Tensor, inputs: BatchInputs) -> Tensor:
    """The decoder's output, (rows, widths[0], h, w)."""
    *skips, middle = model.features(model, rows, inputs, None)
    assert inputs.blocks.decoder is not None
    return model.unet.decoder(middle, skips, inputs.blocks.decoder)


def controlled_features(
    model: ControlledUNet, rows: Tensor, inputs: BatchInputs, count: int | None = None
) -> list[Tensor]:
    """The encoder's outputs and the middle block's, with all control added.

    count: return only the first so many targets. No net runs then; an acceleration has their residuals.
    """
    targets = list(islice(encoder_targets(model, rows, inputs, count is None), count))
    for net in inputs.nets:
        if net.net.entry == "skips":
            targets = list(with_residuals(model, targets, net, rows, count is None))
    return targets


def encoder_targets(model: ControlledUNet, rows: Tensor, inputs: BatchInputs, may_run: bool) -> Iterator[Tensor]:
    """The targets of control, with the residuals of T2I-Adapter and ControlNet-XS: the next block reads their sum."""
    targets = encode(model.unet, rows, inputs)
    for net in inputs.nets:
        if net.net.entry in ("encoder", "exchange"):
            targets = with_residuals(model, targets, net, rows, may_run)
    return targets


def encode(unet: UNet, rows: Tensor, inputs: BatchInputs) -> Iterator[Tensor]:
    """The output of each encoder block as it is made, then the middle block's: where control enters."""
    if inputs.concat is not None:
        rows = channels_last(torch.cat([rows, inputs.concat], dim=1))
    # Rows that differ by their text alone are computed once, up to the first block that reads the text.
    distinct = h = rows[: inputs.distinct_rows]
    for h in unet.encoder.walk(distinct, inputs.blocks.encoder):
        yield repeat_rows(h, len(rows))
    yield repeat_rows(unet.middle(h, inputs.blocks.middle), len(rows))


def with_residuals(
    model: ControlledUNet, targets: Iterable[Tensor], net: NetInputs, rows: Tensor, may_run: bool
) -> Iterator[Tensor]:
    """The targets with the residuals of one net added in place, one by one.

    Each residual is added as soon as it is made, so that one at a time is held, however many nets there are.
    """
    residuals = model.residuals(net, rows, may_run)
    # strict: a net with too few residuals is an error, unless only the first targets were asked for.
    for index, (target, residual) in enumerate(zip(targets, residuals, strict=may_run)):
        net.add(target, residual, index)
        yield target


def net_residuals(net: NetInputs, rows: Tensor, may_run: bool = True) -> Iterator[Tensor | None]:
    """What a net adds to each target before its weights, lazily: features through the zero convolutions."""
    steps = zip(net.net.features(net.rows_of(rows), net.inputs), net.net.projections(net.inputs), strict=True)
    for index, (feature, projection) in enumerate(steps):
        yield projection(feature) if feature is not None and net.acts_on(index) else None


class Denoiser:
    """Predicts the image in a noisy latent. cfg: guidance scale. rescale_share: see `diffusion.guidance.rescale`."""

    def __init__(self, prepared: Prepared, cfg: float, rescale_share: float = 0.0) -> None:
        self.prepared, self.cfg, self.rescale_share = prepared, cfg, rescale_share
        self.unet = ControlledUNet(prepared.unet)
        self.step: Callable[[Denoiser, Tensor, Tensor, StepInputs, float | Tensor], Tensor] = guided_prediction

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The prediction of x0, (B, 4, h, w) float32, for the latent x at noise level sigma (0-d)."""
        return self.step(self, x, sigma, self.prepared.inputs_at(float(sigma)), self.cfg)


def guided_prediction(denoiser: Denoiser, x: Tensor, sigma: Tensor, inputs: StepInputs, cfg: float | Tensor) -> Tensor:
    """Positive and negative half, combined. A function of tensors: nothing depends on the values of x or sigma."""
    predictions: dict[int, Tensor] = {}
    for batch in inputs.batches:
        predictions.update(predict(denoiser, x, sigma, batch))
    positive = inputs.positive(predictions, x)
    if inputs.negative is None:
        return positive
    combined = guide(positive, inputs.negative(predictions, x), cfg)
    if denoiser.rescale_share == 0.0:
        return combined
    return rescale(combined, positive, x, sigma, denoiser.rescale_share)


def predict(denoiser: Denoiser, x: Tensor, sigma: Tensor, batch: BatchInputs) -> dict[int, Tensor]:
    """Predict x0 (B, 4, h, w) float32 in the area of a batch, for each of its conditions, by index of the condition."""
    prepared = denoiser.prepared
    schedule = prepared.job.schedule
    sigma_data = schedule.sigma_data
    part = crop_to_area(x, batch.area)
    rows = scale_input(part, sigma, sigma_data).repeat(len(batch.conditions), 1, 1, 1)
    output = denoiser.unet(channels_last(rows.to(prepared.runtime.dtype)), batch).float()
    return {
        index: schedule.at_boundary(to_x0(prepared.config.parametrization, raw, part, sigma, sigma_data), part, sigma)
        for index, raw in zip(batch.conditions, output.split(len(part)), strict=True)
    }
