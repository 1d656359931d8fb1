"""The key of a row in a manifest: a digest of everything that decides its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..controlnet_core.errors import CoreError
from ..nodes.folders import inside, walk_files
from ..nodes.pictures import annotated_file
from .combinations import Row
from .contract import InputSpec, NodeSpec, read_spec
from .graph import Graph
from .paths import exists

if TYPE_CHECKING:
    from ..nodes.standalone.host import StandaloneHost

_KINDS = (
    "checkpoints", "controlnet", "vae", "loras", "diffusion_models", "text_encoders", "clip_vision", "upscale_models",
    "hypernetworks", "gligen", "model_patches",
)  # fmt: skip
"""Kinds of model folders in which the value of a list may name a file."""
_BLOCKS, _BLOCK = 16, 4096
"""How many pieces of a file are compared, and their bytes."""


@dataclass(frozen=True)
class RowKeys:
    """Makes the keys of the rows of one command.

    options: of the command line that change pictures, by name: the precision, and what is skipped. Options for memory
    and threads change a picture by rounding only and do not count.
    """

    host: StandaloneHost
    classes: Mapping[str, type]
    options: Mapping[str, Any]
    _specs: dict[str, NodeSpec] = field(default_factory=dict)
    _files: dict[tuple[str, str], tuple[Path, ...]] = field(default_factory=dict)
    _digests: dict[tuple[Path, int, int], str] = field(default_factory=dict)

    def key(self, graph: Graph, row: Row) -> str:
        """Return the key of a row. graph: the workflow with its values. Raises OSError for a picture that is gone."""
        # The row's own pictures by time and size: a million of them would take long to read.
        stamps = [(file.stat().st_mtime_ns, file.stat().st_size) for file in row.files]
        own = {file.resolve() for file in row.files}
        named = {path for path in self._named(graph) if path.resolve() not in own}
        digests = sorted((path.name, self._digest(path)) for path in named)
        # Where there is nothing to say, the digest is that of earlier versions, whose rows stay finished.
        parts = [graph.to_api(), stamps, *(part for part in (dict(self.options), digests) if part)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def _named(self, graph: Graph) -> Iterator[Path]:
        """Yield the files of the user that the values of a graph name: models, embeddings, pictures."""
        for node in graph.nodes.values():
            if node.class_type not in self.classes:
                continue
            if node.class_type not in self._specs:
                self._specs[node.class_type] = read_spec(node.class_type, self.classes[node.class_type])
            for spec in self._specs[node.class_type].inputs.values():
                value = node.inputs.get(spec.name)
                if isinstance(value, str) and value:
                    yield from self._files_of(spec, value)

    def _files_of(self, spec: InputSpec, value: str) -> Iterator[Path]:
        if spec.options.get("image_upload"):
            # Not kept: each row may name another picture.
            yield from _found(annotated_file, value, self.host)
        elif spec.choices is not None:
            if ("", value) not in self._files:
                self._files["", value] = tuple(self._models(value))
            yield from self._files["", value]
        elif "embedding:" in value:
            # Imported here, because it imports torch.
            from ..controlnet_core.models.prompt import embedding_names

            for name in embedding_names(value):
                if ("embedding", name) not in self._files:
                    self._files["embedding", name] = _found(self.host.embedding_file, name)
                yield from self._files["embedding", name]

    def _models(self, value: str) -> Iterator[Path]:
        for folder in dict.fromkeys(folder for kind in _KINDS for folder in self.host.folders(kind)):
            yield from (path for path in _found(inside, folder, value) if exists(path))

    def _digest(self, path: Path) -> str:
        """Return a digest of size and samples of a file, or of all files of a folder.

        By content, so that machines with copies of a model agree. Training changes all weights, so a few kilobytes tell
        two models of the same shape apart.
        """
        if path.is_dir():
            parts = [(file.relative_to(path).as_posix(), self._digest(file)) for file in walk_files(path)]
            return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()
        found = path.stat()
        stamp = path, found.st_mtime_ns, found.st_size
        if stamp not in self._digests:
            self._digests[stamp] = _sampled(path, found.st_size)
        return self._digests[stamp]


def _sampled(path: Path, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(_BLOCKS):
            # The first piece is at the start, the last one at the end.
            file.seek(max(0, size - _BLOCK) * index // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _found(find: Callable[..., Path], *arguments: Any) -> tuple[Path, ...]:
    """Return the file, none where there is no such file: the run reports that."""
    try:
        return (find(*arguments),)
    except CoreError:
        return ()
