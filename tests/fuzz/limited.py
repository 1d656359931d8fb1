"""A process of its own for a batch of cases, with limits of time and memory that the system keeps.

The worker writes each case down before it begins. When the system ends the worker, that is the case to blame.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from .case import Case
from .guard import MEMORY, SECONDS, Outcome

Try = Callable[[Case], None]
"""What the batch does with each case."""


def limit_processor_time(seconds: int) -> None:
    """Let the system end this process after so many further seconds of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, hard))


def limit_memory(more: int) -> None:
    """Let requests for memory fail beyond what this process has now and `more` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run_limited(
    batch: Callable[[Try], None], run: Callable[[Case], Outcome], on_outcome: Callable[[Case | None, Outcome], None],
    *, folder: Path, seconds: int = SECONDS, memory: int = MEMORY, known: set[str] | None = None,
) -> None:  # fmt: skip
    """Run a batch in a new process. folder: for the records of the worker.

    batch: calls its argument with one case after another. on_outcome: called for each of them; the case is given for
    faults only. known: gets the digests of the cases.
    """
    current, results = folder / "current", folder / "results.jsonl"
    for path in (current, results):
        path.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            limit_memory(memory)
            with results.open("w") as out:
                batch(lambda case: _try(case, run, current, out, seconds))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    for line in results.read_text().splitlines() if results.exists() else ():
        facts = json.loads(line)
        case = facts.pop("case", None)
        if known is not None:
            known.add(facts["digest"])
        del facts["digest"]
        on_outcome(case and Case.from_json(case), Outcome(**facts))
    if status:
        case = Case.from_json(current.read_text()) if current.exists() else None
        on_outcome(case, Outcome(_name_end(status), "the process that read the case was ended"))


def _try(case: Case, run: Callable[[Case], Outcome], current: Path, out: TextIO, seconds: int) -> None:
    current.write_text(case.to_json())
    limit_processor_time(seconds)
    outcome = run(case)
    facts = {
        "kind": outcome.kind, "text": outcome.text[:2000], "seconds": outcome.seconds, "memory": outcome.memory,
        "digest": case.digest,
    }  # fmt: skip
    out.write(json.dumps(facts | ({"case": case.to_json()} if outcome.is_fault else {})) + "\n")
    out.flush()


def _name_end(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return "traceback"
    number = os.WTERMSIG(status)
    return "over the limit of time" if number == signal.SIGXCPU else f"signal {signal.Signals(number).name}"
