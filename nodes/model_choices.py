"""Names under which a workflow can choose a model: files, and diffusers folders as one name each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .folders import MODEL_ENDINGS, list_files

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_INDEX = re.compile(r"model_index\.json|.+\.index(\.\w+)?\.json")
"""A pipeline of several models, or a model in several files."""


def list_models(folders: Sequence[Path]) -> tuple[str, ...]:
    """Names of the models in these folders, relative to their folder and with "/", sorted.

    A pipeline and a model in shards are one name, that of their folder: a shard alone cannot be loaded.
    """
    names = list_files(folders, MODEL_ENDINGS | {".json"})
    models = {name for name in names if not name.endswith(".json") and not _SHARD.search(name)}
    models |= {PurePosixPath(name).parent.as_posix() for name in names if _INDEX.fullmatch(PurePosixPath(name).name)}
    return tuple(sorted(models - {"."}))
