"""Where learned preprocessors get their nets: built once, kept, and placed on the device that was chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError
from .files import find_folder, find_weights, load_strict, read_state

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..entry import Entry, Weights

    Loaded = tuple[nn.Module, Any]  # a model and its processor
    Stamp = frozenset[tuple[str, int, int]]  # name, time of change and size of each file


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
        self._opened: dict[Path, tuple[Stamp, Loaded]] = {}

    @property
    def pixels(self) -> int:
        """How many a net sees at a time: 16 pictures of 512, or 4 on the CPU, where larger batches gain nothing."""
        return (1 if self.device == "cpu" else 4) * 1024 * 1024

    def net(self, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
        """The net of `weights`, made by `build` and strictly loaded; raises WeightsError without its file."""
        path = self.find(weights)
        key, changed = (path, build.__qualname__), path.stat().st_mtime
        kept = self._nets.get(key)
        if kept is None or kept[0] != changed:
            kept = (changed, load_strict(build(), read_state(path), path))
            self._nets[key] = kept
        return self.place(kept[1])

    def find(self, weights: Weights) -> Path:
        """The file of `weights`; raises WeightsError without it."""
        return find_weights(weights, self.folders)

    def folder(self, weights: Weights, load: Callable[[Path], Loaded]) -> Loaded:
        """What `load` makes of the folder of `weights`, kept as long as its files are the same."""
        path = find_folder(weights, self.folders)
        changed = _stamp(path)
        kept = self._opened.get(path)
        if kept is None or kept[0] != changed:
            kept = (changed, load(path))
            self._opened[path] = kept
        return kept[1]

    def stamps(self, entry: Entry) -> list[list[Any]]:
        """Names, times of change and sizes of the files of `entry` that are there: others mean other hints."""
        found: list[list[Any]] = []
        for weights in entry.weights:
            try:
                if entry.backend == "transformers":
                    found += map(list, sorted(_stamp(find_folder(weights, self.folders))))
                else:
                    path = self.find(weights)
                    found.append([path.name, path.stat().st_mtime_ns, path.stat().st_size])
            except WeightsError:  # one that a run needs is named by it; others, such as hands, may lack
                continue
        return found

    def place(self, net: nn.Module) -> nn.Module:
        """Bring a net to the device and precision at which it runs."""
        return net.to(device=self.device, dtype=self.dtype)

    def forget(self) -> None:
        """Let go of all nets, so that their memory is free."""
        self._nets.clear()
        self._opened.clear()


def _stamp(folder: Path) -> Stamp:
    files = ((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return frozenset((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)
