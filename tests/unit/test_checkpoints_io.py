"""Weight files: headers, memory mapping, damaged and hostile files, atomic writing."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.io import (
    atomic_write,
    read_ahead,
    read_header,
    read_tensors,
    write_safetensors,
)
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, MissingFileError
from file_limit import file_limit
from safetensors.torch import load_file, save_file

WEIGHTS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.bias": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "half": torch.tensor([0.5, -3.0, 7.0], dtype=torch.float16),
    "ids": torch.arange(5),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "flag": torch.tensor([True, False]),
    "eight": torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn),
}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


def write_raw(path: Path, header: object, body: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


# --------------------------------------------------------------------------------------- round trips


def test_what_we_write_the_reference_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, WEIGHTS, {"format": "pt", "note": "größe"})
    assert all(same(tensor, WEIGHTS[key]) for key, tensor in load_file(path).items())
    header = read_header(path)
    assert header.metadata == {"format": "pt", "note": "größe"}
    assert header.format == "safetensors"
    assert header.size == path.stat().st_size
    assert header.shapes == {key: tuple(tensor.shape) for key, tensor in WEIGHTS.items()}
    assert {key: info.dtype for key, info in header.tensors.items()} == {k: t.dtype for k, t in WEIGHTS.items()}


def test_what_the_reference_library_writes_we_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(WEIGHTS, path, metadata={"format": "pt"})
    header = read_header(path)
    assert all(same(tensor, WEIGHTS[key]) for key, tensor in read_tensors(header).items())
    assert list(read_tensors(header, ["ids"])) == ["ids"]


def test_every_tensor_is_aligned_to_its_type(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, WEIGHTS)
    tensors = read_tensors(read_header(path))
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in tensors.values())


def test_non_contiguous_tensors_and_casts(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"t": WEIGHTS["a.weight"].T}, dtypes={"t": torch.float16})
    assert same(load_file(path)["t"], WEIGHTS["a.weight"].T.half())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "params_ema"])
def test_pickles_are_read_and_unwrapped(tmp_path: Path, zipped: bool, wrapper: str | None) -> None:
    path = tmp_path / "w.ckpt"
    weights = {key: WEIGHTS[key] for key in ("a.weight", "half")}
    content = {wrapper: weights, "epoch": 3} if wrapper else weights
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    header = read_header(path)
    assert header.format == "pickle"
    assert list(header.tensors) == list(weights)
    assert header.metadata == ({"epoch": "3"} if wrapper else {})
    assert all(same(tensor, weights[key]) for key, tensor in read_tensors(header).items())


def test_a_nested_pickle_has_dotted_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save({"image_proj": {"w": torch.ones(1)}, "ip_adapter": {"w": torch.ones(2)}}, path)
    assert list(read_header(path).tensors) == ["image_proj.w", "ip_adapter.w"]


def test_weights_beside_an_optimizer_are_found(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "ema": {"w": torch.ones(3)}, "lr": 0.1}, path)
    assert read_header(path).shapes == {"w": (2,)}


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    if name.endswith("ckpt"):
        save_file({"w": torch.ones(2)}, other)
    else:
        torch.save({"w": torch.ones(2)}, other)
    assert read_header(other).shapes == {"w": (2,)}


# ----------------------------------------------------------------------------------------- no copies


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_tensors_are_mapped_and_not_copied(tmp_path: Path, form: str) -> None:
    """Reading 128 MB costs a fraction of that until somebody looks at the numbers."""
    path = tmp_path / f"w.{form}"
    weights = {f"w{i}": torch.zeros(4, 1024, 1024) for i in range(8)}
    if form == "safetensors":
        write_safetensors(path, weights)
    else:
        torch.save(weights, path)
    del weights
    code = (
        "import sys, resource\n"
        "from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header, read_tensors\n"
        "header = read_header(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "tensors = read_tensors(header)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(after - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 1024


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"w": torch.zeros(4)})
    read_tensors(read_header(path))["w"].fill_(7.0)
    assert torch.equal(load_file(path)["w"], torch.zeros(4))


# ------------------------------------------------------------------------------------- damaged files


def test_a_missing_file_and_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no file"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"folder without model_index.json or config.json"):
        read_header(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 60, 200, -1])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    whole, cut = tmp_path / "w.safetensors", tmp_path / "cut.safetensors"
    write_safetensors(whole, WEIGHTS)
    cut.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"empty|no model|damaged or incomplete") as caught:
        read_header(cut)
    assert caught.value.exit_code == 3
    assert caught.value.path == cut
    assert "cut.safetensors" in str(caught.value)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
CORRUPT = {
    "garbage instead of JSON": (b'{"w": nonsense', b""),
    "no table": (b"{[1, 2]}", b""),
    "deep nesting": (b'{"w":' + b"[" * 100_000, b""),
    "bad bytes": (b'{"\xff": 1}', b""),
    "entry is a number": ({"w": 3}, b""),
    "entry without offsets": ({"w": {"dtype": "F32", "shape": [2]}}, b""),
    "negative size": ({"w": {**ENTRY, "shape": [-2]}}, bytes(8)),
    "size is text": ({"w": {**ENTRY, "shape": ["2"]}}, bytes(8)),
    "shape and bytes disagree": ({"w": {**ENTRY, "shape": [3]}}, bytes(8)),
    "bytes behind the end": ({"w": ENTRY}, bytes(9)),
    "bytes missing": ({"w": ENTRY}, bytes(7)),
    "offsets beyond the file": ({"w": {**ENTRY, "data_offsets": [8, 16]}}, bytes(8)),
}


@pytest.mark.parametrize(("header", "body"), CORRUPT.values(), ids=CORRUPT)
def test_corrupt_safetensors(tmp_path: Path, header: object, body: bytes) -> None:
    path = write_raw(tmp_path / "w.safetensors", header, body)
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_header(path)


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path, length: int) -> None:
    """The first bytes are 0x80 and a pickle protocol, or PK."""
    path = tmp_path / "w.safetensors"
    header = json.dumps({"w": ENTRY}).encode().ljust(length)
    write_raw(path, header, bytes(8))
    assert read_header(path).shapes == {"w": (2,)}


def test_overlapping_tensors_are_refused_at_the_latest_when_loading(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "w.safetensors", {"a": ENTRY, "b": ENTRY}, bytes(8))
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_tensors(read_header(path))


def test_tensors_that_share_bytes_or_leave_some_out(tmp_path: Path) -> None:
    one, two = ({"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]} for at in (0, 8))
    with pytest.raises(CheckpointError, match="'b' begins at byte 0, the tensor before it ends at 4"):
        read_header(write_raw(tmp_path / "shared.safetensors", {"a": one, "b": one}, bytes(4)))
    with pytest.raises(CheckpointError, match="'b' begins at byte 8, the tensor before it ends at 4"):
        read_header(write_raw(tmp_path / "gap.safetensors", {"a": one, "b": two}, bytes(12)))
    twice = b'{"a": %s, "a": %s}' % (json.dumps(one).encode(), json.dumps(one).encode())
    with pytest.raises(CheckpointError, match="names a tensor twice"):
        read_header(write_raw(tmp_path / "twice.safetensors", twice, bytes(4)))


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "w.safetensors", {"w": {**ENTRY, "dtype": "F4"}}, bytes(8))
    with pytest.raises(CheckpointError, match=r"'w' as F4.*expected one of F64, F32"):
        read_header(path)


NOT_MODELS = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(4096), "only zeros"),
    "text": (b"hello, I am a text file and no model at all", "is no model"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "Git LFS pointer"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG picture"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
}


@pytest.mark.parametrize(("content", "words"), NOT_MODELS.values(), ids=NOT_MODELS)
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_files_that_are_no_model(tmp_path: Path, content: bytes, words: str, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_header(path)


def test_an_ordinary_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="zip archive without weights"):
        read_header(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_pickles(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_header(path)


@pytest.mark.parametrize("content", [{}, {"lr": 0.1}, [1, 2], "text"], ids=repr)
def test_a_pickle_without_tensors(tmp_path: Path, content: object) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="without a table of tensors"):
        read_header(path)


# ----------------------------------------------------------------------------------- hostile pickles


class Evil:
    """Unpickling an object of this class would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


class Sly(Evil):
    """The same through a function of the interpreter."""

    def __reduce__(self) -> tuple:
        return eval, (f"open({str(self.target)!r}, 'w')",)


@pytest.mark.parametrize("kind", [Evil, Sly])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_that_wants_to_run_code_does_not(tmp_path: Path, kind: type[Evil], form: str) -> None:
    path, target = tmp_path / "w.ckpt", tmp_path / "it-ran"
    content = {"state_dict": {"w": torch.ones(2)}, "surprise": kind(target)}
    if form == "plain":
        path.write_bytes(pickle.dumps(kind(target)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert not target.exists()
    assert "w.ckpt was not loaded" in str(caught.value)
    assert "can run code" in str(caught.value)
    if form != "plain":  # there the newer pickle protocol is refused before the name is read
        assert ("system" if kind is Evil else "eval") in str(caught.value)


class ModelCheckpoint:
    """Stands for the callback that trainers leave in their checkpoints."""


def nested(depth: int, inner: object) -> object:
    """A table that holds one table twice, that again, ...: 2^depth values in a few bytes."""
    for _ in range(depth):
        inner = {"a": inner, "b": inner}
    return inner


@pytest.mark.parametrize("inner", [{}, {"x": 1}, torch.zeros(1)], ids=["empty", "value", "tensor"])
def test_tables_within_tables_end(tmp_path: Path, inner: object) -> None:
    torch.save(nested(40, inner), tmp_path / "many.pth")
    with pytest.raises(CheckpointError, match=r"many\.pth: the file has 50,001 values, expected at most 50,000"):
        read_header(tmp_path / "many.pth")
    own: dict[str, object] = {"x": torch.zeros(1)}
    own["state_dict"] = own
    torch.save(own, tmp_path / "own.pth")
    assert all(key.count(".") < 40 for key in read_header(tmp_path / "own.pth").tensors)


def test_tensors_that_are_not_dense(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(CheckpointError, match=r"sparse\.pth holds 'a' as a sparse, quantised or empty tensor"):
        read_header(tmp_path / "sparse.pth")


@pytest.mark.skipif(not hasattr(torch.serialization, "safe_globals"), reason="this PyTorch refuses such files")
def test_a_trainers_callback_is_read_as_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
    stub = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    stub.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", stub.__name__)
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, stub)
        torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": {ModelCheckpoint: {"best": None}}}, path)
    assert read_header(path).shapes == {"w": (2,)}


# -------------------------------------------------------------------------------------------- folders


def make_folder(folder: Path, files: dict[str, dict[str, torch.Tensor]], index: dict | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name, weights in files.items():
        save_file(weights, folder / name)
    if index is not None:
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def test_a_folder_of_one_model(tmp_path: Path) -> None:
    make_folder(tmp_path / "net", {"diffusion_pytorch_model.fp16.safetensors": {"w": torch.ones(2)}})
    header = read_header(tmp_path / "net")
    assert (header.format, header.shapes, header.configs) == ("folder", {"w": (2,)}, {"": {}})


def test_a_sharded_folder_below_a_pipeline(tmp_path: Path) -> None:
    shards = {"one.safetensors": {"a": torch.ones(2)}, "two.safetensors": {"b": torch.full((3,), 2.0)}}
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    make_folder(tmp_path / "pipe" / "unet", shards, index)
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    header = read_header(tmp_path / "pipe")
    assert header.shapes == {"unet.a": (2,), "unet.b": (3,)}
    assert torch.equal(read_tensors(header)["unet.b"], torch.full((3,), 2.0))


BAD_INDEX = {
    "outside": ({"weight_map": {"a": "../secret.safetensors"}}, "outside of its folder"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "outside of its folder"),
    "missing shard": ({"weight_map": {"a": "three.safetensors"}}, "three.safetensors"),
    "missing key": ({"weight_map": {"x": "one.safetensors"}}, "where it is not"),
    "no map": ({}, "no weight_map"),
}


@pytest.mark.parametrize(("index", "words"), BAD_INDEX.values(), ids=BAD_INDEX)
def test_a_wrong_index(tmp_path: Path, index: dict, words: str) -> None:
    make_folder(tmp_path / "net", {"one.safetensors": {"a": torch.ones(2)}}, index)
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match=words):
        read_header(tmp_path / "net")


# -------------------------------------------------------------------------------------------- writing


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "ours") as file:
        file.write(b"x")
    (tmp_path / "theirs").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"w": torch.ones(2)})
    before = path.read_bytes()
    with file_limit(100_000), pytest.raises(CheckpointError, match="could not be written") as caught:
        write_safetensors(path, {"w": torch.ones(100_000)})
    assert caught.value.exit_code == 3
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_safetensors(tmp_path / "file" / "w.safetensors", {"w": torch.ones(1)})


def test_writing_is_deterministic(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_safetensors(first, WEIGHTS, {"b": "2", "a": "1"})
    write_safetensors(second, dict(reversed(WEIGHTS.items())), {"a": "1", "b": "2"})
    assert first.read_bytes() == second.read_bytes()


def test_a_file_is_read_ahead(tmp_path: Path) -> None:
    """Pages that are not in the system's cache are there soon after; where the cache cannot be emptied, no claim."""
    assert not read_ahead(tmp_path)
    file = tmp_path / "large"
    file.write_bytes(bytes(1 << 20))
    if not read_ahead(file):
        pytest.skip("this system takes no advice")
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_pages(file):
        pytest.skip("this file system does not let go of its cache")
    read_ahead(file)
    deadline = time.monotonic() + 5.0
    while not resident_pages(file) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert resident_pages(file)


def resident_pages(path: Path) -> int:
    """Pages of a file that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with path.open("rb") as opened:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, opened.fileno(), 0)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(page & 1 for page in pages)
