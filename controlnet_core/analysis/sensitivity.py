"""On which blocks of a ControlNet does a picture depend? The Fisher information about each block's strength.

Let s_b be the strength of block b (1 if unchanged), and take the predicted noise as a Gaussian around eps with the
variance of its error, sigma_eps^2. The Fisher information about s_b is

    F_b = E || d eps / d s_b ||^2 / sigma_eps^2

over noise levels and noises. Since x0 = x - sigma * eps for a given x, both terms follow from the prediction of x0,
and sigma cancels: F_b = E || d x0 / d s_b ||^2 / mean (x0_predicted - x0)^2.

The derivative is a central difference, (x0(1 + h) - x0(1 - h)) / 2h. Forward-mode differentiation would be exact, but
packed weights and attention kernels do not support it, and inside ComfyUI the model is not ours. A test compares both:
tests/unit/test_sensitivity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import ValueRangeError

Predict = Callable[[int, tuple[float, ...]], Tensor]
"""(point, factor of each block) -> prediction of x0, (B, C, h, w). A point is the index of a noise level and noise."""
STEP = 0.05
"""h. With a smaller step, rounding in half precision dominates; with a larger one, curvature. Here F is within 1 %."""


@dataclass(frozen=True)
class Sensitivity:
    """The result of a measurement.

    information: F_b of each block, the middle last. by_point: points x blocks, before the mean over the points.
    points: the name of each point, such as its step. error: mean squared error of x0 at each point.
    """

    information: tuple[float, ...]
    by_point: tuple[tuple[float, ...], ...]
    points: tuple[str, ...]
    error: tuple[float, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Proposed block weights, sqrt(F_b / max F): 1 for the block with the most information."""
        # The root, because F is quadratic in the amplitude and a weight is an amplitude.
        top = max(self.information)
        return tuple(0.0 if top == 0.0 else (f / top) ** 0.5 for f in self.information)


def measure(
    predict: Predict,
    x0: Tensor,
    blocks: int,
    points: Sequence[str],
    *,
    step: float = STEP,
    on_block: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Measure the Fisher information about each of `blocks` strengths at each of the points.

    x0: (B, C, h, w), the finished latent; the points are noisy versions of it. on_block(done, total) is called after
    each block. Raises ValueRangeError for a latent of zeros or an empty list of points.
    """
    require_picture(x0, points)
    rows, errors = [], []
    for point in range(len(points)):
        error = float((predict(point, (1.0,) * blocks) - x0).square().mean())
        changes = []
        for block in range(blocks):
            ahead, behind = (predict(point, _factors(blocks, block, 1.0 + h)) for h in (step, -step))
            changes.append(float(((ahead - behind) / (2.0 * step)).square().sum()) / len(x0))
            if on_block is not None:
                on_block(point * blocks + block + 1, len(points) * blocks)
        rows.append(tuple(change / error for change in changes))
        errors.append(error)
    means = tuple(sum(row[b] for row in rows) / len(rows) for b in range(blocks))
    return Sensitivity(means, tuple(rows), tuple(points), tuple(errors))


def require_picture(x0: Tensor, points: Sequence[object]) -> None:
    """Raise ValueRangeError for a latent of zeros, or where there is nothing to measure."""
    if not points or not bool(x0.any()):
        raise ValueRangeError(
            "the latent is empty: the sensitivity is measured on a picture, so connect a finished latent, from a "
            "sampler or VAE Encode"
        )


def _factors(blocks: int, block: int, factor: float) -> tuple[float, ...]:
    """A factor of 1 for each block, and `factor` for one of them."""
    return tuple(factor if i == block else 1.0 for i in range(blocks))


def describe(result: Sensitivity, names: Sequence[str]) -> str:
    """Write the information and the proposed weights as a table."""
    lines = [f"{'block':>6}{'information':>13}{'share':>8}{'weight':>8}"]
    total = sum(result.information) or 1.0
    for name, value, weight in zip(names, result.information, result.weights, strict=True):
        lines.append(f"{name:>6}{value:>13.4g}{value / total:>8.1%}{weight:>8.2f}")
    lines.append("weights: " + ", ".join(f"{weight:.2f}" for weight in result.weights))
    return "\n".join(lines)


def sampled_steps(steps: int, count: int) -> tuple[int, ...]:
    """Choose `count` steps of a run, in the middle of equal parts: (12, 4) -> 1, 4, 7, 10."""
    count = min(count, steps)
    return tuple(int((2 * i + 1) * steps / (2 * count)) for i in range(count))
