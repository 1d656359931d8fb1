"""Names to files, and never out of the folders that a workflow may read from or write to."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..controlnet_core.errors import MissingFileError, PathError

MODEL_ENDINGS = frozenset({".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".pkl"})
PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
ALIASES = {"diffusion_models": ("unet",), "text_encoders": ("clip",)}
"""Older folder names that hold the same kind of file."""


def inside(folder: Path, name: str) -> Path:
    """folder / name, with subfolders. Raises PathError for a name that leaves the folder."""
    parts = name.replace("\\", "/").split("/")
    absolute = name.startswith(("/", "\\", "~")) or (len(name) > 1 and name[1] == ":")
    if absolute or ".." in parts or "\0" in name:
        raise PathError(f"{name!r} leaves the folder {folder}: give a name inside it")
    path = folder.joinpath(*parts)
    root = folder.resolve()
    # a link inside the folder may lead anywhere; model folders are often links themselves, pictures not
    if path.resolve() != root and root not in path.resolve().parents and not _is_linked(folder, parts):
        raise PathError(f"{name!r} leaves the folder {folder}: give a name inside it")
    return path


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


def find_file(folders: Sequence[Path], name: str, kind: str, endings: frozenset[str]) -> Path:
    """The first of the folders' files called `name`.

    Raises PathError for a name that leaves them, MissingFileError naming the nearest and the folders.
    """
    for folder in folders:
        path = inside(folder, name)
        if path.exists():
            return path
    if not folders:
        raise MissingFileError(f"there is no {kind} {name!r}, and no folder for {kind}: give one with --models")
    near = difflib.get_close_matches(name, list_files(folders, endings), n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? Searched" if near else "searched"
    raise MissingFileError(
        f"there is no {kind} file {name!r}: {meant} {', '.join(str(f) for f in folders)}", folders[0] / name
    )
