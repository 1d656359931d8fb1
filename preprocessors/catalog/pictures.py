"""Preprocessors without weights whose hint is the picture itself, as it is or changed."""

from __future__ import annotations

from typing import Any

from ..entry import Entry, Parameter, choice


def _as_it_is(name: str, title: str, summary: str = "The picture as it is.", **options: Any) -> Entry:
    """A conversion of float pixels by numpy alone; the function is `same` unless another one is given."""
    options = {"condition": name, "function": "classic.tones:same", "polarity": "a picture", **options}
    return Entry(name, title, summary=summary, nature="conversion", takes="unit", backend="numpy", **options)


# A table, the names of an entry on one line, its summary on the next.
# fmt: off
PICTURES: tuple[Entry, ...] = (
    Entry(
        "tile", "Tile", "tile", "classic.tones:tile",
        "The picture, plainly resized as the v1.1 net expects, or with fine detail averaged away.",
        (Parameter("factor", "int", 1, "Average detail finer than this many pixels.", 1, 64, 1),),
        polarity="a picture", nature="conversion", takes="unit", resample="smooth", example=(("factor", 16),),
    ),
    Entry(
        "blur", "Blur", "blur", "classic.tones:blur",
        "The picture blurred by a Gaussian.",
        (Parameter("sigma", "float", 9.0, "Standard deviation in pixels.", 0.1, 200, 0.1),),
        polarity="a picture", nature="conversion", resample="smooth",
    ),
    Entry(
        "shuffle", "Shuffle", "shuffle", "classic.tones:shuffle",
        "The picture's colours, moved about by a smooth random flow.",
        (Parameter("grain", "int", 256, "Size of the random flow's features, in pixels.", 8, 1024, 8),),
        polarity="a picture", nature="random", seeded=True, resample="smooth",
    ),
    Entry(
        "recolor", "Recolor", "recolor", "classic.tones:recolor",
        "The picture in gray, for nets that give it colours: lightness (Lab) or value (HSV).",
        (
            choice("mode", ("luminance", "intensity"), "Lightness of Lab, or value of HSV."),
            Parameter("gamma", "float", 1.0, "Exponent; above 1 darkens.", 0.1, 5, 0.05),
        ),
        polarity="a gray picture", nature="conversion", resample="smooth",
    ),
    Entry(
        "luminance", "Luminance", "brightness", "image_ops:gray",
        "The picture's luma, as brightness nets read it.",
        polarity="a gray picture", resample="smooth",
    ),
    Entry(
        "color_grid", "Colour grid", "color", "classic.tones:color_grid",
        "Flat cells of the picture's colours.",
        (Parameter("cell", "int", 64, "Size of a cell in pixels.", 1, 512, 1),), polarity="a picture",
        nature="conversion",
    ),
    Entry(
        "binary", "Binary", "scribble", "classic.tones:binary",
        "What is dark becomes white; Otsu's method chooses the limit unless it is given.",
        (Parameter("threshold", "int", 0, "Limit, of 255; 0 lets Otsu's method choose.", 0, 255, 1),),
    ),
    Entry(
        "threshold", "Threshold", "scribble", "classic.tones:threshold",
        "What is bright in all three channels becomes white, the rest black.",
        (Parameter("level", "int", 127, "Limit, of 255.", 0, 254, 1),), polarity="bright is white",
    ),
    _as_it_is(
        "inpaint", "Inpaint",
        "The picture with the masked area marked by -1, which is how the inpaint net knows it.",
        function="classic.tones:inpaint", polarity="a picture, -1 under the mask", masked=True,
        parameters=(
            Parameter("masked_value", "float", -1.0, "Value under the mask: -1, or 0 for some SDXL nets.", -1, 1, 1),
        ),
    ),
    _as_it_is("ip2p", "Instruct pix2pix", resample="smooth"),
    _as_it_is("reference", "Reference", resample="smooth"),
    _as_it_is(
        "invert", "Invert",
        "Black lines on white become white lines on black, and back.",
        condition="any", function="classic.tones:invert", polarity="the opposite of what is given",
        resample="smooth",
    ),
)
# fmt: on
