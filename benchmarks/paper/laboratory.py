"""Shared parts of the paper's experiments: scenes, one training run, fidelity of its pictures, rows, figures.

A run is a `Variant` with a seed. It is trained by the product's own trainer on rendered scenes, and saved in the work
folder: several experiments read the same run, and one that was stopped continues.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks

from comfyui_controlnet_core.controlnet_core.atomic_files import atomic_write
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import (
    ControlNetTraining,
    TrainingOptions,
    prepare_training,
)
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene, render_seed
from comfyui_controlnet_core.controlnet_core.training.disk_cache import DiskCache, encoders_digest
from comfyui_controlnet_core.controlnet_core.training.draw import DrawRows, EpochDraw
from comfyui_controlnet_core.controlnet_core.training.examples import RandomAccess
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from comfyui_controlnet_core.nodes.example_pictures import VIEWS
from fidelity import ASSETS, FIRST_SEED, SCORES, SETTINGS, Demo, edges, hint, load_demo, mannequin, objects
from starts import STARTS

__all__ = [
    "ASSETS", "FIRST_SEED", "INSUFFICIENT", "KIND", "PROBED", "PROMPTS", "QUICK", "SCORES", "SETTINGS", "Demo",
    "Laboratory", "Scenes", "Settings", "Variant", "edges", "hint", "load_demo", "mannequin", "objects", "write_json",
]  # fmt: skip
KIND = "canny"
PROBED = 8
"""Held-out scenes of the probe, which evaluates base and net on 64 of them."""
PROMPTS = ("caption", "none", "insufficient", "conflicting")
INSUFFICIENT = "a picture"
"""Words that say nothing about the scene (the paper's figure 8: "a high-quality and detailed masterpiece")."""


@dataclass(frozen=True)
class Variant:
    """What is varied: all other numbers of the training are those of `Settings`.

    start: how the net begins, a key of `starts.STARTS`. scenes: how many different scenes are trained on. empty:
    fraction of captions that are emptied. locked: False trains the decoder of the base too. quick: see
    `TrainingOptions`; False is the paper's initialisation of the hint encoder and its uniform timesteps. probe_every: a
    probe costs as much as eight steps. times: how often the steps of `Settings`, for what takes longer to appear.
    """

    start: str = "zero"
    lr: float = 1e-3
    scenes: int = 1000
    empty: float = 0.5
    locked: bool = True
    quick: bool = True
    probe_every: int = 40
    times: int = 1

    @property
    def name(self) -> str:
        """The name of its folder."""
        flags = ("" if self.locked else "_unlocked") + ("" if self.quick else "_paper")
        flags += "" if self.probe_every == 40 else f"_probe{self.probe_every}"
        return f"{self.start}_lr{self.lr:g}_scenes{self.scenes}_empty{self.empty:g}{flags}"


@dataclass(frozen=True)
class Settings:
    """Budget of an experiment.

    scored: held-out scenes whose pictures are compared with their hints. trained_only: leave runs out that are not
    complete, instead of training them.
    """

    work: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 160
    batch: int = 4
    scored: int = 8
    trained_only: bool = False


QUICK = {"seeds": (0,), "steps": 80, "scored": 4}
"""What `--quick` changes: enough to see every experiment run, too little to publish."""


@dataclass(frozen=True)
class Scenes(RandomAccess):
    """The first `count` scenes of the demo world, and held-out ones behind them for the probe; rendered when drawn.

    rendered: seed -> picture and hint (H, W, 3) uint8, and caption; runs share it.
    """

    count: int
    rendered: dict[int, tuple[np.ndarray, np.ndarray, str]]
    size: int = 128

    def __len__(self) -> int:
        return self.count + PROBED

    def seed(self, row: int) -> int:
        """The seed of a row's scene. The probe's scenes are neither trained on nor scored."""
        return row if row < self.count else FIRST_SEED + 10_000 + row - self.count

    def split(self, seed: int) -> tuple[DrawRows, tuple[int, ...]]:
        """Draw from the first `count`; the others are held out, the same for every count."""
        return EpochDraw((range(self.count),), seed), tuple(range(self.count, len(self)))

    def _scene(self, row: int) -> tuple[np.ndarray, np.ndarray, str]:
        seed = self.seed(row)
        if seed not in self.rendered:
            scene = render_seed(seed, self.size)
            picture, edges = ((VIEWS[view](scene) * 255.0 + 0.5).astype(np.uint8) for view in ("picture", KIND))
            self.rendered[seed] = picture, edges, scene.caption
        return self.rendered[seed]

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, S, S) float32 in [-1, 1]."""
        return _to_float([self._scene(row)[0] for row in rows]) * 2.0 - 1.0

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1]."""
        return _to_float([self._scene(row)[1] for row in rows])

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        return [self._scene(row)[2] for row in rows]

    def stamp(self, row: int) -> str:
        """A scene is determined by its seed."""
        return f"scene {self.seed(row)}"


def _to_float(pictures: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255.0


class Laboratory:
    """Trains variants, measures them, and keeps both in the work folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rendered: dict[int, tuple[np.ndarray, np.ndarray, str]] = {}

    @cached_property
    def scored(self) -> list[RenderedScene]:
        """The held-out scenes whose pictures are compared with their hints."""
        return [render_seed(FIRST_SEED + i) for i in range(self.settings.scored)]

    @cached_property
    def demo(self) -> Demo:
        """The demo model with the captions of the scored scenes. Weights are not packed: many nets come by once."""
        return replace(load_demo(ASSETS, self.scored), backend=Backend(Runtime(pack_weights=False)))

    def steps(self, variant: Variant) -> int:
        """Training steps of a run."""
        return self.settings.steps * variant.times

    def folder(self, variant: Variant, seed: int) -> Path:
        """Where a run lies; it depends on everything that decides its numbers."""
        numbers = f"steps{self.steps(variant)}_batch{self.settings.batch}"
        return self.settings.work / f"{variant.name}_{numbers}" / f"seed{seed}"

    def runs(self, variants: Sequence[Variant]) -> Iterator[tuple[Variant, int]]:
        """Each variant with each seed; all of one seed first, so that what is cut off has whole seeds."""
        for seed in self.settings.seeds:
            for variant in variants:
                if not self.settings.trained_only or self.is_complete(variant, seed):
                    yield variant, seed

    def is_complete(self, variant: Variant, seed: int) -> bool:
        """Whether a run was trained to its end."""
        path = self.folder(variant, seed) / "row.json"
        return path.exists() and json.loads(path.read_text())["complete"]

    def prepare(self, variant: Variant, seed: int) -> ControlNetTraining:
        """A run as it was left, or a fresh one."""
        folder = self.folder(variant, seed)
        checkpoint = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32)
        net = STARTS[variant.start](checkpoint.unet, checkpoint.config.controlnet, seed, variant.quick)
        # Rates fall at the end of a run: the last steps then show what was learned and not the noise of the batches.
        recipe = Recipe(
            self.steps(variant), self.settings.batch, variant.lr,
            lr_end=0.1, warmup=20, betas=(0.9, 0.99), seed=seed,
        )  # fmt: skip
        options = TrainingOptions(variant.empty, sd_locked=variant.locked, quick=variant.quick)
        # Runs in several processes share the folder: each writes shards of its own.
        disk = DiskCache(self.settings.work / "cache", encoders_digest(checkpoint), os.getpid())
        training = prepare_training(
            checkpoint, Scenes(variant.scenes, self.rendered), recipe, options,
            state_file=folder / "training.state", start=net, disk=disk,
        )  # fmt: skip
        training.loop.resume()
        return training

    def train(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train a run to its end. Returns its row: what it is, its probes, and the processor time that it took."""
        path = self.folder(variant, seed) / "row.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        row = json.loads(path.read_text()) if path.exists() else {"cpu_seconds": 0.0, "probes": []}
        if row.get("complete"):
            return row
        training = self.prepare(variant, seed)
        started, before = time.process_time(), row["cpu_seconds"]
        # A kill between two saved states repeats steps, and with them their probes.
        probes = [probe for probe in row["probes"] if probe["step"] <= training.loop.step]

        def keep(step: int) -> None:
            if step % variant.probe_every and step != training.loop.recipe.steps:
                return
            probes.append(asdict(training.probe()))
            about = {**asdict(variant), "seed": seed, "steps": training.loop.recipe.steps}
            spent = {"cpu_seconds": round(before + time.process_time() - started, 1)}
            write_json(path, {**about, **spent, "complete": False, "probes": probes})
            print(f"{variant.name} seed {seed} step {step} control {probes[-1]['control']:.3f}", flush=True)

        training.loop.run(on_step=keep, save_every=40)
        training.flush()
        row = {**json.loads(path.read_text()), "complete": True}
        write_json(path, row)
        return row

    def trained(self, variant: Variant, seed: int) -> ControlNetTraining:
        """A run at its end, with the averaged weights in its net."""
        self.train(variant, seed)
        training = self.prepare(variant, seed)
        training.loop.use_average()
        return training

    def measured(self, variant: Variant, seed: int, prompts: Sequence[str] = ("caption", "none")) -> dict[str, Any]:
        """The row of a run, with the edge F1 of each scored scene under each prompt in `fidelity`."""
        row = self.train(variant, seed)
        path = self.folder(variant, seed) / f"fidelity{self.settings.scored}.json"
        found: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
        missing = [prompt for prompt in prompts if prompt not in found]
        if missing:
            training = self.trained(variant, seed)
            for prompt in missing:
                found[prompt] = self.scores(training.net, prompt, training)
                write_json(path, found)
                print(f"{variant.name} seed {seed} {prompt}: F1 {np.mean(found[prompt]):.3f}", flush=True)
        return {**row, "fidelity": {prompt: found[prompt] for prompt in prompts}}

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of this name: read if it was made before with as many scored scenes, so that a script continues."""
        path = self.settings.work / f"rows_{self.settings.scored}" / f"{name.replace(' ', '_')}.json"
        if path.exists():
            return json.loads(path.read_text())
        row = make()
        write_json(path, row)
        numbers = {key: round(float(np.mean(v)), 3) for key, v in row.items() if isinstance(v, (list, float))}
        print(name, numbers, flush=True)
        return row

    def with_prompt(self, prompt: str) -> Demo:
        """The demo model with one of `PROMPTS` for each scored scene."""
        texts = self.demo.texts
        # The caption of the next scene contradicts the hint.
        given = {"caption": lambda: texts, "none": lambda: self.demo.empty.expand_as(texts),
                 "insufficient": lambda: self.demo.text.encode(INSUFFICIENT).expand_as(texts),
                 "conflicting": lambda: texts.roll(1, dims=0)}  # fmt: skip
        return replace(self.demo, texts=given[prompt]())

    def paint(self, net: ControlNet, prompt: str, training: ControlNetTraining | None = None) -> np.ndarray:
        """Sample a picture for each scored scene and its hint, (N, H, W, 3) in [0, 1]."""
        demo = self.with_prompt(prompt)
        # Both halves of the guidance are the same without a prompt: one is enough.
        settings = replace(SETTINGS, cfg=1.0) if prompt == "none" else SETTINGS
        if training is not None and not training.options.sd_locked:
            model = DiffusionModel(training.unet, demo.model.config, demo.model.schedule)
            demo = replace(demo, model=model)
        units = [(ControlUnit(net, hint(KIND, scene)),) for scene in self.scored]
        empty = torch.zeros(1, 4, 16, 16)
        return demo.decode(torch.cat([demo.latent(row, unit, empty, settings) for row, unit in enumerate(units)]))

    def scores(self, net: ControlNet, prompt: str, training: ControlNetTraining | None = None) -> list[float]:
        """Edge F1 of each scored scene."""
        pictures = self.paint(net, prompt, training)
        score = SCORES[KIND][1]
        return [float(np.mean(score(s, p))) for s, p in zip(self.scored, pictures, strict=True)]


def write_json(path: Path, value: object) -> None:
    """Replace a file as a whole, so that a kill leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
