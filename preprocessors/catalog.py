"""The table of all preprocessors. Data only: what runs is named, not imported."""

from __future__ import annotations

from .registry import Entry, Parameter

ENTRIES: tuple[Entry, ...] = (
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
)
