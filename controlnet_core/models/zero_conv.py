"""The zero convolution (Zhang et al. 2023, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn


def zero_(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero, in place."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ZeroConv(nn.Module):
    """A 1x1 convolution that starts at zero, so that a fresh ControlNet changes nothing.

    Its gradient is not zero: for y = W x + b, dL/dW = dL/dy x^T, and x is a feature map of the
    pretrained encoder.
    """

    def __init__(self, width: int, width_out: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width if width_out is None else width_out, 1)
        zero_(self.conv)

    def forward(self, h: Tensor) -> Tensor:
        """(B, width, H, W) feature -> (B, width_out, H, W) residual, before strength and mask (`control.residuals`)."""
        return self.conv(h)
