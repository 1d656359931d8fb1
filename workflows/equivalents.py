"""Nodes of other packs, and which of our nodes does their work: data for error messages.

The keys are ids that saved workflows often contain.
"""

from __future__ import annotations

from collections.abc import Mapping

_PREPROCESS = "CNCore_Preprocess"
_APPLY = "CNCore_ApplyControlNet"
_WEIGHTS = "CNCore_BlockWeights"

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

OTHERS: Mapping[str, tuple[str, str]] = {
    "ACN_AdvancedControlNetApply": (_APPLY, ""),
    "ACN_AdvancedControlNetApply_v2": (_APPLY, ""),
    "ACN_AdvancedControlNetApplySingle": (_APPLY, ""),
    "ACN_CustomControlNetWeightsFlux": (_WEIGHTS, ""),
    "ControlNetLoaderAdvanced": ("CNCore_LoadControlNet", ""),
    "ControlNetPreprocessorSelector": (_PREPROCESS, ""),
    "CR Apply Multi-ControlNet": ("CNCore_ApplyControlStack", ""),
    "CR Multi-ControlNet Stack": ("CNCore_ControlUnit", "one for each net"),
    "Control Net Stacker": ("CNCore_ControlUnit", "one for each net"),
    "CustomControlNetWeights": (_WEIGHTS, ""),
    "DiffControlNetLoaderAdvanced": ("CNCore_LoadControlNet", ""),
    "Efficient Loader": ("CNCore_LoadCheckpoint", "with CNCore_EncodePrompt"),
    "KSampler (Efficient)": ("CNCore_Sample", ""),
    "ExecuteAllControlNetPreprocessors": (_PREPROCESS, "one for each hint"),
    "HintImageEnchance": ("CNCore_ControlOptions", "hint_fit"),
    "ImageGenResolutionFromImage": ("CNCore_PixelPerfect", ""),
    "ImageGenResolutionFromLatent": ("CNCore_PixelPerfect", ""),
    "PixelPerfectResolution": ("CNCore_PixelPerfect", ""),
    "RenderPeopleKps": ("CNCore_PoseRender", ""),
    "ScaledSoftControlNetWeights": (_WEIGHTS, ""),
    "SoftControlNetWeights": (_WEIGHTS, ""),
    "TimestepKeyframe": ("CNCore_StrengthSchedule", ""),
}

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


def equivalent(class_type: str) -> tuple[str, str] | None:
    """Return (our class, its setting in words) for a node of another pack, None if there is no equivalent."""
    if class_type in PREPROCESSORS:
        condition = PREPROCESSORS[class_type]
        return _PREPROCESS, f"for {condition} hints" if condition else ""
    return OTHERS.get(class_type)
