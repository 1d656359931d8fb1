"""Runs of Control Sweep: what each cell samples, and how well it follows its hint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..controlnet_core.errors import ValueRangeError
from ..controlnet_core.run_options import DEFAULTS
from .builtin import net_path
from .control import UNIT, ControlOptions
from .fields import Field, list_choices
from .host import Host
from .load import LoadControlNet
from .look import agreements, mean_score
from .sample import EncodePrompt, Sample
from .sweep_grid import Axis, SweepGrid, check_count, read_values
from .sweep_sheet import MEASURES, Cell, draw_sheet, fit_picture, write_table
from .values import Conditioning, ControlSpec, SamplerInputs, SpecStack

# The first of a name counts: Load ControlNet's is a list of files, Control Unit's a socket.
FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        item.name: item
        for node_fields in (EncodePrompt.INPUTS, Sample.INPUTS, ControlOptions.INPUTS, UNIT, LoadControlNet.INPUTS[:1])
        for item in node_fields
    }
)
"""The declaration of each input that can be swept, by name."""
OF_OPTIONS = {"positive_factor": "positive", "negative_factor": "negative"}
"""Inputs of Control Options -> fields of `UnitOptions`."""
OF_SAMPLER = ("seed", "steps", "cfg", "sampler", "scheduler", "denoise")


class Fidelity(NamedTuple):
    """How fidelity is measured. kind: of the hint. tolerance: in pixels, for edges."""

    kind: str
    tolerance: float


class SweepResult(NamedTuple):
    """sheet: IMAGE (1, H, W, 3). table: as CSV. images: IMAGE (cells, h, w, 3)."""

    sheet: Tensor
    table: str
    images: Tensor


class CellInputs(NamedTuple):
    """What one cell samples: units on the prompts of `sampler`."""

    sampler: SamplerInputs
    stack: SpecStack


def plan(swept: Sequence[tuple[str, str]], max_cells: int) -> SweepGrid:
    """The grid of (name, values as written), the last along a row.

    Raises WorkflowError for a range that cannot be read, ValueRangeError for too many cells and for a name twice.
    """
    axes = []
    for name, text in swept:
        kind = FIELDS[name].type
        lines = text.strip().replace("\n", "|" if kind == "STRING" else ",")
        values = tuple(value for value in read_values(kind, lines, name) if value or kind == "STRING")
        if not values:
            raise ValueRangeError(f"{name} is swept, but has no values: write some, such as {_example(FIELDS[name])}")
        axes.append(Axis(name, values))
    if len({axis.name for axis in axes}) < len(axes):
        raise ValueRangeError(f"x and y are both {axes[0].name}: choose another one, or nothing for y")
    check_count(axes, max_cells, "raise max_cells")
    return SweepGrid(tuple(axes))


@dataclass
class SweepRuns:
    """inputs: without the units. stack: the units. unit: which one is changed and measured, from 1; 0 for all."""

    host: Host
    inputs: SamplerInputs
    stack: SpecStack
    unit: int = 1
    clip: Any = None
    known: dict[tuple[str, str], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unit > len(self.stack):
            raise ValueRangeError(
                f"unit is {self.unit}, but the stack has {len(self.stack)} ControlNets: add a Control Unit, or count "
                "from 1"
            )

    def run(self, grid: SweepGrid, vae: Any, fidelity: Fidelity | None = None) -> SweepResult:
        """Sample all cells. Raises ValueRangeError for a value that is out of range, before the first is sampled."""
        # All of them first: a bad value in the last cell must not cost an hour.
        planned = [self._inputs_of(grid, values) for values in grid.cells]
        cells: list[Cell] = []
        rows = -(-len(planned) // grid.columns)
        for number, (values, inputs) in enumerate(zip(grid.cells, planned, strict=True)):
            halves = self.host.apply_control(inputs.sampler.positive, inputs.sampler.negative, inputs.stack)
            sampler = inputs.sampler._replace(positive=halves[0], negative=halves[1])
            made = self.host.sample(sampler, replace(DEFAULTS, part=(number, len(planned))))
            image = self.host.decode(vae, made["samples"])
            size = (cells[0].picture.shape[1], cells[0].picture.shape[2]) if cells else None
            score = None if fidelity is None else self._measure(image, fidelity)
            cells.append(Cell(values, fit_picture(image, grid.columns, rows, size), score))
        measure = "" if fidelity is None else MEASURES.get(fidelity.kind, "F1")
        images = torch.stack([cell.picture for cell in cells]).movedim(1, -1)
        return SweepResult(draw_sheet(grid, cells, measure), write_table(grid, cells, measure), images)

    def _measure(self, image: Tensor, fidelity: Fidelity) -> float:
        hint = self.stack[max(self.unit, 1) - 1].image
        return mean_score(agreements(self.host, image, hint, fidelity.kind, fidelity.tolerance))

    def _inputs_of(self, grid: SweepGrid, values: Sequence[str]) -> CellInputs:
        inputs = CellInputs(self.inputs, self.stack)
        for axis, text in zip(grid.axes, values, strict=True):
            inputs = self._changed(inputs, axis.name, self._value(axis.name, text))
        return inputs

    def _changed(self, inputs: CellInputs, name: str, value: Any) -> CellInputs:
        sampler, stack = inputs
        if name == "prompt":
            return CellInputs(sampler._replace(positive=value), stack)
        if name in OF_SAMPLER:
            return CellInputs(sampler._replace(settings=replace(sampler.settings, **{name: value})), stack)
        changed = tuple(
            _with(spec, name, value) if self.unit in (0, number) else spec for number, spec in enumerate(stack, 1)
        )
        return CellInputs(sampler, changed)

    def _value(self, name: str, text: str) -> Any:
        """The value of a text; each text is read, encoded or loaded once."""
        key = name, text
        if key not in self.known:
            self.known[key] = self._read(name, text)
        return self.known[key]

    def _read(self, name: str, text: str) -> Any:
        value = read_value(FIELDS[name], text, self.host)
        if name == "prompt":
            return self._encoded(text)
        if name == "control_net":
            return self.host.load_controlnet(net_path(self.host, text))
        return value

    def _encoded(self, prompt: str) -> Conditioning:
        if self.clip is None:
            raise ValueRangeError("the prompt is swept, but no text encoder is linked: link clip from Load Checkpoint")
        return self.host.encode_prompt(self.clip, prompt)


def _with(spec: ControlSpec, name: str, value: Any) -> ControlSpec:
    if name in OF_OPTIONS:
        return replace(spec, options=replace(spec.options, **{OF_OPTIONS[name]: value}))
    return replace(spec, **{name: value})


NUMBERS: Mapping[str, Callable[[str], float]] = MappingProxyType({"INT": int, "FLOAT": float})


def read_value(item: Field, text: str, host: Any) -> Any:
    """The value of a text for an input. Raises ValueRangeError for one that is out of range or no choice."""
    if item.choices is not None:
        choices = list_choices(item.choices, host)
        if text not in choices:
            raise ValueRangeError(f"{item.name} {text[:60]!r} is unknown: choose from {', '.join(choices[:20])}")
        return text
    if item.type not in NUMBERS:
        return text
    assert item.min is not None and item.max is not None
    try:
        value = NUMBERS[item.type](text)
    except ValueError:
        value = None
    # A comparison with NaN is false.
    if value is None or not item.min <= value <= item.max:
        kind = "whole numbers" if item.type == "INT" else "numbers"
        raise ValueRangeError(f"{item.name} {text[:60]!r}: give {kind} from {item.min:g} to {item.max:g}")
    return value


def _example(item: Field) -> str:
    if item.choices is not None:
        return "balanced, prompt" if item.name == "mode" else "names separated by commas"
    return {"INT": "1..4", "FLOAT": "0.2..1.0/5"}.get(item.type, "a red ball | a blue ball")
