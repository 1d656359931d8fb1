"""Nodes: thin classes that call the engine, bound to the host that they run in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .host import Host

PREFIX = "CNCore_"
"""The start of the IDs of our nodes. Saved workflows contain the IDs, so they are never renamed."""


def own_nodes() -> dict[str, type]:
    """Our node classes by ID, not bound to a host. A node's ID is PREFIX and the class name without "Node"."""
    # Imported here, so that a light import such as nodes.folders does not load torch and all preprocessors.
    from . import (
        auto_strength,
        closed_loop,
        control,
        control_sweep,
        ctrlora,
        finish,
        grid,
        inpaint,
        load,
        look,
        model_patch,
        nets,
        plan,
        pose,
        pose_editor,
        preprocess,
        prompt_edit,
        reference,
        regions,
        sample,
        sensitivity,
        sparsectrl,
        speed,
        tiled_upscale,
        train,
    )

    classes = (
        load.LoadCheckpoint, load.LoadControlNet, load.ExampleImage, sample.EncodePrompt, preprocess.Preprocess,
        *preprocess.family_nodes(), pose.PoseRender, preprocess.PixelPerfect, control.ApplyControlNet,
        control.ControlUnitNode, control.ApplyControlStack, control.BlockWeightsNode, control.StrengthScheduleNode,
        control.ControlOptions, control.MoreHints, plan.ControlPlan, sample.Sample, speed.Accelerate,
        speed.ShortcutsNode, sample.ControlReport, look.ControlFidelity, sensitivity.BlockSensitivity,
        grid.CompareGrid, train.TrainControlNet, nets.SaveControlNet, nets.ConvertControlNet, nets.TransferControlNet,
        model_patch.ModelPatchControlNet, finish.TileColorFix, finish.PasteBack, pose_editor.PoseEditor,
        regions.RegionPrompts, auto_strength.AutoStrength, reference.ReferenceControl,
        tiled_upscale.TiledUpscale, control_sweep.ControlSweep,
        control.ScheduleKeyframe, prompt_edit.PromptEdit, inpaint.InpaintControl, ctrlora.LoadCtrLoRA,
        sparsectrl.LoadSparseCtrl, sparsectrl.SparseFrames, closed_loop.SampleToTarget,
    )  # fmt: skip
    return {PREFIX + cls.__name__.removesuffix("Node"): cls for cls in classes}


def bind_nodes(classes: Mapping[str, type], host: Host) -> dict[str, type]:
    """Subclasses of these node classes that use a host."""
    return {
        # Subclasses, so that the classes themselves stay unbound: one process may have several hosts.
        name: type(cls.__name__, (cls,), {"host": host, "__module__": cls.__module__, "__doc__": cls.__doc__})
        for name, cls in classes.items()
    }


def build_nodes(host: Host) -> dict[str, type]:
    """All nodes that run without ComfyUI: ours, and those of ComfyUI and of packs that common workflows need."""
    from .standalone import native_nodes, pack_nodes

    ours = own_nodes()
    return bind_nodes({**ours, **native_nodes(), **pack_nodes(ours)}, host)
