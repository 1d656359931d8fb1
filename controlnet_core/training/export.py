"""Writes a trained net, and the base that was trained with it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoints.derived import save_control_lora
from ..checkpoints.save import LayoutName, save_checkpoint, save_controlnet
from ..errors import ValueRangeError
from .control_lora import to_control_lora
from .controlnet_training import ControlNetTraining

RECIPE_KEY = "controlnet_core.recipe"
"""Entry in the metadata of every file that a training wrote."""


def export_files(path: Path, unlocked: bool) -> list[Path]:
    """The files that `export` writes: the net, and with an unlocked base `NAME_base` beside it."""
    return [path, path.with_name(f"{path.stem}_base{path.suffix}")] if unlocked else [path]


def check_layout(layout: LayoutName, rank: int) -> None:
    """Raise ValueRangeError for a Control-LoRA in another layout than the released one."""
    if rank and layout != "ldm":
        raise ValueRangeError(f"a Control-LoRA has only the layout of its release, the layout given is {layout}")


def export(
    training: ControlNetTraining,
    path: Path,
    *,
    layout: LayoutName = "ldm",
    dtype: torch.dtype | None = torch.float16,
) -> list[Path]:
    """Write the averaged net, and the base if its decoder was trained too; return the files.

    Raises CheckpointError when a file cannot be written; no file is left half-written. A Control-LoRA has one layout,
    "ldm"; ValueRangeError for another.
    """
    checkpoint, loop = training.checkpoint, training.loop
    check_layout(layout, training.options.rank)
    about = {RECIPE_KEY: f"{loop.recipe}, {training.options}, {loop.step} steps done"}
    files = export_files(path, not training.options.sd_locked)
    # The averaged weights: single steps of a small batch are noisy.
    with loop.averaged():
        family = checkpoint.identity.family
        if training.options.rank:
            lora = to_control_lora(training.net)
            save_control_lora(path, lora, checkpoint.config.unet, family=family, dtype=dtype, metadata=about)
        else:
            save_controlnet(path, training.net, family=family, layout=layout, dtype=dtype, metadata=about)
        for base in files[1:]:
            save_checkpoint(
                base,
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
    return files
