"""Drawing numbers: heat maps and bars, with Pillow alone. All sizes are in pixels, colours are (r, g, b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Colour: TypeAlias = tuple[int, int, int]
INK: Colour = (33, 37, 41)
FAINT: Colour = (110, 117, 125)
LINE: Colour = (206, 212, 218)
PAPER: Colour = (255, 255, 255)
NOTHING: Colour = (233, 236, 239)
BAR: Colour = (49, 104, 142)
SECOND: Colour = (53, 183, 121)
MARGIN = 24
SCALE: tuple[Colour, ...] = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
)  # fmt: skip
"""Viridis (Smith and van der Walt 2015) at nine places: dark is low; equal steps look equal, in gray as well."""


@dataclass
class Canvas:
    """A white sheet to draw on. `array()` gives (H, W, 3) float32 in [0, 1]."""

    width: int
    height: int
    image: Any = field(init=False)
    draw: Any = field(init=False)

    def __post_init__(self) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (self.width, self.height), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, size: int = 13, colour: Colour = INK, anchor: str = "la") -> None:
        """Words at a point; `anchor` as Pillow's: l m r for the side, a m s for ascender, middle, baseline."""
        self.draw.text((x, y), words, fill=colour, font=_font(size), anchor=anchor)

    def rectangle(self, x: float, y: float, width: float, height: float, fill: Colour) -> None:
        """A filled rectangle of at least one pixel."""
        right, bottom = max(x, x + width - 1), max(y, y + height - 1)
        self.draw.rectangle((round(x), round(y), round(right), round(bottom)), fill=fill)

    def frame(self, x: float, y: float, width: float, height: float, colour: Colour = LINE) -> None:
        """A thin frame."""
        self.draw.rectangle((round(x), round(y), round(x + width - 1), round(y + height - 1)), outline=colour)

    def picture(self, x: int, y: int, pixels: np.ndarray, width: int, height: int) -> None:
        """(h, w, 3) in [0, 1], brought to this size; enlarged pixels stay sharp."""
        from PIL import Image

        image = Image.fromarray((np.clip(pixels, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
        larger = width > image.width
        method = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
        self.image.paste(image.resize((width, height), method), (x, y))
        self.frame(x, y, width, height)

    def array(self) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1]."""
        return np.asarray(self.image, np.float32) / 255.0


def text_width(words: str, size: int = 13) -> int:
    """Pixels that words take."""
    return int(_font(size).getlength(words) + 0.999)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def colour_of(share: float) -> Colour:
    """0..1 -> a colour of `SCALE`; values outside are clamped."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(place), len(SCALE) - 2)
    weight = place - low
    mixed = [round(a + (b - a) * weight) for a, b in zip(SCALE[low], SCALE[low + 1], strict=True)]
    return mixed[0], mixed[1], mixed[2]


@dataclass(frozen=True)
class HeatMap:
    """A table of numbers as colours. values: rows x columns, None where there is nothing to show.

    top: the value of the brightest colour (0 is the darkest). across, down: what the axes are.
    """

    values: Sequence[Sequence[float | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    top: float
    across: str = "step"
    down: str = "block"

    def cell(self, width: int) -> tuple[int, int]:
        """Width and height of a cell when the map may take `width` pixels."""
        return max(2, min(40, width // max(1, len(self.columns)))), 22

    def height(self) -> int:
        """Pixels the map takes, with its axis."""
        return 22 * len(self.rows) + 40

    def draw(self, canvas: Canvas, x: int, y: int, width: int) -> int:
        """Draw with the cells' left edge at x and top at y; returns the cells' right edge."""
        w, h = self.cell(width)
        for row, (name, line) in enumerate(zip(self.rows, self.values, strict=True)):
            top = y + row * h
            canvas.text(x - 8, top + h / 2, name, 12, FAINT, "rm")
            for column, value in enumerate(line):
                self._draw_cell(canvas, x + column * w, top, w, h, value)
        bottom = y + len(self.rows) * h
        every = max(1, -(-30 // w))
        for column, name in enumerate(self.columns):
            if column % every == 0:
                canvas.text(x + (column + 0.5) * w, bottom + 5, name, 12, FAINT, "ma")
        right = x + len(self.columns) * w
        canvas.text(x + (right - x) / 2, bottom + 22, self.across, 12, INK, "ma")
        canvas.text(x - 8, y - 16, self.down, 12, INK, "ra")
        return right

    def _draw_cell(self, canvas: Canvas, x: float, y: float, w: int, h: int, value: float | None) -> None:
        gap = 1 if w > 4 else 0
        if value is None:
            canvas.rectangle(x, y, w - gap, h - gap, NOTHING)
            return
        share = value / self.top if self.top > 0.0 else 0.0
        canvas.rectangle(x, y, w - gap, h - gap, colour_of(share))
        words = short(value)
        if w > text_width(words, 11) + 4:
            canvas.text(x + w / 2, y + h / 2, words, 11, INK if share > 0.6 else PAPER, "mm")


def scale_bar(canvas: Canvas, x: int, y: int, height: int, top: float, words: str) -> None:
    """The legend of a heat map: its colours from 0 to `top`."""
    for line in range(height):
        canvas.rectangle(x, y + line, 14, 1, colour_of(1.0 - line / max(1, height - 1)))
    canvas.text(x + 20, y, short(top), 12, FAINT)
    canvas.text(x + 20, y + height, "0", 12, FAINT, "ls")
    canvas.text(x, y - 20, words, 12, INK)


def short(value: float) -> str:
    """A number in few characters."""
    if value == 0.0:
        return "0"
    if 0.0095 <= abs(value) < 9.995:
        return f"{value:.2f}"
    if 9.995 <= abs(value) < 9999.5:
        return f"{value:.0f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


@dataclass(frozen=True)
class Bars:
    """Values as horizontal bars, one row each, with the numbers behind them; words describe the axis."""

    names: Sequence[str]
    values: Sequence[float]
    words: str
    colour: Colour = BAR

    def height(self) -> int:
        """Pixels the bars take, with their heading."""
        return 26 + 24 * len(self.values)

    def draw(self, canvas: Canvas, x: int, y: int, width: int) -> None:
        """Draw with the bars' left edge at x; the longest takes `width` less room for its number."""
        canvas.text(x, y, self.words, 13, INK)
        top, room = max([*self.values, 0.0]), width - 60
        for row, (name, value) in enumerate(zip(self.names, self.values, strict=True)):
            line = y + 26 + row * 24
            length = room * value / top if top > 0.0 else 0.0
            canvas.text(x - 8, line + 9, name, 12, FAINT, "rm")
            canvas.rectangle(x, line, max(1.0, length), 18, self.colour)
            canvas.text(x + length + 6, line + 9, short(value), 12, INK, "lm")


def wrap(words: str, width: int, size: int = 13) -> list[str]:
    """Words broken into lines of at most `width` pixels."""
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
