"""The base of all node classes: V1 attributes from the fields of a node, and results with text on the node."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from .fields import Field, Output, input_types


class Node:
    """Base class. Subclasses declare INPUTS, HIDDEN, OUTPUTS, CATEGORY and so on, and define `run`.

    The first paragraph of a subclass's docstring is the description that users see.
    host: what the node asks for files and models; set by `bind_nodes` on a subclass, so that one class serves several
    hosts. None before.
    """

    host: ClassVar[Any] = None
    INPUTS: ClassVar[tuple[Field, ...]] = ()
    HIDDEN: ClassVar[tuple[str, ...]] = ()
    OUTPUTS: ClassVar[tuple[Output, ...]] = ()
    FUNCTION: ClassVar[str] = "run"
    CATEGORY: ClassVar[str] = "ControlNet Core"
    DISPLAY_NAME: ClassVar[str] = ""
    DESCRIPTION: ClassVar[str] = ""
    COMPUTES_VALUES: ClassVar[bool] = False
    """Whether the outputs follow at once from plain inputs, so that a check of a workflow may ask for them."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # ComfyUI reads these attributes from the class, so they are set when the class is defined.
        if "__doc__" in vars(cls) and cls.__doc__:
            cls.DESCRIPTION = " ".join(inspect.cleandoc(cls.__doc__).split("\n\n")[0].split())
        if "OUTPUTS" in vars(cls):
            cls.RETURN_TYPES = tuple(output.type for output in cls.OUTPUTS)
            cls.RETURN_NAMES = tuple(output.name for output in cls.OUTPUTS)
            cls.OUTPUT_TOOLTIPS = tuple(output.tooltip for output in cls.OUTPUTS)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The V1 dictionaries; lists of files are read from the host's folders at each call."""
        return input_types(cls.INPUTS, cls.HIDDEN, cls.host)

    @classmethod
    def check_files(cls, **values: Any) -> None:
        """Raise the error of a run for files that it would not find.

        values: all given inputs, checked and converted, and COMPUTED for those that only a run knows. Files that an
        input names directly are among its choices, so this is for those that follow from several inputs.
        """


def with_text(text: str, *outputs: Any, **ui: Any) -> dict[str, Any]:
    """A node's result that shows a text on the node. ui: what else the editor shows, such as images."""
    return {"ui": {"text": [text], **ui}, "result": outputs}
