"""Families: preprocessors for one purpose, each with the settings of all its kinds.

A family becomes one node in the editor. Its name is part of the node's ID and never changes. New kinds go to the end,
so that saved workflows keep their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from .entry import Entry, Parameter
from .registry import get


@dataclass(frozen=True)
class Field:
    """One setting of a family: its parameter, and the kinds that have it."""

    name: str
    parameter: Parameter
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Preprocessors for one purpose. `kinds` are names of preprocessors, the default first.

    group: its place in the editor's menu: "lines", "maps", "pose", "segmentation" or "pictures".
    added: names of settings that came after a release: they are the last inputs, so that saved workflows keep theirs.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    group: str
    help: str
    aliases: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The entries of its kinds, the default first."""
        return tuple(get(kind) for kind in self.kinds)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The settings of all kinds.

        If two kinds have different parameters with one name, the second one's is called KIND_NAME.
        """
        found: dict[str, Field] = {}
        for entry in self.entries:
            for parameter in entry.parameters:
                name, known = parameter.name, found.get(parameter.name)
                if known is not None and not _same(known.parameter, parameter):
                    name = f"{entry.name}_{parameter.name}"
                known = found.get(name)
                kinds = (entry.name,) if known is None else (*known.kinds, entry.name)
                found[name] = Field(name, parameter if known is None else known.parameter, kinds)
        return tuple(found.values())

    @property
    def has_range(self) -> bool:
        """Whether one of them measures a range, so that `normalize` has an effect."""
        return any(entry.ranged or entry.scope == "batch" for entry in self.entries)

    @property
    def is_seeded(self) -> bool:
        """Whether one of them is random."""
        return any(entry.seeded for entry in self.entries)

    @property
    def needs_mask(self) -> bool:
        """Whether all of them need a mask."""
        return all(entry.masked for entry in self.entries)

    def parameters(self, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Select the parameters of one kind from values by field name."""
        return {
            field.parameter.name: given[field.name]
            for field in self.fields
            if kind in field.kinds and field.name in given
        }


def _same(one: Parameter, other: Parameter) -> bool:
    return replace(one, help="") == replace(other, help="")


# A table, names and kinds on one line, then the help.
# fmt: off
FAMILIES: tuple[Family, ...] = (
    Family(
        "Canny", "Canny Edges", ("canny",), "lines",
        "Thin edges where the colours change sharply, for Canny ControlNets.", ("edge", "outline"),
    ),
    Family(
        "Lines", "Straight Lines", ("lines", "lines_mlsd"), "lines",
        "Straight lines of rooms and buildings, for M-LSD ControlNets.", ("mlsd", "hough", "lsd", "architecture"),
    ),
    Family(
        "SoftEdge", "Soft Edges", ("soft_edge", "soft_edge_hed", "soft_edge_pidinet", "soft_edge_teed"), "lines",
        "Edges graded by their strength, for soft edge (HED) ControlNets.", ("hed", "pidinet", "teed"),
    ),
    Family(
        "Scribble", "Scribble",
        ("scribble", "scribble_soft_edge", "scribble_drawing", "scribble_hed", "scribble_pidinet"), "lines",
        "Rough binary strokes, from a photo or from a drawing of yours, for scribble ControlNets.",
        ("xdog", "sketch", "drawing"),
    ),
    Family(
        "LineArt", "Line Art", ("lineart", "lineart_realistic", "lineart_coarse", "lineart_anime", "lineart_manga"),
        "lines",
        "A line drawing of the picture, for line art ControlNets; the anime and manga kinds for the anime ones.",
        ("anime", "manga", "cartoon"),
    ),
    Family(
        "Threshold", "Threshold", ("binary", "threshold"), "lines",
        "Black and white by brightness alone: ink to white strokes, or what is bright to white.",
        ("otsu", "binary"),
    ),
    Family(
        "Invert", "Invert Hint", ("invert",), "lines",
        "Black lines on white become white lines on black, and back.", ("negative",),
    ),
    Family(
        "Depth", "Depth", ("depth_anything_v2", "depth_dpt", "depth_zoe", "depth_pro", "depth_anything_v2_metric"),
        "maps",
        "Depth of a single photo, near is white. Only networks can estimate it: their files have to be in your "
        "models folders. For a depth map that you have, use Depth Convert.",
        ("midas", "zoe", "depth anything"), ("scene",),
    ),
    Family(
        "DepthConvert", "Depth Convert", ("depth_map",), "maps",
        "A Z-pass of a renderer, or another depth map, becomes a hint: near white, far black, the sky black.",
        ("z-pass", "zpass", "normalize depth", "disparity"),
    ),
    Family(
        "DepthStereo", "Depth from Stereo", ("depth_stereo",), "maps",
        "Depth measured in a rectified stereo pair that lies side by side in one picture.", ("sgbm", "disparity"),
    ),
    Family(
        "DepthFloor", "Depth of a Floor (prior)", ("depth_ground_prior",), "maps",
        "Depth of a flat floor up to its horizon. A prior: only the size of the picture is used.",
        ("horizon", "ground plane"),
    ),
    Family(
        "Normal", "Normals", ("normal_bae",), "maps",
        "Surface normals of a single photo. Only a network can estimate them: its file has to be in your models "
        "folders. From a depth map they are measured by Normals from Depth.", ("bae", "normal map"),
    ),
    Family(
        "NormalFromDepth", "Normals from Depth", ("normal_depth",), "maps",
        "Surface normals measured from the slopes of a depth map (near is white), in the axes of your net.",
        ("midas normal", "normal map"),
    ),
    Family(
        "NormalConvert", "Normal Convert", ("normal_convert",), "maps",
        "A normal map made for one tool, in the axes of another.", ("opengl", "directx", "bae", "normal map"),
    ),
    Family(
        "Pose", "Human Pose", ("pose_openpose", "pose_vitpose", "pose_vitpose_plus", "pose_animal"), "pose",
        "People or animals found in a photo and drawn as skeletons. Only networks can find them: their files have to "
        "be in your models folders. For keypoints that you have, use Pose Render.",
        ("openpose", "dwpose", "vitpose", "skeleton", "animal pose"), ("model",),
    ),
    Family(
        "Segmentation", "Segmentation",
        ("segment_oneformer_ade20k", "segment_oneformer_coco", "segment_segformer", "segment_upernet", "segment_sam"),
        "segmentation",
        "What is where in a photo, in the colours that segmentation ControlNets know. Only networks can tell: their "
        "folders have to be in your models folders.", ("oneformer", "segformer", "sam", "ade20k", "coco"),
    ),
    Family(
        "SegmentRegions", "Segment Colour Regions", ("segment_regions",), "segmentation",
        "Regions of similar colours, which you name. Not semantic: it recognises no objects.",
        ("k-means", "superpixel"),
    ),
    Family(
        "SegmentPalette", "Segment Palette", ("segment_palette",), "segmentation",
        "A label map that you painted, its colours snapped to those that segmentation ControlNets know.",
        ("ade20k", "coco", "label map"),
    ),
    Family(
        "Tile", "Tile", ("tile",), "pictures",
        "The picture itself for tile ControlNets, with or without its fine detail.", ("upscale", "detail"),
    ),
    Family("Blur", "Blur", ("blur",), "pictures", "The blurred picture for blur ControlNets.", ("gaussian",)),
    Family(
        "Shuffle", "Shuffle", ("shuffle",), "pictures",
        "The picture's colours moved about at random, for shuffle ControlNets.", ("content shuffle", "style"),
    ),
    Family(
        "Recolor", "Recolor", ("recolor",), "pictures", "The picture in gray for ControlNets that give it colours.",
        ("colorize", "gray"),
    ),
    Family(
        "Luminance", "Luminance", ("luminance",), "pictures",
        "The brightness of the picture for brightness ControlNets.", ("brightness", "gray"),
    ),
    Family(
        "ColorGrid", "Colour Grid", ("color_grid",), "pictures",
        "Flat cells of the picture's colours for colour adapters.", ("palette", "mosaic", "t2i"),
    ),
    Family(
        "InpaintHint", "Inpaint Hint", ("inpaint",), "pictures",
        "The picture with the area to repaint marked as inpaint ControlNets know it.", ("mask",),
    ),
    Family(
        "Reference", "Picture as Hint", ("reference", "ip2p"), "pictures",
        "The picture as it is, brought to size: what reference and instruct-pix2pix ControlNets read.",
        ("ip2p", "raw"),
    ),
)
# fmt: on
