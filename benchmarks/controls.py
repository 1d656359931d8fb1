"""Measure how mode, window, mask and block weights change fidelity, on held-out scenes of the demo world.

    python benchmarks/controls.py [--scenes 16] [--json FILE] [--markdown FILE] [--pictures FOLDER]

Every variant samples the same scenes from the same seed; only the control differs. The columns:

canny       F1 between the edges of the picture and those of the true picture, with a tolerance of 2 pixels
depth       mean IoU over objects; each pixel belongs to the object of the nearest colour (scene albedo, in Lab)
openpose    IoU of the mannequin, over the scenes that have one
no prompt   the same as canny, with an empty prompt in place of the caption
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.analysis.plots import FAINT, INK, MARGIN, new_page
from comfyui_controlnet_core.controlnet_core.analysis.sensitivity import Sensitivity
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.control.modes import MODES, SOFT
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene, render_seed
from comfyui_controlnet_core.preprocessors import process
from fidelity import ASSETS, FIRST_SEED, SCORES, SETTINGS, Demo, edge_f1, hint, load_demo
from sensitivity import BLOCKS, information
from torch import Tensor

NETS = ("canny", "depth", "openpose")
COLUMNS = (*NETS, "no prompt")
SHOWN = 6
"""Number of scenes on each sheet of pictures."""
SIZE = 128


@dataclass(frozen=True)
class Variant:
    """A row of a table: its name, and the fields of a plain unit that it changes."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def weights(*levels: float) -> dict[str, tuple[float, ...]]:
    """Block weights by resolution: full (blocks 0, 1), half (2, 3), quarter (4, 5), middle."""
    full, half, quarter, middle = levels
    return {"block_weights": (full, full, half, half, quarter, quarter, middle)}


PLAIN = Variant("all of it")
NONE = Variant("no control", {"strength": 0.0})
TABLES: dict[str, tuple[Variant, ...]] = {
    "mode": tuple(Variant(mode, {"mode": mode}) for mode in MODES),
    "window": (
        PLAIN,
        *(
            Variant(f"{start:.0%} to {end:.0%}", {"start": start, "end": end})
            for start, end in ((0.0, 0.25), (0.0, 0.5), (0.0, 0.75), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0))
        ),
    ),
    "block weights": (
        PLAIN,
        Variant("full resolution alone (0, 1)", weights(1, 0, 0, 0)),
        Variant("half alone (2, 3)", weights(0, 1, 0, 0)),
        Variant("quarter and middle alone (4, 5, mid)", weights(0, 0, 1, 1)),
        Variant("without full resolution", weights(0, 1, 1, 1)),
        Variant("without half", weights(1, 0, 1, 1)),
        Variant("without quarter and middle", weights(1, 1, 0, 0)),
        Variant("soft, 0.825^(6 - i)", {"block_weights": tuple(SOFT ** (6 - i) for i in range(BLOCKS))}),
    ),
}


@dataclass
class Lab:
    """The demo model, its nets, and the pictures so far. Variants that are equal are sampled once."""

    demo: Demo
    nets: Mapping[str, torch.nn.Module]
    painted: dict[tuple, np.ndarray] = field(default_factory=dict)

    def rows(self, column: str) -> list[int]:
        """Return the numbers of the scenes that count for a column."""
        score = SCORES[net_of(column)][1]
        return [i for i, scene in enumerate(self.demo.scenes) if score(scene, scene.image)]

    def paint(self, column: str, changes: Mapping[str, Any]) -> np.ndarray:
        """Sample the scenes of a column with changed control. Returns (scenes, H, W, 3) in [0, 1]."""
        kind = net_of(column)
        key = (kind, column == "no prompt", key_of(changes))
        if key not in self.painted:
            texts = self.demo.empty.expand_as(self.demo.texts) if column == "no prompt" else self.demo.texts
            demo = replace(self.demo, texts=texts)
            plain = changes.get("strength") == 0.0
            latents = []
            for row in self.rows(column):
                unit = ControlUnit(self.nets[kind], hint(kind, demo.scenes[row]), name=kind)
                stack = () if plain else (replace(unit, **changes),)
                latents.append(demo.latent(row, stack, torch.zeros(1, 4, SIZE // 8, SIZE // 8)))
            self.painted[key] = demo.decode(torch.cat(latents))
        return self.painted[key]

    def scores(self, column: str, changes: Mapping[str, Any]) -> list[float]:
        """Return the mean score of each scene."""
        score = SCORES[net_of(column)][1]
        pairs = zip(self.rows(column), self.paint(column, changes), strict=True)
        return [float(np.mean(score(self.demo.scenes[row], picture))) for row, picture in pairs]


def key_of(changes: Mapping[str, Any]) -> str:
    """Return a key that is equal for changes that give the same picture."""
    values = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in changes.items()}
    values = {name: v for name, v in values.items() if v != "balanced"}
    return repr(sorted(values.items()))


def net_of(column: str) -> str:
    """Return the name of the net that a column uses."""
    return "canny" if column == "no prompt" else column


def proposed(lab: Lab, kind: str, scenes: int = 3) -> tuple[float, ...]:
    """Return the block weights that BlockSensitivity proposes, from its measurements on the first scenes."""
    measured = []
    for row in lab.rows(kind)[:scenes]:
        unit = ControlUnit(lab.nets[kind], hint(kind, lab.demo.scenes[row]), name=kind)
        x0 = lab.demo.latent(row, (unit,), torch.zeros(1, 4, SIZE // 8, SIZE // 8))
        measured.append(information(lab.demo, row, unit, x0).information)
    return Sensitivity(tuple(np.mean(measured, axis=0).tolist()), (), (), ()).weights


def table(lab: Lab, variants: Sequence[Variant], columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """Score the variants. Returns name -> column -> mean score, and prints each row."""
    result = {}
    for variant in variants:
        result[variant.name] = {column: float(np.mean(lab.scores(column, variant.changes))) for column in columns}
        print(f"  {variant.name:40}" + "".join(f"{value:10.3f}" for value in result[variant.name].values()), flush=True)
    return result


def proposal_row(lab: Lab) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the fidelity of each net with its proposed weights, and these weights."""
    found = {kind: proposed(lab, kind) for kind in NETS}
    row = {kind: float(np.mean(lab.scores(kind, {"block_weights": w}))) for kind, w in found.items()}
    print(f"  {'proposed by Block Sensitivity':40}" + "".join(f"{value:10.3f}" for value in row.values()), flush=True)
    return row, {kind: [round(w, 3) for w in weights] for kind, weights in found.items()}


# ------------------------------------------------------------------------------------------- masks


def half_mask(left: bool) -> Tensor:
    """Return a mask (1, H, W) that is 1 on one half of the picture."""
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1.0
    return mask if left else 1.0 - mask


MASKS = (
    PLAIN,
    Variant("left half", {"mask": half_mask(True)}),
    Variant("right half", {"mask": half_mask(False)}),
    NONE,
)


def masks(lab: Lab) -> dict[str, dict[str, float]]:
    """Return the edge F1 of the left and the right half of the picture, for the canny net with masks."""
    result = {}
    for variant in MASKS:
        halves = [[], []]
        for row, picture in zip(lab.rows("canny"), lab.paint("canny", variant.changes), strict=True):
            for scores, score in zip(halves, half_scores(lab.demo.scenes[row], picture), strict=True):
                scores += score
        result[variant.name] = {side: float(np.mean(s)) for side, s in zip(("left", "right"), halves, strict=True)}
        print(f"  {variant.name:40}" + "".join(f"{value:10.3f}" for value in result[variant.name].values()), flush=True)
    return result


def half_scores(scene: RenderedScene, picture: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the edge F1 inside each half; an empty list for a half in which the scene has no edges."""
    true, found = (np.asarray(process("canny", p[None]))[0, ..., 0] for p in (scene.image, picture))
    sides = (np.s_[:, : SIZE // 2], np.s_[:, SIZE // 2 :])
    scores = [[edge_f1(true[side], found[side])] if true[side].any() else [] for side in sides]
    return scores[0], scores[1]


# ------------------------------------------------------------------------------------------- pictures


def sheet(lab: Lab, column: str, variants: Sequence[Variant], path: Path) -> None:
    """Draw scenes from left to right and variants from top to bottom, with the true picture and the hint above."""
    from PIL import Image

    rows = lab.rows(column)[:SHOWN]
    kind = net_of(column)
    lines = [("true picture", [lab.demo.scenes[row].image for row in rows]),
             ("hint", [hint(kind, lab.demo.scenes[row])[0].permute(1, 2, 0).numpy() for row in rows])]  # fmt: skip
    lines += [(variant.name, list(lab.paint(column, variant.changes)[: len(rows)])) for variant in variants]
    cell = 112
    with new_page(240 + MARGIN + (cell + 4) * len(rows), 2 * MARGIN + (cell + 4) * len(lines)) as page:
        for line, (name, pictures) in enumerate(lines):
            y = MARGIN + line * (cell + 4)
            color = FAINT if line < 2 else INK
            page.text(232, y + cell / 2, name, 14, color, ha="right", va="center_baseline")
            for index, picture in enumerate(pictures):
                page.picture(240 + index * (cell + 4), y, np.asarray(picture), cell)
        pixels = page.pixels()
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((pixels * 255.0 + 0.5).astype(np.uint8))
    image.quantize(256, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)


SHEETS: dict[str, tuple[str, Sequence[Variant]]] = {
    "mode": ("no prompt", (*TABLES["mode"], NONE)),
    "window": ("canny", (*TABLES["window"], NONE)),
    "mask": ("canny", MASKS),
    "block_weights": ("depth", (*TABLES["block weights"], NONE)),
}


# ------------------------------------------------------------------------------------------- the page


def markdown(report: Mapping[str, Any], folder: Path, page: Path) -> str:
    """Return the text of docs/controls_fidelity.md."""
    settings = f"{SETTINGS.sampler} with {SETTINGS.scheduler}, {SETTINGS.steps} steps, cfg {SETTINGS.cfg:g}, one seed"
    parts = [
        "# Effect of the controls on fidelity\n",
        "How well does the picture follow the hint, and how do the controls change that? `python "
        "benchmarks/controls.py` writes this page.\n",
        f"Setup: {report['scenes']} held-out scenes of the demo world ({report['with a mannequin']} with a mannequin), "
        f"{settings}. Only the control differs between the rows.\n",
        "| column | measure |",
        "| --- | --- |",
        "| canny | F1 of the edges, with a tolerance of 2 pixels |",
        "| depth | IoU of the objects |",
        "| openpose | IoU of the mannequin |",
        "| no prompt | the same as canny, with an empty prompt |\n",
        "Two rows to compare with: no control, and the ceiling, which is the true picture after the autoencoder:\n",
        grid({name: report[name] for name in ("no control", "ceiling")}, COLUMNS),
    ]
    for name, title in (("mode", "By mode"), ("window", "By window"), ("block weights", "By block weights")):
        parts += [f"## {title}\n", grid(report[name], COLUMNS), picture_link(folder, page, name, title)]
    mask = grid(report["mask"], ("left", "right"))
    about = "Edge F1 in each half of the picture, for the canny net with a mask of one half.\n"
    parts += ["## By mask\n", about, mask, picture_link(folder, page, "mask", "By mask")]
    listed = "; ".join(f"{kind}: {', '.join(f'{w:.2f}' for w in ws)}" for kind, ws in report["proposed"].items())
    parts.append(f"Weights that Block Sensitivity proposes, for blocks 0 to 5 and the middle: {listed}.\n")
    return "\n".join(parts)


def grid(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """Return a Markdown table."""
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name, row in rows.items():
        cells = (f"{row[column]:.3f}" if column in row else "-" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture_link(folder: Path, page: Path, name: str, title: str) -> str:
    """Return the Markdown link to a sheet, relative to the page."""
    path = os.path.relpath(folder / f"controls_{name.replace(' ', '_')}.png", page.parent)
    return f"![{title}]({Path(path).as_posix()})\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="the page docs/controls_fidelity.md, with links to the pictures")
    parser.add_argument("--pictures", type=Path, help="folder for one sheet of pictures per table")
    args = parser.parse_args()
    started = time.monotonic()
    scenes = [render_seed(FIRST_SEED + i) for i in range(args.scenes)]
    nets = {k: load_controlnet(args.assets / f"demo_{k}.safetensors", dtype=torch.float32)[0] for k in NETS}
    lab = Lab(load_demo(args.assets, scenes), nets)
    report: dict[str, Any] = {"scenes": len(scenes), "with a mannequin": len(lab.rows("openpose"))}
    report["no control"] = table(lab, [NONE], COLUMNS)[NONE.name]
    ceiling = lab.demo.ceiling()
    report["ceiling"] = {column: ceiling_score(lab, column, ceiling) for column in COLUMNS}
    for name, variants in TABLES.items():
        print(f"by {name}, {round(time.monotonic() - started)} s")
        report[name] = table(lab, variants, COLUMNS if name == "mode" else NETS)
    report["block weights"]["proposed by Block Sensitivity"], report["proposed"] = proposal_row(lab)
    print("by mask: F1 of the left half, of the right half")
    report["mask"] = masks(lab)
    report["seconds"] = round(time.monotonic() - started, 1)
    print(f"{report['seconds']} s")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.pictures:
        for name, (column, variants) in SHEETS.items():
            sheet(lab, column, variants, args.pictures / f"controls_{name}.png")
    if args.markdown:
        args.markdown.write_text(markdown(report, args.pictures or args.markdown.parent, args.markdown), "utf-8")
    return 0


def ceiling_score(lab: Lab, column: str, pictures: np.ndarray) -> float:
    """Return the score of the true pictures after the autoencoder."""
    score: Callable[..., list[float]] = SCORES[net_of(column)][1]
    return float(np.mean([np.mean(score(lab.demo.scenes[row], pictures[row])) for row in lab.rows(column)]))


if __name__ == "__main__":
    sys.exit(main())
