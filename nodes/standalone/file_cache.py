"""Keeps loaded files in memory, and opens MODEL, CLIP and VAE of a file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ...controlnet_core.checkpoints.io import read_ahead
from ...controlnet_core.checkpoints.load import Narrow, load_base, load_checkpoint
from ...controlnet_core.diffusion.schedule import make_schedule
from ...controlnet_core.pipeline import DiffusionModel
from .values import Clip, Model, Vae

MAX_FILES = 8
LoadedT = TypeVar("LoadedT")


class FileCache:
    """The results of loading the last files, so that the next run starts sooner."""

    def __init__(self, ahead: bool = True) -> None:
        """ahead: have the system read files at once; not where weights are expected to come from another file."""
        self._ahead = ahead
        self._loaded: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, kind: str, path: Path, load: Callable[[Path], LoadedT]) -> LoadedT:
        """What `load` makes of a file: the kept result, unless the file has changed on disk since."""
        try:
            stat = path.stat()
        except OSError:
            return load(path)  # raises an error that names the file and the reason
        # Resolved: the same file may be found under two names, through a link.
        key = (kind, path.resolve(), stat.st_mtime_ns, stat.st_size)
        if key not in self._loaded:
            self._loaded[key] = load(path)
            # The weights are memory-mapped: read them from disk while prompts are encoded and hints are made.
            if self._ahead:
                read_ahead(path)
            while len(self._loaded) > MAX_FILES:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return self._loaded[key]


def open_checkpoint(path: Path) -> tuple[Model, Clip | None, Vae | None]:
    """MODEL, CLIP and VAE of a checkpoint; None for a part that the file does not have."""
    loaded = load_checkpoint(path, narrow="stored")
    return (
        _model(loaded, path),
        None if loaded.text_model is None else loaded.text_encoder(),
        None if loaded.vae is None else Vae(loaded.vae, path),
    )


def open_unet(path: Path, narrow: Narrow) -> Model:
    """MODEL of a file that holds a UNet alone. narrow: how its weights are kept in memory."""
    return _model(load_base(path, narrow=narrow), path)


def _model(loaded: Any, path: Path) -> Model:
    diffusion = DiffusionModel(loaded.unet, loaded.config, make_schedule(loaded.config.noise))
    return Model(diffusion, loaded.identity, path)
