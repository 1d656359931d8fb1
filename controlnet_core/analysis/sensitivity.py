"""Which blocks does a picture depend on? The information that the denoiser's output carries about each strength.

Let s_b be the strength of block b, 1 where nothing is changed, and let the denoiser's noise prediction be
read as a Gaussian around eps with the variance of its error, sigma_eps^2. The Fisher information about s_b is

    F_b = E || d eps / d s_b ||^2 / sigma_eps^2

over noise levels and noises. Since x0 = x - sigma * eps for a given x, both terms can be had from the
prediction of x0, and sigma cancels: F_b = E || d x0 / d s_b ||^2 / mean (x0_predicted - x0)^2.

The derivative is a central difference, (x0(1 + h) - x0(1 - h)) / 2h. Forward-mode automatic differentiation
would be exact, but it needs derivatives of every operator, which packed weights, half precision and
attention kernels do not offer, and in the editor the model is not ours; differences need two predictions
per block and nothing else. A test compares both: see tests/unit/test_sensitivity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import ValueRangeError

Predict = Callable[[int, tuple[float, ...]], Tensor]
"""(point, factor of each block) -> the prediction of x0 there, (B, C, h, w). A point is a noise level and noise."""
STEP = 0.05
"""h. A smaller one drowns in the rounding of half precision, a larger one in curvature; at 0.05 F is within 1 %."""


@dataclass(frozen=True)
class Sensitivity:
    """information: F_b of each block, the middle last. by_point: points x blocks, before the mean over points.

    points: what each point is called, such as its step. error: mean squared error of x0 at each point.
    """

    information: tuple[float, ...]
    by_point: tuple[tuple[float, ...], ...]
    points: tuple[str, ...]
    error: tuple[float, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Proposed block weights: sqrt(F_b / max F), the root since a weight is an amplitude.

        Blocks on which the picture hardly depends fade out, the most telling one keeps its strength.
        """
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
    """The Fisher information about each of `blocks` strengths at each of the points.

    x0: (B, C, h, w), the clean latent that the points are noisy versions of. on_block(done, total) hears
    of every block. Raises ValueRangeError for an empty latent or an empty list of points.
    """
    if not points or not bool(x0.any()):
        raise ValueRangeError(
            "the sensitivity is measured on a picture: link a finished latent, from a sampler or VAE Encode"
        )
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


def _factors(blocks: int, block: int, factor: float) -> tuple[float, ...]:
    """1 for each block, `factor` for one."""
    return tuple(factor if i == block else 1.0 for i in range(blocks))


def describe(result: Sensitivity, names: Sequence[str]) -> str:
    """The figures and the proposed weights as lines of text."""
    lines = [f"{'block':>6}{'information':>13}{'share':>8}{'weight':>8}"]
    total = sum(result.information) or 1.0
    for name, value, weight in zip(names, result.information, result.weights, strict=True):
        lines.append(f"{name:>6}{value:>13.4g}{value / total:>8.1%}{weight:>8.2f}")
    lines.append("weights: " + ", ".join(f"{weight:.2f}" for weight in result.weights))
    return "\n".join(lines)


def sampled_steps(steps: int, count: int) -> tuple[int, ...]:
    """`count` steps of a run, spread evenly, in the middle of equal parts: (12, 4) -> 1, 4, 7, 10."""
    count = min(count, steps)
    return tuple(int((2 * i + 1) * steps / (2 * count)) for i in range(count))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of two lists without ties."""
    ranks = [{v: r for r, v in enumerate(sorted(values))} for values in (a, b)]
    count = len(a)
    squares = sum((ranks[0][x] - ranks[1][y]) ** 2 for x, y in zip(a, b, strict=True))
    return 1.0 - 6.0 * squares / (count * (count * count - 1))
