"""Single weight files: what they are, and what is in them, without their weights.

Pickles are read with PyTorch's weights-only unpickler, which knows
tensors and plain containers and runs no code.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError

MAX_HEADER = 100_000_000
"""Longest safetensors header, in bytes, that is not taken for damage (the format's own limit)."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

NOT_WEIGHTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, the file itself was not downloaded: run `git lfs pull`"),
    (b"<!doctype html", "a web page: the download went wrong, download the file again"),
    (b"<html", "a web page: the download went wrong, download the file again"),
    (b"GGUF", "a GGUF file (quantised weights); use the safetensors version of the model"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a RIFF file (WebP picture or sound)"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x08", "something like an ONNX model; use the safetensors version of the model"),
)
"""First bytes of files that people put into model folders by mistake."""

TRAINER_GLOBALS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "_codecs.encode",
)
"""Names that trainers leave beside the weights. They are read as empty objects; nothing of theirs runs."""

MAX_DEPTH, MAX_VALUES = 32, 200_000
"""Of the tables in a pickle; SDXL has 2,515 tensors, five levels deep."""
WRAPPERS = ("state_dict.", "params_ema.", "params.", "model_state_dict.", "module.")
"""Levels above the weights, which are stripped where all tensors lie below them."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its shape and type, the file it is in, and its name there.

    `rows` (from, to) takes a part of the tensor in the file, `transposed` its transpose.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    name: str
    rows: tuple[int, int] | None = None
    transposed: bool = False

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def of(self, stored: Tensor) -> Tensor:
        """This tensor as a view of what the file holds under its name."""
        part = stored if self.rows is None else stored[self.rows[0] : self.rows[1]]
        return part.T if self.transposed else part


@dataclass(frozen=True)
class Header:
    """All that a weight file tells without its weights.

    `configs` holds the JSON configs of a diffusers folder by component ("" for a folder of one model).
    `size` is in bytes.
    """

    path: Path
    format: Literal["safetensors", "pickle", "folder"]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    size: int
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its key."""
        return {key: info.shape for key, info in self.tensors.items()}


def sniff(path: Path) -> Literal["safetensors", "pickle"]:
    """Tell the two weight formats apart by their first bytes; CheckpointError for anything else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if not size:
        raise CheckpointError(f"{path.name} is empty (0 bytes): download or copy it again", path)
    # First of all: the header's length may begin with the bytes of a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        return "pickle"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    for start, what in NOT_WEIGHTS:
        if head.lower().startswith(start.lower()):
            raise CheckpointError(f"{path.name} is no model: it is {what}", path)
    if not head.strip(b"\0"):
        raise CheckpointError(f"{path.name} holds only zeros: a download that stopped; download it again", path)
    raise CheckpointError(
        f"{path.name} is no model: it begins with {head[:8]!r}, and neither as a safetensors file nor as a "
        "PyTorch file (.pth, .ckpt, .bin); or it is damaged: download it again",
        path,
    )


def damaged(path: Path, why: str) -> CheckpointError:
    """The error for a file that breaks its own format."""
    return CheckpointError(f"{path.name} is damaged or incomplete: {why}; download or copy it again", path)


def _read_safetensors_header(path: Path) -> Header:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length)
    if len(raw) < length:
        raise damaged(path, f"its header should be {length:,} bytes long and the file ends after {len(raw):,}")
    try:
        entries = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is not valid JSON, or names a tensor twice") from error
    if not isinstance(entries, dict):
        raise damaged(path, "its header is not a table of tensors")
    metadata = entries.pop("__metadata__", None) or {}
    tensors: dict[str, TensorInfo] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        tensors[name], begin, end = _tensor_info(path, name, entry)
        places.append((begin, end, name))
    end = 0
    for begin, last, name in sorted(places):
        if begin != end:
            raise damaged(path, f"{name!r} begins at byte {begin}, the tensor before it ends at {end}")
        end = last
    expected = 8 + length + end
    if size != expected:
        state = "truncated" if size < expected else "longer than it should be"
        raise damaged(path, f"the file is {state}: {size:,} bytes, its header promises {expected:,}")
    metadata = {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    return Header(path, "safetensors", tensors, metadata, size)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose keys comes twice. Raises ValueError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _tensor_info(path: Path, name: str, entry: object) -> tuple[TensorInfo, int, int]:
    """One entry of a safetensors header, and where its bytes begin and end."""
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]  # type: ignore[index]
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise damaged(path, f"the entry of {name!r} in its header is malformed") from error
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise CheckpointError(
            f"{path.name} holds {name!r} as {dtype_name}, which this package cannot read: expected one of "
            f"{', '.join(DTYPES)}; use an fp16 or fp32 version of the file",
            path,
        )
    if not sound or end - begin != math.prod(shape) * dtype.itemsize:
        raise damaged(path, f"{name!r} is {dtype_name} {list(shape)} and does not fill bytes {begin} to {end}")
    return TensorInfo(shape, dtype, path, name), begin, end


def _stand_in(dotted: str) -> type:
    """A class of that name whose objects take anything and do nothing."""
    module, name = dotted.rsplit(".", 1)
    body = {
        "__module__": module,
        "__new__": lambda cls, *args, **kwargs: object.__new__(cls),
        "__init__": lambda self, *args, **kwargs: None,
        "__setstate__": lambda self, state: None,
    }
    return type(name, (), body)


def _allowed(classes: list[Any]) -> AbstractContextManager[Any]:
    """Let the unpickler know these classes; PyTorch 2.4 cannot, and refuses files that name them."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if allow is None else allow(classes)


BROKEN_PICKLE = (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError)
"""What the unpickler raises on damaged files."""


def load_pickle(path: Path) -> Any:
    """What a PyTorch file holds, on the CPU and mapped where its format allows; no code is run.

    Raises CheckpointError when the file asks for anything but tensors and plain containers.
    """
    zipped = zipfile.is_zipfile(path)
    stand_ins: list[Any] = [_stand_in(name) for name in TRAINER_GLOBALS]
    try:
        with warnings.catch_warnings(), _allowed(stand_ins):
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":  # PyTorch would go by the name and read another format
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except BROKEN_PICKLE as error:
        raise _unreadable(path, zipped, error) from error


def _refused(path: Path, error: Exception) -> CheckpointError:
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    wants = f"asks for {name[1]}" if name else "holds more than plain weights, or is damaged"
    return CheckpointError(
        f"{path.name} was not loaded: its pickle {wants}, which can run code, and weights need none; "
        "nothing of it was run. Use a safetensors version of the file",
        path,
    )


def _unreadable(path: Path, zipped: bool, error: Exception) -> CheckpointError:
    if "TorchScript" in str(error):
        return CheckpointError(
            f"{path.name} is a TorchScript program, not weights: use the safetensors version of the model",
            path,
        )
    if not zipped:
        return damaged(path, "its archive has no end, or its pickle breaks off")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith("data.pkl") for name in names):
        return CheckpointError(f"{path.name} is a zip archive without weights: unpack it first", path)
    return damaged(path, "parts of its archive cannot be read")


def _flatten(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and depth < MAX_DEPTH:  # (an empty one counts as a value)
        for key, child in value.items():
            yield from _flatten(child, f"{prefix}{key}.", depth + 1)
    else:
        yield prefix[:-1], value


def unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by dotted key, and the plain values beside them, of what a pickle holds.

    A wrapper such as `state_dict` is stripped where all tensors lie below it. Raises CheckpointError where there
    are more values than any model has (a pickle can hold one table many times), and for tensors that are not dense.
    """
    values = _flatten(content) if isinstance(content, Mapping) else iter(())
    flat = dict(itertools.islice(values, MAX_VALUES + 1))
    if len(flat) > MAX_VALUES:
        raise CheckpointError(f"{path.name} is no model: it holds more than {MAX_VALUES:,} values", path)
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    odd = next((key for key, t in tensors.items() if t.layout != torch.strided or t.is_quantized), None)
    if odd is not None:
        raise CheckpointError(
            f"{path.name} holds {odd!r} as a sparse or quantised tensor, which this package cannot read: use an fp16 "
            "or fp32 version of the file",
            path,
        )
    plain = {key: str(value) for key, value in flat.items() if isinstance(value, (str, int, float, bool))}
    below = {key: value for key, value in tensors.items() if key.startswith("state_dict.")}
    if below:
        tensors = below
    for wrapper in WRAPPERS:
        if tensors and all(key.startswith(wrapper) for key in tensors):
            tensors = {key[len(wrapper) :]: value for key, value in tensors.items()}
    return tensors, plain


def _read_pickle_header(path: Path) -> Header:
    tensors, plain = unwrap(load_pickle(path), path)
    if not tensors:
        raise CheckpointError(f"{path.name} is no model: a PyTorch file without tensors", path)
    infos = {key: TensorInfo(tuple(t.shape), t.dtype, path, key) for key, t in tensors.items()}
    return Header(path, "pickle", infos, plain, path.stat().st_size)


def read_file_header(path: Path) -> Header:
    """Names, shapes and types in one file. Raises CheckpointError as `sniff` and the readers do."""
    return _read_safetensors_header(path) if sniff(path) == "safetensors" else _read_pickle_header(path)
