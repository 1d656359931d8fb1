"""Workers on one or many machines, with Ray (extra `ray`): for `controlnet run --each` and `controlnet preprocess`.

Ray finds the place for each worker, starts it again after a crash, and repeats the task that it had. A task may so run
twice; it must give the same files then. A worker has a GPU of its own, or some cores.

Plain actors, not Ray Data's `map_batches`: the manifest is asked just before a row is made and gets its line when that
row ends, while Ray Data reads its input ahead, hands results on in blocks, and repeats a whole block of finished rows
when a worker is lost. It would also need pandas and pyarrow.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ..controlnet_core.errors import CoreError, MissingFileError, ValueRangeError

Task = TypeVar("Task")
_ATTEMPTS = 3
"""How often a task is tried on workers that are lost. Some pictures take more memory than a machine has."""
_PATIENCE = 10
"""Seconds to wait for a cluster."""
_CORES = 4
"""Cores of a worker without a GPU: more of them are better used by further workers."""


class MissingRay(CoreError):
    """Ray is not installed."""

    exit_code = 3


def add_ray_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --ray, --workers, --worker-cores. what: the plural of a piece of work in help texts, such as "pictures"."""
    add = parser.add_argument_group("several processes or machines, with Ray (pip extra `ray`)").add_argument
    add(
        "--ray", metavar="ADDRESS", nargs="?", const="",
        help=f"spread the {what} over workers of this Ray cluster, such as auto or ray://host:10001; without ADDRESS, "
        "of the cluster that Ray finds, else of this machine",
    )  # fmt: skip
    add("--workers", metavar="N", type=int, help="with --ray: at most N workers (default: all that there is room for)")
    add(
        "--worker-cores", metavar="N", type=int,
        help=f"with --ray: CPU cores of each worker (default: a GPU's share of its machine; {_CORES} without a GPU)",
    )  # fmt: skip


class LostWorker(CoreError):
    """The workers that had a task were lost again and again."""


@contextmanager
def ray_pool(args: argparse.Namespace) -> Iterator[RayPool | None]:
    """Give the workers that the options ask for, None without --ray.

    Raises ValueRangeError for options that do not fit, MissingRay.
    """
    for option in ("workers", "worker_cores"):
        value = getattr(args, option)
        if value is not None and (args.ray is None or value < 1):
            shown = f"--{option.replace('_', '-')} {value}"
            raise ValueRangeError(f"{shown}: give 1 or more" if args.ray is not None else f"{shown}: add --ray")
    if args.ray is None:
        yield None
        return
    if args.device not in ("auto", "cpu", "cuda"):
        raise ValueRangeError(f"--device {args.device}: Ray gives each worker its own GPU: write cuda, cpu or nothing")
    if find_spec("ray") is None:
        raise MissingRay("--ray needs the package ray: `pip install comfyui-controlnet-core[ray]`, or leave --ray out")
    pool = RayPool(args.ray, args.device, args.workers, args.worker_cores)
    try:
        yield pool
    finally:
        pool.close()


@dataclass(frozen=True)
class PoolSize:
    """How many workers there are, and the cores and GPUs (0 or 1) of each."""

    workers: int
    cores: int
    gpus: int


class RayPool:
    """Workers of Ray. It connects when the first one is needed: wrong options are errors before that."""

    def __init__(self, address: str, device: str, workers: int | None, cores: int | None) -> None:
        self._address, self._device, self._workers, self._cores = address, device, workers, cores

    @cached_property
    def _ray(self) -> Any:
        return _connect(self._address)

    @cached_property
    def size(self) -> PoolSize:
        """Raises MissingRay, and CoreError for a cluster that does not answer or has no room for a worker."""
        return _size(self._ray.nodes(), self._device, self._workers, self._cores)

    def close(self) -> None:
        """End the workers, and Ray itself if it was started here."""
        if "_ray" in vars(self):
            self._ray.shutdown()

    def run(self, prepare: Callable[[int], Callable[[Task], Any]], tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result as it ends, or with a LostWorker where its worker was lost again and again.

        prepare: called once in each worker with the number of its cores, in a folder of the same path as this
        process's; returns what a task is given to. tasks: the next one is taken when a worker is free. Raises
        CoreError where no worker can start.
        """
        source = iter(tasks)
        first = next(source, None)
        if first is None:
            # Where all is done already, no worker has to load models.
            return
        source = chain((first,), source)
        errors = self._ray.exceptions
        actor = self._ray.remote(
            num_cpus=self.size.cores, num_gpus=self.size.gpus, max_restarts=-1, max_task_retries=_ATTEMPTS - 1
        )(Worker)
        workers = [actor.remote(partial(prepare, self.size.cores), str(Path.cwd())) for _ in range(self.size.workers)]
        # A worker gets its first task when it has started: a busy cluster may have no place for it for a long time.
        calls: dict[Any, tuple[Any, Task | None]] = {worker.start.remote(): (worker, None) for worker in workers}
        fault, ended = "", False
        while calls and not (ended and all(task is None for _, task in calls.values())):
            (call,), _ = self._ray.wait(list(calls), num_returns=1)
            worker, task = calls.pop(call)
            try:
                result = self._ray.get(call)
            except errors.RayTaskError:
                raise
            except errors.RayError as error:
                fault = _first_line(error)
                if task is not None:
                    yield task, LostWorker(f"its worker was lost {_ATTEMPTS} times ({fault}): it may need more memory")
                    calls[worker.start.remote()] = worker, None
                continue
            if isinstance(result, CoreError) and task is None:
                raise result
            following = None if ended else next(source, None)
            ended = following is None
            if following is not None:
                calls[worker.do.remote(following)] = worker, following
            if task is not None:
                yield task, result
        if not ended:
            raise CoreError(f"no worker of Ray could start or go on ({fault}): look at `ray status`")


class Worker:
    """A process of Ray that does pieces of work."""

    def __init__(self, prepare: Callable[[], Callable[[Any], Any]], folder: str) -> None:
        self._prepare, self._folder = prepare, folder
        self._work: Callable[[Any], Any] | None = None

    def start(self) -> CoreError | None:
        """Prepare the work. Return an error that this machine has, or None."""
        try:
            self._make_ready()
        except CoreError as error:
            return CoreError(f"{error} (on the machine {socket.gethostname()})")
        return None

    def do(self, task: Any) -> Any:
        """Return what comes of a task. A worker that Ray started again is made ready first."""
        return self._make_ready()(task)

    def _make_ready(self) -> Callable[[Any], Any]:
        if self._work is None:
            if not Path(self._folder).is_dir():
                raise MissingFileError(f"there is no folder {self._folder}: all machines need the same folders")
            # Paths of the command line are relative to it. The process is ours alone.
            os.chdir(self._folder)
            self._work = self._prepare()
        return self._work


def _connect(address: str) -> Any:
    """Return the module `ray`, connected. Raises CoreError for an address that does not answer."""
    _check_address(address)
    # Works offline: Ray would report its use otherwise. Read when Ray is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            configure_logging=True,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CoreError(f"--ray {address}: Ray does not answer ({_first_line(error)}): check the address") from error
    finally:
        # Ray sets a handler that ends the process at once; ours cleans up, and has the documented exit code.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return ray


def _check_address(address: str) -> None:
    """Raise ValueRangeError or CoreError for an address that Ray would try to reach for many minutes."""
    if address in ("", "auto", "local"):
        return
    found = re.fullmatch(r"(?:ray://)?([^/:]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", address)
    if found is None:
        raise ValueRangeError(f"--ray {address}: expected auto, local, HOST:PORT or ray://HOST:PORT")
    try:
        with socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_PATIENCE):
            pass
    except (OSError, OverflowError) as error:
        raise CoreError(f"--ray {address}: nothing answers there ({error}): check host and port") from error


def _size(nodes: Sequence[Any], device: str, workers: int | None, cores: int | None) -> PoolSize:
    """Return how many workers fit. nodes: of `ray.nodes()`. Raises CoreError where not one does."""
    rooms = [node["Resources"] for node in nodes if node["Alive"]]
    found = [(int(room.get("CPU", 0)), int(room.get("GPU", 0))) for room in rooms]
    uses_gpus = device != "cpu" and any(gpus for _, gpus in found)
    if uses_gpus:
        cores = cores or max(1, min(cpus // gpus for cpus, gpus in found if gpus))
        count = sum(min(gpus, cpus // cores) for cpus, gpus in found)
    else:
        cores = cores or max(1, min(_CORES, max((cpus for cpus, _ in found), default=0)))
        count = sum(cpus // cores for cpus, _ in found)
    if device == "cuda" and not uses_gpus:
        raise ValueRangeError("--device cuda: the Ray cluster has no GPU: leave it out, or use --device cpu")
    if not count:
        largest = max((cpus for cpus, _ in found), default=0)
        raise ValueRangeError(
            f"no machine of the Ray cluster has room for a worker of {cores} cores, the largest has {largest}: give "
            "fewer --worker-cores"
        )
    return PoolSize(min(count, workers or count), cores, int(uses_gpus))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
