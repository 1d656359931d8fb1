"""Applies a LoRA to the MODEL and CLIP of the standalone host."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from ...controlnet_core.checkpoints.lora import LoraFile
from ...controlnet_core.checkpoints.lora_places import Placed, merge, place_text, place_unet
from ...controlnet_core.errors import UnfitError
from .values import AppliedLora, Clip, Model

MAX_SHOWN = 5
"""Number of weight names in a message."""
log = logging.getLogger(__name__)


def apply_lora(
    lora: LoraFile, model: Model, clip: Clip | None, strength_model: float, strength_clip: float
) -> tuple[Model, Clip | None]:
    """New MODEL and CLIP with the LoRA. A part with strength 0 is not changed, and clip may be None.

    Raises UnfitError where an update has the wrong shape, or where no update fits.
    """
    placed: list[Placed] = []
    if strength_model != 0.0:
        placed.append(place_unet(lora, model.base.unet))
        # The UNet is merged later, once for a whole chain of LoRAs; see `Model.diffusion`.
        model = replace(model, loras=(*model.loras, AppliedLora(lora.path.name, placed[0].updates, strength_model)))
    if clip is not None and strength_clip != 0.0:
        parts = place_text(lora, clip.models)
        placed += parts
        models = [merge(m, [(part.updates, strength_clip)]) for m, part in zip(clip.models, parts, strict=True)]
        clip = clip.with_models(models)
    _report_unplaced(lora, placed, model)
    return model, clip


def _report_unplaced(lora: LoraFile, placed: Sequence[Placed], model: Model) -> None:
    """Raise UnfitError where no update fits; log the updates that do not fit."""
    # A LoRA for another base fits nowhere; one with a few unknown names is common and works.
    applied = sum(len(part.updates) for part in placed)
    left = [name for part in placed for name in part.unplaced]
    name = lora.path.name
    if left and not applied:
        raise UnfitError(
            f"{name} is {lora.identity.summary}; none of its updates fits {model.path.name} "
            f"({model.identity.summary}): they are named {_some(left)}. Load a LoRA made for this base model",
            lora.path,
        )
    if not applied:
        log.warning("%s has no effect here: it contains %s", name, _some(list(lora.updates)))
    elif left or lora.unread:
        log.warning("%s: %d updates applied; these do not fit: %s", name, applied, _some([*left, *lora.unread]))


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more
