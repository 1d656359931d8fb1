"""A LoRA on the headless MODEL and CLIP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from ...controlnet_core.checkpoints.lora import LoraFile
from ...controlnet_core.checkpoints.lora_places import Placed, merge, place_text, place_unet
from ...controlnet_core.errors import UnfitError
from ..values import AppliedLora, Clip, Model

SHOWN = 5
log = logging.getLogger(__name__)


def apply_lora(
    lora: LoraFile, model: Model, clip: Clip | None, strength_model: float, strength_clip: float
) -> tuple[Model, Clip | None]:
    """MODEL and CLIP with the LoRA. A strength of 0, or no CLIP, leaves that part out.

    Raises UnfitError where a part does not fit, or none does.
    """
    placed: list[Placed] = []
    if strength_model != 0.0:
        placed.append(place_unet(lora, model.base.unet))
        model = replace(model, loras=(*model.loras, AppliedLora(lora.path.name, placed[0].updates, strength_model)))
    if clip is not None and strength_clip != 0.0:
        parts = place_text(lora, clip.models)
        placed += parts
        models = [merge(m, [(part.updates, strength_clip)]) for m, part in zip(clip.models, parts, strict=True)]
        clip = clip.with_models(models)
    _tell(lora, placed, model)
    return model, clip


def _tell(lora: LoraFile, placed: Sequence[Placed], model: Model) -> None:
    """Raise where names were looked for and none was found; log what has no place."""
    applied = sum(len(part.updates) for part in placed)
    left = [name for part in placed for name in part.unplaced]
    name = lora.path.name
    if left and not applied:
        raise UnfitError(
            f"{name} is {lora.identity.summary}; none of its updates has a place in {model.path.name} "
            f"({model.identity.summary}): they are named {_some(left)}. Load a LoRA made for this base",
            lora.path,
        )
    if not applied:
        log.warning("%s changes nothing here: it holds %s", name, _some(list(lora.updates)))
    elif left or lora.unread:
        log.warning("%s: %d updates applied; without a place here: %s", name, applied, _some([*left, *lora.unread]))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
