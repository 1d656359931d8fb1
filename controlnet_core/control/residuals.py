"""The one place where residuals are added to the UNet (Zhang et al. 2023, sections 3.1 and 3.2).

Kinds of control that act inside the attentions, and have no residuals, enter in `control.attention`.

A residual is a ControlNet's feature map after its zero convolution. It is added to one target: the output of an
encoder block (a skip) or of the middle block.

    target += weight * scale * residual

weight: strength x schedule x mode x block weight, one number per block. scale: the mask, the factor of each image and
the factor of each guidance half, a tensor that broadcasts to the target; None if all of them are 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

Weight = float | Tensor
"""A number, or a 0-d tensor where the strength has to be read from memory at each replay."""


def add_residual(target: Tensor, residual: Tensor, weight: Weight, scale: Tensor | None = None) -> None:
    """target += weight * scale * residual, in place.

    target: (rows, C, h, w). residual: broadcasts to it. scale: (1 or rows, 1, 1 or h, 1 or w) or None.
    """
    if isinstance(weight, Tensor):
        target.addcmul_(residual, weight if scale is None else scale * weight)
    elif scale is None:
        target.add_(residual, alpha=weight)  # one pass over memory: the strength costs nothing
    else:
        target.addcmul_(residual, scale, value=weight)


def weigh_residual(residual: Tensor, weight: float, scale: Tensor | None = None) -> Tensor:
    """What `add_residual` adds, out of place, for a host that adds it to its own UNet: (rows, C, h, w)."""
    if weight == 1.0 and scale is None:
        return residual
    rows = residual.shape if scale is None else torch.broadcast_shapes(residual.shape, scale.shape)
    weighed = residual.new_zeros(rows)
    add_residual(weighed, residual, weight, scale)
    return weighed
