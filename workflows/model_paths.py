"""The folders that `--models` names: a ComfyUI models tree, or its extra_model_paths.yaml.

That file is YAML of a narrow kind (sections, `key: value`, blocks of lines behind `key: |`), read
here without a YAML package; anything else in it is an error with its line number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..controlnet_core.errors import MissingFileError, WorkflowError

_OLD_NAMES = {"unet": "diffusion_models", "clip": "text_encoders"}
_NO_FOLDERS = ("base_path", "is_default", "custom_nodes")
Sections = dict[str, dict[str, list[str]]]


def model_folders(paths: Sequence[str | Path]) -> tuple[tuple[Path, ...], Mapping[str, tuple[Path, ...]]]:
    """(roots of models trees, folders by kind) that `--models` names.

    Raises MissingFileError when a path does not exist, WorkflowError when a file is no such YAML.
    """
    roots: list[Path] = []
    by_kind: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inner = path / "models"  # the folder of ComfyUI itself does as well
            roots.append(inner if inner.is_dir() and not (path / "checkpoints").is_dir() else path)
        elif path.is_file():
            for kind, folder, first in read_extra_paths(path):
                known = by_kind.setdefault(kind, [])
                known.insert(0, folder) if first else known.append(folder)
        else:
            raise MissingFileError(f"--models {path}: there is no such folder or file: check the path", path)
    return tuple(roots), {kind: tuple(folders) for kind, folders in by_kind.items()}


def read_extra_paths(path: Path) -> Iterator[tuple[str, Path, bool]]:
    """(kind, folder, whether it comes first) of each folder that an extra_model_paths.yaml names."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkflowError(f"{path} cannot be read as text ({error}): give a folder or a .yaml") from error
    for section in parse_sections(text, str(path)).values():
        here = path.absolute().parent
        base = _joined(here, section["base_path"][0]) if section.get("base_path") else here
        first = "".join(section.get("is_default", [])).lower() in ("true", "yes", "on")
        for kind, folders in section.items():
            if kind not in _NO_FOLDERS:
                yield from ((_OLD_NAMES.get(kind, kind), _joined(base, folder), first) for folder in folders)


def _joined(base: Path, name: str) -> Path:
    return Path(os.path.normpath(base / os.path.expandvars(Path(name).expanduser())))


def parse_sections(text: str, name: str) -> Sections:
    """Section -> key -> values, of the YAML subset that these files use."""
    sections: Sections = {}
    values: list[str] | None = None
    section: dict[str, list[str]] | None = None
    block_at = key_at = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split(" #")[0].rstrip()
        indent = len(line) - len(line.lstrip())
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if values is not None and indent > key_at and block_at:
            values.append(line.lstrip("- ").strip("'\""))
            continue
        key, colon, value = line.partition(":")
        if not colon or (indent and section is None):
            raise WorkflowError(f"{name}, line {number}: expected `key: value`, got {line[:60]!r}: correct the line")
        if indent == 0:
            section = sections.setdefault(key, {})
            values, block_at = None, 0
            continue
        assert section is not None
        key_at, value = indent, value.strip().strip("'\"")
        block_at = int(value in ("|", "|-", ">", ""))
        values = section.setdefault(key.strip(), [])
        if not block_at:
            values.append(value)
    return sections
