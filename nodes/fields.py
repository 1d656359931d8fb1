"""A node's inputs and outputs as data, and ComfyUI's V1 dictionaries generated from them.

A `Field` has what ComfyUI's V3 schema (`comfy_api.latest.io`) asks for too, under the names that it uses there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from ..controlnet_core.diffusion.samplers import SAMPLERS
from ..controlnet_core.diffusion.schedule import SCHEDULERS

Choices: TypeAlias = Sequence[str] | Callable[[Any], Sequence[str]]
"""The choices of a list, or a function that lists them for a host, such as the files in its folders."""

MAX_SIDE = 16384
"""Longest side of a picture in pixels, as in ComfyUI."""
MAX_SEED = 2**64 - 1
V1_NAMES = {
    "dynamic_prompts": "dynamicPrompts",
    "display_mode": "display",
    "widget_type": "widgetType",
    "force_input": "forceInput",
}
"""Options of a field that the V1 dictionaries call otherwise."""
# All options of the V1 dictionaries, in one place: what is not listed here never reaches ComfyUI.
OPTIONS = (
    "default", "min", "max", "step", "round", "display_mode", "control_after_generate", "multiline", "dynamic_prompts",
    "image_upload", "tooltip", "lazy", "advanced", "widget_type", "force_input",
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One input of a node. An option that is None is left to ComfyUI's own default.

    type: "INT", "FLOAT", "BOOLEAN", "STRING" or "COMBO" for a widget, otherwise the type of the socket.
    round: decimals to which the editor rounds a FLOAT, as a step such as 0.001; False not to round.
    lazy: the input is computed only where the node asks for it. advanced: the editor hides it at first.
    widget_type: the name of a widget of ours (`web/`) that the editor shows for this type in place of its own.
    force_input: show a socket also where the editor has a widget for this type.
    """

    name: str
    type: str
    tooltip: str | None = None
    optional: bool = False
    default: Any = None
    choices: Choices | None = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    round: float | bool | None = None
    display_mode: str | None = None
    control_after_generate: bool | None = None
    multiline: bool | None = None
    dynamic_prompts: bool | None = None
    image_upload: bool | None = None
    lazy: bool | None = None
    advanced: bool | None = None
    widget_type: str | None = None
    force_input: bool | None = None

    def v1(self, host: Any) -> tuple[Any, ...]:
        """The entry of a V1 dictionary: (type, options), or (choices, options) for a list."""
        given = {V1_NAMES.get(name, name): getattr(self, name) for name in OPTIONS}
        # ComfyUI has its own defaults for what is missing; a null would replace them.
        options = {name: value for name, value in given.items() if value is not None}
        kind = self.type if self.choices is None else list_choices(self.choices, host)
        return (kind, options) if options else (kind,)


@dataclass(frozen=True)
class Output:
    """One output of a node."""

    type: str
    name: str
    tooltip: str


def list_choices(choices: Choices, host: Any) -> list[str]:
    """The choices of a list as they are now."""
    return list(choices(host) if callable(choices) else choices)


def input_types(fields: Iterable[Field], hidden: Sequence[str], host: Any) -> dict[str, Any]:
    """What a V1 node answers to INPUT_TYPES. hidden: values that ComfyUI fills in, such as "unique_id"."""
    # ComfyUI expects the group "required", even if it is empty.
    groups: dict[str, Any] = {"required": {}}
    for field in fields:
        groups.setdefault("optional" if field.optional else "required", {})[field.name] = field.v1(host)
    if hidden:
        groups["hidden"] = {name: name.upper() for name in hidden}
    return groups


def optional(*fields: Field) -> tuple[Field, ...]:
    """The same fields as inputs that may stay empty."""
    return tuple(replace(field, optional=True) for field in fields)


# ---- sockets


def socket(type: str, name: str, tooltip: str | None = None) -> Field:
    """An input for a link, of any type."""
    return Field(name, type, tooltip)


# ComfyUI links an output to an input only if their types are equal, so these names are ComfyUI's.
model = partial(socket, "MODEL")
clip = partial(socket, "CLIP")
vae = partial(socket, "VAE")
conditioning = partial(socket, "CONDITIONING")
latent = partial(socket, "LATENT")
image = partial(socket, "IMAGE")
mask = partial(socket, "MASK")
control_net = partial(socket, "CONTROL_NET")

# ---- widgets


def integer(name: str, default: int, min: int, max: int, tooltip: str | None = None, **options: Any) -> Field:
    """A whole number from min to max."""
    return Field(name, "INT", tooltip, default=default, min=min, max=max, **options)


def number(name: str, default: float, min: float, max: float, tooltip: str | None = None, **options: Any) -> Field:
    """A number from min to max, in steps of 0.01 where no other step is given."""
    return Field(name, "FLOAT", tooltip, default=default, min=min, max=max, **{"step": 0.01, **options})


def switch(name: str, default: bool, tooltip: str | None = None) -> Field:
    """On or off."""
    return Field(name, "BOOLEAN", tooltip, default=default)


def text(name: str, tooltip: str | None = None, default: str | None = "", **options: Any) -> Field:
    """A line of text, or several lines with multiline=True."""
    return Field(name, "STRING", tooltip, default=default, **options)


def choice(
    name: str, choices: Choices, tooltip: str | None = None, default: str | None = None, **options: Any
) -> Field:
    """One of a list; the first where no default is given."""
    return Field(name, "COMBO", tooltip, default=default, choices=choices, **options)


def files(name: str, kind: str) -> Field:
    """One of the host's files of a kind."""
    return choice(name, lambda host: host.files(kind))


# ---- fields of several nodes


def prompt(name: str, tooltip: str | None = None, default: str | None = None) -> Field:
    """A prompt of several lines, in which the editor fills in wildcards such as {red|blue}."""
    return text(name, tooltip, default, multiline=True, dynamic_prompts=True)


def side(
    name: str, default: int, min: int = 0, max: int = MAX_SIDE, step: int | None = 8, tooltip: str | None = None
) -> Field:
    """The side of a picture in pixels."""
    return integer(name, default, min, max, tooltip, step=step)


def share(name: str, default: float, tooltip: str | None = None, *, step: float = 0.01) -> Field:
    """A number from 0 to 1."""
    return number(name, default, 0.0, 1.0, tooltip, step=step)


def factor(name: str, default: float = 1.0, tooltip: str | None = None) -> Field:
    """A strength or weight from 0 to 10."""
    return number(name, default, 0.0, 10.0, tooltip)


def prompts() -> tuple[Field, Field]:
    """The prompt and the negative prompt, as a node that adds control gets them."""
    return conditioning("positive", "The encoded prompt."), conditioning("negative", "The encoded negative prompt.")


def unit_number() -> Field:
    """Which of the ControlNets on a prompt a node works on."""
    return integer("unit", 1, 1, 64, "Which ControlNet of the prompt; the one applied first is 1.")


def edge_tolerance() -> Field:
    """How far apart the edges of image and hint may be."""
    tooltip = "Two edges up to this many pixels apart count as the same edge."
    return number("tolerance", 2.0, 0.0, 64.0, tooltip, step=0.5)


def window(start: str | None = None, end: str | None = None) -> tuple[Field, Field]:
    """The part of the sampling in which control acts; start and end are the tooltips."""
    return share("start_percent", 0.0, start, step=0.001), share("end_percent", 1.0, end, step=0.001)


def seed(name: str = "seed", tooltip: str | None = None) -> Field:
    """The seed of the noise; the editor can count it up after each run."""
    # ComfyUI's range of seeds: the noise generator takes 64 bits.
    return integer(name, 0, 0, MAX_SEED, tooltip, control_after_generate=True)


def steps(tooltip: str | None = None) -> Field:
    """The number of sampling steps."""
    return integer("steps", 20, 1, 10000, tooltip)


def cfg(name: str = "cfg", default: float = 8.0, tooltip: str | None = None) -> Field:
    """The scale of classifier-free guidance."""
    # Rounded to 0.01, though the buttons step by 0.1: people type values such as 7.25.
    return number(name, default, 0.0, 100.0, tooltip, step=0.1, round=0.01)


def sampler(name: str = "sampler_name", tooltip: str | None = None, default: str | None = None) -> Field:
    """The sampler."""
    return choice(name, list(SAMPLERS), tooltip, default)


def scheduler(tooltip: str | None = None, default: str | None = None) -> Field:
    """The scheduler, which spaces the noise levels."""
    return choice("scheduler", list(SCHEDULERS), tooltip, default)


def denoise(tooltip: str | None = None) -> Field:
    """The fraction of the noise schedule to run."""
    return share("denoise", 1.0, tooltip)
