"""The campaign: cases of each reader in batches, a summary by kind, and the coverage of each reader.

python -m tests.fuzz --minutes 60            all readers, an hour
python -m tests.fuzz --cases 5000            so many cases of each reader
python -m tests.fuzz --readers poses yaml    only these
python -m tests.fuzz --seeds FILE ...        run cases that were kept
python -m tests.fuzz --coverage 300          lines of each reader that so many cases reach
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from comfyui_controlnet_core.workflows import cli
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisWarning

from .calls import CALLS
from .case import Case
from .guard import Outcome, run_case
from .limited import run_limited
from .readers import READERS, Reader

SEEDS = Path(__file__).parent / "seeds"
BATCH = 250
PROJECT = Path(__file__).parents[2]


def try_case(case: Case) -> Outcome:
    """Run one case in this process."""
    return run_case(case, CALLS, cli.main)


class _Enough(Exception):
    """Ends hypothesis when there were as many cases as were asked for."""


def each_case(
    reader: Reader, count: int, start: int, action: Callable[[Case], None], known: set[str] | None = None
) -> None:
    """Call `action` with `count` cases of a reader, no two of which are equal; fewer if there are no more.

    start: the seed, the same for the same cases. known: digests of cases that are left out; new ones are added.
    """
    known = set() if known is None else known
    end = len(known) + count

    @seed(start)
    @settings(
        max_examples=10 * count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.cases)
    def run(case: Case) -> None:
        if len(known) == end:
            raise _Enough
        # Hypothesis often draws a case again.
        if case.digest not in known:
            known.add(case.digest)
            action(case)

    with contextlib.suppress(_Enough), warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # about the length of the case at which it ended
        run()


@dataclass
class Tally:
    """What became of the cases of one reader. known: their digests."""

    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)

    def add(self, outcome: Outcome) -> None:
        """Count one case."""
        self.kinds[outcome.kind] += 1
        self.slowest, self.largest = max(self.slowest, outcome.seconds), max(self.largest, outcome.memory)

    @property
    def count(self) -> int:
        """Cases so far."""
        return sum(self.kinds.values())

    def line(self, name: str) -> str:
        """One line of the summary."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        most = f"slowest {self.slowest:.1f} s, most memory {self.largest >> 20} MB"
        return f"{name:<18}{self.count:>7} cases: {kinds}; {most}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign. Returns 1 when a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Try damaged and hostile inputs.")
    parser.add_argument("--minutes", type=float, default=0, help="stop after this time")
    parser.add_argument("--cases", type=int, default=0, help="cases of each reader")
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS), metavar="READER")
    parser.add_argument("--seed", type=int, default=None, help="first seed (default: the time)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for cases that are faults")
    parser.add_argument("--seeds", nargs="+", type=Path, metavar="FILE", help="run kept cases instead")
    parser.add_argument("--coverage", type=int, default=0, metavar="CASES", help="state the coverage instead")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.seeds:
        return show_kept(args.seeds)
    if args.coverage:
        return show_coverage(args.readers, args.coverage, args.seed or 0)
    first = int(time.time()) if args.seed is None else args.seed
    tallies = run_campaign(args.readers, args.minutes, args.cases or (0 if args.minutes else 1000), first, args.keep)
    return report(tallies, first)


def run_campaign(names: Sequence[str], minutes: float, cases: int, first: int, keep: Path) -> dict[str, Tally]:
    """Run batches of each reader in turn, until the time is over or each has had its cases."""
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    tallies = {name: Tally() for name in names}
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the campaign with its summary
        _run_batches(tallies, end, cases, first, keep)
    return tallies


def _run_batches(tallies: dict[str, Tally], end: float, cases: int, first: int, keep: Path) -> None:
    names = list(tallies)
    number, exhausted = first, set[str]()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            waiting = [n for n in names if n not in exhausted and (not cases or tallies[n].count < cases)]
            if not waiting:
                break
            for name in waiting:
                tally = tallies[name]
                before = tally.count
                count = min(BATCH, cases - tally.count) if cases else BATCH
                run_limited(
                    lambda act, n=name, c=count, s=number, t=tally: each_case(READERS[n], c, s, act, t.known), try_case,
                    lambda case, outcome, t=tally, n=name: _count(t, n, case, outcome, keep), folder=Path(folder),
                    known=tally.known,
                )  # fmt: skip
                number += 1
                if tally.count == before:  # no further case was found that was not tried before
                    exhausted.add(name)
                if time.monotonic() >= end:
                    break
            print(", ".join(f"{name} {tally.count}" for name, tally in tallies.items()), file=sys.stderr, flush=True)


def _count(tally: Tally, name: str, case: Case | None, outcome: Outcome, keep: Path) -> None:
    tally.add(outcome)
    if not outcome.is_fault:
        return
    print(f"{name}: {outcome.kind}: {outcome.text.strip().splitlines()[-1][:300] if outcome.text else ''}", flush=True)
    if case is not None and len(tally.faults) < 200:
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / f"{name.replace(' ', '_')}-{case.digest}.json"
        path.write_text(case.to_json())
        tally.faults[str(path)] = f"{outcome.kind}: {outcome.text}"


def report(tallies: dict[str, Tally], first: int) -> int:
    """Print the summary."""
    for name, tally in tallies.items():
        print(tally.line(name))
    for tally in tallies.values():
        for path, text in tally.faults.items():
            print(f"\n{path}\n{text}")
    total, faults = sum(t.count for t in tallies.values()), sum(len(t.faults) for t in tallies.values())
    print(f"\n{total} cases from seed {first}, {faults} faults kept")
    bad = any(kind not in ("read", "refused") for tally in tallies.values() for kind in tally.kinds)
    return 1 if bad else 0


def kept_cases() -> Iterator[tuple[str, Case]]:
    """The cases that were faults once, by the name of their file."""
    for path in sorted(SEEDS.glob("*.json")):
        yield path.stem, Case.from_json(path.read_text())


def show_kept(paths: Sequence[Path]) -> int:
    """Run kept cases and print what becomes of each."""
    worst = 0
    for path in paths:
        outcome = try_case(Case.from_json(path.read_text()))
        worst = max(worst, int(outcome.is_fault))
        print(f"{path.name}: {outcome.kind} ({outcome.seconds:.1f} s, {outcome.memory >> 20} MB) {outcome.text}")
    return worst


# ----------------------------------------------------------------------------------------------- coverage


def show_coverage(names: Sequence[str], count: int, first: int) -> int:
    """Print how many lines of each reader's functions the cases reach, and which they do not."""
    import coverage

    facts = {}
    for name in names:
        reader = READERS[name]
        paths = {PROJECT / entry.partition(":")[0]: entry.partition(":")[2] for entry in reader.code}
        reached = coverage.Coverage(data_file=None, include=[str(path.resolve()) for path in paths], config_file=False)
        reached.start()
        each_case(reader, count, first, try_case)
        reached.stop()
        lines, missed = 0, []
        for path, only in paths.items():
            wanted = _function_lines(path, frozenset(only.split(",")) - {""}, reader.left_out)
            _, statements, _, missing, _ = reached.analysis2(str(path.resolve()))
            lines += len(wanted & set(statements))
            missed += [f"{path.name}:{line}" for line in sorted(wanted & set(missing))]
        share = 1 - len(missed) / max(1, lines)
        facts[name] = round(share, 4)
        print(f"{name:<18}{share:>7.1%} of {lines} lines in {len(paths)} files; missed: {' '.join(missed)}", flush=True)
    print(json.dumps(facts))
    return 0


def _function_lines(path: Path, only: frozenset[str], left_out: frozenset[str]) -> set[int]:
    """The lines inside functions: those of a module and of classes run when it is imported."""
    found: set[int] = set()

    def visit(node: ast.AST, chosen: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                wanted = (chosen or child.name in only) and child.name not in left_out
                if wanted and isinstance(child, ast.FunctionDef):
                    found.update(range(child.body[0].lineno, (child.end_lineno or child.lineno) + 1))
                visit(child, wanted)

    visit(ast.parse(path.read_text(encoding="utf-8")), not only)
    return found
