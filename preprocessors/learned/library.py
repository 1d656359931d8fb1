"""Loads the networks of learned preprocessors once, keeps them, and places them on the chosen device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError
from .files import find_weights, load_strict, read_state

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..entry import Entry, Weights

    # A model and its processor.
    Loaded = tuple[nn.Module, Any]
    # Name, time of change and size of each file.
    Stamp = frozenset[tuple[str, int, int]]


class Library:
    """Networks by their files. A network is loaded on first use, and again only if its file changes.

    A host with a memory manager overrides `place`, which is called each time before a network runs.
    """

    def __init__(self, folders: Sequence[str | Path], *, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        """folders: models folders, searched in order. dtype: None means float32."""
        self.folders = tuple(Path(folder) for folder in folders)
        self.device = device
        self.dtype = dtype
        self._nets: dict[tuple[Path, str], tuple[Stamp, Any]] = {}

    @property
    def pixels(self) -> int:
        """Pixels per batch: 16 pictures of 512 x 512, or 4 on the CPU, where larger batches are not faster."""
        return (1 if self.device == "cpu" else 4) * 1024 * 1024

    def net(self, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
        """The network of `weights`, made by `build` and strictly loaded. Raises WeightsError without its file."""
        return self.place(self._loaded(weights, lambda path: load_strict(build(), read_state(path), path)))

    def find(self, weights: Weights) -> Path:
        """The file or folder of `weights`. Raises WeightsError without it."""
        return find_weights(weights, self.folders)

    def require(self, entry: Entry, values: Mapping[str, Any]) -> None:
        """Raise WeightsError if a file is missing that a run of `entry` with these values of all parameters reads."""
        with advise_on_failure(entry):
            for weights in entry.needed_weights(values):
                self.find(weights)

    def folder(self, weights: Weights, load: Callable[[Path], Loaded], part: str = "") -> Loaded:
        """The result of `load` for the folder or file of `weights`, kept as long as its files are the same.

        part: a name of what `load` takes out of a file that holds several networks.
        """
        return self._loaded(weights, load, part)

    def _loaded(self, weights: Weights, load: Callable[[Path], Any], part: str = "") -> Any:
        path = self.find(weights)
        stamp, key = _stamp(path), (path, part)
        if key not in self._nets or self._nets[key][0] != stamp:
            self._nets[key] = (stamp, load(path))
        return self._nets[key][1]

    def stamps(self, entry: Entry) -> list[list[Any]]:
        """Names, times of change and sizes of the existing files of `entry`. Other files make other hints."""
        found: list[list[Any]] = []
        for weights in entry.weights:
            # A run names a file that it needs; optional ones, such as hands, may be missing.
            with suppress(WeightsError):
                found += map(list, sorted(_stamp(self.find(weights))))
        return found

    def place(self, net: nn.Module) -> nn.Module:
        """Move a network to the device and precision at which it runs."""
        return net.to(device=self.device, dtype=self.dtype)

    def forget(self) -> None:
        """Release all networks and their memory."""
        self._nets.clear()


@contextmanager
def advise_on_failure(entry: Entry) -> Iterator[None]:
    """Name the preprocessor without weights that makes the same kind of hint, in a WeightsError about `entry`."""
    try:
        yield
    except WeightsError as error:
        if not entry.fallback:
            raise
        advice = f"{error}. {entry.fallback} needs no weights: choose it for a hint of the same kind"
        raise WeightsError(advice, error.path) from error


def _stamp(path: Path) -> Stamp:
    """The state of a file, or of all files in a folder."""
    files = (file for file in (path.iterdir() if path.is_dir() else (path,)) if file.is_file())
    return frozenset((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
