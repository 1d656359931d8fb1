"""The table of limits, and the one function that turns exceptions of readers into typed errors."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
from comfyui_controlnet_core.controlnet_core import limits
from comfyui_controlnet_core.controlnet_core.errors import (
    CheckpointError,
    DamagedFileError,
    Interrupted,
    MissingFileError,
    OutOfMemory,
    UnfitError,
    reading,
)
from comfyui_controlnet_core.controlnet_core.limits import Limit, LimitError

TABLE = {name: value for name, value in vars(limits).items() if isinstance(value, Limit)}


def test_every_limit_states_its_unit_and_its_reason() -> None:
    assert len(TABLE) >= 10
    for name, limit in TABLE.items():
        assert name.isupper() and limit.number > 0 and limit.unit and len(limit.reason) > 20, name


def test_an_amount_up_to_the_limit_passes_and_one_more_is_named() -> None:
    limit = Limit(1_000, "values", "a reason for the test")
    limit.check(1_000, "its header")
    with pytest.raises(LimitError, match=r"^its header has 1,001 values, expected at most 1,000$"):
        limit.check(1_001, "its header")


RAISED = [
    struct.error("unpack requires 4 bytes"),
    AssertionError(),
    zipfile.BadZipFile("File is not a zip file"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    RecursionError("too deep"),
    KeyError("shape"),
    ZeroDivisionError("division by zero"),
    OverflowError("int too large"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_any_exception_becomes_one_error_that_names_the_file(error: Exception) -> None:
    said = r"^net\.ckpt is damaged or incomplete \("
    with pytest.raises(CheckpointError, match=said) as caught, reading("models/net.ckpt", CheckpointError):
        raise error
    assert (caught.value.exit_code, caught.value.path) == (3, Path("models/net.ckpt"))
    assert type(error).__name__ in str(caught.value) and caught.value.__cause__ is error


def test_errors_without_a_file_get_its_name_and_others_pass() -> None:
    for raised in (LimitError("its header has 9 bytes"), CheckpointError("its header has 9 bytes")):
        with (
            pytest.raises(CheckpointError, match=r"^net\.ckpt: its header has 9 bytes$"),
            reading("net.ckpt", CheckpointError),
        ):
            raise raised
    own = UnfitError("net.ckpt does not fit", "net.ckpt")
    for passes in (own, OutOfMemory("full"), Interrupted("stopped"), MemoryError()):
        with pytest.raises(type(passes)) as caught, reading("net.ckpt", CheckpointError):
            raise passes
        assert caught.value is passes


def test_what_the_system_says_about_a_file_is_kept(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no file"), reading(tmp_path / "none"):
        (tmp_path / "none").read_bytes()
    with pytest.raises(DamagedFileError, match=r"cannot be read \(File name too long\)"), reading("x" * 300):
        Path("x" * 300).read_bytes()
    with pytest.raises(OutOfMemory, match=r"no memory left to read net\.ckpt"), reading("net.ckpt"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
