"""Processes that train one net together, each on its part of every batch.

All draw the random numbers of the whole batch from the same generator, and take their part of it. So the batch does not
depend on how many they are, all have the same state after a step, and one state file serves any number of them.
`accelerate` starts the processes and connects them; without it there is one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingPackageError, ValueRangeError

BUCKET = 2**24
"""Numbers that are sent at once: small tensors one by one would each wait for an answer."""


@dataclass(frozen=True)
class Processes:
    """A training of one process. index: of this process among `count`."""

    count: int = 1
    index: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.index == 0

    @property
    def part(self) -> slice:
        """This process's part of a batch."""
        return slice(self.index, None, self.count)

    def check_batch(self, batch: int) -> None:
        """Raise ValueRangeError for a batch that cannot be shared evenly."""
        if batch % self.count:
            raise ValueRangeError(
                f"a batch of {batch} cannot be shared by {self.count} processes: choose a multiple of {self.count}"
            )

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return value

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def first_in_turn(self) -> AbstractContextManager[Any]:
        """Context that the first process enters first, and the others when it has left."""
        return nullcontext()


ALONE = Processes()


@dataclass(frozen=True)
class Accelerated(Processes):
    """Processes that `accelerate launch` or `torchrun` started."""

    accelerator: Any = None

    def mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "mean")

    def average(self, tensors: Sequence[Tensor]) -> None:
        bucket: list[Tensor] = []
        for number, tensor in enumerate(tensors, start=1):
            bucket.append(tensor)
            if number == len(tensors) or sum(t.numel() for t in bucket) >= BUCKET:
                together = self.mean(torch.cat([t.flatten() for t in bucket]))
                for target, found in zip(bucket, together.split([t.numel() for t in bucket]), strict=True):
                    target.copy_(found.view_as(target))
                bucket = []

    def any(self, flag: bool) -> bool:
        return bool(self.mean(torch.tensor(float(flag), device=self.accelerator.device)) > 0)

    def first_in_turn(self) -> AbstractContextManager[Any]:
        return self.accelerator.main_process_first()


def find_processes(*, cpu: bool) -> tuple[Processes, torch.device | None]:
    """The processes that this one was started with, and its device; (`ALONE`, None) where it was started alone.

    cpu: train on the CPU though there is a GPU. Raises CoreError without `accelerate`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE, None
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingPackageError(
            "to train with several processes, install accelerate: pip install accelerate"
        ) from error
    accelerator = Accelerator(cpu=cpu)
    return Accelerated(accelerator.num_processes, accelerator.process_index, accelerator), accelerator.device
