"""Classifier-free guidance (Ho and Salimans, 2022) and its variants, as pure functions of predictions of x0.

For a given x and sigma, x0 is an affine function of the predicted noise or velocity. Weights that add up to 1 therefore
mean the same for all three. A standard deviation does not, see `rescale`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ValueRangeError


def guide(positive: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    """negative + scale * (positive - negative)."""
    return negative + (positive - negative) * scale


def rescale(guided: Tensor, positive: Tensor, x: Tensor, sigma: Tensor, share: float) -> Tensor:
    """Reduce the excess of contrast that guidance adds (Lin et al., 2023, section 3.4).

    The guided velocity gets the standard deviation of the positive one, for each picture; `share` (0 to 1) of the
    result is mixed with the guided prediction as it was. All tensors are (B, 4, h, w).
    """
    # ComfyUI does this on the velocity, whatever the model predicts. v = (scaled - x0) * root / sigma; the factor
    # root / sigma is the same in both standard deviations and cancels.
    root = (sigma * sigma + 1.0).sqrt()
    scaled = x / (root * root)
    std_positive = (scaled - positive).std(dim=(1, 2, 3), keepdim=True)
    std_guided = (scaled - guided).std(dim=(1, 2, 3), keepdim=True)
    factor = share * std_positive / std_guided + (1.0 - share)
    return scaled - (scaled - guided) * factor


@dataclass(frozen=True)
class Weights:
    """The weights of three predictions in guidance with two scales. They add up to 1."""

    positive: float
    middle: float
    negative: float

    @classmethod
    def of(cls, scale: float, second: float, *, nested: bool = False) -> Weights:
        """Guide from the middle to the positive by `scale`, and from the negative to the middle by `second`.

        negative + second (middle - negative) + scale (positive - middle): with the text and the picture as positive,
        the picture alone as middle and neither as negative, this is InstructPix2Pix (Brooks et al., 2023, eq. 3).
        nested: negative + second (middle + scale (positive - middle) - negative).
        """
        outer = second if nested else 1.0
        return cls(outer * scale, second - outer * scale, 1.0 - second)

    def within_negative(self) -> tuple[float, float]:
        """Weights (m, n) of middle and negative in one combined negative, for plain guidance by `self.positive`.

        m + n = 1, and with combined = m * middle + n * negative, combined + positive_weight * (positive - combined)
        is the same prediction. Raises ValueRangeError for a positive weight of 1, where no combined negative exists.
        """
        rest = 1.0 - self.positive
        if abs(rest) < 1e-6:
            raise ValueRangeError("the scale of the first condition comes to 1: choose another, such as 1.01")
        return self.middle / rest, self.negative / rest
