"""Finding the weights that the updates of a LoRA file change, and merging the updates into a model.

A table has all names that tools give to each weight of a model; the name of an update's module is looked up in it.
Merging makes a new model, which shares the weights without an update with the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import UnfitError
from ..models.float8 import computable
from ..models.module_tree import on_meta
from ..models.text_encoder import ClipTextModel
from ..models.unet import UNet
from . import diffusers, ldm
from .keymap import KeyMap
from .lora import BIAS, LoraFile
from .lora_kinds import Update

ModelT = TypeVar("ModelT", UNet, ClipTextModel)
TEXT_STARTS = ("lora_te_", "lora_te1_", "lora_te2_", "text_encoder.", "text_encoder_2.", "text_encoders.")
"""Beginnings of names that mean a text encoder. All other names mean the UNet."""
ONE_TEXT_MODEL = (
    ("lora_te_", "lora_te1_", "text_encoder.", *(f"text_encoders.clip_{name}.transformer." for name in "lhg")),
)
TWO_TEXT_MODELS = (
    ("lora_te1_", "text_encoder.", "text_encoders.clip_l.transformer."),
    ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g.transformer."),
)
"""Prefixes of the names of each text model. Those of kohya end in "_", and the names behind it have no dots."""


class WeightChange(Protocol):
    """What changes a weight when models are merged, such as an `Update` of a LoRA."""

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The changed weight, a new tensor. weight: float32, of the same shape."""
        ...


Changes = Sequence[tuple[Mapping[str, WeightChange], float]]
"""Changes by our name of the weight, and their strength; they act one after the other."""


@dataclass(frozen=True)
class Placed:
    """Updates of one model by our name of the weight, and the modules in the file that the model does not have."""

    updates: Mapping[str, Update]
    unplaced: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------ names


def unet_names(unet: UNet) -> dict[str, str]:
    """Our name of each module of a UNet, by each name that tools give it."""
    old, new = KeyMap(ldm.unet_rules(unet.config)), KeyMap(diffusers.unet_rules(unet.config))
    return {
        name: ours
        for ours in _modules(unet.state_dict())
        for names in (_ldm_names(_theirs(old, ours)), _diffusers_names(_theirs(new, ours)))
        for name in names
    }


def text_names(model: ClipTextModel, prefixes: Iterable[str]) -> dict[str, str]:
    """Our name of each module of a text model, by each name that tools give it."""
    keymap = KeyMap(ldm.clip_rules())
    found = {}
    for ours in _modules(model.state_dict()):
        theirs = _theirs(keymap, ours)
        if theirs is not None:
            # kohya writes underscores for dots. Names of modules have both: a name can be looked up, not taken apart.
            for prefix in prefixes:
                found[prefix + (theirs.replace(".", "_") if prefix.endswith("_") else theirs)] = ours
                found[prefix + theirs.removeprefix("text_model.")] = ours
    return found


def _modules(names: Iterable[str]) -> Iterator[str]:
    return (name.removesuffix(".weight") for name in names if name.endswith(".weight"))


def _theirs(keymap: KeyMap, module: str) -> str | None:
    key = keymap.to_theirs(f"{module}.weight")
    return None if key is None else key.removesuffix(".weight")


def _ldm_names(name: str | None) -> Iterator[str]:
    if name is not None:
        yield f"lora_unet_{name.replace('.', '_')}"
        yield f"diffusion_model.{name}"
        yield f"model.diffusion_model.{name}"


def _diffusers_names(name: str | None) -> Iterator[str]:
    """Names of kohya and LyCORIS with underscores, of PEFT with dots, of older diffusers with `processor`."""
    if name is None:
        return
    yield f"lora_unet_{name.replace('.', '_')}"
    yield f"lycoris_{name.replace('.', '_')}"
    processor = name.replace(".to_", ".processor.to_").removesuffix(".0")
    for prefix in ("unet.", "", "base_model.model."):
        yield prefix + name
        yield prefix + processor


# ---------------------------------------------------------------------------------------------- placing


def place_unet(lora: LoraFile, unet: UNet) -> Placed:
    """The updates of a file for the UNet. Raises UnfitError when one has another shape than its weight."""
    return _place(lora, _meant(lora, text=False), unet_names(unet), unet.state_dict())


def place_text(lora: LoraFile, models: Sequence[ClipTextModel]) -> tuple[Placed, ...]:
    """The updates for each text model, one (SD1.x, SD2.x) or two (SDXL). The first one's `unplaced` are in neither."""
    prefixes = ONE_TEXT_MODEL if len(models) == 1 else TWO_TEXT_MODELS
    meant = _meant(lora, text=True)
    placed = [
        _place(lora, meant, text_names(model, mine), model.state_dict())
        for model, mine in zip(models, prefixes, strict=True)
    ]
    nowhere = set(placed[0].unplaced).intersection(*(other.unplaced for other in placed))
    left = tuple(name for name in placed[0].unplaced if name in nowhere)
    return tuple(Placed(part.updates, left if i == 0 else ()) for i, part in enumerate(placed))


def _meant(lora: LoraFile, *, text: bool) -> dict[str, Update]:
    return {name: update for name, update in lora.updates.items() if name.startswith(TEXT_STARTS) == text}


def _place(
    lora: LoraFile, updates: Mapping[str, Update], names: Mapping[str, str], weights: Mapping[str, Tensor]
) -> Placed:
    found: dict[str, Update] = {}
    unplaced = []
    for name, update in updates.items():
        ours = names.get(name.removesuffix(BIAS), "")
        key = ours + (BIAS if name.endswith(BIAS) else ".weight")
        if key not in weights or key in found:
            unplaced.append(name)
            continue
        _check_shape(lora, name, update, weights[key].shape)
        found[key] = update
    return Placed(found, tuple(unplaced))


def _check_shape(lora: LoraFile, name: str, update: Update, shape: torch.Size) -> None:
    """Apply the update without numbers, on meta tensors: what cannot be applied was made for another model."""
    try:
        update.apply(torch.empty(shape, device="meta"), 1.0)
    except (RuntimeError, IndexError, ZeroDivisionError) as error:
        sizes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in update.parts.items())
        raise UnfitError(
            f"{lora.path.name} is {lora.identity.summary} and was made for another base: its update of {name} "
            f"({sizes}) does not make a weight of {tuple(shape)}. Load a LoRA made for this checkpoint's family, or "
            "the checkpoint that this one was made for",
            lora.path,
        ) from error


# ---------------------------------------------------------------------------------------------- merging


def apply_updates(name: str, weight: Tensor, updates: Changes) -> Tensor:
    """The weight of this name with its changes, float32."""
    weight = weight.float()
    for mine, strength in updates:
        if name in mine:
            weight = mine[name].apply(weight, strength)
    return weight


@torch.no_grad()
def merge(model: ModelT, updates: Changes) -> ModelT:
    """A new model with the updates in its weights, each with its strength, one after the other.

    Computes in float32. A changed weight has the dtype that it had, or float16 in place of float8. The old model
    is not changed; weights without an update are shared with it.
    """
    state = dict(model.state_dict())
    for key in dict.fromkeys(key for mine, _ in updates for key in mine):
        old = state[key]
        state[key] = apply_updates(key, old, updates).to(computable(old.dtype))
    # Built without memory: the weights are assigned, and most of them are the old model's.
    with on_meta():
        merged = type(model)(model.config)  # type: ignore[arg-type]
    merged.requires_grad_(False)
    merged.load_state_dict(state, strict=True, assign=True)
    return merged.eval()
