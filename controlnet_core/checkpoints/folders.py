"""Diffusers folders: one model, or a pipeline of several in subfolders; single or sharded files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import Header, TensorInfo, read_file_header

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "transformer")
"""Subfolders of a pipeline that hold weights which matter here."""
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")
VARIANTS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")


def read_folder(path: Path) -> Header:
    """Header of a diffusers folder; keys of a pipeline start with the subfolder's name.

    Raises CheckpointError when the folder holds no model, or when an index leads out of it.
    """
    index = path / "model_index.json"
    if index.is_file():
        parts = [(f"{name}.", path / name) for name in COMPONENTS if (path / name).is_dir()]
        configs = {"": _read_json(index)}
        for name in (*COMPONENTS, "scheduler"):
            configs.update(_config(path / name, name))
    elif (path / "config.json").is_file():
        parts = [("", path)]
        configs = _config(path, "")
    else:
        raise CheckpointError(
            f"{path.name} is a folder without model_index.json or config.json: expected a weight "
            "file, or a folder in the diffusers layout",
            path,
        )
    tensors = {prefix + key: info for prefix, folder in parts for key, info in _component_tensors(folder).items()}
    if not tensors:
        raise CheckpointError(f"{path.name} is a diffusers folder without weights: download it again", path)
    size = sum(file.stat().st_size for file in {info.file for info in tensors.values()})
    return Header(path, "folder", tensors, {}, size, configs)


def _config(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    for file in (folder / "config.json", folder / "scheduler_config.json"):
        if file.is_file():
            return {name: _read_json(file)}
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: download it again", path) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no table: download it again", path)
    return content


def _component_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Tensors of one model: the first file found, or all shards of an index."""
    for stem in STEMS:
        for variant in VARIANTS:
            file = folder / (stem + variant)
            if file.is_file():
                return dict(read_file_header(file).tensors)
            index = folder / f"{stem}{variant}.index.json"
            if index.is_file():
                return dict(_sharded(folder, index))
    return {}


def _sharded(folder: Path, index: Path) -> Iterator[tuple[str, TensorInfo]]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} has no weight_map: download it again", index)
    shards: dict[str, Header] = {}
    for key, name in places.items():
        if Path(str(name)).name != name:
            raise CheckpointError(f"{index} points to {name!r}, outside of its folder: it was not read", index)
        if not (folder / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is not there: download it again", index)
        if name not in shards:
            shards[name] = read_file_header(folder / name)
        info = shards[name].tensors.get(key)
        if info is None:
            raise CheckpointError(f"{index} looks for {key} in {name}, where it is not: download it again", index)
        yield key, replace(info, name=key)
