"""The table of all preprocessors. Data only: what runs is named, not imported."""

from __future__ import annotations

from .registry import Entry, Parameter

_NORMAL_CONVENTIONS = ("bae", "midas10", "opengl", "directx")

_SOFT_EDGE = (
    Parameter("radius", "int", 3, "Radius in pixels of the disc whose halves are compared.", 1, 16, 1),
    Parameter("smoothing", "int", 3, "Edge-preserving smoothing passes before that.", 0, 10, 1),
    Parameter("contrast", "float", 16.0, "Colour distance (Lab) that counts as a clear edge.", 1, 100, 1),
)

LINES: tuple[Entry, ...] = (
    Entry(
        name="canny",
        title="Canny edges",
        condition="canny",
        function="classic.canny:canny",
        summary="Thin edges where the colours change sharply: cv2.Canny on the colour picture.",
        parameters=(
            Parameter("low", "float", 100.0, "An edge goes on while its gradient exceeds this.", 0, 1000, 1),
            Parameter("high", "float", 200.0, "An edge starts where its gradient exceeds this.", 0, 1000, 1),
            Parameter("l2_gradient", "bool", False, "Euclidean norm of the gradient instead of |x| + |y|."),
        ),
    ),
    Entry(
        name="lines",
        title="Straight lines (LSD)",
        condition="mlsd",
        function="classic.lines:lines",
        summary="Straight segments, one pixel wide, measured by the line segment detector.",
        parameters=(
            Parameter(
                "channels", "choice", "lab", "Look at all colours, or at gray alone.", choices=("lab", "gray")
            ),
            Parameter("min_length", "float", 20.0, "Shorter segments, in pixels, are left out.", 0, 4096, 1),
            Parameter("merge", "bool", True, "Leave out segments that lie on longer ones."),
        ),
    ),
    Entry(
        name="soft_edge",
        title="Soft edges",
        condition="softedge",
        function="classic.soft_edge:soft_edge",
        summary="Edges graded by how strongly the colours on both sides differ, measured without a network.",
        polarity="bright edges on black",
        resample="smooth",
        parameters=(
            *_SOFT_EDGE,
            Parameter("safe", "bool", False, "Three levels only, so that no gray picture hides in the map."),
        ),
    ),
    Entry(
        name="scribble",
        title="Scribble (xDoG)",
        condition="scribble",
        function="classic.scribble:xdog",
        summary="Binary strokes where the picture is darker than its surroundings.",
        parameters=(
            Parameter("threshold", "int", 32, "Twice the darkness, of 255, that makes a stroke.", 1, 254, 1),
            Parameter("sigma", "float", 0.5, "Blur, in pixels, of the fine detail.", 0.1, 10, 0.1),
            Parameter("wide_sigma", "float", 5.0, "Blur, in pixels, of the surroundings.", 0.5, 50, 0.5),
        ),
    ),
    Entry(
        name="scribble_soft_edge",
        title="Scribble (from soft edges)",
        condition="scribble",
        function="classic.soft_edge:soft_scribble",
        summary="Thick binary strokes along the ridges of the soft edges.",
        parameters=_SOFT_EDGE,
    ),
    Entry(
        name="scribble_drawing",
        title="Scribble from a drawing",
        condition="scribble",
        function="classic.scribble:drawing",
        nature="conversion",
        summary="Dark pen strokes on light paper become white strokes on black.",
        parameters=(
            Parameter(
                "threshold", "int", 127, "A stroke is where a channel, of 255, is below this.", 1, 255, 1
            ),
        ),
    ),
    Entry(
        name="lineart",
        title="Line art (standard)",
        condition="lineart",
        function="classic.lineart:lineart",
        summary="Lines where the picture is darker than its surroundings, brighter the darker it is.",
        polarity="bright lines on black",
        resample="smooth",
        parameters=(
            Parameter("sigma", "float", 6.0, "Blur, in pixels, of the surroundings.", 0.1, 100, 0.1),
            Parameter(
                "threshold", "float", 8.0, "What is weaker, of 255, does not count as a line.", 0, 255, 1
            ),
        ),
    ),
)

MAPS: tuple[Entry, ...] = (
    Entry(
        name="depth_map",
        title="Depth from a depth map",
        condition="depth",
        function="depth:from_pictures",
        nature="conversion",
        summary="A Z-pass or disparity map, whatever its range, becomes a hint: near white, far black.",
        polarity="near is white",
        takes="values",
        scope="batch",
        resample="smooth",
        backend="numpy",
        parameters=(
            Parameter("invert", "bool", False, "The map given is already brighter where nearer."),
            Parameter(
                "space",
                "choice",
                "linear",
                "Values as given, or 1 / distance as the depth nets know it.",
                choices=("linear", "disparity"),
            ),
            Parameter("near", "float", 0.0, "The value that becomes white, if normalize is 'fixed'."),
            Parameter("far", "float", 1.0, "The value that becomes black, if normalize is 'fixed'."),
        ),
    ),
    Entry(
        name="depth_stereo",
        title="Depth from a stereo pair",
        condition="depth",
        function="depth:from_stereo_pictures",
        summary="Disparity measured in a rectified pair side by side, the left eye's picture on the left.",
        polarity="near is white",
        scope="batch",
        resample="smooth",
        side_by_side=True,
        parameters=(
            Parameter(
                "max_disparity", "int", 64, "The largest shift, in pixels, that is looked for.", 16, 512, 16
            ),
            Parameter(
                "near", "float", 64.0, "The disparity that becomes white, if normalize is 'fixed'.", 0, 512
            ),
            Parameter(
                "far", "float", 0.0, "The disparity that becomes black, if normalize is 'fixed'.", 0, 512
            ),
        ),
    ),
    Entry(
        name="depth_ground_prior",
        title="Depth of a flat floor (prior)",
        condition="depth",
        function="depth:ground_prior",
        nature="prior",
        summary="A floor seen to its horizon. An assumption: nothing in the picture is measured.",
        polarity="near is white",
        resample="smooth",
        backend="numpy",
        parameters=(
            Parameter(
                "horizon",
                "float",
                0.4,
                "Where the floor ends, as a part of the height from the top.",
                -1,
                0.99,
                0.01,
            ),
        ),
    ),
    Entry(
        name="normal_depth",
        title="Normals from a depth map",
        condition="normal",
        function="normals:from_depth_picture",
        summary="The slopes of a depth map (near = bright), as a normal map in the chosen convention.",
        polarity="by convention",
        nature="conversion",
        takes="values",
        resample="smooth",
        parameters=(
            Parameter(
                "convention",
                "choice",
                "bae",
                "bae for the v1.1 net, midas10 for v1.0, opengl or directx for other tools.",
                choices=_NORMAL_CONVENTIONS,
            ),
            Parameter(
                "relief",
                "float",
                0.5,
                "Depth of the whole range, in shorter sides of the picture.",
                0,
                10,
                0.05,
            ),
            Parameter(
                "background",
                "float",
                0.0,
                "What is farther than this part of the range is flat (v1.0: 0.4).",
                0,
                1,
                0.05,
            ),
            Parameter("invert", "bool", False, "The map given is darker where nearer."),
            Parameter("smooth", "float", 0.0, "Blur, in pixels, before the slopes are taken.", 0, 50, 0.5),
            Parameter(
                "method",
                "choice",
                "relief",
                "relief, or the v1.0 formula, whose result depends on the values' scale (legacy).",
                choices=("relief", "midas_legacy"),
            ),
        ),
    ),
    Entry(
        name="normal_convert",
        title="Normals, another convention",
        condition="normal",
        function="normals:convert",
        nature="conversion",
        summary="A normal map made for one tool, in the axes of another.",
        polarity="by convention",
        takes="unit",
        resample="smooth",
        backend="numpy",
        parameters=(
            Parameter(
                "source", "choice", "opengl", "The axes of the map given.", choices=_NORMAL_CONVENTIONS
            ),
            Parameter("convention", "choice", "bae", "The axes of the hint.", choices=_NORMAL_CONVENTIONS),
        ),
    ),
    Entry(
        name="segment_palette",
        title="Segmentation from a painted map",
        condition="seg",
        function="classic.regions:snap_to_palette",
        nature="conversion",
        summary="A painted label map, its colours snapped to the palette; it adds no understanding.",
        polarity="one colour per class",
        palette="ADE20K",
        takes="labels",
        backend="numpy",
        parameters=(
            Parameter("palette", "choice", "ade20k", "The palette of the net.", choices=("ade20k",)),
            Parameter(
                "tolerance",
                "float",
                442.0,
                "Colours farther than this from all classes are black.",
                0,
                442,
                1,
            ),
        ),
    ),
    Entry(
        name="segment_regions",
        title="Colour regions with chosen classes",
        condition="seg",
        function="classic.regions:color_regions",
        summary="Groups of like colours, which the user names. Not semantic: it does not know what it sees.",
        polarity="one colour per class",
        palette="ADE20K",
        seeded=True,
        parameters=(
            Parameter("classes", "text", "sky, building, earth", "ADE20K class names, one for each group."),
            Parameter(
                "order",
                "choice",
                "top_to_bottom",
                "How the groups are sorted before they get the names.",
                choices=("top_to_bottom", "dark_to_light", "large_to_small"),
            ),
            Parameter("cell", "int", 16, "Size, in pixels, of the regions that are grouped.", 4, 256, 1),
        ),
    ),
)

PICTURES: tuple[Entry, ...] = (
    Entry(
        name="tile",
        title="Tile",
        condition="tile",
        function="classic.tones:tile",
        nature="conversion",
        summary="The picture, plainly resized as the v1.1 net expects, or with fine detail averaged away.",
        polarity="a picture",
        takes="unit",
        resample="smooth",
        parameters=(
            Parameter("factor", "int", 1, "Detail finer than this many pixels is averaged away.", 1, 64, 1),
        ),
    ),
    Entry(
        name="blur",
        title="Blur",
        condition="blur",
        function="classic.tones:blur",
        nature="conversion",
        summary="The picture blurred by a Gaussian.",
        polarity="a picture",
        resample="smooth",
        parameters=(Parameter("sigma", "float", 9.0, "Standard deviation in pixels.", 0.1, 200, 0.1),),
    ),
    Entry(
        name="shuffle",
        title="Shuffle",
        condition="shuffle",
        function="classic.tones:shuffle",
        nature="random",
        summary="The picture's colours, moved about by a smooth random flow.",
        polarity="a picture",
        seeded=True,
        resample="smooth",
        parameters=(
            Parameter("grain", "int", 256, "Size, in pixels, of the random flow's features.", 8, 1024, 8),
        ),
    ),
    Entry(
        name="recolor",
        title="Recolor",
        condition="recolor",
        function="classic.tones:recolor",
        nature="conversion",
        summary="The picture in gray, for nets that give it colours: lightness (Lab) or value (HSV).",
        polarity="a gray picture",
        resample="smooth",
        parameters=(
            Parameter(
                "mode",
                "choice",
                "luminance",
                "Lightness of Lab, or value of HSV.",
                choices=("luminance", "intensity"),
            ),
            Parameter("gamma", "float", 1.0, "Exponent; above 1 darkens.", 0.1, 5, 0.05),
        ),
    ),
    Entry(
        name="luminance",
        title="Luminance",
        condition="brightness",
        function="classic.tones:luminance",
        summary="The picture's luma, as brightness nets read it.",
        polarity="a gray picture",
        resample="smooth",
    ),
    Entry(
        name="color_grid",
        title="Colour grid",
        condition="color",
        function="classic.tones:color_grid",
        nature="conversion",
        summary="Flat cells of the picture's colours.",
        polarity="a picture",
        parameters=(Parameter("cell", "int", 64, "Size of a cell in pixels.", 1, 512, 1),),
    ),
    Entry(
        name="binary",
        title="Binary",
        condition="scribble",
        function="classic.tones:binary",
        summary="What is dark becomes white; Otsu's method chooses the limit unless it is given.",
        parameters=(Parameter("threshold", "int", 0, "Limit of 255; 0 is Otsu's choice.", 0, 255, 1),),
    ),
    Entry(
        name="threshold",
        title="Threshold",
        condition="scribble",
        function="classic.tones:threshold",
        summary="What is bright in all three channels becomes white, the rest black.",
        polarity="bright is white",
        parameters=(Parameter("level", "int", 127, "Limit of 255.", 0, 254, 1),),
    ),
    Entry(
        name="inpaint",
        title="Inpaint",
        condition="inpaint",
        function="classic.tones:inpaint",
        nature="conversion",
        summary="The picture with the masked area marked by -1, which is how the inpaint net knows it.",
        polarity="a picture, -1 under the mask",
        takes="unit",
        masked=True,
        backend="numpy",
        parameters=(
            Parameter(
                "masked_value", "float", -1.0, "Value under the mask: -1, or 0 for some SDXL nets.", -1, 1, 1
            ),
        ),
    ),
    Entry(
        name="ip2p",
        title="Instruct pix2pix",
        condition="ip2p",
        function="classic.tones:same",
        nature="conversion",
        summary="The picture as it is.",
        polarity="a picture",
        takes="unit",
        resample="smooth",
        backend="numpy",
    ),
    Entry(
        name="reference",
        title="Reference",
        condition="reference",
        function="classic.tones:same",
        nature="conversion",
        summary="The picture as it is.",
        polarity="a picture",
        takes="unit",
        resample="smooth",
        backend="numpy",
    ),
    Entry(
        name="invert",
        title="Invert",
        condition="any",
        function="classic.tones:invert",
        nature="conversion",
        summary="Black lines on white become white lines on black, and back.",
        polarity="the opposite of what is given",
        takes="unit",
        resample="smooth",
        backend="numpy",
    ),
)

ENTRIES: tuple[Entry, ...] = LINES + MAPS + PICTURES
