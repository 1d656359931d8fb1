"""Nodes that make hints: one for all preprocessors, one for each family, and one for the matching resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from .. import preprocessors
from ..controlnet_core.errors import CoreError, MissingFileError, ValueRangeError
from ..preprocessors.entry import Entry
from ..preprocessors.families import FAMILIES, Family
from ..preprocessors.families import Field as Setting
from ..preprocessors.pose import Pose, write_poses
from .computed import COMPUTED
from .fields import Field, Output, choice, image, integer, latent, mask, optional, side, text
from .node import Node, with_text

CATEGORY = "ControlNet Core/preprocess"
MAX_RESOLUTION = 8192
_UNBOUNDED = 1e9
"""Limit of a number without one: the editor's slider needs some."""
_IMAGE = image("image", "The image that the hint is made from.")
_RESOLUTION = side(
    "resolution", 0, 0, MAX_RESOLUTION, tooltip="Shorter side of the hint in pixels; 0 keeps the size of the image. "
    "The size of the image to be generated works best.",
)  # fmt: skip
_MASK = mask("mask", "The hint is black where the mask is black.")
_REPAINT = mask("mask", "White where the image is to be repainted.")
_NORMALIZE = choice(
    "normalize",
    ["frame", "batch", "fixed"],
    "The range of values from black to white. frame: measured in each frame. batch: measured over the whole batch, so "
    "that a video does not flicker. fixed: from near to far. Only for depth.",
    "frame",
)
_SEED = integer(
    "seed", 0, 0, 2**32 - 1, "Seed of the random kinds: the same seed gives the same hint.",
    control_after_generate=False,
)  # fmt: skip
_NATURES = {
    "measurement": "Measures the pixels of the image; needs no files.",
    "conversion": "Converts its input; needs no files.",
    "prior": "An assumption: nothing in the image is measured. Needs no files.",
    "random": "Random, from the seed; needs no files.",
    "learned": "The estimate of a network.",
}
"""One sentence on each nature of a preprocessor."""


class HintNode(Node):
    """Base of the nodes that make a hint from an image and describe what ran."""

    CATEGORY = CATEGORY
    OUTPUTS = (
        Output("IMAGE", "hint", "The hint: link it to Apply ControlNet, or preview it."),
        Output("STRING", "text", "What ran, with settings and sizes."),
    )

    def make(self, entry: Entry, image: Tensor, *, parameters: dict[str, Any], **options: Any) -> dict[str, Any]:
        """-> IMAGE (B, H, W, 3), what ran. Raises ValueRangeError, or MissingFileError for a network's files."""
        with core_errors():
            hint = preprocessors.process(
                entry,
                image,
                library=self.host.library() if entry.weights else None,
                # The hint keeps the size at which it was made: Apply ControlNet resizes it once, to the latent.
                output="detect_size",
                progress=self.host.progress,
                **options,
                **parameters,
            )
            text = report(entry, parameters, image, hint)
        return with_text(text, hint, text)


class Preprocess(HintNode):
    """Makes a hint from an image: edges, lines, scribbles, maps. Choose the kind that the ControlNet was trained on."""

    DISPLAY_NAME = "Preprocess"
    SEARCH_ALIASES = ["canny", "aio preprocessor", "edges", "scribble", "lineart"]
    INPUTS = (
        _IMAGE,
        choice("kind", preprocessors.names(), "The preprocessor to use.", "canny"),
        _RESOLUTION,
        choice(
            "resize",
            ["shortest", "pixel_perfect"],
            "shortest: the shorter side of the hint gets this resolution. pixel_perfect: the size at which one pixel "
            "of the hint is one pixel of a square generated image with this side.",
            "shortest",
        ),
        *optional(
            text(
                "settings",
                "Settings of the kind, such as low=50, high=150 for canny. Empty: the defaults. The text output lists "
                "all settings; the node of each family has them as fields.",
            ),
            _MASK,
            _NORMALIZE,
            _SEED,
        ),
    )

    @classmethod
    def VALIDATE_INPUTS(cls, kind: Any = None, settings: Any = None) -> bool | str:
        """True, or a message about settings that the kind does not have. A linked input is checked when it arrives."""
        # None while the input is linked; ComfyUI calls `run` later with the value.
        if not isinstance(kind, str):
            return True
        try:
            entry = preprocessors.get(kind)
            if isinstance(settings, str):
                entry.values(read_settings(settings))
        except (CoreError, preprocessors.PreprocessorError) as error:
            return str(error)
        return True

    @classmethod
    def check_files(cls, kind: Any = None, settings: Any = "", **others: Any) -> None:
        """Raise MissingFileError for a network of this kind."""
        if isinstance(kind, str) and isinstance(settings, str):
            check_weights(cls.host, kind, read_settings(settings))

    def run(self, image: Tensor, kind: str, resolution: int, resize: str, settings: str = "", **options: Any) -> Any:
        """-> IMAGE (B, H, W, 3), what ran. Raises ValueRangeError for settings that the kind does not have."""
        parameters = read_settings(settings)
        with core_errors():
            entry = preprocessors.get(kind)
            entry.values(parameters)
        return self.make(entry, image, parameters=parameters, resolution=resolution, resize=resize, **options)


class FamilyNode(HintNode):
    """Base of the nodes that offer the preprocessors of one family, with all their settings as fields."""

    family: ClassVar[Family]

    @classmethod
    def check_files(cls, **values: Any) -> None:
        """Raise MissingFileError for a network of this kind."""
        kinds: Sequence[str] = cls.family.kinds
        # Families of one kind have no such input.
        kind = values.get("kind", next(iter(kinds)))
        if kind in kinds:
            check_weights(cls.host, kind, cls.family.parameters(kind, values))

    def run(self, image: Tensor, resolution: int, kind: str = "", mask: Tensor | None = None, **given: Any) -> Any:
        """-> IMAGE (B, H, W, 3), what ran."""
        kind = kind or self.family.kinds[0]
        # Families without these fields use the defaults of `process`.
        options = {name: given[name] for name in ("normalize", "seed") if name in given}
        return self.make(
            preprocessors.get(kind),
            image,
            parameters=self.family.parameters(kind, given),
            resolution=resolution,
            resize="shortest",
            mask=mask,
            **options,
        )


class PoseFamilyNode(FamilyNode):
    """A family that finds people. Returns their keypoints too, in the form that other node packs use."""

    OUTPUTS = (
        *HintNode.OUTPUTS,
        Output(
            "POSE_KEYPOINT",
            "pose_keypoint",
            "The people in each image as keypoints, in pixels of the hint: for Pose Render, or for a pose editor.",
        ),
    )

    def make(self, entry: Entry, image: Tensor, **options: Any) -> dict[str, Any]:
        """-> IMAGE (B, H, W, 3), what ran, POSE_KEYPOINT of B frames."""
        poses: list[Pose] = []
        made = super().make(entry, image, keep_pose=poses.append, **options)
        return {**made, "result": (*made["result"], write_poses(poses))}


@cache
def family_nodes() -> tuple[type, ...]:
    """A node class for each family of preprocessors, named after it."""
    return tuple(_node_class(family) for family in FAMILIES)


def _node_class(family: Family) -> type:
    attributes = {
        "family": family,
        "DISPLAY_NAME": family.title,
        "CATEGORY": f"{CATEGORY}/{family.group}",
        "SEARCH_ALIASES": [*family.aliases, *family.kinds],
        "INPUTS": family_fields(family),
        "__doc__": f"{family.help} {_NATURES[family.entries[0].nature]}" if len(family.kinds) == 1 else family.help,
        "__module__": __name__,
    }
    # One class has one list of outputs, so keypoints exist only where every kind of the family finds people.
    base = PoseFamilyNode if all(entry.posed for entry in family.entries) else FamilyNode
    return type(f"{family.name}Node", (base,), attributes)


def family_fields(family: Family) -> tuple[Field, ...]:
    """The inputs of a family's node: the image, the kind where there are several, and the settings of all kinds."""
    kinds = [choice("kind", family.kinds, describe_kinds(family), family.kinds[0])] if len(family.kinds) > 1 else []
    required = [_IMAGE, *kinds, _RESOLUTION, *([_REPAINT] if family.needs_mask else [])]
    settings = [setting_field(setting, family) for setting in family.fields if setting.name not in family.added]
    settings += [_NORMALIZE] if family.has_range else []
    settings += [_SEED] if family.is_seeded else []
    # The mask stays where it was in saved workflows: behind the settings of the first release.
    settings += [] if family.needs_mask else [_MASK]
    settings += [setting_field(setting, family) for setting in family.fields if setting.name in family.added]
    return (*required, *optional(*settings))


def describe_kinds(family: Family) -> str:
    """What each kind of a family does, its nature, and the files that it needs."""
    return " ".join(f"{entry.name}: {entry.summary[:-1]} ({_nature(entry)})." for entry in family.entries)


def _nature(entry: Entry) -> str:
    if not entry.weights:
        return f"{entry.nature}, no files needed"
    files = [weights.file for weights in entry.weights]
    return f"learned, needs {files[0]}" if len(files) == 1 else f"learned, uses {', '.join(files)}"


def setting_field(setting: Setting, family: Family) -> Field:
    """The input for a setting of a family."""
    parameter = setting.parameter
    everywhere = len(setting.kinds) == len(family.kinds)
    tip = parameter.help if everywhere else f"{parameter.help} For {', '.join(setting.kinds)}."
    types = {"int": "INT", "float": "FLOAT", "bool": "BOOLEAN", "choice": "COMBO", "text": "STRING"}
    field = Field(setting.name, types[parameter.kind], tip, default=parameter.default)
    if parameter.kind == "choice":
        return replace(field, choices=parameter.choices)
    if parameter.kind not in ("int", "float"):
        return field
    kind = int if parameter.kind == "int" else float
    low = -_UNBOUNDED if parameter.minimum is None else parameter.minimum
    high = _UNBOUNDED if parameter.maximum is None else parameter.maximum
    step = parameter.step or (1 if kind is int else 0.01)
    # Without "round" the editor rounds a number to its step, and defaults such as 0.125 would change.
    return replace(field, min=kind(low), max=kind(high), step=kind(step), round=None if kind is int else 0.001)


class PixelPerfect(Node):
    """Computes the resolution of a preprocessor at which one pixel of the hint becomes one pixel of the image to be
    generated.
    """

    DISPLAY_NAME = "Pixel Perfect Resolution"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["resolution", "hint size"]
    INPUTS = (
        image("image", "The image that the preprocessor will read."),
        side("width", 512, 8, tooltip="Width of the image to be generated, in pixels."),
        side("height", 512, 8, tooltip="Height of the image to be generated, in pixels."),
        choice(
            "fit",
            ["crop", "fill"],
            "crop: the hint covers the image and is cropped at the edges, as in Apply ControlNet. fill: the hint lies "
            "inside the image, with a border around it.",
            "crop",
        ),
        *optional(latent("latent", "Takes width and height from this latent instead (8 pixels for each latent cell).")),
    )
    OUTPUTS = (
        Output("INT", "resolution", "Link it to the resolution of a preprocessor."),
        Output("STRING", "text", "How the resolution was computed."),
    )

    def run(self, image: Tensor, width: int, height: int, fit: str, latent: Any = None) -> dict[str, Any]:
        """-> shorter side in pixels, how it was computed."""
        from ..preprocessors.resize import pixel_perfect

        if latent is not None:
            height, width = (8 * cells for cells in latent["samples"].shape[-2:])
        source_height, source_width = image.shape[1:3]
        side = pixel_perfect(source_height, source_width, height, width, fit=fit)
        text = f"{source_width}x{source_height} for {width}x{height}, {fit}: the shorter side is {side}"
        return with_text(text, side, text)


def report(entry: Entry, parameters: dict[str, Any], image: Tensor, hint: Tensor) -> str:
    """What ran, in one line: method, nature, settings, sizes, polarity."""
    count, height, width = hint.shape[:3]
    source = f"{image.shape[2]}x{image.shape[1]}"
    frames = "1 image" if count == 1 else f"{count} images"
    return f"{entry.describe(**parameters)}; {frames}, {source} to {width}x{height}; {entry.polarity}"


def read_settings(text: str) -> dict[str, Any]:
    """ "low=50, high=150" -> {"low": 50, "high": 150}. Raises ValueRangeError.

    A part without "=" belongs to the value before it, so "classes=sky, tree" is one setting.
    """
    parts: list[list[str]] = []
    for part in (piece.strip() for piece in text.replace("\n", ",").split(",")):
        name, equals, value = part.partition("=")
        if equals:
            parts.append([name.strip(), value.strip()])
        elif part and parts:
            parts[-1][1] += f", {part}"
        elif part:
            raise ValueRangeError(f"settings {part!r}: expected name=value, such as low=50, high=150")
    return {name: _value(value) for name, value in parts}


def _value(text: str) -> Any:
    # The preprocessor knows the type of each setting and converts numbers; only words must be told from them.
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def check_weights(host: Any, kind: str, parameters: Mapping[str, Any]) -> None:
    """Raise MissingFileError for a file that the preprocessor `kind` would read and that is missing.

    parameters: those that are given. Of one that only a run knows the default is taken.
    """
    known = {name: value for name, value in parameters.items() if value is not COMPUTED}
    with core_errors():
        entry = preprocessors.get(kind)
        if entry.weights:
            host.library().require(entry, entry.values(known))


@contextmanager
def core_errors() -> Iterator[None]:
    """Raise errors of a preprocessor as the engine's errors, with the same message and the same exit code."""
    try:
        yield
    except preprocessors.PreprocessorError as error:
        kinds = {2: ValueRangeError, 3: MissingFileError}
        raise kinds.get(error.exit_code, CoreError)(str(error)) from error
