"""Preprocessors whose network runs through the package transformers, from a folder on disk."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..entry import Entry, Parameter, Weights, choice
from .learned import NEAR_AND_FAR, NEAR_IS_WHITE, POSE, network

_net = partial(network, backend="transformers")


def _folder(repository: str, licence: str) -> Weights:
    """A model repository, which users have as a folder of its name."""
    owner, _, name = repository.partition("/")
    places = (owner, f"transformers/{owner}", "transformers", "LLM", "diffusers")
    return Weights(name, f"https://huggingface.co/{repository}", licence, places, is_folder=True)


def _depth(name: str, title: str, function: str, summary: str, weights: Weights) -> Entry:
    options = {"parameters": NEAR_AND_FAR, **NEAR_IS_WHITE}
    return _net(name, title, "depth", f"pretrained:{function}", summary, weights, **options)


def _segmentation(name: str, title: str, function: str, palette: str, weights: Weights) -> Entry:
    summary = f"What is where in the scene, in the colours of {palette}."
    colours = {"polarity": "one colour per class", "palette": palette}
    return _net(name, title, "seg", f"pretrained:{function}", summary, weights, **colours)


def _vitpose_plus(model: str) -> Weights:
    """A file of ViTPose+'s authors, which has the experts and heads of all its data sets."""
    repository = "nielsr/vitpose-original-checkpoints"
    places = (repository, "vitpose", "transformers")
    source = f"https://huggingface.co/{repository}"
    return Weights(f"vitpose+_{model}.pth", source, "Apache-2.0", places, when=("model", model))


def _metric(scene: str) -> Weights:
    """The small net, which is free for any use."""
    folder = _folder(f"depth-anything/Depth-Anything-V2-Metric-{scene}-Small-hf", "Apache-2.0")
    return replace(folder, when=("scene", scene.lower()))


_DETECTOR = _folder("PekingU/rtdetr_r50vd_coco_o365", "Apache-2.0")
_VITPOSE_PLUS = tuple(_vitpose_plus(size) for size in ("base", "small", "large", "huge"))
_SCORES = (
    Parameter("person_score", "float", 0.3, "Lowest score of a person or an animal.", 0, 1, 0.05),
    Parameter("point_score", "float", 0.3, "Lowest score of a joint.", 0, 1, 0.05),
)
_MODEL = choice("model", ("base", "small", "large", "huge"), "The size of ViTPose+, each in a file of its own.")

# A table, the names of an entry on one line, its summary on the next.
# fmt: off
PRETRAINED: tuple[Entry, ...] = (
    _depth(
        "depth_dpt", "Depth (MiDaS, DPT)", "depth",
        "Relative depth as MiDaS estimates it; what the depth nets were trained on.",
        _folder("Intel/dpt-hybrid-midas", "Apache-2.0"),
    ),
    _depth(
        "depth_zoe", "Depth (ZoeDepth)", "depth",
        "Metric depth as ZoeDepth estimates it, cut at its percentiles 2 and 85.",
        _folder("Intel/zoedepth-nyu-kitti", "MIT"),
    ),
    _depth(
        "depth_pro", "Depth (Depth Pro)", "depth_pro",
        "Metric depth with fine edges as Depth Pro estimates it.",
        _folder("apple/DepthPro-hf", "Apple model licence, research only"),
    ),
    _segmentation(
        "segment_oneformer_ade20k", "Segmentation (OneFormer, ADE20K)", "oneformer", "ADE20K",
        _folder("shi-labs/oneformer_ade20k_swin_large", "MIT"),
    ),
    _segmentation(
        "segment_oneformer_coco", "Segmentation (OneFormer, COCO)", "oneformer", "COCO",
        _folder("shi-labs/oneformer_coco_swin_large", "MIT"),
    ),
    _segmentation(
        "segment_segformer", "Segmentation (SegFormer)", "semantic", "ADE20K",
        _folder("nvidia/segformer-b5-finetuned-ade-640-640", "NVIDIA, non-commercial research"),
    ),
    _segmentation(
        "segment_upernet", "Segmentation (UperNet)", "semantic", "ADE20K",
        _folder("openmmlab/upernet-convnext-small", "MIT"),
    ),
    _net(
        "segment_sam", "Regions (Segment Anything)", "seg", "pretrained:sam_regions",
        "The regions that SAM finds, in colours that mean nothing. Not semantic: regions have no class.",
        _folder("facebook/sam-vit-base", "Apache-2.0"), polarity="one colour per region",
        parameters=(Parameter("points", "int", 16, "Number of points to ask for along each side.", 2, 64, 1),),
    ),
    _net(
        "pose_vitpose", "Human pose (ViTPose)", "openpose", "pretrained:vitpose",
        "People found by RT-DETR and their joints by ViTPose, free for any use; bodies only.",
        _DETECTOR, _folder("usyd-community/vitpose-base-simple", "Apache-2.0"), parameters=_SCORES, **POSE,
    ),
    _net(
        "pose_vitpose_plus", "Human pose (ViTPose+)", "openpose", "vitpose_plus:people",
        "People found by RT-DETR; their joints, hands and faces by ViTPose+, free for any use.",
        _DETECTOR, *_VITPOSE_PLUS,
        parameters=(
            Parameter("hands", "bool", False, "Look for hands as well."),
            Parameter("face", "bool", False, "Look for faces as well."),
            *_SCORES, _MODEL,
        ),
        **POSE,
    ),
    _net(
        "pose_animal", "Animal pose (ViTPose+)", "animal_openpose", "vitpose_plus:animals",
        "Animals found by RT-DETR and their joints by ViTPose+, for animal pose nets; free for any use.",
        _DETECTOR, *_VITPOSE_PLUS, parameters=(*_SCORES, _MODEL), **{**POSE, "palette": "AP-10K, 17 keypoints"},
    ),
    _net(
        "depth_anything_v2_metric", "Depth (Depth Anything V2, metric)", "depth", "pretrained:depth_anything_metric",
        "Metric depth as Depth Anything V2 estimates it, trained on rooms or on streets; as one over the distance.",
        _metric("Indoor"), _metric("Outdoor"),
        parameters=(
            choice("scene", ("indoor", "outdoor"), "What the net was trained on: up to 20 m, or up to 80 m."),
            *NEAR_AND_FAR,
        ),
        **NEAR_IS_WHITE,
    ),
)
# fmt: on
