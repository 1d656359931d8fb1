"""Latents and texts that were encoded once, kept in safetensors shards for the next start of a training.

The name of an entry is a hash of everything that it was made of: the file with its time and size, the base, the size of
the pictures. So what changed has another name, and is encoded again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.io import read_header, read_tensors, write_safetensors
from ..checkpoints.load import Checkpoint
from ..errors import CoreError

SHARD_BYTES = 32 * 1024**2
"""Encoded data that is collected before a shard is written; a kill loses at most this."""


class DiskCache:
    """Tensors by their names in the shards of a folder.

    identity: what all entries depend on, see `encoders_digest`. process: number of this process among those that train
    together; each writes shards of its own, and all shards are read at the next start.
    """

    def __init__(self, folder: Path, identity: str, process: int = 0) -> None:
        self._folder, self._identity = folder, identity
        self._prefix = f"{_digest(identity)[:12]}_{process}"
        self._fresh: dict[str, Tensor] = {}
        self._room = SHARD_BYTES
        # Mapped, not read: a tensor takes memory when it is used.
        self._kept: dict[str, Tensor] = {}
        for path in sorted(folder.glob(f"{_digest(identity)[:12]}_*.safetensors")):
            try:
                self._kept |= read_tensors(read_header(path))
            except CoreError:
                path.unlink(missing_ok=True)  # damaged: it is encoded again

    def __len__(self) -> int:
        return len(self._kept) + len(self._fresh)

    def get(self, name: str) -> Tensor | None:
        """The tensor that was put under this name, None where there is none."""
        key = _digest(name)
        found = self._kept.get(key)
        return self._fresh.get(key) if found is None else found

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor; it is written with others, or at `flush`."""
        self._fresh[_digest(name)] = tensor.contiguous()
        self._room -= tensor.nbytes
        if self._room <= 0:
            self.flush()

    def flush(self) -> None:
        """Write what was put since the last shard. Raises CheckpointError when it cannot be written."""
        if not self._fresh:
            return
        number = len(list(self._folder.glob(f"{self._prefix}_*.safetensors")))
        path = self._folder / f"{self._prefix}_{number:05d}.safetensors"
        write_safetensors(path, self._fresh, {"made of": self._identity})
        # From the file, so that a long epoch does not fill the memory.
        self._kept |= read_tensors(read_header(path))
        self._fresh, self._room = {}, SHARD_BYTES


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_stamp(path: Path) -> str:
    """Name, time and size of a file."""
    found = path.stat()
    return f"{path.resolve()} {found.st_mtime_ns} {found.st_size}"


def encoders_digest(checkpoint: Checkpoint) -> str:
    """A hash of what encodes pictures and texts: the weights, since they may lie in files beside the base."""
    digest = hashlib.blake2b(repr(checkpoint.config).encode(), digest_size=16)
    modules = (checkpoint.vae, checkpoint.text_model, checkpoint.text_model2)
    tensors = [tensor for module in modules if module is not None for tensor in module.state_dict().values()]
    for tensor in (*tensors, *checkpoint.extras.values()):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
