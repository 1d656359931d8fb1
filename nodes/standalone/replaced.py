"""Nodes of other packs that run under their own IDs without ComfyUI, by nodes of ours.

A run says which node of ours did the work, since its network or its defaults may differ. Inputs that have no equivalent
are refused where they are linked, and ignored where they are widgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ...controlnet_core.errors import UnfitError
from ..fields import Field
from ..node import Node
from ..replacements import ADVANCED, PREPROCESSORS, STAND_INS, Replacement

DEFAULTS: Mapping[str, Any] = {
    "resolution": 512, "low_threshold": 100, "high_threshold": 200, "guassian_sigma": 6.0, "intensity_threshold": 8,
    "score_threshold": 0.1, "dist_threshold": 0.1, "bin_threshold": 100, "gamma_correction": 1.0, "strength": 1.0,
    "start_percent": 0.0, "end_percent": 1.0,
}  # fmt: skip
"""Defaults of those packs, for values that a workflow does not have."""
OPTIONAL = frozenset({"mask", "mask_optional", "model", *DEFAULTS})
REFUSED = (
    "timestep_kf", "timestep_keyframe", "latent_kf_override", "weights_override", "control_apply_ACN", "latent_keyframe"
)  # fmt: skip
"""Inputs of Advanced-ControlNet that change the control, and that ours do not have."""
ANY_WIDGET = ("*", {"widgetType": "STRING"})
"""A widget whose value is not used, of whatever type it is."""
BY_NAME: Mapping[str, Replacement] = {one.old: one for one in (*PREPROCESSORS, *STAND_INS)}


class ReplacedNode(Node):
    """Base of the nodes that are run by one of ours."""

    CATEGORY = "ControlNet Core/other packs"
    replacement: ClassVar[Replacement]
    ours: ClassVar[Any]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The other node's inputs: those that ours takes have our types, the other widgets any."""
        fields = {field.name: field for field in cls.ours.INPUTS}
        back = {old: fields[new] for new, old in cls.replacement.moved.items()}
        groups: dict[str, Any] = {"required": {}, "optional": {}}
        # Sockets first: the values of widgets are saved in the order of the table.
        for name in [*(n for n in back if n not in cls.replacement.widgets), *cls.replacement.widgets]:
            entry = cls._entry(name, back.get(name))
            is_optional = name in OPTIONAL or name not in back or back[name].optional
            groups["optional" if is_optional else "required"][name] = entry
        groups["optional"].update({name: ("*",) for name in REFUSED if cls.replacement in ADVANCED})
        groups["hidden"] = {"unique_id": "UNIQUE_ID"}
        return groups

    @classmethod
    def _entry(cls, name: str, field: Field | None) -> tuple[Any, ...]:
        if field is None:
            return ANY_WIDGET
        kind, *options = field.v1(cls.host)
        default = {"default": DEFAULTS[name]} if name in DEFAULTS else {}
        return (kind, {**(options[0] if options else {}), **default})

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Mapping[str, str]) -> bool | str:
        """True, or a message about an input that ours does not have."""
        linked = [name for name in REFUSED if name in input_types and cls.replacement in ADVANCED]
        return f"input {linked[0]} has no equivalent without its pack: run it with --comfyui" if linked else True

    @classmethod
    def check_files(cls, **values: Any) -> None:
        """Raise the error of our node for files that it would not find."""
        check_replacement(cls.host, cls.replacement, cls.ours, values)

    def run(self, unique_id: str = "", **given: Any) -> Any:
        """-> the outputs of our node, in the other one's order."""
        refused = [name for name in REFUSED if given.get(name) is not None]
        if refused:
            raise UnfitError(f"input {refused[0]} has no equivalent without its pack: run it with --comfyui")
        return run_replacement(self.host, self.replacement, self.ours, unique_id, given)


def run_replacement(host: Any, one: Replacement, ours: Any, node: str, given: Mapping[str, Any]) -> Any:
    """Run our node for the inputs of the other one. node: its id in the workflow."""
    values = _rename_inputs(one, given)
    kind = f" {one.fixed['kind']}" if "kind" in one.fixed else ""
    host.on_note(f"node {node} ({one.old}) ran as {ours.DISPLAY_NAME}{kind}: its result may differ a little")
    bound = type(ours.__name__, (ours,), {"host": host})
    made = bound().run(**values)
    row = made["result"] if isinstance(made, dict) else made
    result = tuple(row[index] for index in one.outputs)
    return {**made, "result": result} if isinstance(made, dict) else result


def check_replacement(host: Any, one: Replacement, ours: Any, given: Mapping[str, Any]) -> None:
    """Raise the error of our node for files that it would not find. given: known inputs of the other one."""
    type(ours.__name__, (ours,), {"host": host}).check_files(**_rename_inputs(one, given))


def _rename_inputs(one: Replacement, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of our node for those of the other one."""
    return {**dict(one.fixed), **{new: given[old] for new, old in one.moved.items() if old in given}}


class AioPreprocessorNode(Node):
    """Makes a hint by the preprocessor that it names, as the node of that name does."""

    CATEGORY = ReplacedNode.CATEGORY
    RETURN_TYPES = ("IMAGE",)
    ours: ClassVar[Mapping[str, type]]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """An image, the name of a preprocessor, the resolution."""
        names = ["none", *sorted(BY_NAME)]
        return {
            "required": {"image": ("IMAGE",)},
            "optional": {
                "preprocessor": (names, {"default": "none"}),
                "resolution": ("INT", {"default": 512, "min": 64, "max": 16384, "step": 64}),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def check_files(cls, preprocessor: Any = "none", **values: Any) -> None:
        """Raise the error of our node for files that it would not find."""
        if preprocessor in BY_NAME:
            one = BY_NAME[preprocessor]
            check_replacement(cls.host, one, cls.ours[one.new], _defaults(one))

    def run(self, image: Tensor, preprocessor: str = "none", resolution: int = 512, unique_id: str = "") -> Any:
        """-> IMAGE."""
        if preprocessor == "none":
            return (image,)
        one = BY_NAME[preprocessor]
        given = {**_defaults(one), "image": image, "resolution": resolution}
        made = run_replacement(self.host, one, self.ours[one.new], unique_id, given)
        return {**made, "result": made["result"][:1]}


def _defaults(one: Replacement) -> dict[str, Any]:
    return {name: DEFAULTS[name] for name in one.widgets if name in DEFAULTS}


def replaced_nodes(ours: Mapping[str, type]) -> dict[str, type]:
    """Node classes by the IDs of other packs, not bound to a host. ours: our nodes by ID."""
    made: dict[str, type] = {}
    for one in (*PREPROCESSORS, *STAND_INS, *ADVANCED):
        cls: Any = ours[one.new]
        made[one.old] = type(
            f"{one.new}Replacement",
            (ReplacedNode,),
            {
                "replacement": one,
                "ours": cls,
                "RETURN_TYPES": tuple(cls.RETURN_TYPES[index] for index in one.outputs),
                "RETURN_NAMES": tuple(cls.RETURN_NAMES[index] for index in one.outputs),
                "__doc__": f"Runs as {cls.DISPLAY_NAME} of ControlNet Core.",
                "__module__": __name__,
            },
        )
    attributes = {"ours": ours, "__doc__": AioPreprocessorNode.__doc__, "__module__": __name__}
    return {**made, "AIO_Preprocessor": type("AioPreprocessor", (AioPreprocessorNode,), attributes)}
