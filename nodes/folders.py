"""Names to files, and never out of the folders that a workflow may read from or write to."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import MissingFileError, PathError

MODEL_ENDINGS = frozenset({".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".pkl"})
ALIASES = {"diffusion_models": ("unet",), "text_encoders": ("clip",)}
"""Older folder names that hold the same kind of file."""


LONGEST = 255
"""Bytes of a file's or folder's name that every usual file system takes."""
_DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{kind}{n}" for kind in ("COM", "LPT") for n in range(1, 10))})


def leaves_folder(name: Any) -> bool:
    """Whether a file name would reach outside the folder that it is looked for in."""
    if not isinstance(name, str):
        return False
    path = name.replace("\\", "/")
    return path.startswith(("/", "~")) or ".." in path.split("/") or (len(path) > 1 and path[1] == ":")


def name_fault(name: str, ending: int = 0, windows: bool = os.name == "nt") -> str:
    """Why no file can have this name, in words; empty where one can. ending: bytes that come behind the last part."""
    if "\0" in name:
        return "holds the character NUL"
    try:
        parts = [part.encode() for part in name.replace("\\", "/").split("/")]
    except UnicodeEncodeError as error:
        return f"holds {name[error.start]!r}, half a character"
    longest = max(*(len(part) for part in parts[:-1]), len(parts[-1]) + ending, 0)
    if longest > LONGEST:
        return f"has a part of {longest} bytes, {LONGEST} are the most"
    if windows:
        device = next((p.decode() for p in parts if p.decode().split(".")[0].strip().upper() in _DEVICES), "")
        if device or ":" in name:
            return f"holds {device or ':'}, which Windows keeps for itself"
    return ""


def inside(folder: Path, name: str) -> Path:
    """folder / name, with subfolders. Raises PathError for a name that leaves the folder, or that no file can have."""
    if leaves_folder(name):
        raise PathError(f"{brief(name)} leaves the folder {folder}: give a name inside it")
    fault = name_fault(name)
    if fault:
        raise PathError(f"{brief(name)} {fault}: give another name")
    parts = name.replace("\\", "/").split("/")
    path = folder.joinpath(*parts)
    root = folder.resolve()
    # a link inside the folder may lead anywhere; model folders are often links themselves, pictures not
    if path.resolve() != root and root not in path.resolve().parents and not _is_linked(folder, parts):
        raise PathError(f"{name!r} leaves the folder {folder}: give a name inside it")
    return path


def brief(value: Any) -> str:
    """A value as messages show it, however long it is and whatever it holds."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:40]}...{shown[-12:]}"


def _is_linked(folder: Path, parts: Sequence[str]) -> bool:
    """Whether a symbolic link on the way was put there by the owner of the folder."""
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            return True
    return False


def list_files(folders: Sequence[Path], endings: frozenset[str]) -> tuple[str, ...]:
    """Names, relative to their folder and with "/", of all files with these endings, sorted."""
    return tuple(sorted({name for folder in folders for name in _walk(folder, endings)}))


def _walk(folder: Path, endings: frozenset[str]) -> Iterator[str]:
    if not folder.is_dir():
        return
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in endings and not hidden and path.is_file():
            yield path.relative_to(folder).as_posix()


def publish(temporary: Path, names: Iterable[Path]) -> Path:
    """Give a finished file the first of these names that is free, and return it.

    Nobody sees a name before its file is whole, and a name that another process takes meanwhile stays its own.
    Raises OSError.
    """
    for path in names:
        with contextlib.suppress(FileExistsError):
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: claim the name, then fill it
                path.open("xb").close()
                temporary.replace(path)
            else:
                temporary.unlink()
            return path
    raise FileExistsError(errno.EEXIST, "all names are taken")


def find_file(folders: Sequence[Path], name: str, kind: str, endings: frozenset[str]) -> Path:
    """The first of the folders' files called `name`.

    Raises PathError for a name that leaves them, MissingFileError naming the nearest and the folders.
    """
    for folder in folders:
        path = inside(folder, name)
        if path.exists():
            return path
    if not folders:
        raise MissingFileError(f"there is no {kind} {brief(name)}, and no folder for {kind}: give one with --models")
    near = difflib.get_close_matches(name, list_files(folders, endings), n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? Searched" if near else "searched"
    raise MissingFileError(
        f"there is no {kind} file {brief(name)}: {meant} {', '.join(str(f) for f in folders)}", folders[0] / name
    )
