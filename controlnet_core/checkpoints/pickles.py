"""PyTorch files (.pth, .ckpt, .bin): pickles of tables of tensors, read without running their code.

PyTorch's weights-only unpickler knows tensors and plain containers, and runs no code. It does not bound time and
memory, so the instructions of a pickle are counted before it is unpickled.
"""

from __future__ import annotations

import itertools
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..limits import KEY_LENGTH, PICKLE_BYTES, PICKLE_STEPS, SHARED_RATIO, TENSORS, TUPLE_VALUES, UNPACKED_RATIO
from .files import ZIP_START, Header, TensorInfo, damaged_file

TRAINER_CLASSES = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "_codecs.encode",
)
"""Classes that trainers save beside the weights. They are read as empty objects; none of their code runs."""
LEGACY_PICKLES = 5
"""Pickles at the beginning of a file of PyTorch before 1.6: magic number, version, system, content, storages."""
MAX_DEPTH = 32
"""Levels of tables that are searched for tensors; trainers use up to five."""
WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module")
"""Tables in which trainers keep the weights; the first one that is there counts."""
BESIDE_WEIGHTS = frozenset({
    *WRAPPERS, "ema", "ema_state_dict", "optimizer", "optimizer_state_dict", "optimizer_states", "optimizers", "args",
    "scheduler", "lr_scheduler", "lr_schedulers", "scaler", "callbacks", "loops", "hyper_parameters", "step",
})  # fmt: skip
"""Tables and tensors that trainers save beside the weights. They are not read."""
PLAIN = (str, int, float, bool)
_GET, _PUT = frozenset({"BINGET", "LONG_BINGET"}), frozenset({"BINPUT", "LONG_BINPUT"})
_HASHABLE = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ"})


def read_pickle_header(path: Path) -> Header:
    """Names, shapes and types in a PyTorch file.

    Raises CheckpointError when it is damaged, holds no weights or asks for code, LimitError when it is a bomb.
    """
    check_pickles(path)
    content, notes = _find_weights(load_pickle(path))
    values = notes | _flatten(content)
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name} is no model: a PyTorch file without a table of tensors", path)
    _check_tensors(path, tensors)
    infos = {key: TensorInfo(tuple(t.shape), t.dtype, path, key, content=t) for key, t in tensors.items()}
    plain = {key: str(value) for key, value in values.items() if isinstance(value, PLAIN)}
    return Header(path, "pickle", infos, plain, path.stat().st_size)


def starts_as_zip(path: Path) -> bool:
    """Whether PyTorch takes a file for a zip archive; `zipfile.is_zipfile` looks at the end of the file instead."""
    with path.open("rb") as file:
        return file.read(len(ZIP_START)) == ZIP_START


# ------------------------------------------------------------------------------------------------ limits


def check_pickles(path: Path) -> None:
    """Raise LimitError for a file that would take hours or gigabytes to unpickle; nothing is unpickled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python about odd escapes in the texts of a pickle
        _check_all(path)


def _check_all(path: Path) -> None:
    if not starts_as_zip(path):
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                if file.peek(1):
                    _check_pickle(_ShortReads(file))
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        UNPACKED_RATIO.check(sum(entry.file_size for entry in entries) / path.stat().st_size, "its archive")
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):  # PyTorch's zip reader ignores the case of names
                PICKLE_BYTES.check(entry.file_size, "its pickle")
                _check_pickle(archive.read(entry))


class _ShortReads:
    """A file whose reads are bounded: Python allocates the length that a pickle states before it reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self.tell, self.readline, self._file = file.tell, file.readline, file

    def read(self, size: int) -> bytes:
        """Up to `size` bytes."""
        return self._file.read(min(size, PICKLE_BYTES.number))


def _check_pickle(stream: Any) -> None:
    """Follow the instructions of a pickle with the sizes of its tuples in place of its values.

    A tuple that holds another one twice, that one a third one twice, and so on, is a few bytes long, but to use it as
    a key means to hash 2^n values.
    """
    sizes: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for step, (op, arg, _) in enumerate(pickletools.genops(stream)):
        name = op.name
        # Compared here first: a call for each of 400,000 instructions would take as long as the rest.
        if step > PICKLE_STEPS.number:
            PICKLE_STEPS.check(step, "its pickle")
        # PyTorch's unpickler knows few instructions; DUP, PUT and GET without BIN are not among them.
        if name in _GET:
            sizes.append(memo[arg])
            continue
        if name in _PUT:
            memo[arg] = sizes[-1]
            continue
        if name == "MARK":
            marks.append(len(sizes))
            continue
        begin = len(sizes) - len(op.stack_before)
        if pickletools.markobject in op.stack_before:
            begin = marks.pop() - op.stack_before.index(pickletools.markobject)
        used = sizes[begin:]
        del sizes[begin:]
        size = 1
        if name in _HASHABLE:
            size += sum(used)
            TUPLE_VALUES.check(size, "a tuple in its pickle")
        elif name == "BUILD":  # the state goes into an object that is already there
            size = used[0]
        sizes.extend(size for _ in op.stack_after)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    odd = next((key for key, t in tensors.items() if t.layout != torch.strided or t.is_quantized or t.is_meta), None)
    if odd is not None:
        raise CheckpointError(
            f"{path.name} holds {odd!r} as a sparse, quantised or empty tensor, which this package cannot read: use an "
            "fp16 or fp32 version of the file",
            path,
        )
    # A view with stride 0 has any number of elements; the first conversion would give all of them memory.
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    SHARED_RATIO.check(total / path.stat().st_size, "the file")


# ------------------------------------------------------------------------------------------- unpickling


def _placeholder(dotted: str) -> type:
    """A class of that name whose objects accept anything and do nothing."""
    module, name = dotted.rsplit(".", 1)
    body = {
        "__module__": module,
        "__new__": lambda cls, *args, **kwargs: object.__new__(cls),
        "__init__": lambda self, *args, **kwargs: None,
        "__setstate__": lambda self, state: None,
    }
    return type(name, (), body)


def _allow(classes: list[Any]) -> AbstractContextManager[Any]:
    """Make these classes known to the unpickler; PyTorch 2.4 cannot, and refuses files that name them."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if allow is None else allow(classes)


def load_pickle(path: Path) -> Any:
    """The content of a PyTorch file, on the CPU and mapped where its format allows; no code is run.

    Raises CheckpointError when the file asks for anything but tensors and plain containers.
    """
    zipped = starts_as_zip(path)
    stored = False
    if zipped:
        with zipfile.ZipFile(path) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    placeholders: list[Any] = [_placeholder(name) for name in TRAINER_CLASSES]
    # PyTorch warns about pickles of protocols above 2; the error below is the better message.
    try:
        with warnings.catch_warnings(), _allow(placeholders):
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":  # PyTorch would go by the name and read another format
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            # Only stored archives can be mapped. A compressed one is unpacked into memory.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=stored)
    except Exception as error:
        asked = re.search(r"tried to allocate (\d+) bytes", str(error))
        if asked and int(asked[1]) > SHARED_RATIO.number * path.stat().st_size:
            raise damaged_file(path, f"it asks for {int(asked[1]):,} bytes") from error
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        # PyTorch 2.4 raises this error for damaged files too.
        if isinstance(error, pickle.UnpicklingError) and "unexpected EOF" not in str(error):
            raise _refuse(path, error) from error
        raise _explain_failure(path, zipped, error) from error


def _refuse(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    wants = f"asks for {name[1]}" if name else "holds more than plain weights, or is damaged"
    return CheckpointError(
        f"{path.name} was not loaded: its pickle {wants}, which can run code, and weights need none; "
        "nothing of it was run. Use a safetensors version of the file",
        path,
    )


def _explain_failure(path: Path, zipped: bool, error: Exception) -> CheckpointError:
    if "TorchScript" in str(error):
        return CheckpointError(
            f"{path.name} is a TorchScript program, not weights: use the safetensors version of the model", path
        )
    if not zipped:
        return damaged_file(path, "its archive has no end, or its pickle breaks off")
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            return CheckpointError(f"{path.name} is a zip archive without weights: unpack it first", path)
    return damaged_file(path, "parts of its archive cannot be read")


# --------------------------------------------------------------------------------------------- contents


def _find_weights(content: Any) -> tuple[Any, dict[str, Any]]:
    """The table with the weights, and the plain values in the tables around it."""
    notes: dict[str, Any] = {}
    for _ in range(MAX_DEPTH):
        if not isinstance(content, Mapping):
            break
        # Beside "state_dict" is training state only. The other names are common words, which may also be parts of a
        # model: they count as wrappers where everything beside them is known to be training state.
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        # Each table once: a hostile file names one large table a hundred thousand times.
        weighty = {id(value) for value in {id(v): v for v in content.values()}.values() if _has_weights(value)}
        others = {key for key, value in content.items() if id(value) in weighty}
        if wrapper is None or (wrapper != "state_dict" and not others <= BESIDE_WEIGHTS):
            break
        notes |= {str(key): value for key, value in content.items() if isinstance(value, PLAIN)}
        content = content[wrapper]
    return content, notes


def _has_weights(value: Any) -> bool:
    """Whether something may hold weights: more than numbers, such as a loss or the options of a trainer."""
    inner = value.values() if isinstance(value, Mapping) else (value,)
    return any(isinstance(child, Mapping) or (isinstance(child, Tensor) and child.ndim > 0) for child in inner)


def _flatten(content: Any) -> dict[str, Any]:
    """Values by dotted key. Raises LimitError for more of them than any model has: one table can occur many times."""
    pairs = _walk(content, "", 0) if isinstance(content, Mapping) else iter(())
    flat = dict(itertools.islice(pairs, TENSORS.number + 1))
    TENSORS.check(len(flat), "the file")
    return flat


def _walk(value: Any, prefix: str, depth: int, is_numbered: bool = False) -> Iterator[tuple[str, Any]]:
    """is_numbered: whether the value stands under a number, as the pairs of tables in a hypernetwork do."""
    if is_numbered and isinstance(value, (tuple, list)) and all(isinstance(child, Mapping) for child in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value and depth < MAX_DEPTH:  # an empty table counts as a value
        for key, child in value.items():
            KEY_LENGTH.check(len(prefix) + (len(key) if isinstance(key, str) else 0), "a name in it")
            yield from _walk(child, f"{prefix}{key}.", depth + 1, isinstance(key, int))
    else:
        yield prefix[:-1], value
