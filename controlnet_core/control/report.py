"""What ran: the report of a run, collected while it runs.

A `Recorder` is handed to the run and hears of each evaluation, each net and each residual; `report()` gives
what it heard as data. Without `observe` it only counts. With it, it measures what each block of each net
adds and how long the net takes, and on a GPU waits for each net, which costs time; the picture stays
the same to the last bit, since what it measures is the change of the skip.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnitReport:
    """One unit in a run. acted: evaluations in which it added something; ran: those in which its net ran.

    norms: for each step and block the root mean square of what was added, over the rows that the unit
    acts on and the evaluations of the step; None where nothing was. Empty, and no seconds, if not observed.
    """

    name: str
    words: str
    acted: int
    ran: int
    norms: tuple[tuple[float | None, ...], ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class RunReport:
    """A run. sigmas: of each step; evaluations: of the model; casts: (what, from, to, how often).

    memory: bytes that were predicted before the run (see `engine.memory`); empty where nothing was. notes: what
    could not be done as asked for.
    """

    title: str
    sigmas: tuple[float, ...]
    evaluations: int
    seconds: float
    casts: tuple[tuple[str, str, str, int], ...]
    units: tuple[UnitReport, ...]
    memory: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(eq=False)
class _UnitRecord:
    name: str
    words: str
    acted: set[int] = field(default_factory=set)
    ran: set[int] = field(default_factory=set)
    seconds: float = 0.0
    squares: dict[int, dict[int, list[tuple[Tensor, int]]]] = field(default_factory=dict)


@dataclass(eq=False)
class Recorder:
    """Collects one run. observe: whether residuals and times are measured."""

    title: str = ""
    observe: bool = False
    sigmas: list[float] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    evaluations: int = 0
    casts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    units: dict[Hashable, _UnitRecord] = field(default_factory=dict)
    blocks: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    # ---- what the run tells

    def evaluation(self) -> None:
        """An evaluation of the model begins."""
        self.evaluations += 1

    def step(self, sigma: float) -> None:
        """The evaluation that was just made was the first of a step at this sigma."""
        self.sigmas.append(sigma)
        self.begins.append(max(0, self.evaluations - 1))

    def unit(self, key: Hashable, name: str, words: str) -> None:
        """A unit acts in this evaluation."""
        self.units.setdefault(key, _UnitRecord(name, words)).acted.add(self.evaluations)

    def net_ran(self, key: Hashable) -> None:
        """The net of a unit runs in this evaluation."""
        self.units[key].ran.add(self.evaluations)

    def residual(self, key: Hashable, block: int, residual: Tensor) -> None:
        """What a unit adds to a block, (rows, C, h, w)."""
        found = self.units[key].squares.setdefault(self.evaluations, {}).setdefault(block, [])
        found.append((residual.float().square().sum(), residual.numel()))
        self.blocks = max(self.blocks, block + 1)

    def cast(self, what: str, before: torch.dtype, after: torch.dtype) -> None:
        """A tensor came in one dtype and is used in another; nothing is noted where both are the same."""
        if before != after:
            names = (str(dtype).removeprefix("torch.") for dtype in (before, after))
            self.casts[(what, *names)] += 1  # type: ignore[index]

    @contextmanager
    def timing(self, keys: list[Hashable], device: torch.device) -> Iterator[None]:
        """Time of a net, dealt out evenly among the units that it ran for; only where it is observed."""
        if not self.observe:
            yield
            return
        _wait(device)
        began = time.perf_counter()
        yield
        _wait(device)
        for key in keys:
            self.units[key].seconds += (time.perf_counter() - began) / len(keys)

    # ---- what comes of it

    def report(self) -> RunReport:
        """What was heard so far."""
        seconds = time.perf_counter() - self.began
        casts = tuple((*cast, count) for cast, count in self.casts.items())
        units = tuple(self._unit(record) for record in self.units.values())
        told = (seconds, casts, units, self.memory, tuple(self.notes))
        return RunReport(self.title, tuple(self.sigmas), self.evaluations, *told)

    def _unit(self, record: _UnitRecord) -> UnitReport:
        norms: tuple[tuple[float | None, ...], ...] = ()
        if self.observe:
            ends = [*self.begins[1:], self.evaluations]
            norms = tuple(self._norms(record, range(a + 1, b + 1)) for a, b in zip(self.begins, ends, strict=True))
        seconds = record.seconds if self.observe else None
        return UnitReport(record.name, record.words, len(record.acted), len(record.ran), norms, seconds)

    def _norms(self, record: _UnitRecord, evaluations: range) -> tuple[float | None, ...]:
        """Of one step, block by block."""
        norms: list[float | None] = []
        for block in range(self.blocks):
            told = [part for e in evaluations for part in record.squares.get(e, {}).get(block, ())]
            count = sum(numbers for _, numbers in told)
            norms.append((sum(float(square) for square, _ in told) / count) ** 0.5 if count else None)
        return tuple(norms)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(report: RunReport) -> str:
    """The run on one line."""
    parts = [f"{len(report.sigmas)} steps, {report.evaluations} evaluations in {report.seconds:.2f} s"]
    for unit in report.units:
        took = "" if unit.seconds is None else f" in {unit.seconds:.2f} s"
        again = "" if unit.ran == unit.acted else f", acted in {unit.acted}"
        parts.append(f"{unit.name} ran in {unit.ran} of {report.evaluations}{again}{took}")
    return "; ".join([*parts, *report.notes])


def describe(report: RunReport) -> str:
    """The run in words: a line, the casts, and for each net a table of what its blocks added."""
    lines = [f"{report.title}: {summary(report)}" if report.title else summary(report)]
    lines += [f"cast {count} times: {what} from {before} to {after}" for what, before, after, count in report.casts]
    if not report.casts:
        lines.append("nothing was cast")
    if not report.units:
        lines.append("no ControlNet acted")
    for unit in report.units:
        lines += ["", f"{unit.name}, {unit.words}"]
        lines += _table(unit, report.sigmas) if unit.norms else []
    return "\n".join(lines)


def _table(unit: UnitReport, sigmas: tuple[float, ...]) -> Iterator[str]:
    """Root mean squares of what was added, step by step."""
    blocks = len(unit.norms[0])
    names = (*(str(i) for i in range(blocks - 1)), "mid")
    yield f"{'step':>4}{'sigma':>9}  " + "".join(f"{name:>9}" for name in names)
    for index, (sigma, norms) in enumerate(zip(sigmas, unit.norms, strict=True), 1):
        cells = "".join("        -" if norm is None else f"{norm:>9.3g}" for norm in norms)
        yield f"{index:>4}{sigma:>9.3f}  {cells}"
