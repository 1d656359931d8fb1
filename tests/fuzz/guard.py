"""Runs one case in this process and says what went wrong, if anything did.

What counts as a fault: a traceback, an exit code other than 0, 2 and 3, a failure without an error line, a warning of
Python, a file written outside of the folder of the case, a program or a connection that was started, a temporary file
that was left, more than `SECONDS` of processor time, more than `MEMORY` bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .case import Case

SECONDS, MEMORY = 20, 2 * 2**30
GOOD_CODES = (0, 2, 3)
DONE, REFUSED = "read", "refused"
"""The two outcomes that are no faults: exit code 0, and an error line with exit code 2 or 3."""
SILENT = "no error line"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1,
}  # fmt: skip
"""Events of Python's audit hooks that change files, and how many of their first values are paths."""
_STARTS = frozenset({
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "webbrowser.open",
})  # fmt: skip
"""Events that no file may cause: programs, connections, and names that a pickle looks up."""


@dataclass(frozen=True)
class Outcome:
    """kind: `DONE`, `REFUSED`, or the kind of fault. text: the error line, or what shows the fault."""

    kind: str
    text: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def is_fault(self) -> bool:
        """Whether something went wrong that never may."""
        return self.kind not in (DONE, REFUSED)


class Watch:
    """Hears what Python does to the system while a case runs; the hook of a process cannot be removed."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.breaches: list[str] = []
        self._installed = False

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[list[str]]:
        """Note every change outside of `folder`, and every start of a program."""
        if not self._installed:
            sys.addaudithook(self._hear)
            self._installed = True
        self.folder, self.breaches = os.path.realpath(folder), []
        try:
            yield self.breaches
        finally:
            self.folder = None

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _STARTS:
            self.breaches.append(f"{event} {str(values[:2])[:200]}")
        elif event == "open":
            path, mode, flags = values
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES):
                self._check(event, path)
        elif event in _CHANGES:
            for path in values[: _CHANGES[event]]:
                self._check(event, path)

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int) or self.folder is None:
            return
        # The folder of a link counts, not its target: a link is removed or replaced, not followed, by most events.
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        real = os.path.realpath(place if event == "open" else os.path.dirname(place))  # noqa: PTH120
        if self.folder not in (real, place) and not real.startswith(self.folder + os.sep) and place != os.devnull:
            self.breaches.append(f"{event} {place}")


WATCH = Watch()


def run_case(case: Case, calls: dict[str, Callable[[Path], object]], main: Callable[[list[str]], int]) -> Outcome:
    """Run a case in a folder of its own, which is removed afterwards. main: the command line, in this process."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        work = Path(folder, "work")
        work.mkdir()
        case.write(work)
        action = (lambda: _call(calls[case.call], work)) if case.call else (lambda: main(list(case.words)))
        outcome = _observe(action, work)
        # A case may have made folders that cannot be listed.
        shutil.rmtree(work, ignore_errors=True)
    return outcome


def _observe(action: Callable[[], int], work: Path) -> Outcome:
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    home, pyc = os.environ.get("HOME"), sys.dont_write_bytecode
    os.chdir(work)
    os.environ["HOME"], sys.dont_write_bytecode = str(work), True
    _forget_peak()
    start, base = time.process_time(), _peak()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            WATCH.over(work) as breaches,
            warnings.catch_warnings(record=True) as warned,
        ):
            # Each time, not once in each place: so that every case shows its own.
            warnings.simplefilter("always")
            code, trace = _exit_code(action)
    finally:
        os.chdir(before)
        sys.dont_write_bytecode = pyc
        if home is None:
            os.environ.pop("HOME", None)
        else:
            os.environ["HOME"] = home
    seconds, memory = time.process_time() - start, max(0, _peak() - base)
    stray = sorted(str(path.relative_to(work)) for path in work.rglob("*.tmp") if path.name.startswith("."))
    kind, text = _judge(code, trace, err.getvalue(), breaches, stray, [str(w.message) for w in warned])
    if kind == SILENT and out.getvalue():  # such as a list of what is possible, or an object of --json
        kind = REFUSED
    if kind in (DONE, REFUSED) and seconds > SECONDS:
        kind = "over the limit of time"
    if kind in (DONE, REFUSED) and memory > MEMORY:
        kind = "over the limit of memory"
    return Outcome(kind, text, seconds, memory)


def _exit_code(action: Callable[[], int]) -> tuple[int | None, str]:
    try:
        return action(), ""
    except SystemExit as error:
        return (error.code if isinstance(error.code, int) else 1), ""
    except BaseException:
        return None, traceback.format_exc()


def _call(call: Callable[[Path], object], work: Path) -> int:
    """The exit code that a command would end with."""
    from comfyui_controlnet_core.controlnet_core.errors import CoreError
    from comfyui_controlnet_core.preprocessors.errors import PreprocessorError

    try:
        call(work)
    except (CoreError, PreprocessorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _judge(
    code: int | None, trace: str, err: str, breaches: list[str], stray: list[str], warned: list[str]
) -> tuple[str, str]:
    line = next((text for text in reversed(err.splitlines()) if text.startswith("error: ")), "")
    if breaches:
        return "left its folder", "; ".join(breaches[:3])
    if code is None or "Traceback (most recent call last)" in err:
        return "traceback", trace or err
    if code not in GOOD_CODES:
        return f"exit code {code}", line or err[-500:]
    if stray:
        return "stray file", ", ".join(stray)
    if warned:
        return "warning of Python", warned[0]
    if code and not line:
        return SILENT, err[-500:]
    return (REFUSED, line) if code else (DONE, "")


def _forget_peak() -> None:
    """Let the system count the peak of memory anew, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The largest amount of memory since `_forget_peak`, in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
