"""Nodes of other packs that ComfyUI may replace by ours where those packs are not installed.

ComfyUI 0.14 and later offers this to the user when a workflow has such a node. Nothing is replaced where the other pack
is installed. Inputs that are missing in a row keep our default; links to them are removed by the editor.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)
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
"""Those of comfyui_controlnet_aux."""
ADVANCED = (
    *(Replacement(f"{start}ControlNetLoaderAdvanced", "CNCore_LoadControlNet", (name,), {"control_net": name})
      for start, name in (("ACN_", "cnet"), ("", "control_net_name"))),
    *(Replacement(f"{start}DiffControlNetLoaderAdvanced", "CNCore_LoadControlNet", (name,), {
        "control_net": name, "model": "model"}) for start, name in (("ACN_", "cnet"), ("", "control_net_name"))),
    *(Replacement(f"ACN_AdvancedControlNetApply{end}", "CNCore_ApplyControlNet", (
        "strength", "start_percent", "end_percent"), {**UNIT, "mask": "mask_optional"}, {"mode": "balanced"}, (0, 1))
      for end in ("", "_v2")),
)  # fmt: skip
"""Those of ComfyUI-Advanced-ControlNet whose keyframes and weights are optional."""
REPLACEMENTS = (*PREPROCESSORS, *ADVANCED)


def register() -> None:
    """Tell ComfyUI's server about the replacements; nothing in releases that have none."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if not hasattr(getattr(server, "instance", None), "node_replace_manager"):
        return
    try:
        from comfy_api.latest import ComfyAPI, io
    except ImportError:
        return
    offers = ComfyAPI().node_replacement
    for one in REPLACEMENTS:
        outputs = [{"new_idx": new, "old_idx": old} for old, new in enumerate(one.outputs)]
        made = io.NodeReplace(one.new, one.old, list(one.widgets), one.mapping(), outputs)
        run(offers.register(made))


def run(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that waits for nothing, as ComfyUI's functions of registration are.

    ComfyUI imports packs in its event loop, which cannot run a second one.
    """
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    log.warning("a registration of ComfyUI waits: node replacements are not offered")
