"""Textual inversions: a few learned vectors that stand for a word (Gal et al. 2022).

Their keys are `string_to_param` (.pt of the original release and of webui), `emb_params` (.safetensors of webui),
`clip_l` with `clip_g` (SDXL), or the word itself (diffusers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, UnfitError
from .detect import Identity
from .files import Header
from .io import read_tensors
from .plan import open_as

ENDINGS = (".safetensors", ".pt", ".bin")
"""Endings that a prompt may leave out of the name of a file, in the order in which they are tried."""


@dataclass(frozen=True)
class TextualInversion:
    """The vectors of a word: (n, width) for each text encoder that the file is made for, by their key."""

    path: Path
    identity: Identity
    vectors: Mapping[str, Tensor]

    def of_width(self, width: int) -> Tensor:
        """The vectors (n, width) for a text encoder of this width. Raises UnfitError where it has none."""
        found = [vectors for vectors in self.vectors.values() if vectors.shape[1] == width]
        if not found:
            widths = " and ".join(str(vectors.shape[1]) for vectors in self.vectors.values())
            raise UnfitError(
                f"{self.path.name} is {self.identity.summary} with vectors {widths} wide, the text encoder here "
                f"is {width} wide: use a textual inversion made for this base",
                self.path,
            )
        if len(found) > 1:
            raise CheckpointError(
                f"{self.path.name} holds {len(found)} words of one width ({', '.join(self.vectors)}): "
                "a file for embedding:name holds one, save them apart",
                self.path,
            )
        return found[0]


def read_embedding(path: str | Path) -> TextualInversion:
    """Read a textual inversion. Raises MissingFileError, and CheckpointError when it is damaged or something else."""
    header, identity = open_as(path, "textual-inversion")
    tensors = read_tensors(header, vector_keys(header))
    vectors = {key: tensor.detach().reshape(-1, tensor.shape[-1]) for key, tensor in tensors.items()}
    return TextualInversion(header.path, identity, vectors)


def vector_keys(header: Header) -> list[str]:
    """Keys of the vectors; the original form keeps token numbers beside them. Raises CheckpointError for none."""
    keys = [
        key
        for key, info in header.tensors.items()
        if info.dtype.is_floating_point and 1 <= len(info.shape) <= 2 and info.count
    ]
    if not keys:
        raise CheckpointError(f"{header.path.name} holds no vectors: the file is damaged, get it again", header.path)
    return keys
