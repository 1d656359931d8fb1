"""Loads a SparseCtrl net, with what makes latents of its hints where it reads those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, UnfitError
from ..models.sparsectrl import SparseCtrl
from .control import load_control


def load_sparsectrl(path: str | Path, encode_hint: Callable[[Tensor], Tensor] | None = None) -> SparseCtrl:
    """The net of a file. encode_hint: (B, 3, 8h, 8w) in [0, 1] -> latents (B, 4, h, w), scaled for the UNet.

    Raises CheckpointError for a file of another kind, UnfitError for one that reads latents without `encode_hint`.
    """
    net, identity = load_control(path)
    if not isinstance(net, SparseCtrl):
        raise CheckpointError(
            f"{Path(path).name} is {identity.summary}, expected a SparseCtrl net: load it with Load ControlNet", path
        )
    if not net.config.hint_widths and encode_hint is None:
        raise UnfitError(f"{Path(path).name} reads latents of its hints: link the VAE of the checkpoint")
    net.encode_hint = encode_hint
    return net
