"""Preprocessors without weights whose hints are depth, normals and segmentation."""

from __future__ import annotations

from ..entry import Entry, Parameter, choice
from ..limits import MAX_MAP_PIXELS, MAX_RELIEF_PIXELS

CONVENTIONS = ("bae", "midas10", "opengl", "directx")
CONVENTION = choice(
    "convention", CONVENTIONS, "bae for the v1.1 net, midas10 for v1.0, opengl or directx for other tools."
)
_PALETTE = choice("palette", ("ade20k", "coco"), "The palette of the net.")

# A table, the names of an entry on one line, its summary on the next.
# fmt: off
MAPS: tuple[Entry, ...] = (
    Entry(
        "depth_map", "Depth from a depth map", "depth", "depth:from_pictures",
        "A Z-pass or disparity map, whatever its range, becomes a hint: near white, far black.",
        (
            Parameter("invert", "bool", False, "The map is already brighter where nearer."),
            choice("space", ("linear", "disparity"),
                   "linear: as given. disparity: 1 / distance, as depth nets read it."),
            Parameter("near", "float", 0.0, "The value that becomes white, if normalize is 'fixed'. 0 and 1 follow the "
                      "map: 1 and 0 with invert, 0.1 and 1 for disparity."),
            Parameter("far", "float", 1.0, "The value that becomes black, if normalize is 'fixed'."),
            Parameter("sky", "float", 65504.0, "From this distance on, it is sky: black and out of range.", 0, 1e10, 1),
        ),
        polarity="near is white", nature="conversion", takes="values", scope="batch", resample="smooth",
        backend="numpy", sample="depth", example=(("invert", True),),
    ),
    Entry(
        "depth_stereo", "Depth from a stereo pair", "depth", "depth:from_stereo_pictures",
        "Disparity measured in a rectified pair side by side, the left eye's picture on the left.",
        (
            Parameter("max_disparity", "int", 64, "The largest shift between both pictures, in pixels.", 16, 512, 16),
            Parameter("near", "float", 64.0, "The disparity that becomes white, if normalize is 'fixed'.", 0, 512),
            Parameter("far", "float", 0.0, "The disparity that becomes black, if normalize is 'fixed'.", 0, 512),
        ),
        polarity="near is white", scope="batch", resample="smooth", side_by_side=True, sample="stereo",
    ),
    Entry(
        "depth_ground_prior", "Depth of a flat floor (prior)", "depth", "depth:ground_prior",
        "A floor seen to its horizon. An assumption: nothing in the picture is measured.",
        (Parameter("horizon", "float", 0.4, "Height of the floor's end, as a share from the top.", -1, 0.99, 0.01),),
        polarity="near is white", nature="prior", resample="smooth", backend="numpy",
    ),
    Entry(
        "normal_depth", "Normals from a depth map", "normal", "normals:from_depth_picture",
        "The slopes of a depth map (near = bright), as a normal map in the chosen convention.",
        (
            CONVENTION,
            Parameter(
                "relief", "float", 0.5, "Depth of the whole range, in shorter sides of the picture.", 0, 10, 0.05
            ),
            Parameter("background", "float", 0.0, "Below this share of the range, it is flat (v1.0: 0.4).", 0, 1, 0.05),
            Parameter("invert", "bool", False, "The map is darker where nearer."),
            Parameter("smooth", "float", 0.0, "Blur before the slopes are taken, in pixels.", 0, 50, 0.5),
            choice("method", ("relief", "midas_legacy"), "relief, or the formula of v1.0 (legacy), whose result "
                   "depends on the scale of the values."),
        ),
        polarity="by convention", nature="conversion", takes="values", resample="smooth", sample="depth",
        largest=MAX_RELIEF_PIXELS,
    ),
    Entry(
        "normal_convert", "Normals, another convention", "normal", "normals:convert",
        "A normal map made for one tool, in the axes of another.",
        (
            Parameter("source", "choice", "opengl", "The axes of the given map.", choices=CONVENTIONS),
            choice("convention", CONVENTIONS, "The axes of the hint."),
        ),
        polarity="by convention", nature="conversion", takes="unit", resample="smooth", backend="numpy",
        sample="normals", largest=MAX_MAP_PIXELS,
    ),
    Entry(
        "segment_palette", "Segmentation from a painted map", "seg", "classic.regions:snap_to_palette",
        "A painted label map, its colours snapped to the palette; it adds no understanding.",
        (
            _PALETTE,
            Parameter("tolerance", "float", 442.0, "Colours farther than this from all classes are black.", 0, 442, 1),
        ),
        polarity="one colour per class", palette="ADE20K or COCO", nature="conversion", takes="labels",
        backend="numpy", sample="labels", largest=MAX_MAP_PIXELS,
    ),
    Entry(
        "segment_regions", "Colour regions with chosen classes", "seg", "classic.regions:color_regions",
        "Groups of similar colours, which you name. Not semantic: it recognises no objects.",
        (
            Parameter("classes", "text", "sky, building, earth", "Class names of the palette, one for each group."),
            _PALETTE,
            choice("order", ("top_to_bottom", "dark_to_light", "large_to_small"), "How the groups are sorted before "
                   "they get the names."),
            Parameter("cell", "int", 16, "Size of the regions that are grouped, in pixels.", 4, 256, 1),
        ),
        polarity="one colour per class", palette="ADE20K or COCO", seeded=True, largest=MAX_MAP_PIXELS,
    ),
)
# fmt: on
