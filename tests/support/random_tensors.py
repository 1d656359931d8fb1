"""Random tensors and weights that are the same in every run, and how far two tensors are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in [0, 1), float32."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: Any) -> Any:
    """Give all parameters of a module random values of the usual size, and return it in evaluation mode."""
    # Zero convolutions too: at zero, a net would agree with every reference.
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        scale = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data.uniform_(-1.7 * scale, 1.7 * scale, generator=generator)
    return module.eval()


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """The largest difference, as a fraction of the reference's largest value."""
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


def assert_close(ours: Tensor, reference: Tensor, tolerance: float = 1e-4) -> None:
    """Assert that the relative error is at most the tolerance."""
    assert relative_error(ours, reference) <= tolerance
