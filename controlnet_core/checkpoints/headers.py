"""Headers of model files: single files, and diffusers folders with one model or several, in all variants.

A diffusers folder may hold a model several times: as safetensors and .bin, in the variants fp16, bf16, non_ema, and
each of them in one file or in shards with an index.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingFileError, reading
from ..limits import JSON_BYTES
from .files import Header, TensorInfo, find_format, parse_table, read_safetensors_header
from .pickles import read_pickle_header
from .wrappers import plain_keys

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "transformer")
"""Subfolders of a pipeline whose weights are read."""
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")
VARIANTS: Mapping[str, int] = {"": 0, "fp16": 1, "bf16": 2, "non_ema": 4}
"""Which variant is taken first; unknown ones have 3. The EMA weights, in the files without a variant, are better."""
_WEIGHTS = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<variant>\w+))?\.(?P<form>safetensors|bin)"
    r"(?P<index>\.index(\.(?P<index_variant>\w+))?\.json)?"
)
"""File names in a diffusers folder; an index has its variant before `.json`, or before the form."""


def read_header(path: str | Path) -> Header:
    """Names, shapes and types in a safetensors file, a .pth / .ckpt, a diffusers folder, or the index of shards.

    The content of a file decides about its format, not its name. Keys have no wrappers such as `module.`.
    Raises MissingFileError when there is no such file, CheckpointError when it is empty, truncated, damaged,
    no weights at all, or a pickle that wants to run code.
    """
    path = Path(path)
    with reading(path, CheckpointError):
        if path.is_dir():
            return _read_folder(path)
        if not path.exists():
            raise MissingFileError(f"there is no file {path}: check the name and the folder", path)
        name = _WEIGHTS.fullmatch(path.name)
        configs = _read_config(path.parent, "") if name else {}
        if name and name["index"]:
            return _folder_header(path, _read_shards(path), configs)
        header = _read_file(path)
        return replace(header, tensors=plain_keys(header.tensors), configs=configs)


def _read_file(path: Path) -> Header:
    """Header of one file, with the keys that stand in it."""
    with reading(path, CheckpointError):
        return read_safetensors_header(path) if find_format(path) == "safetensors" else read_pickle_header(path)


def _read_folder(path: Path) -> Header:
    """Header of a diffusers folder; keys of a pipeline start with the name of the subfolder."""
    index = path / "model_index.json"
    if index.is_file():
        parts = {f"{name}.": path / name for name in COMPONENTS if (path / name).is_dir()}
        configs = {"": read_json(index)}
        for name in (*COMPONENTS, "scheduler"):
            configs |= _read_config(path / name, name)
    elif (path / "config.json").is_file():
        parts = {"": path}
        configs = _read_config(path, "")
    else:
        raise CheckpointError(
            f"{path.name or path} is a folder without model_index.json or config.json: expected a weight "
            "file, or a folder in the diffusers layout",
            path,
        )
    tensors = {prefix + key: info for prefix, folder in parts.items() for key, info in _read_model(folder).items()}
    if not tensors:
        raise CheckpointError(f"{path.name} is a diffusers folder without weights: download it again", path)
    return _folder_header(path, tensors, configs)


def _folder_header(path: Path, tensors: Mapping[str, TensorInfo], configs: Mapping[str, Mapping[str, Any]]) -> Header:
    size = sum(file.stat().st_size for file in {info.file for info in tensors.values()})
    return Header(path, "folder", tensors, {}, size, configs)


def _read_config(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    for file in (folder / "config.json", folder / "scheduler_config.json"):
        if file.is_file():
            return {name: read_json(file)}
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError when it holds something else, or too much."""
    with reading(path, CheckpointError), path.open("rb") as file:
        return parse_table(file.read(JSON_BYTES.number + 1), "the file")


def _read_model(folder: Path) -> Mapping[str, TensorInfo]:
    """Tensors of one model, in the variant that comes first in the order of stems, forms and `VARIANTS`."""
    # A directory is listed instead of trying names, because a variant may be called anything.
    found = [name for name in (_WEIGHTS.fullmatch(file.name) for file in folder.iterdir()) if name]
    if not found:
        return {}
    best = folder / min(found, key=_preference).string
    return _read_shards(best) if best.suffix == ".json" else plain_keys(_read_file(best).tensors)


def _preference(name: re.Match[str]) -> tuple[int, bool, int, bool]:
    variant = name["variant"] or name["index_variant"] or ""
    return STEMS.index(name["stem"]), name["form"] != "safetensors", VARIANTS.get(variant, 3), bool(name["index"])


def _read_shards(index: Path) -> Mapping[str, TensorInfo]:
    """Tensors of a model in several files, as its index lists them."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} has no weight_map: download it again", index)
    shards: dict[str, Header] = {}
    tensors: dict[str, TensorInfo] = {}
    for key, name in places.items():
        # An index comes from a stranger: a path in it could read any file of the machine.
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} points to {name!r}, outside of its folder: it was not read", index)
        file = index.with_name(name)
        if not file.is_file():
            raise CheckpointError(f"{index} names {name}, which is not there: download it again", index)
        if name not in shards:
            shards[name] = _read_file(file)
        info = shards[name].tensors.get(key)
        if info is None:
            raise CheckpointError(f"{index} looks for {key} in {name}, where it is not: download it again", index)
        tensors[key] = info
    return plain_keys(tensors)  # not before: the keys of an index are those of the files
