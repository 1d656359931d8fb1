"""The report of `controlnet inspect FILE`: what a file is, from its header alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, reading
from .check_config import Config
from .control import outline
from .ctrlora import BASE, LORA
from .derived import DERIVED
from .detect import Identity, identify
from .embeddings import vector_keys
from .fileconfig import CONFIG_KEY
from .files import Header
from .headers import read_header
from .load_ctrlora import check_ctrlora, check_ctrlora_lora
from .lora import check_lora
from .plan import check, plan_for

SHOWN_METADATA = 12
SHOWN_VALUE = 100


@dataclass(frozen=True)
class Report:
    """What a file is, and whether it can be used.

    dtypes: number of elements by type. parameters: number of all elements. size: in bytes. problem: why the file
    cannot be loaded; empty when it can.
    """

    path: Path
    format: str
    identity: Identity
    dtypes: Mapping[str, int]
    parameters: int
    size: int
    metadata: Mapping[str, str]
    problem: str

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
        total = sum(self.dtypes.values()) or 1  # tensors may be empty
        return ", ".join(
            name if count == total else f"{name} {count / total:.1%}" for name, count in self.dtypes.items()
        )

    def _metadata(self) -> list[str]:
        # The config is shown in words as the shape.
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
        with reading(header.path, CheckpointError):
            CHECKS.get(identity.kind, _check_plan)(header, identity)
    except CheckpointError as error:
        return str(error)
    return ""


def _check_plan(header: Header, identity: Identity) -> None:
    check(plan_for(header, identity))


CHECKS: Mapping[str, Callable[[Header, Identity], Any]] = {
    "lora": lambda header, identity: check_lora(header),
    "textual-inversion": lambda header, identity: vector_keys(header),
    BASE: check_ctrlora,
    LORA: check_ctrlora_lora,
    **dict.fromkeys(DERIVED, outline),
}
"""Kinds with a check of their own instead of a plan; each raises CheckpointError."""


def describe(config: Config, name: str = "") -> list[str]:
    """A config in words, a line per part of the model."""
    parts = [entry.name for entry in fields(config) if is_dataclass(getattr(config, entry.name))]
    own = ", ".join(
        f"{entry.name}={_value(getattr(config, entry.name))}" for entry in fields(config) if entry.name not in parts
    )
    lines = [f"{name}: {own}" if name else own]
    return lines + [line for part in parts for line in describe(getattr(config, part), part)]


def _value(value: Any) -> Any:
    """An entry of a config; of many records only their number."""
    return len(value) if isinstance(value, tuple) and value and is_dataclass(value[0]) else value


def format_bytes(count: int) -> str:
    """Bytes in words: 812 bytes, 3.4 MB, 4.27 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _short(text: str) -> str:
    line = " ".join(text.split())  # some tools store whole JSON documents with line breaks
    return line if len(line) <= SHOWN_VALUE else f"{line[:SHOWN_VALUE]}..."
