"""Measure how well the demo ControlNets make pictures follow their hints, on held-out scenes, with baselines.

    python benchmarks/fidelity.py [--scenes 64] [--only NAME ...] [--json FILE] [--pictures FOLDER]

For each condition there are four pictures of every scene: with the scene's own hint (with), with the hint of another
scene (shuffled), without control (none), and the true picture after the autoencoder (ceiling). The measures:

edges          F1 of the canny edges of the picture and those of the true picture, with a tolerance of 2 pixels
lines          the same for straight segments, as the preprocessor `lines` finds them
outlines       F1 of the canny edges of the picture and the true outlines of objects, ground and sky, with the same
               tolerance: for depth, normals and segmentation, which say where a surface ends and not its colour
objects        mean IoU over objects; each pixel belongs to the object of the nearest colour (scene albedo, in Lab). It
               also asks whether the base gives each object the colour of its caption
pose           IoU of the mannequin, which has its own colour, over the scenes with a mannequin
gain           (with - shuffled) / (ceiling - shuffled)
union          the same for the one net of all kinds, which is told the kind of each hint
photo          edge F1 for the bundled photographs, over eight seeds; the demo model was not trained on photographs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.analysis.fidelity import compare_edges, iou
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.derived import DerivedControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import TextEncoder
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.training.demo_stages import UNION_KINDS
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene, render_seed, srgb_to_lab
from comfyui_controlnet_core.nodes.example_pictures import VIEWS
from comfyui_controlnet_core.nodes.example_pictures import load_photo as example_photo
from comfyui_controlnet_core.preprocessors import process
from torch import Tensor

ASSETS = Path(__file__).parents[1] / "controlnet_core" / "assets"
FIRST_SEED = 1_000_100  # not in the training data, and not among the example scenes of the nodes
SETTINGS = SampleSettings(seed=7, steps=10, cfg=4.0, sampler="dpmpp_2m", scheduler="karras")
KINDS = ("canny", "lines", "soft_edge", "scribble", "openpose", "segmentation", "normal", "depth", "lineart")
EXTRAS = ("union", "strength", "together", "photo")
"""What is measured beside the nets one by one."""
Score = Callable[[RenderedScene, np.ndarray], list[float]]


def edge_f1(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the F-measure of two edge maps (H, W), with a tolerance of 2 pixels."""
    return compare_edges(expected, found).score


def classify_albedo(picture: np.ndarray, albedo: np.ndarray) -> np.ndarray:
    """Return for each pixel (H, W, 3) of an sRGB picture the index of the nearest of the albedos (L, 3), in CIELAB."""
    distances = srgb_to_lab(picture)[..., None, :] - srgb_to_lab(albedo)
    return np.linalg.norm(distances, axis=-1).argmin(axis=-1)


def edges(scene: RenderedScene, picture: np.ndarray) -> list[float]:
    """Return the F1 of the picture's canny edges and those of the true picture."""
    return [edge_f1(*(_map("canny", p) for p in (scene.image, picture)))]


def lines(scene: RenderedScene, picture: np.ndarray) -> list[float]:
    """Return the F1 of the picture's straight segments and those of the true picture; an empty list without any."""
    expected = _map("lines", scene.image)
    return [edge_f1(expected, _map("lines", picture))] if expected.any() else []


def outlines(scene: RenderedScene, picture: np.ndarray) -> list[float]:
    """Return the F1 of the picture's canny edges and the true outlines of objects, ground and sky."""
    labels = scene.labels
    border = np.zeros(labels.shape, np.float32)
    border[:, 1:][labels[:, 1:] != labels[:, :-1]] = 1.0
    border[1:][labels[1:] != labels[:-1]] = 1.0
    return [edge_f1(border, _map("canny", picture))]


def _map(preprocessor: str, picture: np.ndarray) -> np.ndarray:
    return np.asarray(process(preprocessor, picture[None].astype(np.float32)))[0, ..., 0]


def objects(scene: RenderedScene, picture: np.ndarray) -> list[float]:
    """Return the IoU of each object."""
    found = classify_albedo(picture, scene.albedo)
    first = 2  # 0 is the sky and 1 the ground
    return [iou(scene.labels == i, found == i) for i in range(first, int(scene.labels.max()) + 1)]


def mannequin(scene: RenderedScene, picture: np.ndarray) -> list[float]:
    """Return the IoU of the mannequin; an empty list for scenes without one."""
    if "person" not in scene.classes:
        return []
    label = scene.classes.index("person")
    return [iou(scene.labels == label, classify_albedo(picture, scene.albedo) == label)]


SCORES: dict[str, tuple[str, Score]] = {
    "canny": ("edge F1", edges),
    "lines": ("line F1", lines),
    "soft_edge": ("edge F1", edges),
    "scribble": ("edge F1", edges),
    "openpose": ("mannequin IoU", mannequin),
    "segmentation": ("object IoU", objects),
    "normal": ("object IoU", objects),
    "depth": ("object IoU", objects),
    "lineart": ("edge F1", edges),
}
OUTLINES = ("outline F1", outlines)
"""The second measure of the kinds that are measured by objects: it does not ask for their colours."""


@dataclass(frozen=True)
class Demo:
    """The loaded demo model and the encoded captions of the scenes."""

    scenes: list[RenderedScene]
    model: DiffusionModel
    vae: torch.nn.Module
    text: TextEncoder
    texts: Tensor
    empty: Tensor
    backend: Backend

    def latent(
        self, row: int, units: tuple[ControlUnit, ...], start: Tensor, settings: SampleSettings = SETTINGS
    ) -> Tensor:
        """Sample the latent (1, 4, h, w) of one scene's caption with control."""
        halves = [Condition(self.texts[row : row + 1], units)], [Condition(self.empty, units)]
        return generate(self.model, *halves, start, settings, backend=self.backend, batch_index=[0])

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents (N, 4, h, w) -> pictures (N, H, W, 3) in [0, 1]."""
        with torch.inference_mode():
            return pictures(torch.cat([self.vae.decode(latent[None]) for latent in latents]))

    def run(self, stacks: list[tuple[ControlUnit, ...]], rows: range) -> np.ndarray:
        """Sample a picture for each row, (N, H, W, 3) in [0, 1]; `stacks` has the units of each row."""
        empty = torch.zeros(1, 4, 16, 16)
        return self.decode(torch.cat([self.latent(row, stacks[row], empty) for row in rows]))

    def ceiling(self) -> np.ndarray:
        """Return the true pictures after the autoencoder, (N, H, W, 3) in [0, 1]."""
        truth = torch.from_numpy(np.stack([s.image for s in self.scenes])).permute(0, 3, 1, 2).float() * 2.0 - 1.0
        with torch.inference_mode():
            return pictures(self.vae.decode(self.vae.encode(truth)))


def load_demo(assets: Path, scenes: list[RenderedScene]) -> Demo:
    """Load the demo model from a folder."""
    checkpoint = load_checkpoint(assets / "demo_base.safetensors", dtype=torch.float32)
    text = checkpoint.text_encoder()
    return Demo(
        scenes,
        DiffusionModel(checkpoint.unet, checkpoint.config, scaled_linear()),
        checkpoint.vae,
        text,
        torch.cat([text.encode(s.caption) for s in scenes]),
        text.encode(""),
        Backend(Runtime()),
    )


def load_net(path: Path, unet: UNet) -> ControlNet:
    """Load one of the demo's nets; a Control-LoRA is completed with the weights of its base."""
    net = load_control(path, dtype=torch.float32)[0]
    return net.resolve(unet) if isinstance(net, DerivedControlNet) else net


def pictures(images: Tensor) -> np.ndarray:
    """Convert (B, 3, H, W) in [-1, 1] -> (B, H, W, 3) in [0, 1], rounded to bytes as in a PNG."""
    return (((images + 1.0) * 127.5).round().clamp(0, 255) / 255.0).permute(0, 2, 3, 1).numpy()


def hint(kind: str, scene: RenderedScene) -> Tensor:
    """Return the exact hint of a scene, (1, 3, H, W) in [0, 1]."""
    view = np.ascontiguousarray(VIEWS[kind](scene), np.float32)
    return torch.from_numpy(view).permute(2, 0, 1)[None]


def shuffled(scored: list[int], count: int) -> list[int]:
    """Return for each scene the number of the scene whose hint it gets; the scored scenes swap among themselves."""
    order = list(range(count))
    for i, other in zip(scored, [*scored[1:], scored[0]], strict=True):
        order[i] = other
    return order


def mean(score: Score, scenes: list[RenderedScene], made: np.ndarray) -> float:
    """Return the mean score over all objects of all scenes."""
    return float(np.mean([value for s, p in zip(scenes, made, strict=True) for value in score(s, p)]))


@dataclass(frozen=True)
class Baselines:
    """Pictures of all scenes without control, and the true pictures after the autoencoder."""

    free: np.ndarray
    ceiling: np.ndarray


def measured(
    demo: Demo,
    kind: str,
    unit: Callable[[Tensor], ControlUnit],
    baselines: Baselines,
    pictures_to: Path | None = None,
) -> dict[str, object]:
    """Measure and print a net with its own hints and with those of other scenes, and the baselines.

    A kind that is measured by objects gets a second row, by outlines.
    """
    scenes, rows, (name, score) = demo.scenes, range(len(demo.scenes)), SCORES[kind]
    hints = [hint(kind, scene) for scene in scenes]
    own = demo.run([(unit(h),) for h in hints], rows)
    swapped = shuffled([i for i in rows if score(scenes[i], scenes[i].image)], len(scenes))
    other = demo.run([(unit(hints[i]),) for i in swapped], rows)
    shown = {"with": own, "shuffled": other, "none": baselines.free, "ceiling": baselines.ceiling}
    label = unit(hints[0]).name
    row = _row(label, name, score, scenes, shown)
    if score is objects:
        row["outlines"] = _row(label, *OUTLINES, scenes, shown)
    if pictures_to:
        scores = [score(s, p) for s, p in zip(scenes, own, strict=True)]
        sheet(pictures_to / f"fidelity_{kind}.png", scenes, hints, own, baselines.free, scores)
    return row


def _row(
    label: str, name: str, score: Score, scenes: list[RenderedScene], shown: dict[str, np.ndarray]
) -> dict[str, object]:
    """One printed row: the means of all columns, and the share of the possible gain over shuffled hints."""
    means = {column: mean(score, scenes, made) for column, made in shown.items()}
    gain = (means["with"] - means["shuffled"]) / (means["ceiling"] - means["shuffled"])
    figures = f"{means['with']:7.3f}{means['shuffled']:10.3f}{means['none']:7.3f}{means['ceiling']:9.3f}{gain:7.3f}"
    print(f"{label:22}{name:16}{figures}", flush=True)
    return {"measure": name, "scenes": sum(1 for s in scenes if score(s, s.image)), **means, "gain": gain}


def by_strength(demo: Demo, net: ControlNet) -> dict[str, float]:
    """Return the edge F1 of the canny net for each strength."""
    found = {}
    for strength in (0.0, 0.5, 1.0):
        stacks = [(ControlUnit(net, hint("canny", s), strength),) for s in demo.scenes]
        found[str(strength)] = mean(edges, demo.scenes, demo.run(stacks, range(len(demo.scenes))))
    return found


def together(demo: Demo, pose: ControlNet, depth: ControlNet, baselines: Baselines) -> dict[str, dict[str, float]]:
    """Return both scores with the pose net and the depth net in one stack, beside no control and the ceiling."""
    stacks = [(ControlUnit(pose, hint("openpose", s)), ControlUnit(depth, hint("depth", s))) for s in demo.scenes]
    made = {"together": demo.run(stacks, range(len(stacks))), "neither": baselines.free, "ceiling": baselines.ceiling}
    scores = (("object IoU", objects), ("mannequin IoU", mannequin))
    return {name: {column: mean(score, demo.scenes, p) for column, p in made.items()} for name, score in scores}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument(
        "--only", nargs="+", choices=(*KINDS, *EXTRAS), default=(*KINDS, *EXTRAS), help="measure only these"
    )
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--json", type=Path, help="file of all rows; those that are not measured stay as they are")
    parser.add_argument("--pictures", type=Path, help="folder for one sheet per condition")
    args = parser.parse_args()
    demo = load_demo(args.assets, [render_seed(FIRST_SEED + i) for i in range(args.scenes)])
    report: dict[str, Any] = {"conditions": {}}
    if args.json and args.json.exists():
        report = json.loads(args.json.read_text(encoding="utf-8"))
    report |= {"scenes": args.scenes, "settings": vars(SETTINGS)}

    def net(name: str) -> Any:
        return load_net(args.assets / f"demo_{name}.safetensors", demo.model.unet)

    baselines = Baselines(demo.run([()] * args.scenes, range(args.scenes)), demo.ceiling())
    print(f"{'condition':22}{'measure':16}{'with':>7}{'shuffled':>10}{'none':>7}{'ceiling':>9}{'gain':>7}")
    for part in args.only:
        started = time.monotonic()
        if part in KINDS:
            row = measured(demo, part, partial(ControlUnit, net(part), name=part), baselines, args.pictures)
            report["conditions"][part] = {**row, "seconds": round(time.monotonic() - started, 1)}
        elif part == "union":
            several = net("union")
            report[part] = {
                kind: measured(demo, kind, partial(ControlUnit, several, name=f"union, {kind}", kind=word), baselines)
                for kind, word in UNION_KINDS.items()
            }
        elif part == "strength":
            report["canny by strength"] = by_strength(demo, net("canny"))
        elif part == "together":
            report["depth and pose together"] = together(demo, net("openpose"), net("depth"), baselines)
        else:
            report["photo"] = {name: photo(demo, net("canny"), name, prompt) for name, prompt in PHOTOS.items()}
        if args.json:  # after each part: a run that is cut off keeps what it measured
            args.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps({key: report[key] for key in report if key not in ("conditions", "settings", "union")}, indent=2))
    return 0


PHOTOS = {
    "coins": "a photo of a red ball and a blue ball on yellow ground",
    **dict.fromkeys(("coffee", "astronaut", "rocket", "cat"), ""),
}
"""Photograph -> prompt: that of the bundled workflow for the coins. The demo has no words for what the others show."""
PHOTO_SEEDS = range(8)


def photo(demo: Demo, net: ControlNet, name: str, prompt: str) -> dict[str, float]:
    """Measure the edge F1 of pictures made from a photograph's edges, as in the bundled workflow."""
    picture, _ = example_photo(ASSETS / "examples" / f"{name}.jpg", "picture", 128)
    soft = process("blur", picture.numpy(), sigma=2.0)
    edge_map = np.asarray(process("canny", soft, low=60, high=140))
    pixels = torch.from_numpy(np.ascontiguousarray(edge_map, np.float32)).permute(0, 3, 1, 2)
    context = demo.text.encode(prompt)
    found: dict[str, float] = {}
    for column, units in (("with", (ControlUnit(net, pixels),)), ("none", ())):
        scores = []
        for seed in PHOTO_SEEDS:
            settings = SampleSettings(seed=seed, steps=20, cfg=5.0)
            halves = [Condition(context, units)], [Condition(demo.empty, units)]
            latent = generate(demo.model, *halves, torch.zeros(1, 4, 16, 16), settings, backend=demo.backend)
            with torch.inference_mode():
                made = pictures(demo.vae.decode(latent))
            scores.append(edge_f1(edge_map[0, ..., 0], _map("canny", made[0])))
        found[column] = float(np.mean(scores))
    with torch.inference_mode():
        restored = pictures(demo.vae.decode(demo.vae.encode(picture.permute(0, 3, 1, 2) * 2.0 - 1.0)))
    smooth = process("canny", process("blur", restored, sigma=2.0), low=60, high=140)
    found["ceiling"] = edge_f1(edge_map[0, ..., 0], np.asarray(smooth)[0, ..., 0])
    return found


def sheet(
    path: Path,
    scenes: list[RenderedScene],
    hints: list[Tensor],
    own: np.ndarray,
    free: np.ndarray,
    scores: list[list[float]],
) -> None:
    """Draw the four best, four middle and four worst scenes: true picture, hint, with and without control."""
    from PIL import Image

    ranked = sorted((i for i in range(len(scenes)) if scores[i]), key=lambda i: -float(np.mean(scores[i])))
    half = len(ranked) // 2
    chosen = dict.fromkeys([*ranked[:4], *ranked[half - 2 : half + 2], *ranked[-4:]])
    columns = [
        np.concatenate([scenes[i].image, hints[i][0].permute(1, 2, 0).numpy(), own[i], free[i]], axis=0) for i in chosen
    ]
    picture = (np.concatenate(columns, axis=1).clip(0, 1) * 255.0 + 0.5).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
