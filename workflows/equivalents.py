"""Nodes of other packs, and which of our nodes does their work: data for error messages.

The keys are ids that saved workflows often contain.
"""

from __future__ import annotations

from collections.abc import Mapping

_PREPROCESS = "CNCore_Preprocess"

_BY_CONDITION: Mapping[str, str] = {
    "": "AIO_Preprocessor",
    "seg": (
        "AnimeFace_SemSegPreprocessor OneFormer-ADE20K-SemSegPreprocessor OneFormer-COCO-SemSegPreprocessor "
        "SAMPreprocessor SemSegPreprocessor UniFormer-SemSegPreprocessor"
    ),
    "lineart": (
        "AnimeLineArtPreprocessor AnyLineArtPreprocessor_aux LineArtPreprocessor LineartStandardPreprocessor "
        "Manga2Anime_LineArt_Preprocessor"
    ),
    "normal": (
        "BAE-NormalMapPreprocessor DSINE-NormalMapPreprocessor Metric3D-NormalMapPreprocessor "
        "MiDaS-NormalMapPreprocessor"
    ),
    "scribble": (
        "BinaryPreprocessor FakeScribblePreprocessor ScribblePreprocessor Scribble_PiDiNet_Preprocessor "
        "Scribble_XDoG_Preprocessor"
    ),
    "canny": "CannyEdgePreprocessor PyraCannyPreprocessor",
    "color": "ColorPreprocessor",
    "openpose": "DWPreprocessor OpenposePreprocessor",
    "depth": (
        "DepthAnythingPreprocessor DepthAnythingV2Preprocessor LeReS-DepthMapPreprocessor "
        "MeshGraphormer+ImpactDetector-DepthMapPreprocessor MeshGraphormer-DepthMapPreprocessor "
        "Metric3D-DepthMapPreprocessor Metric_DepthAnythingV2Preprocessor MiDaS-DepthMapPreprocessor "
        "Zoe-DepthMapPreprocessor Zoe_DepthAnythingPreprocessor"
    ),
    "softedge": "DiffusionEdge_Preprocessor HEDPreprocessor PiDiNetPreprocessor TEEDPreprocessor",
    "recolor": "ImageIntensityDetector ImageLuminanceDetector",
    "inpaint": "InpaintPreprocessor",
    "mlsd": "M-LSDPreprocessor",
    "shuffle": "ShufflePreprocessor",
    "tile": "TTPlanet_TileGF_Preprocessor TTPlanet_TileSimple_Preprocessor TilePreprocessor",
}
PREPROCESSORS: Mapping[str, str] = {
    name: condition for condition, names in _BY_CONDITION.items() for name in names.split()
}
"""Preprocessor nodes, and the condition that they make; empty for any condition."""

_BY_NODE: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("CNCore_ApplyControlNet", ""): (
        "ACN_AdvancedControlNetApply", "ACN_AdvancedControlNetApply_v2", "ACN_AdvancedControlNetApplySingle",
    ),
    ("CNCore_BlockWeights", ""): (
        "ACN_CustomControlNetWeightsFlux", "CustomControlNetWeights", "ScaledSoftControlNetWeights",
        "SoftControlNetWeights",
    ),
    ("CNCore_LoadControlNet", ""): ("ControlNetLoaderAdvanced", "DiffControlNetLoaderAdvanced"),
    ("CNCore_ControlUnit", "one for each net"): ("CR Multi-ControlNet Stack", "Control Net Stacker"),
    ("CNCore_ApplyControlStack", ""): ("CR Apply Multi-ControlNet",),
    (_PREPROCESS, ""): ("ControlNetPreprocessorSelector",),
    (_PREPROCESS, "one for each hint"): ("ExecuteAllControlNetPreprocessors",),
    ("CNCore_LoadCheckpoint", "with CNCore_EncodePrompt"): ("Efficient Loader",),
    ("CNCore_Sample", ""): ("KSampler (Efficient)",),
    ("CNCore_ControlOptions", "hint_fit"): ("HintImageEnchance",),
    ("CNCore_PixelPerfect", ""): (
        "ImageGenResolutionFromImage", "ImageGenResolutionFromLatent", "PixelPerfectResolution",
    ),
    ("CNCore_PoseRender", ""): ("RenderPeopleKps",),
    ("CNCore_StrengthSchedule", ""): ("TimestepKeyframe",),
}  # fmt: skip
OTHERS: Mapping[str, tuple[str, str]] = {name: ours for ours, names in _BY_NODE.items() for name in names}
"""Further nodes -> (our node, its setting in words)."""

WITHOUT: Mapping[str, str] = {
    "AnimalPosePreprocessor": "poses of animals",
    "ControlNetAuxSimpleAddText": "text on pictures",
    "DensePosePreprocessor": "DensePose hints",
    "FacialPartColoringFromPoseKps": "coloured parts of faces",
    "MaskOptFlow": "optical flow",
    "MediaPipe-FaceMeshPreprocessor": "face meshes",
    "RenderAnimalKps": "poses of animals",
    "SavePoseKpsAsJsonFile": "files of keypoints",
    "Unimatch_OptFlowPreprocessor": "optical flow",
    "UpperBodyTrackingFromPoseKps": "tracking of poses",
}
"""Nodes for hints that have no equivalent here, and what they make."""

EDITOR_NODES: Mapping[str, str] = {
    "Anything Everywhere": "connect the inputs that it feeds with plain links",
}
"""Nodes that only act in the editor, and what to do instead."""


# These tables are looked up by id only: other packs are never imported or run here.


def equivalent(class_type: str) -> tuple[str, str] | None:
    """Return (our class, its setting in words) for a node of another pack, None if there is no equivalent."""
    if class_type in PREPROCESSORS:
        condition = PREPROCESSORS[class_type]
        return _PREPROCESS, f"for {condition} hints" if condition else ""
    return OTHERS.get(class_type)
