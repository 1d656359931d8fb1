"""Loads a base ControlNet of CtrLoRA with one of its LoRAs merged into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import SD15, CtrLoraConfig
from ..errors import CheckpointError
from ..models.ctrlora import CtrLora
from ..models.module_tree import on_meta
from . import ldm
from .ctrlora import BASE, LAYER, LORA, rules
from .detect import Identity
from .files import Header
from .io import read_tensors
from .keymap import KeyMap, matcher
from .plan import open_as, same_matrix

REPLACED = ("zero_convs.", "zero_conv_middle.")
"""What a LoRA holds whole, by our names; norms of transformers too."""
SHOWN_KEYS = 4


def load_ctrlora(base: str | Path, lora: str | Path | None = None) -> CtrLora:
    """The net of a base, with a LoRA merged into it. Without one the base's own zero convolutions act.

    Raises CheckpointError for other or incomplete files, and for a LoRA of another base.
    """
    header, identity = open_as(base, BASE)
    net, names = check_ctrlora(header, identity)
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    keymap = KeyMap(rules(net.config.unet))
    weights = _read(header, names)
    if lora is not None:
        weights |= _merged(lora, keymap, weights, expected)
    state = {name: tensor.to(torch.float32).reshape(expected[name]) for name, tensor in weights.items()}
    net.load_state_dict(state, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def check_ctrlora(header: Header, identity: Identity) -> tuple[CtrLora, dict[str, str]]:
    """The outline of a base on the meta device, and our name for each of its keys.

    Raises CheckpointError for an incomplete file, or one with other weights.
    """
    assert isinstance(identity.config, CtrLoraConfig)
    with on_meta():
        net = CtrLora(identity.config)
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    keys = [key for key in header.tensors if LAYER not in key]
    names = _names(header, KeyMap(rules(net.config.unet)), identity.prefix, keys)
    _complain(header, {"missing": sorted(expected.keys() - set(names.values()))})
    _check_shapes(header, names, expected)
    return net, names


def _merged(
    path: str | Path, keymap: KeyMap, base: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The weights that a LoRA changes, by our names, in float32."""
    header, identity = open_as(path, LORA)
    whole = _names(header, keymap, identity.prefix, [key for key in header.tensors if LAYER not in key])
    replaced = {name for name in expected if name.startswith(REPLACED)}
    _complain(header, {"missing": sorted(replaced - set(whole.values()))})
    _check_shapes(header, whole, expected)
    made = _read(header, whole)
    halves = _pairs(header)
    tensors = read_tensors(header, [key for found in halves.values() for key in found.values()])
    for stem, name in _names(header, keymap, identity.prefix, halves).items():
        up, down = (tensors[halves[stem][f"{half}.weight"]].float() for half in ("up", "down"))
        shape = expected.get(name, ())
        if up.ndim != 2 or down.ndim != 2 or (len(up), down.shape[1]) != shape[:2] or up.shape[1] != len(down):
            wrong = f"{stem}: {list(up.shape)} times {list(down.shape)} for {list(shape)}"
            _complain(header, {"of a wrong shape": [wrong]})
        # In float32: half precision would round the product before it is added.
        made[name] = base[name].float() + (up @ down).reshape(base[name].shape)
    return made


def check_ctrlora_lora(header: Header, identity: Identity) -> None:
    """Raise CheckpointError for keys that no SD1.x ControlNet has, and for pairs without their other half."""
    keymap = KeyMap(rules(SD15.unet))
    _names(header, keymap, identity.prefix, [key for key in header.tensors if LAYER not in key])
    _names(header, keymap, identity.prefix, _pairs(header))


def _pairs(header: Header) -> dict[str, dict[str, str]]:
    """For each weight that a LoRA is added to, its key, the keys of both halves: "up.weight" and "down.weight"."""
    halves: dict[str, dict[str, str]] = {}
    for key in header.tensors:
        stem, layer, half = key.partition(LAYER)
        if layer:
            halves.setdefault(f"{stem}.weight", {})[half] = key
    single = [stem for stem, found in halves.items() if set(found) != {"up.weight", "down.weight"}]
    _complain(header, {"without its other half": single})
    return halves


def _names(header: Header, keymap: KeyMap, prefix: str, keys: Iterable[str]) -> dict[str, str]:
    """Our name for each of these keys. Raises CheckpointError for keys that are left over."""
    dropped = matcher(ldm.CONTROL_DROP)
    wanted = [key for key in keys if not dropped.find(key)]
    ours = {key: keymap.to_ours(key.removeprefix(prefix)) for key in wanted}
    _complain(header, {"left over": [key for key, name in ours.items() if name is None]})
    return {key: name for key, name in ours.items() if name is not None}


def _check_shapes(header: Header, names: Mapping[str, str], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{key} is {list(header.tensors[key].shape)} and should be {list(expected.get(name, ()))}"
        for key, name in names.items()
        if not same_matrix(tuple(header.tensors[key].shape), expected.get(name, ()))
    ]
    _complain(header, {"of a wrong shape": wrong})


def _read(header: Header, names: Mapping[str, str]) -> dict[str, Tensor]:
    return {names[key]: tensor for key, tensor in read_tensors(header, names).items()}


def _complain(header: Header, faults: Mapping[str, list[str]]) -> None:
    for fault, found in faults.items():
        if found:
            more = f" and {len(found) - SHOWN_KEYS} more" if len(found) > SHOWN_KEYS else ""
            raise CheckpointError(
                f"{header.path.name} has weights {fault}: {', '.join(found[:SHOWN_KEYS])}{more}. The base and the LoRA "
                "must belong together; an incomplete file has to be downloaded again",
                header.path,
            )
