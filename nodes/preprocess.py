"""Hints from pictures: one node for all preprocessors, one for each family, and one for the right size."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from .. import preprocessors
from ..controlnet_core.errors import CoreError, MissingFileError, ValueRangeError
from ..preprocessors.families import FAMILIES, Family, Field
from ..preprocessors.pose import Pose, write_poses
from ..preprocessors.registry import Entry, Parameter
from .host import Node

_UNBOUNDED = 1e9
_RESOLUTION = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 8192,
        "step": 8,
        "tooltip": "Shortest side of the hint in pixels; 0 keeps the picture's own size. "
        "Best is the size of the picture to be made.",
    },
)
_NORMALIZE = (
    ["frame", "batch", "fixed"],
    {
        "default": "frame",
        "tooltip": "Where the range from black to white is measured: in each frame, over the whole batch (a video does "
        "not flicker), or fixed by near and far. For depth only.",
    },
)
_SEED = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 0xFFFFFFFF,
        "control_after_generate": False,
        "tooltip": "What is random follows from it: the same seed, the same hint. For random kinds only.",
    },
)
_NATURES = {
    "measurement": "It measures the picture's own pixels and needs no files.",
    "conversion": "It converts what it is given and needs no files.",
    "prior": "It is an assumption, nothing in the picture is measured; it needs no files.",
    "random": "It is random, by the seed, and needs no files.",
    "learned": "It is a network's estimate.",
}
_MASK = ("MASK", {"tooltip": "The hint stays black where the mask is black."})
_REPAINT = ("MASK", {"tooltip": "White where the picture is to be repainted."})


class HintNode(Node):
    """Base of the nodes that make a hint of a picture and say what they did."""

    CATEGORY = "ControlNet Core/preprocess"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("hint", "text")
    OUTPUT_TOOLTIPS = (
        "The hint: link it to Apply ControlNet, or preview it.",
        "What ran, with its settings and sizes.",
    )

    def make(self, entry: Entry, image: Tensor, *, parameters: dict[str, Any], **options: Any) -> dict[str, Any]:
        """-> IMAGE (B, H, W, 3), what ran. Raises ValueRangeError, or MissingFileError for weights."""
        try:
            hint = entry.process(
                image,
                library=self.host.library() if entry.weights else None,
                output="detect_size",
                progress=self.host.progress,
                **options,
                **parameters,
            )
            text = report(entry, parameters, image, hint)
        except preprocessors.PreprocessorError as error:
            raise as_core_error(error) from error
        return {"ui": {"text": [text]}, "result": (hint, text)}


class Preprocess(HintNode):
    """A picture in, a hint out."""

    DISPLAY_NAME = "Preprocess"
    DESCRIPTION = (
        "Makes the hint that a ControlNet was trained to read from a picture: edges, lines, scribbles, maps. "
        "Choose the kind that belongs to your net."
    )
    SEARCH_ALIASES = ["canny", "aio preprocessor", "edges", "scribble", "lineart"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The picture to follow."}),
                "kind": (
                    list(preprocessors.names()),
                    {"default": "canny", "tooltip": "What is looked for in the picture."},
                ),
                "resolution": _RESOLUTION,
                "resize": (
                    ["shortest", "pixel_perfect"],
                    {
                        "default": "shortest",
                        "tooltip": "shortest: the shortest side becomes the resolution. pixel_perfect: as large as "
                        "a square picture of that side needs, so that one hint pixel is one picture pixel.",
                    },
                ),
            },
            "optional": {
                "settings": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Settings of the kind, such as low=50, high=150 for canny; empty means defaults. "
                        "The text output lists them all; each family's own node has them as fields.",
                    },
                ),
                "mask": _MASK,
                "normalize": _NORMALIZE,
                "seed": _SEED,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, kind: Any = None, settings: Any = None) -> bool | str:
        """Settings that the kind does not have are told before anything runs; linked ones when they arrive."""
        if not isinstance(kind, str):
            return True
        try:
            entry = preprocessors.get(kind)
            if isinstance(settings, str):
                entry.values(read_settings(settings))
        except (CoreError, preprocessors.PreprocessorError) as error:
            return str(error)
        return True

    def run(self, image: Tensor, kind: str, resolution: int, resize: str, settings: str = "", **options: Any) -> Any:
        """-> IMAGE (B, H, W, 3), what ran. Raises ValueRangeError for settings that the kind does not have."""
        parameters = read_settings(settings)
        try:
            entry = preprocessors.get(kind)
            entry.values(parameters)
        except preprocessors.PreprocessorError as error:
            raise as_core_error(error) from error
        return self.make(entry, image, parameters=parameters, resolution=resolution, resize=resize, **options)


class FamilyNode(HintNode):
    """Base of the nodes for one family each; `family` says what it offers."""

    family: ClassVar[Family]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        family = cls.family
        required: dict[str, Any] = {"image": ("IMAGE", {"tooltip": "The picture to follow."})}
        if len(family.kinds) > 1:
            required["kind"] = (list(family.kinds), {"default": family.kinds[0], "tooltip": kinds_tip(family)})
        required["resolution"] = _RESOLUTION
        optional: dict[str, Any] = {field.name: widget(field, family) for field in family.fields}
        if family.has_range:
            optional["normalize"] = _NORMALIZE
        if family.is_seeded:
            optional["seed"] = _SEED
        if family.needs_mask:
            required["mask"] = _REPAINT
        else:
            optional["mask"] = _MASK
        return {"required": required, "optional": optional}

    def run(self, image: Tensor, resolution: int, kind: str = "", mask: Tensor | None = None, **given: Any) -> Any:
        """-> IMAGE (B, H, W, 3), what ran."""
        kind = kind or self.family.kinds[0]
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
    """A family that finds people: the keypoints go out beside the drawn hint, as the nodes of other packs give them."""

    RETURN_TYPES = (*HintNode.RETURN_TYPES, "POSE_KEYPOINT")
    RETURN_NAMES = (*HintNode.RETURN_NAMES, "pose_keypoint")
    OUTPUT_TOOLTIPS = (
        *HintNode.OUTPUT_TOOLTIPS,
        "The people of every picture as keypoints in pixels of the hint: for Pose Render, or a pose editor.",
    )

    def make(self, entry: Entry, image: Tensor, **options: Any) -> dict[str, Any]:
        """-> IMAGE (B, H, W, 3), what ran, POSE_KEYPOINT of B frames."""
        poses: list[Pose] = []
        made = super().make(entry, image, keep_pose=poses.append, **options)
        return {**made, "result": (*made["result"], write_poses(poses))}


def family_nodes() -> dict[str, type]:
    """A node class for each family of the registry, by the name of the family."""
    return {family.name: _node_class(family) for family in FAMILIES}


def _node_class(family: Family) -> type:
    face = {
        "family": family,
        "DISPLAY_NAME": family.title,
        "CATEGORY": f"{HintNode.CATEGORY}/{family.group}",
        "DESCRIPTION": f"{family.help} {_NATURES[family.entries[0].nature]}" if len(family.kinds) == 1 else family.help,
        "SEARCH_ALIASES": [*family.aliases, *family.kinds],
        "__doc__": family.help,
        "__module__": __name__,
    }
    base = PoseFamilyNode if all(entry.posed for entry in family.entries) else FamilyNode
    return type(f"{family.name}Node", (base,), face)


def kinds_tip(family: Family) -> str:
    """What each kind of a family does, what it is, and which files it needs."""
    return " ".join(f"{entry.name}: {entry.summary[:-1]} ({_nature(entry)})." for entry in family.entries)


def _nature(entry: Entry) -> str:
    if not entry.weights:
        return f"{entry.nature}, no files needed"
    files = " + ".join(weights.file for weights in entry.weights)
    return f"learned, needs {files}" if len(entry.weights) == 1 else f"learned, by choice needs {files}"


def widget(field: Field, family: Family) -> tuple[Any, dict[str, Any]]:
    """The field of the editor for a setting."""
    parameter = field.parameter
    everywhere = len(field.kinds) == len(family.kinds)
    tip = parameter.help if everywhere else f"{parameter.help} For {', '.join(field.kinds)}."
    options: dict[str, Any] = {"default": parameter.default, "tooltip": tip}
    if parameter.kind == "choice":
        return list(parameter.choices), options
    if parameter.kind in ("int", "float"):
        options |= _range(parameter)
    return {"int": "INT", "float": "FLOAT", "bool": "BOOLEAN", "text": "STRING"}[parameter.kind], options


def _range(parameter: Parameter) -> dict[str, Any]:
    number = int if parameter.kind == "int" else float
    low = -_UNBOUNDED if parameter.minimum is None else parameter.minimum
    high = _UNBOUNDED if parameter.maximum is None else parameter.maximum
    step = parameter.step or (1 if parameter.kind == "int" else 0.01)
    limits = {"min": number(low), "max": number(high), "step": number(step)}
    return limits if parameter.kind == "int" else {**limits, "round": 0.001}  # else numbers snap to the step


class PixelPerfect(Node):
    """The resolution at which a hint fits the picture to be made."""

    DISPLAY_NAME = "Pixel Perfect Resolution"
    CATEGORY = "ControlNet Core/preprocess"
    DESCRIPTION = (
        "The resolution for a preprocessor at which one pixel of the hint becomes one pixel of the picture to be made."
    )
    SEARCH_ALIASES = ["resolution", "hint size"]
    RETURN_TYPES = ("INT", "STRING")
    RETURN_NAMES = ("resolution", "text")
    OUTPUT_TOOLTIPS = ("Link it to the resolution of a preprocessor.", "How it came about.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 8, "max": 16384, "step": 8}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The picture that the preprocessor will read."}),
                "width": ("INT", {**side, "tooltip": "Width of the picture to be made."}),
                "height": ("INT", {**side, "tooltip": "Height of the picture to be made."}),
                "fit": (
                    ["crop", "fill"],
                    {
                        "default": "crop",
                        "tooltip": "crop: the hint covers the picture and is cut at its edges, as Apply ControlNet "
                        "does. fill: the hint lies inside the picture, with borders around it.",
                    },
                ),
            },
            "optional": {
                "latent": ("LATENT", {"tooltip": "Takes width and height from this latent of 8 pixels a cell instead."})
            },
        }

    def run(self, image: Tensor, width: int, height: int, fit: str, latent: Any = None) -> dict[str, Any]:
        """-> shortest side in pixels, how it came about."""
        from ..preprocessors.resize import pixel_perfect

        if latent is not None:
            height, width = (8 * cells for cells in latent["samples"].shape[-2:])
        source_height, source_width = image.shape[1:3]
        side = pixel_perfect(source_height, source_width, height, width, fit=fit)
        text = f"{source_width}x{source_height} for {width}x{height} by {fit}: the shortest side is {side}"
        return {"ui": {"text": [text]}, "result": (side, text)}


def report(entry: Entry, parameters: dict[str, Any], image: Tensor, hint: Tensor) -> str:
    """What ran, in one line: method, what it is, settings, sizes, polarity."""
    count, height, width = hint.shape[:3]
    source = f"{image.shape[2]}x{image.shape[1]}"
    frames = "1 picture" if count == 1 else f"{count} pictures"
    return f"{entry.describe(**parameters)}; {frames}, {source} to {width}x{height}; {entry.polarity}"


def read_settings(text: str) -> dict[str, Any]:
    """ "low=50, high=150" -> {"low": 50, "high": 150}; a part without "=" goes on with the value before it, so that
    "classes=sky, tree" is one setting. Raises ValueRangeError.
    """
    parts: list[list[str]] = []
    for part in (piece.strip() for piece in text.replace("\n", ",").split(",")):
        name, equals, value = part.partition("=")
        if equals:
            parts.append([name.strip(), value.strip()])
        elif part and parts:
            parts[-1][1] += f", {part}"
        elif part:
            raise ValueRangeError(f"settings {part!r}: expected name=value, for instance low=50, high=150")
    return {name: _value(value) for name, value in parts}


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def as_core_error(error: preprocessors.PreprocessorError) -> CoreError:
    """The same message as an error of the engine, so that it ends in the same exit code."""
    kinds = {2: ValueRangeError, 3: MissingFileError}
    return kinds.get(error.exit_code, CoreError)(str(error))
