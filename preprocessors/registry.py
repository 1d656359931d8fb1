"""What there is: one declarative entry per preprocessor, and the one way to run it.

Nothing here imports numpy, torch or cv2; the function of an entry is imported when it first runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from .errors import ParameterError

if TYPE_CHECKING:
    from .image_ops import Array


@dataclass(frozen=True)
class Parameter:
    """One setting of a preprocessor; `kind` is "int", "float", "bool", "choice" or "text"."""

    name: str
    kind: str
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """`value` as this parameter's type; ParameterError if it is not one or lies outside the range."""
        if self.kind == "choice":
            if value not in self.choices:
                raise ParameterError(f"{self.name}={value!r}: choose one of {', '.join(self.choices)}")
            return value
        if self.kind == "text":
            return str(value)
        if self.kind == "bool":
            if not isinstance(value, (bool, int)):
                raise ParameterError(f"{self.name}={value!r}: choose true or false")
            return bool(value)
        try:
            number = int(value) if self.kind == "int" and float(value).is_integer() else float(value)
        except (TypeError, ValueError):
            raise ParameterError(f"{self.name}={value!r}: expected a number") from None
        if self.kind == "int" and not isinstance(number, int):
            raise ParameterError(f"{self.name}={value!r}: expected a whole number")
        low, high = self.minimum, self.maximum
        if number != number or (low is not None and number < low) or (high is not None and number > high):
            raise ParameterError(f"{self.name}={value!r}: expected {self.range_text}")
        return number

    @property
    def range_text(self) -> str:
        """The allowed values in words."""
        if self.kind == "choice":
            return " | ".join(self.choices)
        if self.kind == "bool":
            return "true | false"
        if self.kind == "text":
            return "text"
        low = "any" if self.minimum is None else f"{self.minimum:g}"
        high = "any" if self.maximum is None else f"{self.maximum:g}"
        return f"{low} to {high}"


@dataclass(frozen=True)
class Weights:
    """One weights file of a learned preprocessor: its name, where users get it, and on what terms."""

    file: str
    source: str
    licence: str
    million_parameters: float
    subfolders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One preprocessor. `function` is "module:name" below this package.

    nature: "measurement" of the picture's pixels, "prior" (an assumption, not seen in the picture),
        "conversion" of a map that is given, "drawing", "random", or "learned" (a network's estimate).
    takes: "bytes" (uint8 0..255), "unit" (float32 0..1), "values" (float32 as given, for measured maps) or
        "labels" (uint8 whose colours must not be mixed).
    scope: "frame" (one picture at a time), "batch" (the function sees all frames, for joint ranges) or "net"
        (some frames at a time, with the library of nets).
    multiple: the sides that the function takes are multiples of this.
    ranged: the function gives nearness of unknown scale, which becomes a hint by `normalize`.
    posed: the function gives the people of each frame (`pose.Pose`), which are then drawn.
    resample: how a hint is brought to size, "nearest" for lines and labels, "smooth" for the rest.
    seeded: the function takes `seed`.  threaded: it takes `threads`, how many it may use.
    masked: the function reads the mask itself instead of having the hint cleared outside of it.
    side_by_side: the picture is a stereo pair, and the hint as wide as one of its halves.
    fallback: the one without weights that a user may choose instead; nothing ever takes its place by itself.
    sample, example: what to show it with in a help page: what is made of the photo first (a key of
        `examples.SAMPLES`), and parameters other than the defaults; `examples.example` makes both.
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
    side_by_side: bool = False
    multiple: int = 1
    ranged: bool = False
    posed: bool = False
    fallback: str = ""
    sample: str = "photo"
    example: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def call(self) -> Callable[..., Any]:
        """The function itself, imported on first use."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), name)

    def values(self, given: dict[str, Any]) -> dict[str, Any]:
        """All parameters with defaults filled in and checked; ParameterError names an unknown one."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                raise ParameterError(f"{self.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
        return {name: parameter.check(given.get(name, parameter.default)) for name, parameter in known.items()}

    def describe(self, **given: Any) -> str:
        """One line that says what runs, for reports."""
        settings = ", ".join(f"{name}={_plain(value)}" for name, value in self.values(given).items())
        return f"{self.name} ({self.backend}, {self.nature}){': ' + settings if settings else ''}"

    def process(self, image: Array, **options: Any) -> Array:
        """Run this preprocessor; see `run.process` for the options."""
        from .run import process

        return process(self, image, **options)


def _plain(value: Any) -> str:
    """A number without needless decimals."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def get(name: str) -> Entry:
    """The entry called `name`; ParameterError with the nearest names if there is none."""
    from difflib import get_close_matches

    from .catalog import ENTRIES

    for entry in ENTRIES:
        if entry.name == name:
            return entry
    known = [entry.name for entry in ENTRIES]
    near = get_close_matches(name, known, n=3)
    if near:
        raise ParameterError(f"there is no preprocessor {name!r}; did you mean {' or '.join(near)}?")
    raise ParameterError(f"there is no preprocessor {name!r}; there are {', '.join(known)}")


def names() -> tuple[str, ...]:
    """All names, in the order of the catalogue."""
    from .catalog import ENTRIES

    return tuple(entry.name for entry in ENTRIES)


def process(kind: str, image: Array, **options: Any) -> Array:
    """Run the preprocessor called `kind`; see `run.process`."""
    return get(kind).process(image, **options)
