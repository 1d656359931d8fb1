"""Weight files without their weights: what a file is, and the names, shapes and types of its tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..limits import HEADER_BYTES, JSON_BYTES, JSON_PARTS, KEY_LENGTH, TENSORS

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
ZIP_START = b"PK\x03\x04"
MOST_AXES = 8
"""No weight has more than 5 axes; the product of a million sizes would take hours."""

FileFormat = Literal["safetensors", "pickle"]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its shape and type, its file, and its name there.

    rows: (from, to), the part of the stored tensor that this one is. transposed: it is the transpose of that.
    scale: the tensor to multiply it by (scaled fp8); `dtype` is then that of the product. content: the stored tensor,
    for pickles, which cannot be read without it: unpickling once more would take as long as building a model.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    name: str
    rows: tuple[int, int] | None = None
    transposed: bool = False
    scale: TensorInfo | None = None
    content: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def of(self, stored: Tensor, scale: Tensor | None = None) -> Tensor:
        """This tensor, made from the stored one and its scale. Without a scale it is a view."""
        rows = slice(None) if self.rows is None else slice(*self.rows)
        part = stored if self.rows is None else stored[rows]
        if scale is not None:
            factors = scale.float().reshape(-1, *[1] * (part.ndim - 1))  # one number, or one for each row
            part = (part.float() * (factors if len(factors) == 1 else factors[rows])).to(self.dtype)
        return part.T if self.transposed else part


@dataclass(frozen=True)
class Header:
    """Everything that a weight file says without its weights.

    configs: the JSON configs of a diffusers folder by component ("" for a folder of one model). size: in bytes.
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


def find_format(path: Path) -> FileFormat:
    """The format of a weight file by its first bytes, not by its name; CheckpointError for anything else."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path.name} is empty (0 bytes): download or copy it again", path)
    # This test comes first: the length at the beginning of a header may look like the beginning of a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_BYTES.number:
        return "safetensors"
    # Before PyTorch 1.6 a file was a row of bare pickles, of protocol 2 or later.
    if head.startswith(ZIP_START) or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
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


def damaged_file(path: Path, reason: str) -> CheckpointError:
    """The error for a file that breaks its own format."""
    return CheckpointError(f"{path.name} is damaged or incomplete: {reason}; download or copy it again", path)


def parse_table(text: str | bytes, subject: str) -> dict[str, Any]:
    """The JSON object in a text. subject: what the text is, for messages.

    Raises CheckpointError when it is not a JSON object, LimitError when it is too long.
    """
    JSON_BYTES.check(len(text), subject)
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    _check_parts(raw, subject)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{subject} is not valid JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{subject} is a JSON {type(content).__name__}, expected an object: download it again")
    return content


def _check_parts(raw: bytes, subject: str) -> None:
    """Raise LimitError for JSON of too many parts; to count the brackets takes a thousandth of the time of parsing."""
    JSON_PARTS.check(raw.count(b"{") + raw.count(b"["), subject)


def read_safetensors_header(path: Path) -> Header:
    """Names, shapes and types in a safetensors file, checked against its size. Raises CheckpointError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length)
    if len(raw) < length:
        raise damaged_file(path, f"its header should be {length:,} bytes long and the file ends after {len(raw):,}")
    _check_parts(raw, "its header")
    # Readers differ in which of two entries of one name they take, so that such a file has no clear meaning.
    try:
        entries = json.loads(raw, object_pairs_hook=_table_without_repeats)
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, "its header is not valid JSON, or names a tensor twice") from error
    if not isinstance(entries, dict):
        raise damaged_file(path, "its header is not a table of tensors")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged_file(path, "its metadata is not a table of texts")
    TENSORS.check(len(entries), "its header")
    tensors: dict[str, TensorInfo] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        tensors[name], begin, end = _tensor_info(path, name, entry)
        places.append((begin, end, name))
    # The format allows no gaps and no overlaps, so that nothing can hide between tensors.
    end = 0
    for begin, last, name in sorted(places):
        if begin != end:
            raise damaged_file(path, f"{name!r} begins at byte {begin}, the tensor before it ends at {end}")
        end = last
    expected = 8 + length + end
    if size != expected:
        state = "truncated" if size < expected else "longer than it should be"
        raise damaged_file(path, f"the file is {state}: {size:,} bytes, its header promises {expected:,}")
    return Header(path, "safetensors", tensors, metadata, size)


def _table_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _tensor_info(path: Path, name: str, entry: object) -> tuple[TensorInfo, int, int]:
    """One entry of a safetensors header, and where its bytes begin and end."""
    KEY_LENGTH.check(len(name), "a name in its header")
    match entry:
        case {"dtype": str(dtype_name), "shape": [*shape], "data_offsets": [begin, end]} if len(shape) <= MOST_AXES:
            # Not isinstance: JSON's `true` would pass as the number 1.
            sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        case _:
            raise damaged_file(path, f"the entry of {name!r} in its header is malformed")
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise CheckpointError(
            f"{path.name} holds {name!r} as {dtype_name}, which this package cannot read: expected one of "
            f"{', '.join(DTYPES)}; use an fp16 or fp32 version of the file",
            path,
        )
    if not sound or end - begin != math.prod(shape) * dtype.itemsize:
        raise damaged_file(path, f"{name!r} is {dtype_name} {shape} and does not fill bytes {begin} to {end}")
    return TensorInfo(tuple(shape), dtype, path, name), begin, end
