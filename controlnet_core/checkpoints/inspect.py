"""What `controlnet inspect FILE` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError
from . import embeddings, lora
from .control import CONTROL_KINDS, check_control
from .detect import Identity, identify
from .fileconfig import CONFIG_KEY, Config
from .files import Header
from .io import read_header
from .load import Plan, check, checkpoint_plan, part_plan

PART_OF_KIND: Mapping[str, str] = MappingProxyType({"vae": "vae.", "unet": "unet.", "text-encoder": "text."})
SHOWN_METADATA = 12
SHOWN_VALUE = 100


@dataclass(frozen=True)
class Report:
    """What a file is, and whether it can be used. `size` in bytes, `parameters` counts elements."""

    path: Path
    format: str
    identity: Identity
    dtypes: Mapping[str, int]
    parameters: int
    size: int
    metadata: Mapping[str, str]
    problem: str
    """Why it cannot be loaded; empty when it can."""

    @property
    def loadable(self) -> bool:
        """Whether this package can load the file."""
        return not self.problem

    def lines(self) -> list[str]:
        """The report for people, one fact per line."""
        identity = self.identity
        verdict = "yes" if self.loadable else f"no: {self.problem}"
        facts = [
            ("file", f"{self.path} ({self.format}, {format_bytes(self.size)})"),
            ("what", identity.summary),
            ("weights", f"{self.parameters:,} in {self._dtypes()}"),
            ("loads", verdict),
        ]
        if identity.folder:
            facts.append(("goes to", f"models/{identity.folder}"))
        if identity.config is not None:
            facts += [("shape", line) for line in describe(identity.config)]
        facts += [("metadata", line) for line in self._metadata()]
        return [f"{name + ':':<10}{text}" for name, text in facts]

    def as_dict(self) -> dict[str, Any]:
        """The report for programs, ready for JSON."""
        identity = self.identity
        return {
            "path": str(self.path),
            "format": self.format,
            "kind": identity.kind,
            "family": identity.family,
            "layout": identity.layout,
            "details": list(identity.details),
            "summary": identity.summary,
            "parameters": self.parameters,
            "dtypes": dict(self.dtypes),
            "size": self.size,
            "loadable": self.loadable,
            "problem": self.problem,
            "folder": identity.folder,
            "metadata": dict(self.metadata),
        }

    def _dtypes(self) -> str:
        total = sum(self.dtypes.values()) or 1
        return ", ".join(
            name if count == total else f"{name} {count / total:.1%}" for name, count in self.dtypes.items()
        )

    def _metadata(self) -> list[str]:
        shown = sorted((key, value) for key, value in self.metadata.items() if key != CONFIG_KEY)
        lines = [f"{key} = {_short(value)}" for key, value in shown]
        more = len(lines) - SHOWN_METADATA
        return [*lines[:SHOWN_METADATA], f"and {more} entries more"] if more > 0 else lines


def inspect_file(path: str | Path) -> Report:
    """Inspect a weight file or diffusers folder by its header, without loading weights.

    Raises MissingFileError or CheckpointError when it is no readable weight file.
    """
    header = read_header(path)
    identity = identify(header)
    counts: Counter[str] = Counter()
    for info in header.tensors.values():
        counts[str(info.dtype).removeprefix("torch.")] += info.count
    return Report(
        path=header.path,
        format=header.format,
        identity=identity,
        dtypes=dict(counts.most_common()),
        parameters=sum(counts.values()),
        size=header.size,
        metadata=header.metadata,
        problem=problem(header, identity),
    )


def problem(header: Header, identity: Identity) -> str:
    """Why a file cannot be loaded, from its header alone; empty when it can."""
    if not identity.supported:
        return identity.problem
    try:
        CHECKS.get(identity.kind, _check_model)(header, identity)
    except CheckpointError as error:
        return str(error)
    return ""


def _check_lora(header: Header, identity: Identity) -> None:
    lora.group(header)


def _check_embedding(header: Header, identity: Identity) -> None:
    embeddings.vector_keys(header)


def _check_model(header: Header, identity: Identity) -> None:
    check(_plan(header, identity))


CHECKS: Mapping[str, Callable[[Header, Identity], None]] = MappingProxyType(
    {"lora": _check_lora, "textual-inversion": _check_embedding, **dict.fromkeys(CONTROL_KINDS, check_control)}
)
"""Which check a kind has of its own; each raises CheckpointError."""


def _plan(header: Header, identity: Identity) -> Plan:
    if identity.kind == "checkpoint":
        return checkpoint_plan(header, identity)
    return part_plan(header, identity, PART_OF_KIND[identity.kind])


def describe(config: Config, name: str = "") -> list[str]:
    """A config in words, a line per part of the model."""
    parts = [entry.name for entry in fields(config) if is_dataclass(getattr(config, entry.name))]
    own = ", ".join(
        f"{entry.name}={getattr(config, entry.name)}" for entry in fields(config) if entry.name not in parts
    )
    lines = [f"{name}: {own}" if name else own]
    return lines + [line for part in parts for line in describe(getattr(config, part), part)]


def format_bytes(count: int) -> str:
    """Bytes in words: 812 bytes, 3.4 MB, 4.27 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_VALUE else f"{line[:SHOWN_VALUE]}..."
