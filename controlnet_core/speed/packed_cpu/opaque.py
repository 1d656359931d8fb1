"""Bytes of oneDNN's packed tensors, and tensors of such bytes.

torch saves packed tensors for ahead-of-time compiled models (AOTInductor) and reads them in C++ only. This file calls
the same functions: three operators that read, and one function of torch's C interface that makes a tensor on memory
that is already there. They are not part of torch's documented Python interface, so `unsupported` tries them first.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MKLDNN_LAYOUT = 3
"""c10::Layout::Mkldnn; the C interface has no name for it."""


def bytes_of(packed: Tensor) -> tuple[Tensor, bytes]:
    """Return the bytes of a packed tensor, a uint8 view (n,) that is valid as long as it, and their description."""
    ops = torch.ops.mkldnn
    count = ops._nbytes(packed)
    memory = (ctypes.c_uint8 * count).from_address(ops.data_ptr(packed))
    description = ops._get_mkldnn_serialized_md(packed)
    return torch.frombuffer(memory, dtype=torch.uint8), bytes(description.numpy())


def packed_tensor(memory: Tensor, shape: tuple[int, ...], dtype: torch.dtype, description: bytes) -> Tensor:
    """Make a packed tensor on memory that is already there, without a copy.

    memory: uint8 (n,), which the result keeps alive. shape, dtype: of the weight. description: see `bytes_of`.
    """
    library, handle, axes = _library(), ctypes.c_void_p(), len(shape)
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_int64(axes),
        (ctypes.c_int64 * axes)(*shape),
        (ctypes.c_int64 * axes)(),  # strides, which a packed tensor has none of
        ctypes.c_int64(0),
        ctypes.c_int32(_dtype_number(dtype)),
        ctypes.c_int32(library.aoti_torch_device_type_cpu()),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        ctypes.c_int32(MKLDNN_LAYOUT),
        (ctypes.c_uint8 * len(description)).from_buffer_copy(description),
        ctypes.c_int64(len(description)),
    )
    if failed:
        raise RuntimeError("torch made no packed tensor of the bytes of one")
    wrap = ctypes.pythonapi.PyCapsule_New
    wrap.restype, wrap.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    core: Any = torch._C
    made = core._aoti.alloc_tensor_by_stealing_from_void_ptr(wrap(handle, None, None))
    made.packed_memory = memory  # torch does not know whose memory it is
    return made


@cache
def unsupported() -> str:
    """Why packed tensors cannot be written and read here; empty if they can. Tries it on a small weight."""
    try:
        weight = torch.arange(48 * 32, dtype=torch.float32).view(48, 32)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        memory, description = bytes_of(packed)
        again = packed_tensor(memory.clone(), (48, 32), weight.dtype, description)
        x = torch.ones(3, 32)
        first, second = (torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "") for w in (packed, again))
        return "" if torch.equal(first, second) else "a packed weight that was read is not the one that was written"
    # Whatever is missing or different in another torch: weights are then packed at each start, as without this file.
    except Exception as error:
        return f"torch {torch.__version__} does not write packed weights ({type(error).__name__})"


@cache
def _library() -> ctypes.CDLL:
    folder = Path(torch.__file__).parent / "lib"
    return ctypes.CDLL(str(folder / "libtorch_cpu.so"))


def _dtype_number(dtype: torch.dtype) -> int:
    return getattr(_library(), f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()
