"""What a training leaves behind: its settings, its log, its pictures, and the trained net."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.io import atomic_write
from ..checkpoints.save import LayoutName, save_checkpoint, save_controlnet
from ..errors import ValueRangeError
from .control import ControlTraining, Examples, Options, Probe
from .loop import Recipe, Report

RECIPE_KEY = "controlnet_core.recipe"


@dataclass(frozen=True)
class Workspace:
    """A folder with settings.json, log.jsonl, training.state and samples/."""

    folder: Path

    @property
    def state_file(self) -> Path:
        """Where the loop keeps its state."""
        return self.folder / "training.state"

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Write the settings down, or compare them with those of the training that this folder holds.

        The number of steps may differ: a training may go on for longer. Raises ValueRangeError for any other
        difference.
        """
        path = self.folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if path.exists() and self.state_file.exists():
            known = json.loads(path.read_text("utf-8"))
            changed = [name for name in wanted if name != "steps" and known.get(name) != wanted[name]]
            if changed:
                shown = ", ".join(f"{name} was {known.get(name)!r}, is {wanted[name]!r}" for name in changed)
                raise ValueRangeError(
                    f"{self.folder} holds another training ({shown}): choose another --work folder, or delete this one"
                )
        with atomic_write(path) as file:
            file.write(json.dumps(wanted, indent=1).encode())

    def note(self, entry: Probe | Report) -> None:
        """Append a line to the log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": type(entry).__name__.lower(), **asdict(entry)}) + "\n")

    def history(self, until: int) -> list[Probe]:
        """The probes up to a step, of this run and of those before it."""
        found = {probe.step: probe for probe in self._probes() if probe.step <= until}
        return [found[step] for step in sorted(found)]

    def _probes(self) -> Iterator[Probe]:
        path = self.folder / "log.jsonl"
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # the line that a kill cut off
                continue
            if entry.pop("kind", "") == "probe":
                yield Probe(**entry)

    def keep_samples(self, step: int, pictures: Tensor) -> Path:
        """Write (3n, 3, S, S) in [0, 1] as a grid of n rows: hint, picture, target."""
        from PIL import Image

        rows = [torch.cat(list(row), dim=2) for row in pictures.split(3)]
        pixels = (torch.cat(rows, dim=1).movedim(0, -1).numpy() * 255.0 + 0.5).astype(np.uint8)
        path = self.folder / "samples" / f"step_{step:06d}.png"
        with atomic_write(path) as file:
            Image.fromarray(pixels).save(file, "PNG")
        return path


def settings_of(
    folder: Path, base: Path, start: Path | None, data: Examples, recipe: Recipe, options: Options
) -> dict[str, Any]:
    """All that decides the numbers of a training."""
    files = {"data": str(folder.resolve()), "base": str(base.resolve()), "start": str(start.resolve()) if start else ""}
    return {**files, "examples": len(data), "size": data.size, **asdict(recipe), **asdict(options)}


def export(
    training: ControlTraining,
    path: Path,
    *,
    layout: LayoutName = "ldm",
    dtype: torch.dtype | None = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the averaged net, and beside it the base whose decoder was trained too; returns the files.

    Raises CheckpointError when one cannot be written; nothing half-written is left.
    """
    checkpoint, loop = training.checkpoint, training.loop
    about = {RECIPE_KEY: f"{loop.recipe}, {training.options}, {loop.step} steps done", **(metadata or {})}
    family = checkpoint.identity.family
    written = [path]
    with loop.averaged():
        save_controlnet(path, training.net, family=family, layout=layout, dtype=dtype, metadata=about)
        if not training.options.sd_locked:
            written.append(path.with_name(f"{path.stem}_base{path.suffix}"))
            save_checkpoint(
                written[1],
                checkpoint.config,
                checkpoint.unet,
                checkpoint.vae,
                checkpoint.text_model,
                checkpoint.text_model2,
                extras=checkpoint.extras,
                layout=layout,
                dtype=dtype,
                metadata=about,
            )
    return written
