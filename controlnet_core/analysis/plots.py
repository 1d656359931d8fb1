"""A page to draw on, and what our pictures consist of: text, pictures, heat maps and bars.

matplotlib draws. It is imported with the first page, because it takes half a second and most runs draw nothing.
Positions and sizes are in pixels from the top left corner of the page. Colours are written "#rrggbb".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, LINE, NOTHING = "#212529", "#6e757d", "#ced4da", "#e9ecef"
BAR, SECOND = "#31688e", "#35b779"
COLOURS = "viridis"
"""Smith and van der Walt 2015: dark is low, and equal steps look equal, in gray as well."""
MARGIN, LABELS, CELL_HEIGHT, BAR_HEIGHT = 24, 76, 22, 24
GRID = 800
"""Widest heat map. Its cells are at most 40 pixels wide."""


class Page:
    """A white page. Use `new_page` to make one."""

    def __init__(self, figure: Figure, width: int, height: int) -> None:
        self.figure, self.width, self.height = figure, width, height

    def text(self, x: float, y: float, words: str, size: int = 12, color: str = INK, **options: Any) -> None:
        """Write text with its top left corner at (x, y). Options are those of matplotlib's `Text`."""
        options = {"ha": "left", "va": "top", **options}
        self.figure.text(x / self.width, 1 - y / self.height, words, size=size, color=color, **options)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes without a frame or tick marks; (x, y) is their top left corner."""
        w, h = self.width, self.height
        axes = self.figure.add_axes((x / w, 1 - (y + height) / h, width / w, height / h), frameon=False)
        axes.tick_params(length=0, pad=6, labelsize=11, labelcolor=FAINT)
        return axes

    def picture(self, x: float, y: float, pixels: np.ndarray, side: float) -> float:
        """Draw (h, w, 3) in [0, 1], its longer side `side` pixels long. Returns the height on the page."""
        height, width = pixels.shape[:2]
        scale = side / max(height, width)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        axes = self.axes(x, y, width, height)
        axes.set(xticks=[], yticks=[], frame_on=True)
        axes.spines[:].set_color(LINE)
        # A photo is averaged when it shrinks. The pixels of a small hint must stay sharp when it grows.
        smooth = "hanning" if scale < 1 else "nearest"
        axes.imshow(np.clip(pixels, 0, 1), interpolation=smooth, aspect="auto")
        return height

    def pixels(self) -> np.ndarray:
        """The page as (H, W, 3) float32 in [0, 1]."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255


@contextmanager
def new_page(width: int, height: int) -> Iterator[Page]:
    """Open a page of this size; draw on it, and read its `pixels()`, inside the `with` block.

    Raises CoreError if matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:  # ComfyUI itself does not need it, and a pack may be copied without its requirements
        raise MissingPackageError(
            f"pictures of plans and reports need matplotlib ({error}): pip install matplotlib"
        ) from error

    # ComfyUI runs many packs in one process, and some change matplotlib's defaults: use the original ones here. Names
    # of files are not TeX: one with a "$" would be typeset as a formula, or fail.
    with style.context(["default", {"text.parse_math": False}]):
        # At 72 dpi a point is a pixel.
        yield Page(Figure((width / 72, height / 72), dpi=72), width, height)


def cell_width(columns: int) -> int:
    """Width of a cell in a heat map with this number of columns."""
    return max(2, min(40, GRID // max(1, columns)))


def draw_heat_map(
    page: Page,
    x: float,
    y: float,
    values: Sequence[Sequence[float | None]],
    names: tuple[Sequence[str], Sequence[str]],
    top: float,
    axis_names: tuple[str, str, str],
) -> None:
    """Draw a table of numbers as colours, with a scale from 0 to `top` beside it. (x, y): corner of the first cell.

    values: rows x columns, None for a gray cell. names: of the rows and of the columns. axis_names: what the
    rows, the columns and the values are.
    """
    table = np.array(values, float)
    rows, columns = table.shape
    width, top = cell_width(columns), top or 1.0
    axes = page.axes(x, y, width * columns, CELL_HEIGHT * rows)
    axes.set_facecolor(NOTHING)
    axes.set_frame_on(True)
    axes.spines[:].set_visible(False)
    gap = 1 if width > 4 else 0
    mesh = axes.pcolormesh(table, cmap=COLOURS, vmin=0, vmax=top, edgecolors="white", linewidth=gap)
    axes.invert_yaxis()
    if width >= 28:  # a number fits into a cell
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                color = INK if value > 0.6 * top else "white"
                cx, cy = x + (column + 0.5) * width, y + (row + 0.5) * CELL_HEIGHT
                # as text of the page: text of the axes would be clipped to them, which takes longer to draw
                page.text(cx, cy, short(value), 10, color, ha="center", va="center_baseline")
    every = max(1, -(-30 // width))
    axes.set_xticks(np.arange(0, columns, every) + 0.5, names[1][::every])
    axes.set_yticks(np.arange(rows) + 0.5, names[0])
    axes.set_xlabel(axis_names[1], size=12, color=INK)
    page.text(x - 6, y - 4, axis_names[0], ha="right", va="bottom")
    scale = page.axes(x + width * columns + 24, y, 14, CELL_HEIGHT * rows)
    colorbar = page.figure.colorbar(mesh, cax=scale, ticks=[0, top])
    for label, edge in zip(colorbar.ax.set_yticklabels(["0", short(top)]), ("bottom", "top"), strict=True):
        label.set_verticalalignment(edge)
    colorbar.outline.set_visible(False)
    colorbar.ax.tick_params(length=0, pad=6)
    page.text(x + width * columns + 24, y - 4, axis_names[2], va="bottom")


def draw_bars(
    page: Page,
    x: float,
    y: float,
    width: float,
    names: Sequence[str],
    values: Sequence[float],
    words: str,
    color: str = BAR,
) -> None:
    """Draw non-negative values as horizontal bars, one row each, with their numbers; `words` is the heading."""
    page.text(x, y, words, 13)
    axes = page.axes(x, y + 22, width, BAR_HEIGHT * len(values))
    bars = axes.barh(names, values, height=0.75, color=color)
    axes.bar_label(bars, [short(value) for value in values], padding=6, size=11, color=INK)
    # Room on the right for the number of the longest bar.
    axes.set(xlim=(0, width / (width - 60) * (max(values) or 1.0)), ylim=(len(values) - 0.5, -0.5), xticks=[])


def short(value: float) -> str:
    """Write a number with at most about five characters."""
    if value == 0:
        return "0"
    if 0.0095 <= abs(value) < 9999.5:
        return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.0f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
