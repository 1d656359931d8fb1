"""Preprocessors with a network of their own in this package."""

from __future__ import annotations

from typing import Any

from ..entry import Entry, Parameter, Weights, choice
from .maps import CONVENTION

_ANNOTATORS = "https://huggingface.co/lllyasviel/Annotators"
_OPENPOSE = "OpenPose, academic or non-profit use only"
_QINGLONG = "bdsqlsz/qinglong_controlnet-lllite"
_SAFE = Parameter("safe", "bool", False, "Three levels only, so that no gray picture hides in the map.")
_BRIGHT_LINES: dict[str, Any] = {"polarity": "bright lines on black", "resample": "smooth", "fallback": "lineart"}
_BRIGHT_EDGES: dict[str, Any] = {"polarity": "bright edges on black", "resample": "smooth", "fallback": "soft_edge"}
NEAR_IS_WHITE: dict[str, Any] = {"polarity": "near is white", "resample": "smooth", "ranged": True}
NEAR_AND_FAR = (
    Parameter("near", "float", 1.0, "The estimate that becomes white, if normalize is 'fixed'."),
    Parameter("far", "float", 0.0, "The estimate that becomes black, if normalize is 'fixed'."),
)
POSE: dict[str, Any] = {"polarity": "coloured limbs on black", "palette": "OpenPose, 18 keypoints", "posed": True}


def _annotator(file: str, licence: str, when: tuple[str, Any] | None = None) -> Weights:
    """A file of the collection that the official ControlNet annotators load."""
    return Weights(file, f"{_ANNOTATORS}/blob/main/{file}", licence, when=when)


def _depth_anything(size: str, licence: str) -> Weights:
    repository = f"depth-anything/Depth-Anything-V2-{size}"
    file, source = f"depth_anything_v2_vit{size[0].lower()}.pth", f"https://huggingface.co/{repository}"
    places = (repository, f"ckpts/{repository}")
    return Weights(file, source, licence, places, when=("model", size.lower()))


def network(
    name: str, title: str, condition: str, function: str, summary: str, *weights: Weights, **options: Any
) -> Entry:
    """An entry for a network; `function` is below `learned`. It runs in torch unless `backend` says otherwise."""
    options = {"weights": weights, "backend": "torch", "nature": "learned", "scope": "net", **options}
    return Entry(name, title, condition, f"learned.{function}", summary, **options)


_HED = _annotator("ControlNetHED.pth", "Apache-2.0")
_PIDINET = _annotator("table5_pidinet.pth", "research only, ask the authors for commercial use")
_TEED = Weights(
    "7_model.pth",
    f"https://huggingface.co/{_QINGLONG}/blob/main/Annotators/7_model.pth",
    "MIT",
    ("Annotators", f"{_QINGLONG}/Annotators", f"ckpts/{_QINGLONG}/Annotators"),
)

# A table, the names of an entry on one line, its summary on the next.
# fmt: off
LEARNED: tuple[Entry, ...] = (
    network(
        "soft_edge_hed", "Soft edges (HED)", "softedge", "edges:hed",
        "Edges of objects as HED estimates them; what the soft edge nets were mostly trained on.",
        _HED, parameters=(_SAFE,), multiple=16, **_BRIGHT_EDGES,
    ),
    network(
        "soft_edge_pidinet", "Soft edges (PiDiNet)", "softedge", "edges:pidinet",
        "Edges of objects as PiDiNet estimates them, a small and fast net.",
        _PIDINET, parameters=(_SAFE,), multiple=8, **_BRIGHT_EDGES,
    ),
    network(
        "soft_edge_teed", "Soft edges (TEED)", "softedge", "edges:teed",
        "Fine edges as TEED estimates them, the smallest of the nets.",
        _TEED, parameters=(Parameter("safe", "bool", True, "Three levels only, as this net is mostly used."),),
        multiple=8, **_BRIGHT_EDGES,
    ),
    network(
        "scribble_hed", "Scribble (HED)", "scribble", "edges:hed_scribble",
        "Thick binary strokes along the edges that HED estimates.",
        _HED, multiple=16, fallback="scribble_soft_edge",
    ),
    network(
        "scribble_pidinet", "Scribble (PiDiNet)", "scribble", "edges:pidinet_scribble",
        "Thick binary strokes along the edges that PiDiNet estimates.",
        _PIDINET, multiple=8, fallback="scribble_soft_edge",
    ),
    network(
        "lines_mlsd", "Straight lines (M-LSD)", "mlsd", "mlsd:lines",
        "Straight lines as M-LSD estimates them; what the line net was trained on.",
        _annotator("mlsd_large_512_fp32.pth", "Apache-2.0"),
        parameters=(
            Parameter("score", "float", 0.1, "Lowest probability of a line.", 0, 1, 0.01),
            Parameter("length", "float", 0.1, "Shortest line, in half pixels of the net.", 0, 100, 0.1),
        ),
        multiple=64, fallback="lines",
    ),
    network(
        "lineart_realistic", "Line art (realistic)", "lineart", "lineart:realistic",
        "A line drawing of the picture, as a net trained on drawings makes it.",
        _annotator("sk_model.pth", "MIT"), multiple=64, **_BRIGHT_LINES,
    ),
    network(
        "lineart_coarse", "Line art (coarse)", "lineart", "lineart:realistic",
        "A rougher line drawing of the picture.",
        _annotator("sk_model2.pth", "MIT"), multiple=64, **_BRIGHT_LINES,
    ),
    network(
        "lineart_anime", "Line art (anime)", "lineart_anime", "lineart:anime",
        "Line art of anime pictures.",
        _annotator("netG.pth", "MIT"), **_BRIGHT_LINES,
    ),
    network(
        "lineart_manga", "Line art (manga)", "lineart_anime", "lineart:manga",
        "The structural lines of manga pages, without their screen tones.",
        _annotator("erika.pth", "MIT"), multiple=16, **_BRIGHT_LINES,
    ),
    network(
        "pose_openpose", "Human pose (OpenPose)", "openpose", "openpose:estimate",
        "People as OpenPose finds them, drawn as the pose nets read them.",
        _annotator("body_pose_model.pth", _OPENPOSE),
        _annotator("hand_pose_model.pth", _OPENPOSE, ("hands", True)),
        _annotator("facenet.pth", _OPENPOSE, ("face", True)),
        parameters=(
            Parameter("hands", "bool", False, "Look for hands as well."),
            Parameter("face", "bool", False, "Look for faces as well."),
        ),
        **POSE,
    ),
    network(
        "normal_bae", "Normals (NormalBae)", "normal", "normal_bae:normals",
        "Surface normals of the scene as NormalBae estimates them; what the v1.1 normal net was trained on.",
        _annotator("scannet.pt", "MIT for the code; trained on ScanNet, see its terms"),
        parameters=(CONVENTION,), polarity="by convention", resample="smooth", multiple=64,
    ),
    network(
        "depth_anything_v2", "Depth (Depth Anything V2)", "depth", "depth_anything:disparity",
        "Relative depth of the scene as Depth Anything V2 estimates it.",
        _depth_anything("Small", "Apache-2.0"),
        _depth_anything("Base", "CC-BY-NC-4.0, non-commercial"),
        _depth_anything("Large", "CC-BY-NC-4.0, non-commercial"),
        parameters=(
            choice(
                "model", ("small", "base", "large"), "Small is free for any use, base and large are non-commercial."
            ),
            *NEAR_AND_FAR,
        ),
        **NEAR_IS_WHITE,
    ),
)
# fmt: on
