"""The work folder of a training: lock, settings, log, and sample pictures."""

from __future__ import annotations

import contextlib
import glob
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..atomic_files import atomic_write
from ..errors import DamagedFileError, ValueRangeError, writing
from .controlnet_training import TrainingOptions
from .examples import Examples
from .loop import Recipe, Report
from .probe import Probe

# These may change between two runs of a training: they do not decide which weights are trained, nor on what. The seed
# may not: the state goes on with its own random numbers, so another seed would have no effect. Nor the optimiser, whose
# moments the state holds.
CHANGEABLE = frozenset(field.name for field in fields(Recipe)) - {"seed", "optimizer"} | {"gradient_checkpointing"}
Entry = TypeVar("Entry", Probe, Report)


@dataclass(frozen=True)
class WorkFolder:
    """A folder with training.lock, settings.json, sizes.json, log.jsonl, training.state, samples/ and report.md."""

    folder: Path

    @property
    def state_file(self) -> Path:
        """The state of the loop."""
        return self.folder / "training.state"

    @property
    def _settings_file(self) -> Path:
        return self.folder / "settings.json"

    @property
    def sizes_file(self) -> Path:
        """The sizes of the pictures that were checked, see `open_examples`."""
        return self.folder / "sizes.json"

    @property
    def cache_folder(self) -> Path:
        """Where a `DiskCache` keeps encoded latents and texts."""
        return self.folder / "cache"

    @property
    def _lock_file(self) -> Path:
        return self.folder / "training.lock"

    def check_own(self) -> None:
        """Raise ValueRangeError for a folder with files of these names that no training wrote: they would be lost."""
        if self._lock_file.exists():  # every training makes it
            return
        # Older versions made no lock; and a run that stopped before it has left the sizes alone.
        is_own = {"data", "base"} <= _read_table(self._settings_file).keys()
        names = [] if is_own else [self._settings_file.name, self.state_file.name, "log.jsonl"]
        if not all(isinstance(value, list) for value in _read_table(self.sizes_file).values()):
            names.append(self.sizes_file.name)
        found = [name for name in names if (self.folder / name).exists()]
        if found:
            raise ValueRangeError(
                f"{self.folder} holds files that no training wrote ({', '.join(found)}): choose another --work folder"
            )

    @contextlib.contextmanager
    def locked(self, *outputs: Path) -> Iterator[None]:
        """Keep other trainings out of the folder, and remove what killed ones left half-written, also of the outputs.

        Raises ValueRangeError when another training uses the folder.
        """
        path = self._lock_file
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        with file:
            try:
                # The system frees the lock when the process ends, also when it is killed. So no stale lock can remain.
                _lock(file)
            except OSError as error:
                raise ValueRangeError(
                    f"{self.folder} is used by another training ({error.strerror}): wait for it or stop it, or choose "
                    "another --work folder"
                ) from error
            written = (self.state_file, self._settings_file, self.sizes_file, *outputs)
            patterns = [path.with_name(f".{glob.escape(path.name)}.*.tmp") for path in written]
            patterns += [self.folder / "samples" / ".step_*.png.*.tmp", self.cache_folder / ".*.safetensors.*.tmp"]
            for pattern in patterns:
                for left in pattern.parent.glob(pattern.name):
                    left.unlink(missing_ok=True)
            self._mend_log()
            yield

    def _mend_log(self) -> None:
        """Cut off the line that a kill left incomplete, so that the next entry begins a new line."""
        path = self.folder / "log.jsonl"
        if path.exists():
            with writing(path), path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def compare(self, settings: Mapping[str, Any]) -> list[str]:
        """Compare the settings with those of the training in this folder, if there is one.

        Returns what changed, such as "lr was 0.001, is 0.0001". Raises ValueRangeError where a setting changed that is
        not in `CHANGEABLE`, DamagedFileError for a settings.json that cannot be read.
        """
        path = self._settings_file
        wanted = json.loads(json.dumps(settings))  # as they come back from the file: tuples are lists
        # Without a state nothing was trained yet, so any settings will do.
        known = self._known_settings(path) if path.exists() and self.state_file.exists() else wanted
        changed = {
            name: f"{name} was {known[name]!r}, is {value!r}"
            for name, value in wanted.items()
            if known.get(name, value) != value  # an earlier version may not have had this setting
        }
        if set(changed) - CHANGEABLE:
            shown = ", ".join(text for name, text in changed.items() if name not in CHANGEABLE)
            raise ValueRangeError(
                f"{self.folder} holds another training ({shown}): choose another --work folder, or delete this one"
            )
        return list(changed.values())

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace settings.json."""
        with writing(self._settings_file), atomic_write(self._settings_file) as file:
            file.write(json.dumps(settings, indent=1).encode())

    def _known_settings(self, path: Path) -> dict[str, Any]:
        try:
            # Trainings of earlier versions had no buckets.
            return {"buckets": False, **json.loads(path.read_bytes())}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DamagedFileError(
                f"{path} is damaged ({error!r}): delete it to continue this training with the options given now", path
            ) from error

    def write_log(self, entry: Probe | Report) -> None:
        """Append a line to the log."""
        path = self.folder / "log.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": type(entry).__name__.lower(), **asdict(entry)}) + "\n")

    def read_probes(self, until: int) -> list[Probe]:
        """The probes up to a step, of this run and of those before it, by their step."""
        return self._read_log(Probe, until)

    def read_reports(self, until: int) -> list[Report]:
        """The reports of loss and speed up to a step; incomplete ones are left out, because they are only drawn."""
        return self._read_log(Report, until, skip_incomplete=True)

    def samples(self) -> list[Path]:
        """The sample pictures, `step_NNNNNN.png`."""
        return sorted((self.folder / "samples").glob("step_*.png"))

    def _read_log(self, kind: type[Entry], until: int, *, skip_incomplete: bool = False) -> list[Entry]:
        required = {item.name for item in fields(kind) if item.default is MISSING}
        path = self.folder / "log.jsonl"
        found: dict[int, Entry] = {}
        for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
            try:
                entry = json.loads(line)
                # A run that was killed may have logged steps after its last state; they are made again.
                if entry.pop("kind") != kind.__name__.lower() or entry["step"] > until:
                    continue
                if not skip_incomplete or required <= entry.keys():
                    found[entry["step"]] = kind(**entry)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise DamagedFileError(
                    f"{path}, line {number} is damaged ({error!r}): remove this line", path
                ) from error
        return [found[step] for step in sorted(found)]

    def save_samples(self, step: int, pictures: Tensor) -> Path:
        """Write (3n, 3, S, S) in [0, 1] as a grid of n rows: hint, generated picture, target."""
        from PIL import Image

        rows = [torch.cat(list(row), dim=2) for row in pictures.split(3)]
        pixels = (torch.cat(rows, dim=1).movedim(0, -1).numpy() * 255.0 + 0.5).astype(np.uint8)
        path = self.folder / "samples" / f"step_{step:06d}.png"
        with writing(path), atomic_write(path) as file:
            Image.fromarray(pixels).save(file, "PNG")
        return path


def _read_table(path: Path) -> dict[str, Any]:
    """The object in a JSON file; for anything else an object that no training writes, and none for no file."""
    try:
        content = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {"": content}


def _lock(file: BinaryIO) -> None:
    """Lock an open file for this process; raises OSError when another process has locked it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def settings_of(
    folder: Path, base: Path, start: Path | None, data: Examples, recipe: Recipe, options: TrainingOptions
) -> dict[str, Any]:
    """Everything that decides the numbers of a training."""
    files = {"data": str(folder.resolve()), "base": str(base.resolve()), "start": str(start.resolve()) if start else ""}
    return {
        **files,
        "examples": len(data),
        "size": data.size,
        "buckets": data.squares() is not data,
        **asdict(recipe),
        **asdict(options),
    }
