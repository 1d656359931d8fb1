"""The quick form of the campaign: some cases of each reader, all cases that were faults once, and the guard itself."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.campaign import each_case, kept_cases, try_case
from fuzz.case import Case
from fuzz.guard import DONE, REFUSED, Outcome, run_case
from fuzz.readers import READERS

QUICK = 15
KEPT = dict(kept_cases())


@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_are_read_or_refused_in_one_line(name: str) -> None:
    outcomes: list[tuple[Case, Outcome]] = []
    each_case(READERS[name], QUICK, 0, lambda case: outcomes.append((case, try_case(case))))
    faults = [(outcome, case.to_json()[:2000]) for case, outcome in outcomes if outcome.is_fault]
    assert not faults
    assert {outcome.kind for _, outcome in outcomes} == {DONE, REFUSED}


@pytest.mark.parametrize("name", KEPT)
def test_a_case_that_was_a_fault_once(name: str) -> None:
    outcome = try_case(KEPT[name])
    assert not outcome.is_fault, outcome


# ---------------------------------------------------------------------------------------------- the guard


def outside(work: Path) -> None:
    (work.parent / "stray").write_text("")


def removed(work: Path) -> None:
    (work.parent / "other").unlink(missing_ok=True)


FAULTS: dict[str, Callable[[Path], object]] = {
    "left its folder": outside,
    "left its folder ": removed,
    "left its folder: a program": lambda work: subprocess.run([sys.executable, "-c", ""], check=True),
    "left its folder: a link": lambda work: ((work / "l").symlink_to(work.parent), (work / "l" / "x").write_text("")),
    "traceback": lambda work: [][1],
    "traceback ": lambda work: print("Traceback (most recent call last)", file=sys.stderr),
    "exit code 1": lambda work: sys.exit(1),
    "exit code 4": lambda work: sys.exit(4),
    "no error line": lambda work: sys.exit(2),
    "stray file": lambda work: (work / ".a.tmp").write_text(""),
    "warning of Python": lambda work: warnings.warn("a", RuntimeWarning, stacklevel=1),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_the_guard_names_each_kind_of_fault(kind: str) -> None:
    before = (Path.cwd(), os.environ.get("HOME"))
    outcome = run_case(Case(call="x"), {"x": FAULTS[kind]}, lambda words: 0)
    assert outcome.kind == kind.partition(":")[0].strip()
    assert (Path.cwd(), os.environ.get("HOME")) == before


def test_a_case_keeps_its_bytes_and_links() -> None:
    case = Case({"a/b": b"\xff\0", "c": "é".encode()}, ("inspect", "\ud800"), "", {"d": ".."})
    assert Case.from_json(case.to_json()) == case


LIMITS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fuzz.case import Case
from fuzz.guard import run_case
from fuzz.limited import run_limited

def spin(work):
    while True:
        pass

def fill(work):
    bytearray(2**31)

calls = {"spin": spin, "fill": fill, "fine": lambda work: None, "die": lambda work: __import__("os").abort()}

def batch(act):
    for name in ("fine", "fill", sys.argv[3]):
        act(Case(call=name))

run = lambda case: run_case(case, calls, None)
show = lambda case, outcome: print(case.call if case else "-", outcome.kind, *outcome.text.split()[-1:], sep="|")
run_limited(batch, run, show, folder=Path(sys.argv[2]), seconds=0, memory=2**28)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process as Linux has them")
@pytest.mark.parametrize(("last", "kind"), [("spin", "over the limit of time"), ("die", "signal SIGABRT")])
def test_the_system_keeps_the_limits_of_a_worker(tmp_path: Path, last: str, kind: str) -> None:
    command = [sys.executable, "-c", LIMITS, str(Path(__file__).parents[1]), str(tmp_path), last]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert shown[:2] == ["-|read", "fill|traceback|MemoryError"]
    assert shown[2].startswith(f"{last}|{kind}|")
