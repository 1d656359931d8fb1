"""The table of learned preprocessors that run through the package transformers, from a local folder. Data only."""

from __future__ import annotations

from ..registry import Entry, Parameter, Weights

_BACKEND = "transformers"


def _folder(repository: str, licence: str, millions: float) -> Weights:
    """A repository of the hub, which users have as a folder of its name."""
    owner, _, name = repository.partition("/")
    places = (owner, f"transformers/{owner}", "transformers", "LLM", "diffusers")
    return Weights(name, f"https://huggingface.co/{repository}", licence, millions, places)


_RANGE = (
    Parameter("near", "float", 1.0, "The estimate that becomes white, if normalize is 'fixed'."),
    Parameter("far", "float", 0.0, "The estimate that becomes black, if normalize is 'fixed'."),
)


def _depth(name: str, title: str, summary: str, weights: Weights, function: str = "depth") -> Entry:
    return Entry(
        name=name,
        title=title,
        condition="depth",
        function=f"learned.pretrained:{function}",
        summary=summary,
        polarity="near is white",
        parameters=_RANGE,
        weights=(weights,),
        backend=_BACKEND,
        nature="learned",
        scope="net",
        resample="smooth",
        ranged=True,
    )


def _segmentation(name: str, title: str, function: str, palette: str, weights: Weights) -> Entry:
    return Entry(
        name=name,
        title=title,
        condition="seg",
        function=f"learned.pretrained:{function}",
        summary=f"What is where in the scene, in the colours of {palette}.",
        polarity="one colour per class",
        palette=palette,
        weights=(weights,),
        backend=_BACKEND,
        nature="learned",
        scope="net",
    )


PRETRAINED: tuple[Entry, ...] = (
    _depth(
        "depth_dpt",
        "Depth (MiDaS, DPT)",
        "Relative depth as MiDaS estimates it; what the depth nets were trained on.",
        _folder("Intel/dpt-hybrid-midas", "Apache-2.0", 123),
    ),
    _depth(
        "depth_zoe",
        "Depth (ZoeDepth)",
        "Metric depth as ZoeDepth estimates it, cut at its percentiles 2 and 85.",
        _folder("Intel/zoedepth-nyu-kitti", "MIT", 345),
    ),
    _depth(
        "depth_pro",
        "Depth (Depth Pro)",
        "Metric depth with fine edges as Depth Pro estimates it.",
        _folder("apple/DepthPro-hf", "Apple model licence, research only", 952),
        "depth_pro",
    ),
    _segmentation(
        "segment_oneformer_ade20k",
        "Segmentation (OneFormer, ADE20K)",
        "oneformer",
        "ADE20K",
        _folder("shi-labs/oneformer_ade20k_swin_large", "MIT", 219),
    ),
    _segmentation(
        "segment_oneformer_coco",
        "Segmentation (OneFormer, COCO)",
        "oneformer",
        "COCO",
        _folder("shi-labs/oneformer_coco_swin_large", "MIT", 219),
    ),
    _segmentation(
        "segment_segformer",
        "Segmentation (SegFormer)",
        "semantic",
        "ADE20K",
        _folder("nvidia/segformer-b5-finetuned-ade-640-640", "NVIDIA, non-commercial research", 84.7),
    ),
    _segmentation(
        "segment_upernet",
        "Segmentation (UperNet)",
        "semantic",
        "ADE20K",
        _folder("openmmlab/upernet-convnext-small", "MIT", 82),
    ),
    Entry(
        name="segment_sam",
        title="Regions (Segment Anything)",
        condition="seg",
        function="learned.pretrained:sam_regions",
        summary="The regions that SAM finds, in colours that mean nothing. Not semantic: regions have no class.",
        polarity="one colour per region",
        parameters=(Parameter("points", "int", 16, "Points along each side that are asked for masks.", 2, 64, 1),),
        weights=(_folder("facebook/sam-vit-base", "Apache-2.0", 93.7),),
        backend=_BACKEND,
        nature="learned",
        scope="net",
    ),
    Entry(
        name="pose_vitpose",
        title="Human pose (ViTPose)",
        condition="openpose",
        function="learned.pretrained:vitpose",
        posed=True,
        summary="People found by RT-DETR and their joints by ViTPose, free for any use; bodies only.",
        polarity="coloured limbs on black",
        palette="OpenPose, 18 keypoints",
        parameters=(
            Parameter("person_score", "float", 0.3, "Least score of a person.", 0, 1, 0.05),
            Parameter("point_score", "float", 0.3, "Least score of a joint.", 0, 1, 0.05),
        ),
        weights=(
            _folder("PekingU/rtdetr_r50vd_coco_o365", "Apache-2.0", 42.9),
            _folder("usyd-community/vitpose-base-simple", "Apache-2.0", 85.8),
        ),
        backend=_BACKEND,
        nature="learned",
        scope="net",
    ),
)
