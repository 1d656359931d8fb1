"""Reading LoRA files: which tensors belong together, by the ends of their names.

A key is the name of a module and an ending that says which part of an update the tensor is:
`lora_unet_mid_block_attentions_0_proj_in` + `.lora_up.weight`. One table has the endings of all
tools; `lora_places` finds the module that a name means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, reading
from .detect import Identity
from .files import Header, parse_table
from .io import read_tensors
from .lora_kinds import DIFFERENCE, HADAMARD, KRONECKER, LOW_RANK, Kind, Update
from .plan import open_as

ALPHA, MAGNITUDE, PEFT_MAGNITUDE = "alpha", "magnitude", "peft magnitude"
PEFT_METADATA = "lora_adapter_metadata"
"""Metadata entry in which diffusers keeps the settings of PEFT, as JSON."""
BIAS = ".bias"


def _pairs(*ends: tuple[str, str]) -> dict[str, tuple[Kind, str]]:
    """Endings of the two halves of a LoRA: (up, down)."""
    return {end: (LOW_RANK, part) for pair in ends for end, part in zip(pair, ("up", "down"), strict=True)}


ENDINGS: Mapping[str, tuple[Kind | None, str]] = {
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
    with reading(header.path, CheckpointError):
        groups, unread, alphas = check_lora(header)
        tensors = read_tensors(header, [key for parts in groups.values() for _, key in parts.values()])
        updates = {
            module: _make_update({part: tensors[key] for part, (_, key) in parts.items()}, _kind(parts), alphas[module])
            for module, parts in groups.items()
        }
    return LoraFile(header.path, identity, updates, unread)


Groups = Mapping[str, Mapping[str, tuple["Kind | None", str]]]
"""By module, by part: the kind of update that it belongs to, and its key."""
Alphas = Mapping[str, tuple["float | None", bool]]
"""By module: alpha, None where PEFT's settings do not give it, and whether it is divided by the root of the rank."""


def check_lora(header: Header) -> tuple[Groups, tuple[str, ...], Alphas]:
    """The keys of a header by module and part, those whose end is not known, and PEFT's settings.

    No weights are read. Raises CheckpointError for updates with missing parts, and for damaged settings.
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
    # Whole updates only: half of one would change the weight by nothing or fail in the middle of a merge.
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
        elif ALPHA in parts and header.tensors[parts[ALPHA][1]].count != 1:
            raise CheckpointError(f"the alpha of {module} is not one number: the file is damaged, download it again")
    text = header.metadata.get(PEFT_METADATA)
    settings = {} if text is None else parse_table(text, f"its metadata entry {PEFT_METADATA}")
    return groups, tuple(unread), {module: _peft_alpha(module, settings) for module in groups}


def _split(key: str) -> tuple[str, Kind | None, str] | None:
    """Module, kind and part of a key; the longest ending counts."""
    for end in BIAS_ENDINGS:
        if key.endswith(end):
            return key.removesuffix(end) + BIAS, DIFFERENCE, "diff"
    # One ending may be the end of another, such as ".lora_magnitude_vector.weight" and its longer forms.
    ends = [end for end in ENDINGS if key.endswith(end)]
    if not ends:
        return None
    end = max(ends, key=len)
    return (key.removesuffix(end), *ENDINGS[end])


def _kind(parts: Mapping[str, tuple[Kind | None, str]]) -> Kind | None:
    return next((kind for kind, _ in parts.values() if kind is not None), None)


def _make_update(parts: Mapping[str, Tensor], kind: Kind | None, peft_alpha: tuple[float | None, bool]) -> Update:
    assert kind is not None  # `check_lora` has removed those without
    own = {part: tensor for part, tensor in parts.items() if part not in (ALPHA, MAGNITUDE, PEFT_MAGNITUDE)}
    alpha, root = peft_alpha
    if ALPHA in parts:
        alpha = float(parts[ALPHA])
    # PEFT measures DoRA's norm on the changed weight, as the paper does; LyCORIS on the weight of the base.
    if PEFT_MAGNITUDE in parts:
        return Update(kind, own, alpha, parts[PEFT_MAGNITUDE].flatten(), "sum", root)
    return Update(kind, own, alpha, parts.get(MAGNITUDE), "base", root)


def _peft_alpha(module: str, settings: Mapping[str, Any]) -> tuple[float | None, bool]:
    """Alpha of a module, and whether it is divided by the root of the rank; None where the settings do not say."""
    part, _, name = module.partition(".")
    alpha, patterns = settings.get(f"{part}.lora_alpha"), settings.get(f"{part}.alpha_pattern") or {}
    if isinstance(patterns, dict):
        # A pattern is the end of a module's name, so that each end is looked up instead of each pattern tried.
        segments = name.split(".")
        ends = (".".join(segments[i:]) for i in range(len(segments)))
        alpha = next((patterns[end] for end in ends if end in patterns), alpha)
    if not isinstance(patterns, dict) or not (alpha is None or type(alpha) in (int, float)):
        raise CheckpointError(
            f"its metadata entry {PEFT_METADATA} gives {module} an alpha that is no number: the file is damaged, "
            "download it again"
        )
    return (None if alpha is None else float(alpha)), bool(settings.get(f"{part}.use_rslora", False))
