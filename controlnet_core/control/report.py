"""The report of a run: what ran, how often, how long, and how much each block added.

A run calls the methods of a `Recorder` for each evaluation, net and residual; `report()` returns the result as data.
Without `observe` the recorder only counts. With it, it measures what each block of each net adds and how long the
net takes. The picture stays the same to the last bit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .modes import block_names


@dataclass(frozen=True)
class UnitReport:
    """One unit in a run.

    words: its settings. acted: number of evaluations in which it added residuals. ran: number in which its net ran;
    lower if residuals were reused. norms: for each step and block the root mean square of the residuals, over the rows
    that the unit acts on and the evaluations of the step; None where none was added. Without `observe` norms are empty
    and seconds is None.
    """

    name: str
    words: str
    acted: int
    ran: int
    norms: tuple[tuple[float | None, ...], ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class RunReport:
    """A run.

    sigmas: of each step. evaluations: of the model. casts: (what, from dtype, to dtype, how often). memory: the bytes
    that were estimated before the run; empty if they were not. notes: requested options that had no effect, and why.
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
        """The report as dictionaries and lists, for JSON."""
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
    """Collects the facts of one run. observe: whether to measure residuals and times."""

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

    # ---- called by the run

    def evaluation(self) -> None:
        """Record that an evaluation of the model begins."""
        self.evaluations += 1

    def step(self, sigma: float) -> None:
        """Record a step at this sigma; its first evaluation was the last one recorded."""
        self.sigmas.append(sigma)
        # A sampler reports a step after the step's first evaluation.
        self.begins.append(max(0, self.evaluations - 1))

    def unit(self, key: Hashable, name: str, words: str) -> None:
        """Record that a unit acts in this evaluation."""
        self.units.setdefault(key, _UnitRecord(name, words)).acted.add(self.evaluations)

    def net_ran(self, key: Hashable) -> None:
        """Record that the net of a unit runs in this evaluation."""
        self.units[key].ran.add(self.evaluations)

    def residual(self, key: Hashable, block: int, residual: Tensor) -> None:
        """Record what a unit adds to a block, (rows, C, h, w)."""
        squares = self.units[key].squares.setdefault(self.evaluations, {}).setdefault(block, [])
        # The sum stays a tensor: reading the number here would wait for the GPU at each block.
        squares.append((residual.float().square().sum(), residual.numel()))
        self.blocks = max(self.blocks, block + 1)

    def cast(self, what: str, before: torch.dtype, after: torch.dtype) -> None:
        """Record that a tensor arrived in one dtype and is used in another. Equal dtypes are not recorded."""
        if before != after:
            self.casts[(what, str(before).removeprefix("torch."), str(after).removeprefix("torch."))] += 1

    @contextmanager
    def timing(self, keys: Sequence[Hashable], device: torch.device) -> Iterator[None]:
        """Measure the time of a net and divide it evenly among the units that it ran for; only with `observe`."""
        if not self.observe:
            yield
            return
        # GPU work is asynchronous: without waiting, the time would be that of launching it.
        _wait(device)
        began = time.perf_counter()
        yield
        _wait(device)
        share = (time.perf_counter() - began) / len(keys)
        for key in keys:
            self.units[key].seconds += share

    # ---- the result

    def report(self) -> RunReport:
        """Report what was recorded so far."""
        seconds = time.perf_counter() - self.began
        casts = tuple((*cast, count) for cast, count in self.casts.items())
        units = tuple(self._unit(record) for record in self.units.values())
        notes = tuple(self.notes)
        return RunReport(self.title, tuple(self.sigmas), self.evaluations, seconds, casts, units, self.memory, notes)

    def _unit(self, record: _UnitRecord) -> UnitReport:
        norms: tuple[tuple[float | None, ...], ...] = ()
        if self.observe:
            ends = [*self.begins[1:], self.evaluations]
            norms = tuple(self._norms(record, range(a + 1, b + 1)) for a, b in zip(self.begins, ends, strict=True))
        seconds = record.seconds if self.observe else None
        return UnitReport(record.name, record.words, len(record.acted), len(record.ran), norms, seconds)

    def _norms(self, record: _UnitRecord, evaluations: range) -> tuple[float | None, ...]:
        """The root mean square of each block's residuals over the evaluations of one step."""
        norms: list[float | None] = []
        for block in range(self.blocks):
            parts = [part for e in evaluations for part in record.squares.get(e, {}).get(block, ())]
            # Squares are summed, not norms: then the result does not depend on how a batch was divided.
            count = sum(numbers for _, numbers in parts)
            norms.append((sum(float(square) for square, _ in parts) / count) ** 0.5 if count else None)
        return tuple(norms)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(report: RunReport) -> str:
    """Describe the run on one line."""
    parts = [f"{len(report.sigmas)} steps, {report.evaluations} evaluations in {report.seconds:.2f} s"]
    for unit in report.units:
        took = "" if unit.seconds is None else f" in {unit.seconds:.2f} s"
        reused = "" if unit.ran == unit.acted else f", acted in {unit.acted}"
        parts.append(f"{unit.name} ran in {unit.ran} of {report.evaluations}{reused}{took}")
    return "; ".join([*parts, *report.notes])


def describe(report: RunReport) -> str:
    """Describe the run as text: a summary, the casts, and for each net a table of what its blocks added."""
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
    """The root mean squares of what was added, a line for each step."""
    names = block_names(len(unit.norms[0]))
    yield f"{'step':>4}{'sigma':>9}  " + "".join(f"{name:>9}" for name in names)
    for index, (sigma, norms) in enumerate(zip(sigmas, unit.norms, strict=True), 1):
        cells = "".join("        -" if norm is None else f"{norm:>9.3g}" for norm in norms)
        yield f"{index:>4}{sigma:>9.3f}  {cells}"
