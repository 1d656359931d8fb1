"""Tables and plots from the JSON that `step.py` writes.

    python benchmarks/render.py FILE.json ... [--plot FILE.png]

Prints a Markdown table per file (seconds, ratio to diffusers, memory, error). The plot shows time over the number
of nets, over the picture's size and over the batch; an axis with a single value is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 420, 320, 56
COLOURS = ("#1b6ca8", "#d1495b", "#3c8d5a", "#8d6a9f")
AXES = ("nets", "size", "batch")
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    rows: list[Row] = []
    for file in args.files:
        found = json.loads(file.read_text(encoding="utf-8"))
        print(", ".join(f"{key} {value}" for key, value in found[0]["machine"].items()))
        print()
        print(table(found))
        rows += found
    if args.plot:
        plot(rows).save(args.plot)
    return 0


def table(rows: list[Row]) -> str:
    """Markdown, one line per row; the ratio is to diffusers in the same case."""
    lines = [
        "| engine | dtype | size | batch | nets | s (spread) | of diffusers | peak MB | error | prepare s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    peers = {_case(row): row["seconds"] for row in rows if row["engine"] == "diffusers"}
    for row in rows:
        peer = peers.get(_case(row))
        ratio = "" if peer is None else f"{row['seconds'] / peer:.2f}"
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        prepare = "" if row["prepare"] is None else f"{row['prepare']:.2f}"
        lines.append(
            f"| {row['engine']} | {row['dtype']} | {row['size']} | {row['batch']} | {row['nets']} "
            f"| {row['seconds']:.2f} ({row['spread']:.2f}) | {ratio} | {row['peak_bytes'] / 1e6:.0f} | {error} "
            f"| {prepare} |"
        )
    return "\n".join(lines) + "\n"


def _case(row: Row) -> tuple[Any, ...]:
    return row["dtype"], row["size"], row["batch"], row["nets"]


def plot(rows: list[Row]) -> Image.Image:
    """A panel per axis that has several values, the other axes at their most measured value."""
    axes = [axis for axis in AXES if len({row[axis] for row in rows}) > 1]
    sheet = Image.new("RGB", (WIDTH * max(1, len(axes)), HEIGHT), "white")
    for index, axis in enumerate(axes):
        sheet.paste(panel(rows, axis), (index * WIDTH, 0))
    return sheet


def panel(rows: list[Row], axis: str) -> Image.Image:
    """Seconds over one axis, a line per engine and dtype."""
    fixed = {other: max((row[other] for row in rows), key=_counter(rows, other)) for other in AXES if other != axis}
    chosen = [row for row in rows if all(row[key] == value for key, value in fixed.items())]
    names = list(dict.fromkeys(f"{row['engine']} {row['dtype']}" for row in chosen))
    right = max(row[axis] for row in chosen) or 1
    top = max(row["seconds"] for row in chosen)
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
        return MARGIN + width * x / right, HEIGHT - MARGIN - height * y / top

    draw.line([at(0, top), at(0, 0), at(right, 0)], fill="black")
    said = ", ".join(f"{key} {value}" for key, value in fixed.items())
    draw.text((MARGIN, 8), f"seconds per step over {axis} ({said})", fill="black")
    draw.text((8, at(0, top)[1] - 6), f"{top:.2f}", fill="black")
    for value in sorted({row[axis] for row in chosen}):
        draw.text((at(value, 0)[0] - 6, HEIGHT - MARGIN + 6), str(value), fill="black")
    for index, name in enumerate(names):
        mine = sorted((r[axis], r["seconds"]) for r in chosen if f"{r['engine']} {r['dtype']}" == name)
        colour = COLOURS[index % len(COLOURS)]
        points = [at(*point) for point in mine]
        draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((MARGIN + 8, 26 + 14 * index), name, fill=colour)
    return image


def _counter(rows: Iterable[Row], axis: str) -> Any:
    values = [row[axis] for row in rows]
    return lambda value: (values.count(value), value)


if __name__ == "__main__":
    sys.exit(main())
