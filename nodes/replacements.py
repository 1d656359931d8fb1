"""Nodes of other packs that ours replace, input by input: data.

ComfyUI is offered the table where those packs are not installed (`nodes/comfyui/replacements.py`); without ComfyUI the
nodes run under their own IDs (`nodes/standalone/replaced.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE = {"image": "image", "resolution": "resolution"}
UNIT = {
    name: name for name in ("positive", "negative", "control_net", "image", "strength", "start_percent", "end_percent")
}


@dataclass(frozen=True)
class Replacement:
    """One node of another pack, and ours.

    widgets: the other node's widgets in their order, by which the editor saves their values. moved: our input -> the
    other node's. fixed: our input -> value. outputs: for each output of the other node the index of ours.
    """

    old: str
    new: str
    widgets: tuple[str, ...]
    moved: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[int, ...] = (0,)

    def mapping(self) -> list[dict[str, Any]]:
        """In ComfyUI's form."""
        moved = [{"new_id": new, "old_id": old} for new, old in self.moved.items()]
        return [*moved, *({"new_id": name, "set_value": value} for name, value in self.fixed.items())]


def hint(old: str, new: str, *widgets: str, moved: Mapping[str, str] | None = None, **fixed: Any) -> Replacement:
    """A preprocessor. widgets: without the resolution, which is the last one."""
    return Replacement(old, f"CNCore_{new}", (*widgets, "resolution"), {**IMAGE, **(moved or {})}, fixed)


def pose(old: str, kind: str, *widgets: str) -> Replacement:
    """A preprocessor with keypoints in its second output, which is our third."""
    return Replacement(old, "CNCore_Pose", widgets, IMAGE, {"kind": kind, "hands": True, "face": True}, (0, 2))


PREPROCESSORS = (
    hint("CannyEdgePreprocessor", "Canny", "low_threshold", "high_threshold", moved={
        "low": "low_threshold", "high": "high_threshold"}),
    hint("HEDPreprocessor", "SoftEdge", "safe", kind="soft_edge_hed", safe=True),
    hint("PiDiNetPreprocessor", "SoftEdge", "safe", kind="soft_edge_pidinet", safe=True),
    hint("TEEDPreprocessor", "SoftEdge", "safe_steps", kind="soft_edge_teed"),
    hint("FakeScribblePreprocessor", "Scribble", "safe", kind="scribble_hed"),
    hint("Scribble_PiDiNet_Preprocessor", "Scribble", "safe", kind="scribble_pidinet"),
    hint("Scribble_XDoG_Preprocessor", "Scribble", "threshold", moved={"threshold": "threshold"}, kind="scribble"),
    hint("ScribblePreprocessor", "Scribble", kind="scribble_drawing"),
    hint("BinaryPreprocessor", "Threshold", "bin_threshold", moved={"threshold": "bin_threshold"}, kind="binary"),
    hint("LineArtPreprocessor", "LineArt", "coarse", kind="lineart_realistic"),
    hint("AnimeLineArtPreprocessor", "LineArt", kind="lineart_anime"),
    hint("Manga2Anime_LineArt_Preprocessor", "LineArt", kind="lineart_manga"),
    hint("LineartStandardPreprocessor", "LineArt", "guassian_sigma", "intensity_threshold", kind="lineart", moved={
        "sigma": "guassian_sigma", "threshold": "intensity_threshold"}),
    hint("M-LSDPreprocessor", "Lines", "score_threshold", "dist_threshold", kind="lines_mlsd", moved={
        "score": "score_threshold", "length": "dist_threshold"}),
    hint("DepthAnythingV2Preprocessor", "Depth", "ckpt_name", kind="depth_anything_v2"),
    hint("Zoe-DepthMapPreprocessor", "Depth", kind="depth_zoe"),
    hint("BAE-NormalMapPreprocessor", "Normal"),
    hint("OneFormer-ADE20K-SemSegPreprocessor", "Segmentation", kind="segment_oneformer_ade20k"),
    hint("OneFormer-COCO-SemSegPreprocessor", "Segmentation", kind="segment_oneformer_coco"),
    hint("ColorPreprocessor", "ColorGrid"),
    hint("ImageLuminanceDetector", "Recolor", "gamma_correction", moved={"gamma": "gamma_correction"},
         mode="luminance"),
    hint("ImageIntensityDetector", "Recolor", "gamma_correction", moved={"gamma": "gamma_correction"},
         mode="intensity"),
    Replacement("ShufflePreprocessor", "CNCore_Shuffle", ("resolution", "seed"), {**IMAGE, "seed": "seed"}),
    Replacement("InpaintPreprocessor", "CNCore_InpaintHint", ("black_pixel_for_xinsir_cn",), {
        "image": "image", "mask": "mask"}, {"resolution": 0}),
    pose("OpenposePreprocessor", "pose_openpose",
         "detect_hand", "detect_body", "detect_face", "resolution", "scale_stick_for_xinsr_cn"),
    pose("DWPreprocessor", "pose_vitpose", "detect_hand", "detect_body", "detect_face", "resolution", "bbox_detector",
         "pose_estimator", "scale_stick_for_xinsr_cn"),
)  # fmt: skip
"""Preprocessors of comfyui_controlnet_aux."""
ADVANCED = (
    *(Replacement(f"{start}ControlNetLoaderAdvanced", "CNCore_LoadControlNet", (name,), {"control_net": name})
      for start, name in (("ACN_", "cnet"), ("", "control_net_name"))),
    *(Replacement(f"{start}DiffControlNetLoaderAdvanced", "CNCore_LoadControlNet", (name,), {
        "control_net": name, "model": "model"}) for start, name in (("ACN_", "cnet"), ("", "control_net_name"))),
    *(Replacement(f"ACN_AdvancedControlNetApply{end}", "CNCore_ApplyControlNet", (
        "strength", "start_percent", "end_percent"), {**UNIT, "mask": "mask_optional"}, {"mode": "balanced"}, (0, 1))
      for end in ("", "_v2")),
)  # fmt: skip
"""Nodes of ComfyUI-Advanced-ControlNet whose keyframes and weights are optional."""
REPLACEMENTS = (*PREPROCESSORS, *ADVANCED)
STAND_INS = (
    hint("MiDaS-DepthMapPreprocessor", "Depth", "a", "bg_threshold", kind="depth_dpt"),
    hint("DepthAnythingPreprocessor", "Depth", "ckpt_name", kind="depth_anything_v2"),
    hint("Zoe_DepthAnythingPreprocessor", "Depth", "environment", kind="depth_anything_v2"),
    hint("LeReS-DepthMapPreprocessor", "Depth", "rm_nearest", "rm_background", "boost", kind="depth_anything_v2"),
    hint("TilePreprocessor", "Tile", "pyrUp_iters"),
    hint("AnyLineArtPreprocessor_aux", "LineArt", "merge_with_lineart", "lineart_lower_bound", "lineart_upper_bound",
         "object_min_size", "object_connectivity", kind="lineart_realistic"),
    hint("UniFormer-SemSegPreprocessor", "Segmentation", kind="segment_upernet"),
    hint("SemSegPreprocessor", "Segmentation", kind="segment_upernet"),
)  # fmt: skip
"""Preprocessors of comfyui_controlnet_aux whose networks are not here: another one makes the same kind of hint."""
