"""Preprocessors without weights whose hints are edges, lines and strokes."""

from __future__ import annotations

from ..entry import Entry, Parameter, choice

_SOFT_EDGE = (
    Parameter("radius", "int", 3, "Radius in pixels of the disc whose two halves are compared.", 1, 16, 1),
    Parameter("smoothing", "int", 3, "Number of edge-preserving smoothing passes before that.", 0, 10, 1),
    Parameter("contrast", "float", 16.0, "Colour distance (Lab) that counts as a clear edge.", 1, 100, 1),
)

# A table, the names of an entry on one line, its summary on the next.
# fmt: off
LINES: tuple[Entry, ...] = (
    Entry(
        "canny", "Canny edges", "canny", "classic.canny:canny",
        "Thin edges where the colours change sharply: cv2.Canny on the colour picture.",
        (
            Parameter("low", "float", 100.0, "An edge continues where its gradient is above this.", 0, 1000, 1),
            Parameter("high", "float", 200.0, "An edge starts where its gradient is above this.", 0, 1000, 1),
            Parameter("l2_gradient", "bool", False, "Euclidean norm of the gradient instead of |x| + |y|."),
        ),
    ),
    Entry(
        "lines", "Straight lines (LSD)", "mlsd", "classic.lines:lines",
        "Straight segments, one pixel wide, measured by the line segment detector.",
        (
            choice("channels", ("lab", "gray"), "Use all colours, or gray alone."),
            Parameter("min_length", "float", 20.0, "Shortest segment that is drawn, in pixels.", 0, 4096, 1),
            Parameter("merge", "bool", True, "Leave out segments that lie on longer ones."),
        ),
    ),
    Entry(
        "soft_edge", "Soft edges", "softedge", "classic.soft_edge:soft_edge",
        "Edges graded by how strongly the colours on both sides differ, measured without a network.",
        (*_SOFT_EDGE, Parameter("safe", "bool", False, "Three levels only, so that no gray picture hides in the map.")),
        polarity="bright edges on black", threaded=True, resample="smooth",
    ),
    Entry(
        "scribble", "Scribble (xDoG)", "scribble", "classic.scribble:xdog",
        "Binary strokes where the picture is darker than its surroundings.",
        (
            Parameter("threshold", "int", 32, "Twice the darkness, of 255, that makes a stroke.", 1, 254, 1),
            Parameter("sigma", "float", 0.5, "Blur of the fine detail, in pixels.", 0.1, 10, 0.1),
            Parameter("wide_sigma", "float", 5.0, "Blur of the surroundings, in pixels.", 0.5, 50, 0.5),
        ),
        threaded=True,
    ),
    Entry(
        "scribble_soft_edge", "Scribble (from soft edges)", "scribble", "classic.soft_edge:soft_scribble",
        "Thick binary strokes along the ridges of the soft edges.",
        _SOFT_EDGE, threaded=True,
    ),
    Entry(
        "scribble_drawing", "Scribble from a drawing", "scribble", "classic.scribble:drawing",
        "Dark pen strokes on light paper become white strokes on black.",
        (Parameter("threshold", "int", 127, "A pixel is a stroke if a channel, of 255, is below this.", 1, 255, 1),),
        nature="conversion",
    ),
    Entry(
        "lineart", "Line art (standard)", "lineart", "classic.lineart:lineart",
        "Lines where the picture is darker than its surroundings, brighter the darker it is.",
        (
            Parameter("sigma", "float", 6.0, "Blur of the surroundings, in pixels.", 0.1, 100, 0.1),
            Parameter("threshold", "float", 8.0, "Weakest line, of 255, that counts.", 0, 255, 1),
        ),
        polarity="bright lines on black", threaded=True, resample="smooth",
    ),
)
# fmt: on
