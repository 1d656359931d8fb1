"""Do windows that keep 95 % of the information keep the fidelity? Compared with brute force on the demo ControlNets.

    python benchmarks/information.py [--scenes 16] [--json FILE] [--picture FILE]

For each net and scene it measures the information about the net's strength at each step (as Control Plan does, on the
finished latent), and samples once for every window of consecutive steps that leaves out at most two. So the proposed
window can be compared with all others:

loss        fidelity of the uncut run less that with the window; the measures are those of benchmarks/fidelity.py
moved       mean square change of the finished latent
best        the loss of the best window with as many steps as the proposed one, found by trying all of them

Finished groups of scenes are kept in FILE, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.analysis.information import (
    StepInformation,
    over_steps,
    step_information,
)
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.pipeline import SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.sample import cut_sigmas
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene, render_seed
from fidelity import ASSETS, FIRST_SEED, KINDS, SCORES, SETTINGS, Demo, hint, load_demo, load_net
from torch import Tensor

GROUP = 2
"""Scenes that are sampled as one batch, and kept together."""
CUT = 2
KEPT = (0.95, 0.9)


def scenes_of(kind: str, count: int) -> list[RenderedScene]:
    """Return the first held-out scenes that the measure of a net counts, such as those with a mannequin."""
    score, found, seed = SCORES[kind][1], [], FIRST_SEED
    while len(found) < count:
        scene = render_seed(seed)
        found += [scene] if score(scene, scene.image) else []
        seed += 1
    return found


@dataclass
class Group:
    """Scenes that are sampled as one batch with their hints."""

    demo: Demo
    kind: str
    unit: ControlUnit
    settings: SampleSettings

    def sample(self, latent: Tensor, settings: SampleSettings, **changes: Any) -> Tensor:
        """Sample (B, 4, h, w) with a changed unit."""
        units = (replace(self.unit, **changes),)
        texts, batch = self.demo.texts, len(self.demo.scenes)
        halves = [Condition(texts, units)], [Condition(self.demo.empty.expand_as(texts), units)]
        # Index 0 for all: every scene gets the same noise, as in a run of its own.
        return generate(self.demo.model, *halves, latent, settings, backend=self.demo.backend, batch_index=[0] * batch)

    def fidelity(self, latents: Tensor) -> list[float]:
        """Return the fidelity of each scene."""
        score = SCORES[self.kind][1]
        pairs = zip(self.demo.scenes, self.demo.decode(latents), strict=True)
        return [float(np.mean(score(scene, picture))) for scene, picture in pairs]

    def information(self, whole: Tensor, row: int) -> StepInformation:
        """Measure one scene on its finished latent, as Control Plan does."""
        sigmas = cut_sigmas(self.demo.model.schedule, self.settings)[:-1].tolist()
        probe = SampleSettings(0, self.settings.steps, 1.0, "euler", self.settings.scheduler, leftover_noise=False)
        unit = replace(self.unit, hint=self.unit.hint[row : row + 1])

        def predict(point: int, factor: float) -> Tensor:
            settings = replace(probe, start_step=point, end_step=point + 1)
            return self.demo.latent(row, (replace(unit, strength=factor),), whole, settings)

        return over_steps(step_information(predict, whole, sigmas), sigmas, sigmas, self.demo.model.schedule)


def windows(steps: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) for each window of consecutive steps that leaves out at most CUT, the whole run first."""
    for length in range(steps, steps - CUT - 1, -1):
        yield from ((first, first + length) for first in range(steps - length + 1))


def measure_group(group: Group) -> list[dict[str, Any]]:
    """Measure the information of each scene, and what every window loses. Returns a row for each scene."""
    size, steps = len(group.demo.scenes), group.settings.steps
    empty = torch.zeros(size, 4, 16, 16)
    whole = group.sample(empty, group.settings)
    uncut = group.fidelity(whole)
    found = [group.information(whole[row : row + 1], row) for row in range(size)]
    rows: list[dict[str, Any]] = [
        {"fidelity": f, "information": [float(f"{v:.5g}") for v in i.values], "windows": {}}
        for f, i in zip(uncut, found, strict=True)
    ]
    proposed = [[own.window(kept) for kept in KEPT] for own in found]
    wanted = {*windows(steps), *((w.first, w.last + 1) for own in proposed for w in own)} - {(0, steps)}
    for first, end in sorted(wanted):
        # Positions of steps depend on the sampler alone, so those of the first scene serve all.
        start, stop = found[0].border(first), found[0].border(end)
        latents = group.sample(empty, group.settings, start=start, end=stop)
        moved = (latents - whole).square().mean(dim=(1, 2, 3)).tolist()
        for row, value, change in zip(rows, group.fidelity(latents), moved, strict=True):
            row["windows"][f"{first}-{end}"] = (round(row["fidelity"] - value, 5), round(change, 6))
    for row, own in zip(rows, proposed, strict=True):
        row["proposed"] = {f"{window_kept:g}": asdict(w) for window_kept, w in zip(KEPT, own, strict=True)}
    return rows


def lost(row: dict[str, Any], first: int, end: int) -> tuple[float, float]:
    """Return the loss of a window and how far it moves the latent; nothing for the whole run."""
    return tuple(row["windows"].get(f"{first}-{end}", (0.0, 0.0)))  # type: ignore[return-value]


def summarise(rows: list[dict[str, Any]], kept: float) -> dict[str, Any]:
    """Compare the proposed windows of some scenes with brute force."""
    losses, moves, bests = [], [], []
    proposals = [row["proposed"][f"{kept:g}"] for row in rows]
    lengths = [proposed["last"] + 1 - proposed["first"] for proposed in proposals]
    for row, proposed, length in zip(rows, proposals, lengths, strict=True):
        loss, moved = lost(row, proposed["first"], proposed["first"] + length)
        starts = range(len(row["information"]) - length + 1)
        tried = [lost(row, a, a + length)[0] for a in starts if f"{a}-{a + length}" in row["windows"]]
        for values, value in zip((losses, moves, bests), (loss, moved, min([loss, *tried])), strict=True):
            values.append(value)
    return {
        "kept": kept, "scenes": len(rows), "least share": min(proposed["share"] for proposed in proposals),
        "steps": float(np.mean(lengths)), "median loss": float(np.median(losses)), "mean loss": float(np.mean(losses)),
        "best": float(np.median(bests)), "moved": float(np.median(moves)),
    }  # fmt: skip


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw for each net the information of each step, and the loss of every window over the information it loses."""
    from comfyui_controlnet_core.controlnet_core.analysis.plots import BAR, FAINT, MARGIN, SECOND, new_page
    from PIL import Image

    height = 210
    with new_page(900, 40 + height * len(results)) as page:
        for line, (kind, rows) in enumerate(results.items()):
            top = 20 + line * height
            page.text(MARGIN, top, kind, 16)
            shares = np.array([np.divide(row["information"], np.sum(row["information"])) for row in rows])
            axes = page.axes(MARGIN + 60, top + 34, 340, 110)
            axes.bar(range(1, shares.shape[1] + 1), np.median(shares, axis=0), color=BAR)
            axes.set(xlabel="step", ylabel="share", xticks=range(1, shares.shape[1] + 1))
            axes = page.axes(MARGIN + 500, top + 34, 340, 110)
            # A shorter window was measured only in the scenes that it was proposed for.
            for name in (name for name in rows[0]["windows"] if all(name in row["windows"] for row in rows)):
                a, b = map(int, name.split("-"))
                gone = np.median(1.0 - shares[:, a:b].sum(axis=1))
                axes.plot(gone, np.median([row["windows"][name][0] for row in rows]), "o", color=SECOND, markersize=4)
            axes.axhline(0.02, color=FAINT, linestyle="--", linewidth=1)
            axes.axvline(0.05, color=FAINT, linestyle="--", linewidth=1)
            axes.set(xlabel="information lost", ylabel="fidelity lost")
        pixels = page.pixels()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255.0 + 0.5).astype(np.uint8)).save(path, optimize=True)


def measure_scenes(kind: str, rows: list[dict[str, Any]], count: int, settings: SampleSettings) -> None:
    """Measure the scenes of a net up to `count` that `rows` lacks, and add them to it."""
    own = scenes_of(kind, count)[len(rows) :]
    demo = load_demo(ASSETS, own)
    # Some of the nets are Control-LoRAs, which need the weights of the base.
    net = load_net(ASSETS / f"demo_{kind}.safetensors", demo.model.unet)
    unit = ControlUnit(net, torch.cat([hint(kind, scene) for scene in own]), name=kind)
    rows += measure_group(Group(demo, kind, unit, settings))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    parser.add_argument("--sampler", default=SETTINGS.sampler)
    parser.add_argument("--scheduler", default=SETTINGS.scheduler)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    settings = replace(SETTINGS, steps=args.steps, sampler=args.sampler, scheduler=args.scheduler)
    results: dict[str, list[dict]] = {}
    if args.json is not None and args.json.exists():
        results = json.loads(args.json.read_text("utf-8"))["rows"]

    def save() -> None:
        if args.json:
            summary = {kind: [summarise(rows, kept) for kept in KEPT] for kind, rows in results.items() if rows}
            report = {"settings": asdict(settings), "summary": summary, "rows": results}
            args.json.write_text(json.dumps(report), encoding="utf-8")

    # Group by group over all nets, so that a run that is stopped has about as many scenes of each.
    for count in range(GROUP, args.scenes + GROUP, GROUP):
        for kind in args.kinds:
            if len(results.setdefault(kind, [])) < min(count, args.scenes):
                measure_scenes(kind, results[kind], min(count, args.scenes), settings)
                save()
                print(f"{kind}: {len(results[kind])} scenes", flush=True)
    print(f"{'net':13}{'kept':>5}{'scenes':>7}{'steps':>7}{'loss':>8}{'mean':>8}{'best':>8}{'moved':>9}")
    for kind in args.kinds:
        for kept in KEPT:
            s = summarise(results[kind], kept)
            print(
                f"{kind:13}{kept:>5.2f}{s['scenes']:>7}{s['steps']:>7.1f}{s['median loss']:>8.4f}"
                f"{s['mean loss']:>8.4f}{s['best']:>8.4f}{s['moved']:>9.5f}"
            )
    if args.picture:
        draw({kind: results[kind] for kind in args.kinds}, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
