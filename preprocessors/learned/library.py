"""Where learned preprocessors get their nets: built once, kept, and placed on the device that was chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .files import find_weights, load_strict, read_state

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..registry import Weights


class Library:
    """Nets by their files. A net is loaded when it is first asked for, and again only if its file changes.

    A host with a memory manager overrides `place`, which is called each time a net is about to run.
    """

    def __init__(self, folders: Sequence[str | Path], *, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        """folders: models folders that are searched in order; dtype: None means float32."""
        self.folders = tuple(Path(folder) for folder in folders)
        self.device = device
        self.dtype = dtype
        self._nets: dict[tuple[Path, str], tuple[float, nn.Module]] = {}

    def net(self, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
        """The net of `weights`, made by `build` and strictly loaded; raises WeightsError without its file."""
        path = find_weights(weights, self.folders)
        key, changed = (path, build.__qualname__), path.stat().st_mtime
        kept = self._nets.get(key)
        if kept is None or kept[0] != changed:
            kept = (changed, load_strict(build(), read_state(path), path))
            self._nets[key] = kept
        return self.place(kept[1])

    def place(self, net: nn.Module) -> nn.Module:
        """Bring a net to the device and precision at which it runs."""
        return net.to(device=self.device, dtype=self.dtype)

    def forget(self) -> None:
        """Let go of all nets, so that their memory is free."""
        self._nets.clear()
