"""Parts of `controlnet preprocess` that a worker of Ray makes at once: some pictures, or a tar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ..controlnet_core.errors import CoreError
from ..preprocessors import PreprocessorError
from .hint_files import Job, is_made
from .hint_making import Outcome, Settings, make_all
from .ray_pool import LostWorker, RayPool
from .row_log import as_core_error
from .shards import Shard
from .tar_hints import make_tar


@dataclass(frozen=True)
class HintTask:
    """The hints of some pictures, or of the tar `source` into the tar `target`."""

    jobs: tuple[Job, ...] = ()
    source: Path | None = None
    target: Path | None = None

    @property
    def inputs(self) -> list[Path]:
        """The files that are read."""
        return [self.source] if self.source is not None else [job.source for job in self.jobs]


def split(jobs: Sequence[Job], size: int) -> Iterator[HintTask]:
    """Yield tasks of at least `size` hints, the last one excepted, in order. Frames of one file stay together."""
    gathered: list[Job] = []
    # Each task that needs one frame of a file reads all frames before it.
    for _, frames in groupby(jobs, key=lambda job: job.source):
        gathered += frames
        if len(gathered) >= size:
            yield HintTask(tuple(gathered))
            gathered = []
    if gathered:
        yield HintTask(tuple(gathered))


def make_task(task: HintTask, settings: Settings, shard: Shard, *, overwrite: bool) -> Outcome | CoreError:
    """Make hints in a worker of Ray. Returns an error that ends the whole command, such as a missing network."""
    try:
        if task.source is not None and task.target is not None:
            outcome = make_tar(task.source, task.target, settings, shard, overwrite=overwrite)
        else:
            # A lost worker may have made some of them.
            left = [job for job in task.jobs if overwrite or not is_made(job, settings.note)]
            outcome = make_all(left, settings, quiet=True)
            outcome.made += len(task.jobs) - len(left)
    except PreprocessorError as error:
        plain = CoreError(str(error))
        plain.exit_code = error.exit_code
        return plain
    except CoreError as error:
        return as_core_error(error)
    outcome.failed = {path: as_core_error(error) for path, error in outcome.failed.items()}
    return outcome


def make_on_ray(
    pool: RayPool, prepare: Callable[[int], Callable[[HintTask], Outcome | CoreError]], tasks: Iterable[HintTask]
) -> Outcome:
    """Make hints in the workers of a pool. prepare: see `RayPool.run`. Raises the first error that ends the command."""
    from tqdm import tqdm

    outcome = Outcome()
    with tqdm(unit="picture", disable=None) as bar:
        for task, result in pool.run(prepare, tasks):
            if isinstance(result, LostWorker):
                outcome.failed |= dict.fromkeys(task.inputs, result)
            elif isinstance(result, CoreError):
                raise result
            else:
                outcome.add(result)
                bar.update(result.made)
    return outcome
