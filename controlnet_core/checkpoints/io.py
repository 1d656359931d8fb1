"""Reading and writing of weights: headers, tensors mapped from their files, atomic writing.

safetensors files and zip-format pickles are memory-mapped: a tensor costs memory when it is first
touched, and nothing is copied.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, MissingFileError
from .files import DTYPE_NAMES, Header, TensorInfo, damaged, load_pickle, read_file_header, sniff, unwrap
from .folders import read_folder

__all__ = ["Header", "TensorInfo", "atomic_write", "read_ahead", "read_header", "read_tensors", "write_safetensors"]


def read_header(path: str | Path) -> Header:
    """Names, shapes and types in a safetensors file, a .pth / .ckpt, or a diffusers folder.

    What a file is, is told by its content, not by its name. Raises MissingFileError when there is no
    such file, CheckpointError when it is empty, truncated, damaged, no weights at all, or a pickle
    that wants to run code.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise MissingFileError(f"there is no file {path}: check the name and the folder", path)
    return read_file_header(path)


def read_tensors(header: Header, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a header by key (all of them by default), mapped from their files, not copied.

    The mapping is private: writing into a tensor never changes the file.
    """
    wanted = header.tensors if keys is None else {key: header.tensors[key] for key in keys}
    by_file: dict[Path, list[str]] = {}
    for key, info in wanted.items():
        by_file.setdefault(info.file, []).append(key)
    tensors: dict[str, Tensor] = {}
    for file, names in by_file.items():
        tensors.update(_read_file(file, {key: wanted[key].name for key in names}))
    return {key: info.of(tensors[key]) for key, info in wanted.items()}


def read_ahead(path: str | Path) -> bool:
    """Ask the system to read a file while other work goes on: mapped weights are then there when they are touched.

    Returns whether it was asked; not where the system takes no such advice, nor of folders.
    """
    if not hasattr(os, "posix_fadvise") or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return True


def _read_file(path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    if sniff(path) == "pickle":
        content, _ = unwrap(load_pickle(path), path)
        return {key: content[name] for key, name in names.items()}
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(name) for key, name in names.items()}
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    On any error or interruption, a full disk included, the half-written file is removed and what was
    there before is left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Write a safetensors file, atomically. `dtypes` casts tensors, one at a time as they are written.

    Raises CheckpointError when it cannot be written, such as on a full disk.
    """
    path = Path(path)
    target = {key: tensor.dtype for key, tensor in tensors.items()} | dict(dtypes or {})
    # Largest element type first, so that every tensor is aligned to its own size.
    order = sorted(tensors, key=lambda key: (-target[key].itemsize, key))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for key in order:
        begin, end = end, end + tensors[key].numel() * target[key].itemsize
        entries[key] = {
            "dtype": DTYPE_NAMES[target[key]],
            "shape": list(tensors[key].shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    try:
        with atomic_write(path) as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for key in order:
                _write_tensor(file, tensors[key].detach().to(target[key]))
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error.strerror or error}): it needs "
            f"{(8 + len(header) + end) / 1e6:,.0f} MB; make room or choose another "
            "folder. No half-written file was left",
            path,
        ) from error


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    flat = tensor.cpu().contiguous().reshape(-1)
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)
