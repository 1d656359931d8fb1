"""Reading and writing of weights: headers, tensors that are mapped from their files, atomic writing.

safetensors files and zip-format pickles are memory-mapped: a tensor takes memory when it is first
used, and nothing is copied.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..atomic_files import atomic_write
from ..errors import CheckpointError, ValueRangeError, reading
from .files import DTYPE_NAMES, Header, TensorInfo
from .headers import read_header

__all__ = [
    "Header",
    "TensorInfo",
    "check_dtype",
    "read_ahead",
    "read_header",
    "read_tensors",
    "write_safetensors",
]


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise ValueRangeError for a dtype that models are neither loaded nor saved in; None means that of the weights."""
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise ValueRangeError(f"dtype is {dtype}, expected one of torch.float32, torch.float16, torch.bfloat16")


def read_tensors(header: Header, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a header by key (all of them by default), mapped from their files, not copied.

    The mapping is private: writing into a tensor never changes the file. Scaled fp8 is multiplied by its scales.
    """
    wanted = header.tensors if keys is None else {key: header.tensors[key] for key in keys}
    # Each file is opened once: a sharded SDXL has thousands of tensors in each.
    names: dict[Path, list[str]] = {}
    for info in wanted.values():
        for stored in (info, info.scale):
            if stored is not None and stored.content is None:
                names.setdefault(stored.file, []).append(stored.name)
    content: dict[tuple[Path, str], Tensor] = {}
    for path, found in names.items():
        with reading(path, CheckpointError), safe_open(path, framework="pt") as file:
            content |= {(path, name): file.get_tensor(name) for name in found}

    def get(info: TensorInfo) -> Tensor:
        return content[info.file, info.name] if info.content is None else info.content

    return {key: info.of(get(info), info.scale and get(info.scale)) for key, info in wanted.items()}


def read_ahead(path: str | Path) -> bool:
    """Ask the system to read a file while other work goes on, so that mapped weights are in memory when needed.

    Returns whether the system was asked: not where it takes no such advice, and not for folders.
    """
    if not hasattr(os, "posix_fadvise") or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return True


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Write a safetensors file, atomically. dtypes: types to convert to, one tensor at a time during writing.

    Raises CheckpointError when it cannot be written, for example on a full disk.
    """
    path = Path(path)
    target = {key: tensor.dtype for key, tensor in tensors.items()} | dict(dtypes or {})
    # The largest element type comes first, so that every tensor is aligned to the size of its elements.
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
    # The format wants the tensors to begin at a multiple of 8 bytes.
    header += b" " * (-len(header) % 8)
    try:
        with atomic_write(path) as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for key in order:
                flat = tensors[key].detach().to(target[key]).cpu().contiguous().reshape(-1)
                if flat.numel():
                    file.write(flat.view(torch.uint8).numpy().data)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error.strerror or error}): it needs "
            f"{(8 + len(header) + end) / 1e6:,.0f} MB; make room or choose another folder. No half-written file "
            "was left",
            path,
        ) from error
