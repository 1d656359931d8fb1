"""One case of the campaign: a few files, and the command or the reader that is given them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Case:
    """What is tried.

    files: content by name, relative to the folder in which the case runs; names may have folders. links: target by
    name of a symbolic link. words: a command line of `controlnet`. call: a function of `calls.CALLS`, in its place.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    call: str = ""
    links: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the files. Names that no file system takes are left out."""
        for name, content in self.files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except (OSError, ValueError):
                continue
        for name, target in self.links.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_symlink() and not path.exists():
                path.symlink_to(target)

    @property
    def digest(self) -> str:
        """A short name for the file of the case."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """The case as text; contents that are no text in base 64."""
        files = {name: _to_text(content) for name, content in self.files.items()}
        facts = {"words": list(self.words), "call": self.call, "files": files, "links": dict(self.links)}
        return json.dumps(facts, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case of `to_json`."""
        facts = json.loads(text)
        files = {name: _to_bytes(content) for name, content in facts["files"].items()}
        return cls(files, tuple(facts["words"]), facts["call"], facts["links"])


def plain_name(name: str) -> bool:
    """Whether a name stays inside the folder of the case."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _to_text(content: bytes) -> dict[str, str]:
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _to_bytes(content: Mapping[str, str]) -> bytes:
    return content["text"].encode() if "text" in content else base64.b64decode(content["base64"])
