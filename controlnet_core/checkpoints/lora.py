"""Reading LoRA files: which tensors belong together, by the ends of their names.

A key is the name of a module and an ending that says which part of an update the tensor is:
`lora_unet_mid_block_attentions_0_proj_in` + `.lora_up.weight`. The endings are one table for all
tools; whose module the name means is found by `lora_places`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .detect import Identity
from .files import Header
from .io import read_tensors
from .load import open_as
from .lora_kinds import DIFFERENCE, HADAMARD, KRONECKER, LOW_RANK, Kind, Update

ALPHA, MAGNITUDE, PEFT_MAGNITUDE = "alpha", "magnitude", "peft magnitude"
PEFT_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the adapter's settings, as JSON, in the header of a safetensors file."""
BIAS = ".bias"
SHOWN = 5


def _pairs(*ends: tuple[str, str]) -> dict[str, tuple[Kind, str]]:
    """Endings of the two halves of a LoRA: (up, down)."""
    return {end: (LOW_RANK, part) for pair in ends for end, part in zip(pair, ("up", "down"), strict=True)}


ENDINGS: Mapping[str, tuple[Kind | None, str]] = MappingProxyType(
    {
        **_pairs(
            (".lora_up.weight", ".lora_down.weight"),
            (".lora_B.weight", ".lora_A.weight"),
            (".lora_B.default.weight", ".lora_A.default.weight"),
            (".lora.up.weight", ".lora.down.weight"),
            ("_lora.up.weight", "_lora.down.weight"),
            (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
            (".lora_layer.up.weight", ".lora_layer.down.weight"),
        ),
        ".lora_mid.weight": (LOW_RANK, "mid"),
        **{f".hada_{part}": (HADAMARD, part) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
        **{f".lokr_{part}": (KRONECKER, part) for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
        ".diff": (DIFFERENCE, "diff"),
        ".w_norm": (DIFFERENCE, "diff"),
        ".alpha": (None, ALPHA),
        ".dora_scale": (None, MAGNITUDE),
        ".lora_magnitude_vector": (None, PEFT_MAGNITUDE),
        ".lora_magnitude_vector.weight": (None, PEFT_MAGNITUDE),
        ".lora_magnitude_vector.default.weight": (None, PEFT_MAGNITUDE),
    }
)
"""By the end of a key: the kind of update (None for what any kind may have), and the tensor's part in it."""
BIAS_ENDINGS = (".diff_b", ".b_norm")
"""Differences of the bias of the module that the key names."""


@dataclass(frozen=True)
class LoraFile:
    """A file's updates by the module they name (`BIAS` behind it for a bias); `unread` are keys with no known end."""

    path: Path
    identity: Identity
    updates: Mapping[str, Update]
    unread: tuple[str, ...]


def read_lora(path: str | Path) -> LoraFile:
    """Read a LoRA, LoHa, LoKr or DoRA file of any tool, memory-mapped.

    Raises MissingFileError, and CheckpointError when it is damaged, something else, or holds half of an update.
    """
    header, identity = open_as(path, "lora")
    groups, unread = group(header)
    tensors = read_tensors(header, [key for parts in groups.values() for _, key in parts.values()])
    settings = _peft_settings(header)
    updates = {
        module: _update({part: tensors[key] for part, (_, key) in parts.items()}, _kind(parts), module, settings)
        for module, parts in groups.items()
    }
    return LoraFile(header.path, identity, updates, unread)


Groups = Mapping[str, Mapping[str, tuple["Kind | None", str]]]
"""By module, by part: the kind of update that it belongs to, and its key."""


def group(header: Header) -> tuple[Groups, tuple[str, ...]]:
    """The keys of a header by module and part, and those whose end is not known; no weights are read.

    Raises CheckpointError for updates with parts missing.
    """
    groups: dict[str, dict[str, tuple[Kind | None, str]]] = {}
    unread = []
    for key in header.tensors:
        found = _split(key)
        if found is None:
            unread.append(key)
        else:
            module, kind, part = found
            groups.setdefault(module, {})[part] = (kind, key)
    for module, parts in list(groups.items()):
        kind = _kind(parts)
        if kind is None:  # an alpha without anything that it belongs to
            unread += [key for _, key in groups.pop(module).values()]
        elif not any(needed <= parts.keys() for needed in kind.complete):
            raise CheckpointError(
                f"{header.path.name}: the update of {module} has only {', '.join(sorted(parts))}, which is not a whole "
                f"{kind.name}: the file is incomplete, download it again",
                header.path,
            )
    return groups, tuple(unread)


def _split(key: str) -> tuple[str, Kind | None, str] | None:
    """Module, kind and part of a key; the longest ending counts."""
    for end in BIAS_ENDINGS:
        if key.endswith(end):
            return key.removesuffix(end) + BIAS, DIFFERENCE, "diff"
    ends = [end for end in ENDINGS if key.endswith(end)]
    if not ends:
        return None
    end = max(ends, key=len)
    return (key.removesuffix(end), *ENDINGS[end])


def _kind(parts: Mapping[str, tuple[Kind | None, str]]) -> Kind | None:
    return next((kind for kind, _ in parts.values() if kind is not None), None)


def _update(parts: Mapping[str, Tensor], kind: Kind | None, module: str, settings: Mapping[str, Any]) -> Update:
    assert kind is not None  # `group` has seen to it
    own = {part: tensor for part, tensor in parts.items() if part not in (ALPHA, MAGNITUDE, PEFT_MAGNITUDE)}
    alpha, root = _peft_alpha(module, settings)
    if ALPHA in parts:
        alpha = float(parts[ALPHA])
    if PEFT_MAGNITUDE in parts:
        return Update(kind, own, alpha, parts[PEFT_MAGNITUDE].flatten(), "sum", root)
    return Update(kind, own, alpha, parts.get(MAGNITUDE), "base", root)


# ---------------------------------------------------------------------------------------- PEFT's settings


def _peft_settings(header: Header) -> Mapping[str, Any]:
    text = header.metadata.get(PEFT_METADATA)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"{header.path.name} is damaged: its metadata entry {PEFT_METADATA} is not JSON; download it again",
            header.path,
        ) from error
    return content if isinstance(content, dict) else {}


def _peft_alpha(module: str, settings: Mapping[str, Any]) -> tuple[float | None, bool]:
    """Alpha of a module, and whether the rank is rooted, as PEFT's settings say; None where they say nothing."""
    part, _, name = module.partition(".")
    alpha = settings.get(f"{part}.lora_alpha")
    for pattern, own in (settings.get(f"{part}.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({re.escape(pattern)})", name):
            alpha = own
    return (None if alpha is None else float(alpha)), bool(settings.get(f"{part}.use_rslora", False))
