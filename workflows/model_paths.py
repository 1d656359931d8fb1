"""Find the folders that `--models` names: a ComfyUI models folder, or an extra_model_paths.yaml."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import MissingFileError, WorkflowError
from ..controlnet_core.limits import YAML_BYTES
from .paths import user_path

_OLD_NAMES = {"unet": "diffusion_models", "clip": "text_encoders"}
_NO_FOLDERS = ("base_path", "is_default", "custom_nodes")
Warn = Callable[[str], object]


def model_folders(
    paths: Sequence[str | Path], warn: Warn = warnings.warn
) -> tuple[tuple[Path, ...], Mapping[str, tuple[Path, ...]]]:
    """Return the models folders that `--models` names, and further folders by kind of file.

    warn: called with a message for each base_path that does not exist, and for a file that names no folder. Raises
    MissingFileError for a path that does not exist, WorkflowError for a file that is no extra_model_paths.yaml.
    """
    roots: list[Path] = []
    by_kind: dict[str, list[Path]] = {}
    for path in map(user_path, paths):
        if path.is_dir():
            # The folder of ComfyUI itself is accepted too.
            inner = path / "models"
            roots.append(inner if inner.is_dir() and not (path / "checkpoints").is_dir() else path)
        elif path.is_file():
            found = list(read_extra_paths(path, warn))
            if not found:
                warn(f"{path} names no folder: give sections of `key: folder` lines, as in ComfyUI's example")
            for kind, folder, is_default in found:
                known = by_kind.setdefault(kind, [])
                known.insert(0 if is_default else len(known), folder)
        else:
            raise MissingFileError(f"--models {path}: there is no such folder or file: check the path", path)
    return tuple(roots), {kind: tuple(folders) for kind, folders in by_kind.items()}


def read_extra_paths(path: Path, warn: Warn = warnings.warn) -> Iterator[tuple[str, Path, bool]]:
    """Yield (kind, folder, whether it comes first) for each folder in an extra_model_paths.yaml."""
    here = path.absolute().parent
    for name, section in _sections(path).items():
        # As in ComfyUI, relative paths start at the folder of the file, not at the working directory.
        base = here
        if section.get("base_path"):
            base = _joined(here, str(section["base_path"]))
            # A warning, not an error: people share one file between machines that have different folders.
            if not base.is_dir():
                state = "is a file, expected a folder" if base.exists() else "does not exist"
                warn(f"{path}, {name}: base_path {base} {state}: correct it, or remove the section")
        for kind, value in section.items():
            if kind not in _NO_FOLDERS:
                folders = (_joined(base, folder) for folder in _folder_names(value, f"{path}, {name}, {kind}"))
                yield from (
                    (_OLD_NAMES.get(kind, kind), folder, section.get("is_default") in (True, "true"))
                    for folder in folders
                )


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    """Read the sections of the file by name. Keys outside any section form one of their own."""
    import yaml

    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(YAML_BYTES.number + 1)
        if len(text) > YAML_BYTES.number:
            raise ValueError(f"it is larger than {YAML_BYTES.number // 1000} kB")
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise WorkflowError(f"{path}{line}: {error.problem or 'is no valid YAML'}: correct the line") from error
    except Exception as error:
        # safe_load raises other errors too: ValueError for a date that does not exist, RecursionError, and more.
        raise WorkflowError(f"{path} cannot be read as YAML ({error}): give a folder or a .yaml file") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise WorkflowError(f"{path}: expected sections of `key: folder` lines, got {str(data)[:60]!r}: correct it")
    loose = {str(key): value for key, value in data.items() if value is not None and not isinstance(value, dict)}
    named = {str(key): value for key, value in data.items() if isinstance(value, dict)}
    sections = {**({"keys without a section": loose} if loose else {}), **named}
    return {name: {str(key): value for key, value in section.items()} for name, section in sections.items()}


def _folder_names(value: Any, where: str) -> list[str]:
    """Return the folders of one key: a text of one or more lines, or a list."""
    if value is None:
        return []
    entries = value if isinstance(value, list) else [value]
    if any(isinstance(entry, (list, dict)) for entry in entries):
        raise WorkflowError(f"{where}: expected a folder, or a list of folders: correct it")
    lines = [line.strip() for entry in entries for line in str(entry).splitlines()]
    return [line for line in lines if line]


def _joined(base: Path, name: str) -> Path:
    return Path(os.path.normpath(base / os.path.expandvars(user_path(name))))
