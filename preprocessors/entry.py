"""What a preprocessor declares: its settings, its weights files and how it is run.

These types import nothing of the package, so that every other file may import them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

from .errors import ParameterError, check_choice
from .limits import MAX_CANVAS_PIXELS

Kind = Literal["int", "float", "bool", "choice", "text"]


@dataclass(frozen=True)
class Parameter:
    """One setting of a preprocessor. minimum, maximum and step are for numbers, choices for a choice."""

    name: str
    kind: Kind
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """Return `value` in this parameter's type. Raises ParameterError for another type or outside the range."""
        if self.kind == "text":
            return str(value)
        if self.kind == "choice":
            check_choice(self.name, value, self.choices)
            return value
        # A text such as "false" would be true.
        if self.kind == "bool":
            if not isinstance(value, (bool, int)):
                raise ParameterError(f"{self.name}={value!r}: choose true or false")
            return bool(value)
        return self._check_number(value)

    def _check_number(self, value: Any) -> float:
        try:
            number = int(value) if self.kind == "int" and float(value).is_integer() else float(value)
        except (TypeError, ValueError):
            raise ParameterError(f"{self.name}={value!r}: expected a number") from None
        if self.kind == "int" and not isinstance(number, int):
            raise ParameterError(f"{self.name}={value!r}: expected a whole number")
        low = float("-inf") if self.minimum is None else self.minimum
        high = float("inf") if self.maximum is None else self.maximum
        # True for NaN as well.
        if not low <= number <= high:
            raise ParameterError(f"{self.name}={value!r}: expected {self.range_text}")
        return number

    @property
    def range_text(self) -> str:
        """The allowed values in words, such as "0 to 255"."""
        if self.kind in ("int", "float"):
            low, high = ("any" if end is None else f"{end:g}" for end in (self.minimum, self.maximum))
            return f"{low} to {high}"
        return {"bool": "true | false", "text": "text"}.get(self.kind, " | ".join(self.choices))


@dataclass(frozen=True)
class Weights:
    """One weights file, or folder, of a network: its name, where users get it, and its licence.

    subfolders: further places below a models folder where it may lie. is_folder: whether it is a folder with a
    config.json, as transformers saves models. when: (parameter, value) with which alone it is needed; None: always.
    """

    file: str
    source: str
    licence: str
    subfolders: tuple[str, ...] = ()
    is_folder: bool = False
    when: tuple[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """One preprocessor. `function` is "module:name" below this package.

    nature: "measurement" of the picture's pixels, "prior" (an assumption, not seen in the picture),
        "conversion" of a given map, "drawing", "random", or "learned" (a network's estimate).
    takes: what the function gets: "bytes" (uint8 0..255), "unit" (float32 0..1), "values" (float32 as given, for
        measured maps) or "labels" (uint8 whose colours must not be mixed).
    scope: "frame" (one picture at a time), "batch" (all frames, for a range over all of them) or "net" (several
        frames at a time, with the library of nets).
    multiple: the function takes only sides that are multiples of this.
    ranged: the function returns nearness of unknown scale; `normalize` says how it becomes a hint.
    posed: the function returns the people of each frame (`pose.Pose`), which are then drawn.
    resample: how a hint is resized, "nearest" for lines and labels, "smooth" for the rest.
    seeded: the function takes `seed`.  threaded: it takes `threads`, the number that it may use.
    masked: the function reads the mask itself. Other hints are set to black outside of the mask.
    largest: pixels at which the function sees a picture, at most: it holds many arrays of that size.
    side_by_side: the picture is a stereo pair, and the hint has the width of one of its halves.
    fallback: a preprocessor without weights, which an error suggests. It is never used instead by itself.
    sample, example: how a help page shows it: what is made of the photo first (a key of `examples.SAMPLES`), and
        parameters that differ from the defaults. `examples.example` makes both.
    """

    name: str
    title: str
    condition: str
    function: str
    summary: str
    parameters: tuple[Parameter, ...] = ()
    polarity: str = "white lines on black"
    palette: str = ""
    weights: tuple[Weights, ...] = ()
    backend: str = "cv2"
    nature: str = "measurement"
    takes: str = "bytes"
    scope: str = "frame"
    resample: Literal["nearest", "smooth"] = "nearest"
    seeded: bool = False
    threaded: bool = False
    masked: bool = False
    largest: int = MAX_CANVAS_PIXELS
    side_by_side: bool = False
    multiple: int = 1
    ranged: bool = False
    posed: bool = False
    fallback: str = ""
    sample: str = "photo"
    example: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def call(self) -> Callable[..., Any]:
        """The function itself. It is imported on first use, since most of them import torch or cv2."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), name)

    def values(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check the given parameters and add the defaults of the others. Raises ParameterError for an unknown one."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                raise ParameterError(f"{self.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
        return {name: parameter.check(given.get(name, parameter.default)) for name, parameter in known.items()}

    def needed_weights(self, values: Mapping[str, Any]) -> tuple[Weights, ...]:
        """The files that a run with these values of all parameters reads."""
        return tuple(w for w in self.weights if w.when is None or values[w.when[0]] == w.when[1])

    def describe(self, **given: Any) -> str:
        """One line for reports, such as "canny (cv2, measurement): low=50, high=200, l2_gradient=False"."""
        settings = ", ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.values(given).items()
        )
        return f"{self.name} ({self.backend}, {self.nature}){': ' + settings if settings else ''}"


def choice(name: str, choices: tuple[str, ...], help: str) -> Parameter:
    """A parameter with a fixed set of values, the first of which is the default."""
    return Parameter(name, "choice", choices[0], help, choices=choices)
