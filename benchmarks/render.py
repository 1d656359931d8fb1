"""Print tables and draw plots from the JSON that `step.py` writes.

    python benchmarks/render.py FILE.json ... [--plot FILE.png]

It prints a Markdown table per file (seconds, ratio to the other packages, cost of a further net, memory, error,
preparation), and memory, preparation and load of our rows in words. The plot shows time over the number of nets, over
the size of the picture and over the batch; an axis with a single value is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 420, 320, 56
COLOURS = ("#1b6ca8", "#d1495b", "#3c8d5a", "#8d6a9f", "#c77f1a", "#555555")
AXES = ("nets", "size", "batch")
PEERS = ("diffusers", "ComfyUI", "OpenVINO")
NET_OF_UNET = 283 / 803
"""GFLOP of a ControlNet divided by GFLOP of the UNet, SD1.5 at 512 pixels."""
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
        print(claims(found))
        rows += found
    if args.plot:
        plot(rows).save(args.plot)
    return 0


def table(rows: list[Row]) -> str:
    """Return a Markdown table, one line per row. Ratios are to another package in the same case of the same run.

    The column "a further net" is (time(n) - time(0)) / (n * 283 / 803 * time(0)) of the same engine. 1 means that a net
    costs as much as its share of operations.
    """
    lines = [
        "| engine | dtype | size | batch | nets | s (spread) | of diffusers | of ComfyUI | of OpenVINO "
        "| a further net | peak MB | error | first s | prepare s | other seed s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            row["engine"], row["dtype"], row["size"], row["batch"], row["nets"],
            f"{row['seconds']:.2f} ({row['spread']:.2f})",
            *(_format(_ratio(rows, row, peer, "seconds"), ".2f") for peer in PEERS),
            _format(further_net(rows, row), ".2f"), _format(row["peak_bytes"], ".0f", 1e-6),
            _format(row["error"], ".1e"),
            *(_format(row.get(name), ".3f") for name in ("first", "prepare", "other_seed")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def claims(rows: list[Row]) -> str:
    """Return memory, preparation and load in words, one line for each case of ours."""
    lines = []
    for row in rows:
        if row["engine"] != "ours":
            continue
        case = f"{row['dtype']}, {row['size']} pixels, batch {row['batch']}, nets {row['nets']}"
        memory = {peer: _ratio(rows, row, peer, "peak_bytes") for peer in PEERS}
        parts = [f"peak memory {ratio:.2f} of that of {peer}" for peer, ratio in memory.items() if ratio is not None]
        if row["prepare"] is not None:
            parts.append(f"preparing takes {row['prepare'] / row['seconds']:.2f} of a step")
        if row.get("other_seed") is not None:
            parts.append(f"with another seed {row['other_seed'] / row['seconds']:.4f}: nothing is prepared again")
        parts += [
            f"{load['per_core']} busy processes per core: {load['ratio']:.2f} of the quiet time"
            for load in row.get("busy", ())
        ]
        lines.append(f"- {case}: {'; '.join(parts)}")
    return "\n".join(lines) + "\n"


def further_net(rows: list[Row], row: Row) -> float | None:
    """Return the cost of a net in `row` relative to its operations; None if the run has no row without nets."""
    bare = _same(rows, {**row, "nets": 0})
    if bare is None or not row["nets"]:
        return None
    return (row["seconds"] - bare["seconds"]) / (row["nets"] * NET_OF_UNET * bare["seconds"])


def _ratio(rows: list[Row], row: Row, peer: str, measure: str) -> float | None:
    other = _same(rows, {**row, "engine": peer})
    return None if other is None or not other[measure] or not row[measure] else row[measure] / other[measure]


def _same(rows: list[Row], wanted: Row) -> Row | None:
    """Return the row of an engine in a case of the same run, or None."""
    keys = ("engine", "dtype", *AXES)
    found = (r for r in rows if r.get("run") == wanted.get("run") and all(r[key] == wanted[key] for key in keys))
    return next(found, None)


def _format(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, form)


def plot(rows: list[Row]) -> Image.Image:
    """Draw a panel for each axis with several values; the other axes are fixed where most rows are."""
    axes = [axis for axis in AXES if len({row[axis] for row in rows}) > 1]
    sheet = Image.new("RGB", (WIDTH * max(1, len(axes)), HEIGHT), "white")
    for index, axis in enumerate(axes):
        sheet.paste(panel(rows, axis), (index * WIDTH, 0))
    return sheet


def longest(rows: list[Row], axis: str) -> tuple[dict[str, Any], list[Row]]:
    """Return the fixed values and the rows along an axis: where most values are, then most engines."""
    lines: dict[tuple[Any, ...], list[Row]] = {}
    others = [other for other in AXES if other != axis]
    for row in rows:
        lines.setdefault(tuple(row[other] for other in others), []).append(row)

    def extent(at: tuple[Any, ...]) -> tuple[Any, ...]:
        return len({row[axis] for row in lines[at]}), len({row["engine"] for row in lines[at]}), *at

    best = max(lines, key=extent)
    return dict(zip(others, best, strict=True)), lines[best]


def panel(rows: list[Row], axis: str) -> Image.Image:
    """Draw seconds over one axis, one line per engine and dtype."""
    fixed, chosen = longest(rows, axis)
    names = list(dict.fromkeys(f"{row['engine']} {row['dtype']}" for row in chosen))
    right = max(row[axis] for row in chosen) or 1
    top = max(row["seconds"] for row in chosen)
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
        return MARGIN + width * x / right, HEIGHT - MARGIN - height * y / top

    draw.line([at(0, top), at(0, 0), at(right, 0)], fill="black")
    case = ", ".join(f"{key} {value}" for key, value in fixed.items())
    draw.text((MARGIN, 8), f"seconds per step over {axis} ({case})", fill="black")
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


if __name__ == "__main__":
    sys.exit(main())
