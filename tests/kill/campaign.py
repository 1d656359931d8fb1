"""Kills commands in mid-work, at random moments and between any two changes of files, and checks what is left.

    python -m tests.kill --kills 1000

After each kill every visible file of the command is whole; then the command runs again, and is perhaps killed again.
After a run that was let to its end no temporary file is left, and the result has the same bits as that of a run that
was never killed: a training, killed at any step, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header
from comfyui_controlnet_core.workflows import cli

from .jobs import JOBS, Job, check_whole, files_of, is_stray, prepare, result_of

SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM, signal.SIGINT)
"""Most kills cannot be noticed by the process; the others must end with 143 and 130."""
CHANGES = frozenset({"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate"})
"""Events of Python's audit hooks before a change of files. Every `open` counts, also for reading."""


@dataclass
class Tally:
    """What became of one command."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    faults: list[str] = field(default_factory=list)
    resumed: Counter[int] = field(default_factory=Counter)

    def line(self, name: str) -> str:
        """One line of the summary."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        steps = f"; resumed from steps {dict(sorted(self.resumed.items()))}" if self.resumed else ""
        total = sum(self.kills.values())
        return f"{name:<11}{total:>5} kills ({kinds}), {self.runs} runs to the end, {len(self.faults)} faults{steps}"


@dataclass(frozen=True)
class Measure:
    """A run that was not killed. seconds: how long it took. events: changes of files. result: its files."""

    seconds: float
    events: int
    result: dict[str, bytes]


def start(job: Job, folder: Path, stop_at: int = 0) -> int:
    """Start the command in a new process; returns its number. stop_at: kill it before this change of files."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        log = os.open(folder.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        count = 0

        def on_event(event: str, values: tuple[Any, ...]) -> None:
            nonlocal count
            if event in CHANGES:
                count += 1
                if count == stop_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(on_event)
        code = cli.main(list(job.words))
        (folder.parent / "events.txt").write_text(str(count))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def run_whole(job: Job, folder: Path) -> Measure:
    """Let the command run to its end. Raises RuntimeError when it fails."""
    began = time.monotonic()
    _, status = os.waitpid(start(job, folder), 0)
    seconds = time.monotonic() - began
    if status:
        raise RuntimeError(f"ended with {status}: {(folder.parent / 'log.txt').read_text()[-1000:]}")
    return Measure(seconds, int((folder.parent / "events.txt").read_text()), result_of(job, folder))


def kill_once(job: Job, folder: Path, measure: Measure, rng: random.Random) -> str:
    """Start the command and end it somewhere; returns how, empty where it was done before."""
    if rng.random() < 0.5:
        child, kind = start(job, folder, rng.randint(1, measure.events)), "at a change of files"
        number = signal.SIGKILL
    else:
        number = rng.choice(SIGNALS)
        child, kind = start(job, folder), f"{signal.Signals(number).name} at a random moment"
        time.sleep(rng.random() * measure.seconds)
        os.kill(child, number)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == number:
        return kind
    if os.WEXITSTATUS(status) == 0:
        return ""
    # A signal that comes before the command line takes over ends the process at once, as that of any program.
    if os.WEXITSTATUS(status) != 128 + number:
        raise RuntimeError(
            f"{kind}: exit code {os.WEXITSTATUS(status)}: {(folder.parent / 'log.txt').read_text()[-500:]}"
        )
    return kind


def check_files(job: Job, folder: Path) -> list[str]:
    """What is wrong with the visible files of a command."""
    faults = []
    for path in files_of(job, folder):
        if is_stray(path):
            continue
        try:
            check_whole(path)
        except Exception as error:
            faults.append(f"{path.name} is not whole: {error!r}")
    return faults


def try_sequence(job: Job, origin: Path, measure: Measure, kills: int, rng: random.Random, tally: Tally) -> None:
    """Some kills one after the other, and a run to the end."""
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name, "work")
        shutil.copytree(origin, folder)
        before = _inputs(job, folder)
        for _ in range(kills):
            kind = kill_once(job, folder, measure, rng)
            if kind:
                tally.kills[kind] += 1
            tally.faults += check_files(job, folder)
            state = folder / "trained_training" / "training.state"
            if state.exists():
                tally.resumed[int(read_header(state).metadata["step"])] += 1
        result = run_whole(job, folder).result
        tally.runs += 1
        tally.faults += [f"{path.name} was left" for path in files_of(job, folder) if is_stray(path)]
        if before != _inputs(job, folder):
            tally.faults.append("an input was changed")
        tally.faults += check_files(job, folder) + _differences(job, result, measure.result)


def _inputs(job: Job, folder: Path) -> dict[str, bytes]:
    written = set(files_of(job, folder))
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p not in written}


def _differences(job: Job, result: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    if job.numbered:  # each run adds files of the same contents under the next numbers
        made = {name: content for name, content in result.items() if not name.endswith(".json")}
        known = {content for name, content in expected.items() if not name.endswith(".json")}
        missing = ["a file is missing"] if known - set(made.values()) else []
        return missing + [f"{name} differs" for name, content in made.items() if content not in known]
    names = {name for name in result.keys() | expected.keys() if not name.endswith(("settings.json", "sizes.json"))}
    return [f"{name} differs" for name in sorted(names) if result.get(name) != expected.get(name)]


def run_campaign(kills: int, names: Sequence[str], first: int) -> dict[str, Tally]:
    """Kill each command until all have had their share. first: the seed."""
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    rng = random.Random(first)
    tallies = {name: Tally() for name in names}
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        origin = Path(name, "origin")
        origin.mkdir()
        _in_child(lambda: prepare(origin, _make_examples))
        measures = {}
        for job_name in names:
            folder = Path(name, job_name, "work")
            shutil.copytree(origin, folder)
            measures[job_name] = run_whole(JOBS[job_name], folder)
        share = -(-kills // len(names))
        for job_name, tally in tallies.items():
            try:
                while (done := sum(tally.kills.values())) < share and len(tally.faults) <= 20:
                    count = min(rng.choice((1, 2, 3, 4)), share - done)
                    try:
                        try_sequence(JOBS[job_name], origin, measures[job_name], count, rng, tally)
                    except Exception as error:
                        tally.faults.append(f"{type(error).__name__}: {error}")
            except KeyboardInterrupt:  # ends the campaign with its summary
                share = 0
            print(tally.line(job_name), flush=True)
    return tallies


def _make_examples(folder: Path) -> None:
    from tiny_training import make_training_folder

    make_training_folder(folder)


def _in_child(action: Any) -> None:
    """Call a function in a process of its own, so that this one starts no threads."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the files of the campaign could not be made")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign. Returns 1 when a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description="Kill commands in mid-work.")
    parser.add_argument("--kills", type=int, default=100, help="kills of all commands together (default: 100)")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--seed", type=int, default=None, help="seed of the moments (default: the time)")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    first = int(time.time()) if args.seed is None else args.seed
    tallies = run_campaign(args.kills, args.jobs, first)
    faults = [f"{name}: {fault}" for name, tally in tallies.items() for fault in tally.faults]
    print("\n".join(faults))
    total = sum(sum(tally.kills.values()) for tally in tallies.values())
    print(f"{total} kills in mid-work from seed {first}, {len(faults)} faults")
    return 1 if faults else 0
