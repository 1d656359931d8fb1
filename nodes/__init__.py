"""Nodes: thin classes over the engine, bound to the home they run in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .host import Host
    from .standalone.host import StandaloneHost

PREFIX = "CNCore_"
"""What the IDs of our nodes begin with; saved workflows depend on the IDs, so none is ever renamed."""


def own_nodes() -> dict[str, type]:
    """Our node classes by ID, not bound to a host yet."""
    from .accelerate import Accelerate
    from .control import ApplyControlNet, ApplyControlStack, BlockWeightsNode, ControlUnitNode
    from .control_extras import ControlOptions, MoreHints, StrengthScheduleNode
    from .grid import CompareGrid
    from .load import ExampleImage, LoadCheckpoint, LoadControlNet
    from .look import ControlFidelity
    from .nets import ConvertControlNet, SaveControlNet, TransferControlNet
    from .plan import ControlPlan
    from .pose import PoseRender
    from .preprocess import PixelPerfect, Preprocess, family_nodes
    from .prompt import EncodePrompt
    from .sample import ControlReport, Sample
    from .sensitivity import BlockSensitivity
    from .shortcuts import ShortcutsNode
    from .train import TrainControlNet

    return {
        "CNCore_LoadCheckpoint": LoadCheckpoint,
        "CNCore_LoadControlNet": LoadControlNet,
        "CNCore_ExampleImage": ExampleImage,
        "CNCore_EncodePrompt": EncodePrompt,
        "CNCore_Preprocess": Preprocess,
        **{f"{PREFIX}{name}": cls for name, cls in family_nodes().items()},
        "CNCore_PoseRender": PoseRender,
        "CNCore_PixelPerfect": PixelPerfect,
        "CNCore_ApplyControlNet": ApplyControlNet,
        "CNCore_ControlUnit": ControlUnitNode,
        "CNCore_ApplyControlStack": ApplyControlStack,
        "CNCore_BlockWeights": BlockWeightsNode,
        "CNCore_StrengthSchedule": StrengthScheduleNode,
        "CNCore_ControlOptions": ControlOptions,
        "CNCore_MoreHints": MoreHints,
        "CNCore_ControlPlan": ControlPlan,
        "CNCore_Sample": Sample,
        "CNCore_Accelerate": Accelerate,
        "CNCore_Shortcuts": ShortcutsNode,
        "CNCore_ControlReport": ControlReport,
        "CNCore_ControlFidelity": ControlFidelity,
        "CNCore_BlockSensitivity": BlockSensitivity,
        "CNCore_CompareGrid": CompareGrid,
        "CNCore_TrainControlNet": TrainControlNet,
        "CNCore_SaveControlNet": SaveControlNet,
        "CNCore_ConvertControlNet": ConvertControlNet,
        "CNCore_TransferControlNet": TransferControlNet,
    }


def bind(classes: Mapping[str, type], host: Host) -> dict[str, type]:
    """Subclasses of node classes that know their host."""
    return {
        name: type(cls.__name__, (cls,), {"host": host, "__module__": cls.__module__, "__doc__": cls.__doc__})
        for name, cls in classes.items()
    }


def build_nodes(host: StandaloneHost) -> dict[str, type]:
    """All nodes that run without the editor: ours, and the native ones that everyday workflows need."""
    from .standalone import native_nodes

    return bind({**own_nodes(), **native_nodes()}, host)
