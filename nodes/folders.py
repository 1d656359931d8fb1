"""Finds files by name, inside the folders that a workflow may read from or write to and nowhere else."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import platform
import re
import secrets
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..controlnet_core.errors import MissingFileError, PathError

MODEL_ENDINGS = frozenset({".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".pkl"})
ALIASES = {"diffusion_models": ("unet",), "text_encoders": ("clip",), "controlnet": ("t2i_adapter",)}
"""Other folder names that hold the same kind of file."""

MAX_NAME_BYTES = 255
"""Longest name of a file or folder on all common file systems."""
MAX_PATH_BYTES = 2048
"""Longest name with its subfolders; systems allow 4096 bytes or less together with the folders above."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_INDEX = re.compile(r"model_index\.json|.+\.index(\.\w+)?\.json")
"""A pipeline of several models, or a model in several files."""
_MAX_VISITS = 2
"""How often a folder is listed: under its own name, and through one link."""
_MACHINE = zlib.crc32(platform.node().encode())
"""Folders may be shared by machines, whose processes have the same numbers."""
_TEMPORARY = re.compile(r"\.{1,2}cncore-([0-9a-f]{8})-(\d{1,9})-[0-9a-f]+\.tmp(\.\d+\.tmp)?")
"""Names of `temporary_file`, and of the file that `atomic_write` makes to write one of them."""
_DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{kind}{n}" for kind in ("COM", "LPT") for n in range(1, 10))})


def leaves_folder(name: Any) -> bool:
    """Whether a file name leads outside its folder."""
    if not isinstance(name, str):
        return False
    path = name.replace("\\", "/")
    # The same on every system, so that a workflow from Windows is refused on Linux as well: C: is a drive there.
    return path.startswith(("/", "~")) or ".." in path.split("/") or (len(path) > 1 and path[1] == ":")


def name_fault(name: str, ending: int = 0, windows: bool = os.name == "nt") -> str:
    """Why no file can have this name; empty where one can. ending: bytes that will be added to the name."""
    if "\0" in name:
        return "contains the character NUL"
    try:
        # File systems limit the bytes of a name, not its characters: a Korean letter takes three.
        parts = [part.encode() for part in name.replace("\\", "/").split("/")]
    except UnicodeEncodeError as error:
        return f"contains {name[error.start]!r}, which is half a character"
    if sum(len(part) + 1 for part in parts) + ending > MAX_PATH_BYTES:
        return f"has {len(name)} characters, the limit is {MAX_PATH_BYTES} bytes"
    longest = max(*(len(part) for part in parts[:-1]), len(parts[-1]) + ending, 0)
    if longest > MAX_NAME_BYTES:
        return f"has a part of {longest} bytes, the limit is {MAX_NAME_BYTES}"
    if windows:
        device = next((p.decode() for p in parts if p.decode().split(".")[0].strip().upper() in _DEVICES), "")
        if device or ":" in name:
            return f"contains {device or ':'}, which Windows reserves"
    return ""


def inside(folder: Path, name: str, *, follow_links: bool = True) -> Path:
    """Return folder / name, where the name may have subfolders.

    follow_links: whether a symbolic link in the folder may lead out of it. Folders of models and pictures are often
    links; for writing use False. Raises PathError for a name that leaves the folder, or that no file can have.
    """
    if leaves_folder(name):
        raise PathError(f"{brief(name)} leaves the folder {folder}: give a name inside it")
    fault = name_fault(name)
    if fault:
        raise PathError(f"{brief(name)} {fault}: give another name")
    path = folder.joinpath(*name.replace("\\", "/").split("/"))
    if not follow_links and folder.resolve() not in (path.resolve(), *path.resolve().parents):
        raise PathError(f"{brief(name)} leaves the folder {folder} through a link: give a name inside it")
    return path


def brief(value: Any) -> str:
    """A value as messages show it, shortened to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:40]}...{shown[-12:]}"


def list_files(folders: Sequence[Path], endings: frozenset[str], *, hidden: bool = False) -> tuple[str, ...]:
    """Return the sorted names, relative to their folder and with "/", of all files with these endings.

    hidden: also of those that begin with a dot.
    """
    found = ((folder, path) for folder in folders for path in walk_files(folder, hidden=hidden))
    return tuple(sorted({path.relative_to(root).as_posix() for root, path in found if path.suffix.lower() in endings}))


def list_models(folders: Sequence[Path]) -> tuple[str, ...]:
    """Names of the models in these folders, relative to their folder and with "/", sorted.

    A pipeline and a model in shards are one name, that of their folder: a shard alone cannot be loaded.
    """
    # ComfyUI lists models whose names begin with a dot, and workflows name them.
    names = list_files(folders, MODEL_ENDINGS | {".json"}, hidden=True)
    models = {name for name in names if not name.endswith(".json") and not _SHARD.search(name)}
    models |= {PurePosixPath(name).parent.as_posix() for name in names if _INDEX.fullmatch(PurePosixPath(name).name)}
    return tuple(sorted(models - {"."}))


def join_shards(names: Iterable[str]) -> tuple[str, ...]:
    """Names of model files, sorted, with the folder of a model in shards in place of its shards.

    For a host that lists files itself. Shards that lie in no folder of their own are left out.
    """
    models = {PurePosixPath(name).parent.as_posix() if _SHARD.search(name) else name for name in names}
    return tuple(sorted(models - {"."}))


def walk_files(folder: Path, *, hidden: bool = False) -> Iterator[Path]:
    """Yield all files in and below a folder, also through links to folders; hidden folders are skipped.

    hidden: also hidden files, but not those that macOS writes beside others.
    """
    return (path for path in walk_entries(folder, hidden=hidden) if path.is_file())


def walk_entries(folder: Path, *, hidden: bool = False) -> Iterator[Path]:
    """Yield the files of `walk_files`, and also the entries that are no files: links without a target, sockets."""
    visits: Counter[str] = Counter()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        visits[real] += 1
        if visits[real] > _MAX_VISITS:  # a link that leads back to a folder above it would never end
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("._" if hidden else "."))


def temporary_file(folder: Path) -> Path:
    """Return a name for a file of this folder that is being written.

    The name is short, since the final name may have the greatest length. It holds this machine and this process, so
    that `remove_leftovers` knows whose file it is.
    """
    return folder / f".cncore-{_MACHINE:08x}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in a folder."""
    for path in folder.glob(".*cncore-*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and int(match[1], 16) == _MACHINE and not _is_running(int(match[2])):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there; an open file cannot be removed anyway
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def publish(temporary: Path, names: Iterable[Path]) -> Path:
    """Rename a complete file to the first of these names that is free, and return it. Raises OSError."""
    for path in names:
        with contextlib.suppress(FileExistsError):
            try:
                # Unlike a rename, a hard link fails where another process has taken the name meanwhile.
                path.hardlink_to(temporary)
            except FileExistsError:
                raise
            except OSError:
                # A file system without hard links: create an empty file to claim the name, then replace it.
                path.open("xb").close()
                temporary.replace(path)
            else:
                temporary.unlink()
            return path
    raise FileExistsError(errno.EEXIST, "all names are in use")


def find_file(folders: Sequence[Path], name: str, kind: str, endings: frozenset[str]) -> Path:
    """The file of this name in the first folder that has it.

    Raises PathError for a name that leaves the folders, MissingFileError with the most similar name and the folders.
    """
    for folder in folders:
        path = inside(folder, name)
        if path.exists():
            return path
    if not folders:
        raise MissingFileError(f"there is no {kind} {brief(name)}, and no folder for {kind}: give one with --models")
    # Workflows from other people name files that differ by a version or by an ending.
    known = list_files(folders, endings)
    near = [other for other in known if other.lower() == name.lower()] or difflib.get_close_matches(
        name, known, n=1, cutoff=0.5
    )
    meant = f"did you mean {near[0]!r}? Searched" if near else "searched"
    raise MissingFileError(
        f"there is no {kind} file {brief(name)}: {meant} {', '.join(str(f) for f in folders)}", folders[0] / name
    )
