"""Draw the two figures of docs/architecture.md: the path of the data, and the folders with their imports.

    python docs/draw_architecture.py

Photo, hint and picture come from docs/images/strip.png.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from PIL import Image

IMAGES = Path(__file__).parent / "images"
STRIP_SIDE, STRIP_STEP = 320, 328
"""Side of a picture in the strip, and the distance from one to the next."""
INK, GRAY = "#222222", "#666666"
NET, BASE, DATA, HOST = "#dbeafe", "#fde8d0", "#eeeeee", "#dcfce7"
Point = tuple[float, float]


def box(axes: Axes, at: Point, size: Point, title: str, file: str = "", color: str = DATA) -> None:
    """Draw a rounded box around the point `at`, with a title and below it the file or folder."""
    (x, y), (width, height) = at, size
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.12", fc=color, ec=GRAY))
    axes.text(x, y + (0.17 if file else 0), title, ha="center", va="center", fontsize=9.5, color=INK)
    if file:
        axes.text(x, y - 0.2, file, ha="center", va="center", fontsize=8, color=GRAY, family="monospace")


def arrow(axes: Axes, start: Point, end: Point, label: str = "", bend: float = 0.0, shift: Point = (0, 0.14)) -> None:
    """Draw an arrow; the label stands at its middle, moved by `shift`."""
    style = {
        "arrowstyle": "-|>",
        "color": INK,
        "lw": 1.2,
        "connectionstyle": f"arc3,rad={bend}",
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", end, start, arrowprops=style)
    middle = ((start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1])
    axes.text(*middle, label, ha="center", va="center", fontsize=8.5, color=INK)


def thumbnail(axes: Axes, index: int, at: Point, title: str) -> None:
    """Draw one picture of the strip."""
    with Image.open(IMAGES / "strip.png") as strip:
        left = index * STRIP_STEP
        pixels = np.asarray(strip.convert("RGB").crop((left, 0, left + STRIP_SIDE, STRIP_SIDE)))
    x, y = at
    axes.imshow(pixels, extent=(x - 0.7, x + 0.7, y - 0.7, y + 0.7), zorder=2)
    axes.text(x, y - 0.9, title, ha="center", va="center", fontsize=10, color=INK)


def data_path(axes: Axes) -> None:
    """Photo -> hint -> ControlNet -> residuals -> UNet -> picture, for one step."""
    net, base, side = 4.9, 2.2, (2.4, 0.85)
    thumbnail(axes, 0, (0.8, net), "photo")
    box(axes, (2.75, net), (1.7, 0.85), "preprocessor", "preprocessors/", HOST)
    thumbnail(axes, 1, (4.7, net), "hint")
    box(axes, (7.2, net), side, "ControlNet encoder", "models/controlnet.py", NET)
    box(axes, (10.3, net), side, "zero convolutions", "models/zero_conv.py", NET)
    box(axes, (7.2, base), side, "UNet encoder", "models/unet.py", BASE)
    box(axes, (10.3, base), (2.1, 0.85), "skips + residuals", "denoise.py", BASE)
    box(axes, (13.1, base), side, "UNet decoder", "models/unet.py", BASE)
    box(axes, (13.4, net), (3.0, 0.85), "guidance, sampler step", "sample.py", BASE)
    box(axes, (16.7, net), (1.8, 0.85), "VAE decoder", "models/vae.py", BASE)
    thumbnail(axes, 3, (18.9, net), "picture")
    box(axes, (4.7, base), (1.8, 0.85), "noisy latent x,\ntimestep, text")
    arrow(axes, (1.5, net), (1.9, net))
    arrow(axes, (3.6, net), (4.0, net))
    arrow(axes, (5.4, net), (6.0, net))
    arrow(axes, (8.4, net), (9.1, net), "", shift=(0, 0.22))
    arrow(axes, (10.3, net - 0.42), (10.3, base + 0.42), "strength x mode x\nblock weight x mask", shift=(1.1, 0.0))
    arrow(axes, (5.6, base), (6.0, base))
    arrow(axes, (5.3, base + 0.42), (6.6, net - 0.42), "", -0.05)
    arrow(axes, (8.4, base), (9.25, base), "13 outputs\n(SD1.5)", shift=(0, 0.62))
    arrow(axes, (11.35, base), (11.9, base))
    arrow(axes, (13.1, base + 0.42), (13.1, net - 0.42), "prediction", shift=(0.55, 0))
    arrow(axes, (14.9, net), (15.8, net), "last\nstep", shift=(0, 0.36))
    arrow(axes, (17.6, net), (18.2, net))
    axes.plot([14.6, 14.6, 4.7], [net - 0.42, 0.75, 0.75], color=INK, lw=1.2, ls="--")
    arrow(axes, (4.7, 0.75), (4.7, base - 0.42))
    axes.text(9.4, 0.95, "next step: x with less noise", ha="center", va="center", fontsize=8.5, color=INK)


def folders(axes: Axes, rows: Iterable[tuple[float, float, float, str, str, str]]) -> None:
    """A box for each (x, y, width, name, what it is, colour)."""
    for x, y, width, name, about, color in rows:
        box(axes, (x, y), (width, 0.8), about, name, color)


def imports(axes: Axes) -> None:
    """The folders. An arrow points to what may be imported; everything may import config and errors."""
    rows = [
        (6.0, 8.6, 4.8, "workflows/", "files, runner, command line, Python API", HOST),
        (6.0, 7.3, 4.8, "nodes/", "node classes, two hosts", HOST),
        (1.5, 6.0, 2.5, "preprocessors/", "pictures to hints", HOST),
        (7.3, 6.0, 4.2, "training/  analysis/", "trainer, demo world, measurements", NET),
        (11.3, 6.0, 3.0, "checkpoints/", "files to models", NET),
        (7.3, 4.9, 4.2, "pipeline.py  backend.py", "combines the parts of a run", BASE),
        (7.3, 3.9, 4.2, "speed/", "optional accelerations", BASE),
        (7.3, 2.9, 4.2, "sample.py  denoise.py  prepare.py", "the algorithm", BASE),
        (
            7.3,
            1.7,
            8.4,
            "control/  conditioning/  models/  diffusion/  runtime/",
            "units, conditions, networks, noise and samplers, devices",
            NET,
        ),
        (7.3, 0.6, 4.2, "config.py  errors.py", "shapes as data, error types", DATA),
    ]
    folders(axes, rows)
    arrow(axes, (6.0, 8.2), (6.0, 7.7))
    arrow(axes, (5.0, 6.9), (2.0, 6.4))
    arrow(axes, (6.6, 6.9), (7.0, 6.4))
    arrow(axes, (7.6, 6.9), (11.0, 6.4))
    arrow(axes, (9.4, 6.0), (9.8, 6.0))
    for top, bottom in ((5.6, 5.3), (4.5, 4.3), (3.5, 3.3), (2.5, 2.1), (1.3, 1.0)):
        arrow(axes, (7.3, top), (7.3, bottom))
    arrow(axes, (11.3, 5.6), (11.3, 2.1), "models", shift=(0.45, 0))
    axes.add_patch(
        FancyBboxPatch((2.85, 0.05), 10.1, 6.5, boxstyle="round,pad=0.0,rounding_size=0.2", fc="none", ec=GRAY, ls=":")
    )
    axes.text(3.05, 6.3, "controlnet_core/", fontsize=9, color=GRAY, family="monospace", va="center")


def save(name: str, draw, width: float, height: float) -> None:
    """Draw a figure of width x height units and write it as PNG."""
    figure, axes = plt.subplots(figsize=(width * 0.62, height * 0.62), dpi=110)
    axes.set_position((0, 0, 1, 1))
    draw(axes)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(IMAGES / name, facecolor="white")
    plt.close(figure)
    with Image.open(IMAGES / name) as image:
        image.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT).save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    save("architecture_data.png", data_path, 19.8, 5.9)
    save("architecture_folders.png", imports, 13.2, 9.2)
