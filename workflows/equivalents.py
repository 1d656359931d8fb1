"""Which of our nodes does the work of a node from another pack: data for the error messages.

The keys are IDs that saved workflows often contain; preprocessors map to the condition they make. What nothing here
does is listed too, so that the message says so.
"""

from __future__ import annotations

from collections.abc import Mapping

_PREPROCESS = "CNCore_Preprocess"
_APPLY = "CNCore_ApplyControlNet"
_WEIGHTS = "CNCore_BlockWeights"

PREPROCESSORS: Mapping[str, str] = {
    "AIO_Preprocessor": "",
    "AnimeFace_SemSegPreprocessor": "seg",
    "AnimeLineArtPreprocessor": "lineart",
    "AnyLineArtPreprocessor_aux": "lineart",
    "BAE-NormalMapPreprocessor": "normal",
    "BinaryPreprocessor": "scribble",
    "CannyEdgePreprocessor": "canny",
    "ColorPreprocessor": "color",
    "DSINE-NormalMapPreprocessor": "normal",
    "DWPreprocessor": "openpose",
    "DepthAnythingPreprocessor": "depth",
    "DepthAnythingV2Preprocessor": "depth",
    "DiffusionEdge_Preprocessor": "softedge",
    "FakeScribblePreprocessor": "scribble",
    "HEDPreprocessor": "softedge",
    "ImageIntensityDetector": "recolor",
    "ImageLuminanceDetector": "recolor",
    "InpaintPreprocessor": "inpaint",
    "LeReS-DepthMapPreprocessor": "depth",
    "LineArtPreprocessor": "lineart",
    "LineartStandardPreprocessor": "lineart",
    "M-LSDPreprocessor": "mlsd",
    "Manga2Anime_LineArt_Preprocessor": "lineart",
    "MeshGraphormer+ImpactDetector-DepthMapPreprocessor": "depth",
    "MeshGraphormer-DepthMapPreprocessor": "depth",
    "Metric3D-DepthMapPreprocessor": "depth",
    "Metric3D-NormalMapPreprocessor": "normal",
    "Metric_DepthAnythingV2Preprocessor": "depth",
    "MiDaS-DepthMapPreprocessor": "depth",
    "MiDaS-NormalMapPreprocessor": "normal",
    "OneFormer-ADE20K-SemSegPreprocessor": "seg",
    "OneFormer-COCO-SemSegPreprocessor": "seg",
    "OpenposePreprocessor": "openpose",
    "PiDiNetPreprocessor": "softedge",
    "PyraCannyPreprocessor": "canny",
    "SAMPreprocessor": "seg",
    "ScribblePreprocessor": "scribble",
    "Scribble_PiDiNet_Preprocessor": "scribble",
    "Scribble_XDoG_Preprocessor": "scribble",
    "SemSegPreprocessor": "seg",
    "ShufflePreprocessor": "shuffle",
    "TEEDPreprocessor": "softedge",
    "TTPlanet_TileGF_Preprocessor": "tile",
    "TTPlanet_TileSimple_Preprocessor": "tile",
    "TilePreprocessor": "tile",
    "UniFormer-SemSegPreprocessor": "seg",
    "Zoe-DepthMapPreprocessor": "depth",
    "Zoe_DepthAnythingPreprocessor": "depth",
}

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
"""What makes hints, or looks at them, as nothing here does."""

VIRTUAL: Mapping[str, str] = {
    "Anything Everywhere": "connect the inputs that it feeds with plain links",
    "Fast Groups Bypasser (rgthree)": "remove it: it only acts in the editor",
    "Fast Groups Muter (rgthree)": "remove it: it only acts in the editor",
    "GetNode": "replace the Set/Get pair with a plain link",
    "SetNode": "replace the Set/Get pair with a plain link",
}


def equivalent(class_type: str) -> tuple[str, str] | None:
    """(our class, setting in words) for a node of another pack, None when the table has none."""
    if class_type in PREPROCESSORS:
        condition = PREPROCESSORS[class_type]
        return _PREPROCESS, f"for {condition} hints" if condition else ""
    return OTHERS.get(class_type)
