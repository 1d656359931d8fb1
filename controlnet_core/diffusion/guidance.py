"""Classifier-free guidance (Ho and Salimans 2022) of predictions of x0, and what became of it. Pure functions.

A prediction of x0 is, for a given x and sigma, an affine function of the prediction of noise or velocity. Weights
that add up to 1 therefore mean the same for all three; a standard deviation does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ValueRangeError


def guide(positive: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    """negative + scale (positive - negative)."""
    return negative + (positive - negative) * scale


def rescale(guided: Tensor, positive: Tensor, x: Tensor, sigma: Tensor, share: float) -> Tensor:
    """Guidance without its excess of contrast (Lin et al. 2023, section 3.4), (B, 4, h, w) like all its inputs.

    The guided velocity gets the standard deviation of the positive one, picture by picture; `share` of that is
    mixed with the guided one as it was. Whatever the model predicts, it is done on the velocity, as the host does.
    """
    root = (sigma * sigma + 1.0).sqrt()
    still = x / (root * root)  # v = (still - x0) * root / sigma; root / sigma is the same on both sides
    wanted = (still - positive).std(dim=(1, 2, 3), keepdim=True)
    found = (still - guided).std(dim=(1, 2, 3), keepdim=True)
    factor = share * wanted / found + (1.0 - share)
    return still - (still - guided) * factor


@dataclass(frozen=True)
class Weights:
    """What three predictions count in guidance by two scales; they add up to 1."""

    positive: float
    middle: float
    negative: float

    @classmethod
    def of(cls, scale: float, second: float, *, nested: bool = False) -> Weights:
        """Guidance from the middle to the positive by `scale`, from the negative to the middle by `second`.

        negative + second (middle - negative) + scale (positive - middle): with the text and the picture as positive,
        the picture alone as middle and neither as negative this is InstructPix2Pix (Brooks et al. 2023, equation 3).
        nested: negative + second (middle + scale (positive - middle) - negative).
        """
        outer = second if nested else 1.0
        return cls(outer * scale, second - outer * scale, 1.0 - second)

    def within_negative(self) -> tuple[float, float]:
        """Weights of middle and negative, adding up to 1, in the half that `positive` is the scale of guidance from.

        With m and n of them, m middle + n negative + positive_weight (positive - (m middle + n negative)) is the
        same. Raises ValueRangeError for a positive weight of 1, where there is no such half.
        """
        rest = 1.0 - self.positive
        if abs(rest) < 1e-6:
            raise ValueRangeError("the scale of the first condition comes to 1: choose another, such as 1.01")
        return self.middle / rest, self.negative / rest
