"""Sends curves and samples of a training to TensorBoard or Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingPackageError
from .processes import ALONE, Processes

TRACKERS: Mapping[str, str] = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Name of a tracker -> the package to install for it."""


@dataclass(frozen=True)
class Tracker:
    """A running tracker of the first process."""

    name: str
    accelerator: Any

    def start(self, project: str, settings: Mapping[str, Any]) -> None:
        """Begin a run, or continue it, and note its settings."""
        # Trackers take plain values only.
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
        self.accelerator.init_trackers(project, config=plain)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a point to the curve of each number."""
        self.accelerator.log(dict(numbers), step=step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """Add samples, (H, W, 3) uint8."""
        tracker = self.accelerator.get_tracker(self.name)
        if self.name == "tensorboard":
            tracker.log_images({"samples": pixels[None]}, step=step, dataformats="NHWC")
        else:
            tracker.log_images({"samples": [pixels]}, step=step)

    def finish(self) -> None:
        """Write the entries that are still in memory."""
        self.accelerator.end_training()


def open_tracker(name: str, folder: Path, processes: Processes = ALONE) -> Tracker:
    """A tracker by its name in `TRACKERS`; TensorBoard's files go below `folder`.

    Raises CoreError where accelerate or the tracker's own package is not installed.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingPackageError(
            f"the tracker {name} needs accelerate: pip install accelerate {TRACKERS[name]}"
        ) from error
    # It only keeps a log: the CPU will do, but where processes train together their device is already chosen.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tracker that is missing, which the next lines say
        accelerator = Accelerator(cpu=processes.count == 1, log_with=name, project_dir=str(folder))
    if not accelerator.log_with:
        raise MissingPackageError(f"the tracker {name} is not installed: pip install {TRACKERS[name]}")
    return Tracker(name, accelerator)
