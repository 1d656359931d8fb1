"""Draw each of our nodes, and beside it what it makes; `make_node_docs.py` calls this.

A node is run with its default settings. Inputs from other nodes come from the demo model and one photograph. Outputs
become pictures by their type: a LATENT is decoded, a CONDITIONING is sampled, and so on.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.errors import CoreError
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from comfyui_controlnet_core.nodes import build_nodes, own_nodes
from comfyui_controlnet_core.nodes.example_pictures import SCENES, VIEWS
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.preprocessors.normals import encode
from comfyui_controlnet_core.workflows.contract import NodeSpec, read_spec
from PIL import Image, ImageDraw, ImageFont

TILE, GAP, CARD, ROW = 192, 10, 300, 20
QUALITY = 82
PICTURE = 128
"""Side of the demo model's pictures."""
PROMPT = "a photo of a red ball and a blue ball on yellow ground"
PHOTO, SCENE = "coffee", "demo scene 10"
NOT_RUN = ("ControlNet Core/train",)
"""Categories whose nodes would run for minutes, or write files."""
DARK, BODY, TITLE, FIELD = "#202020", "#353535", "#2a2a2a", "#1c1c1c"
PALE, GRAY = "#dddddd", "#999999"
COLORS = {
    "MODEL": "#b39ddb", "CLIP": "#ffd500", "VAE": "#ff6e6e", "CONDITIONING": "#ffa931", "LATENT": "#ff9cf9",
    "IMAGE": "#64b5f6", "MASK": "#81c784", "CONTROL_NET": "#6ee7b7",
}  # fmt: skip
"""ComfyUI's colours of sockets."""
MAPS: Mapping[str, Mapping[str, Any]] = {
    "CNCore_DepthConvert": {"picture": SCENE, "view": "z-pass"},
    "CNCore_DepthStereo": {"picture": PHOTO, "view": "stereo pair"},
    "CNCore_NormalFromDepth": {"picture": SCENE, "view": "depth"},
    "CNCore_SegmentPalette": {"picture": SCENE, "view": "segmentation"},
}
"""Inputs for nodes that do not read a photograph."""
TRUTH: Mapping[str, Callable[[Any], np.ndarray]] = {
    "CNCore_Depth": VIEWS["depth"],
    "CNCore_Normal": lambda scene: encode(scene.normal),
    "CNCore_Pose": VIEWS["openpose"],
    "CNCore_Segmentation": VIEWS["segmentation"],
}
"""Nodes whose kinds all need a network file. They show the exact hint of a demo scene instead."""
TRUTH_SCENE = "demo scene 11"
MADE_BY = {"CNCore_NormalConvert": "CNCore_NormalFromDepth"}
"""Nodes that read the output of another node."""


def main(folder: Path, names: list[str] | None = None) -> None:
    """Draw all nodes, or those named."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        studio = Studio(StandaloneHost(scratch, scratch, device="cpu", dtype="fp32"))
        for name in names or own_nodes():
            target = folder / f"{name}.jpg"
            studio.picture(name).save(target, quality=QUALITY, optimize=True)
            print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


class Studio:
    """The node classes, with inputs to run them on."""

    def __init__(self, host: StandaloneHost) -> None:
        self.classes = build_nodes(host)

    def picture(self, name: str) -> Image.Image:
        """Draw the node as in ComfyUI, with pictures of its inputs and outputs."""
        cls: Any = self.classes[name]
        spec = read_spec(name, cls)
        tiles = [] if cls.CATEGORY in NOT_RUN else list(self.shown(name, spec))
        return side_by_side(draw_node(spec, cls, self.fields(name)), tiles)

    def shown(self, name: str, spec: NodeSpec) -> Iterator[tuple[str, Image.Image]]:
        """Yield (label, picture) for the pictures that a node reads and for its outputs."""
        sockets = [item for item in spec.inputs.values() if not item.is_widget]
        given = {item.name: self.sample(name, item.name, item.type) for item in sockets}
        given = {key: value for key, value in given.items() if value is not None}
        kinds = next((spec.inputs[key] for key in KINDS if key in spec.inputs and name not in ONE_RUN), None)
        runs = [{}] if kinds is None or not kinds.choices else [{kinds.name: choice} for choice in kinds.choices]
        results = list(islice(self.results(name, given, runs), MOST_RESULTS if "IMAGE" in spec.outputs else 1))
        if results:
            yield from ((key, to_pil(value)) for key, value in given.items() if spec.inputs[key].type == "IMAGE")
        for run, outputs in results:
            yield from self.views_of(spec, outputs, *run.values())
        if name in TRUTH and not results:
            scene = render_seed(SCENES[TRUTH_SCENE], 256)
            for label, pixels in (("a demo scene", scene.image), ("its exact truth, no estimate", TRUTH[name](scene))):
                yield label, to_pil(torch.from_numpy(np.ascontiguousarray(pixels, np.float32))[None].clamp(0, 1))

    def results(
        self, name: str, given: dict[str, Any], runs: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], tuple[Any, ...]]]:
        """Yield the outputs of a node for each run that works without further files."""
        for run in runs:
            try:
                yield run, self.run(name, **given, **run)
            except (CoreError, TypeError, ValueError) as error:
                print(f"{name} {run or ''} is not run: {str(error)[:120]}")

    def views_of(self, spec: NodeSpec, outputs: tuple[Any, ...], *label: str) -> Iterator[tuple[str, Image.Image]]:
        """Yield (label, picture) for the outputs of a node: one for each picture, one for all of another type."""
        kinds = dict.fromkeys(kind for kind in spec.outputs if kind in self.views)
        if len(kinds) > 1:
            kinds.pop("STRING", None)  # the text says the same as the picture
        for kind in kinds:
            slots = [slot for slot, found in enumerate(spec.outputs) if found == kind]
            for group in [[slot] for slot in slots] if kind == "IMAGE" else [slots]:
                known = "the picture with it" if kind in PAINTED else spec.output_names[group[0]]
                yield ", ".join(label) or known, self.views[kind](*(outputs[slot] for slot in group))

    def fields(self, name: str) -> dict[str, Any]:
        """Return the values of a node's fields: its defaults, or values that show more."""
        widgets = {item.name: item.default for item in self.inputs(name).values() if item.is_widget}
        better = {**BETTER, **FIELDS.get(name, {})}
        return {key: better.get(key, value) for key, value in widgets.items()}

    def run(self, name: str, **inputs: Any) -> tuple[Any, ...]:
        """Run a node on these inputs, with its other fields from `fields`."""
        cls: Any = self.classes[name]
        with torch.inference_mode():
            result = getattr(cls(), cls.FUNCTION)(**{**self.fields(name), **inputs})
        return tuple(result["result"] if isinstance(result, Mapping) else result)

    # ---- inputs

    def sample(self, node: str, name: str, kind: str) -> Any:
        """Return a value of a type for an input; None leaves the input open."""
        if kind == "IMAGE":
            return self.image(node, name)
        maker = {
            "MODEL": lambda: self.checkpoint[0],
            "CLIP": lambda: self.checkpoint[1],
            "VAE": lambda: self.checkpoint[2],
            "CONTROL_NET": lambda: self.net,
            "CONDITIONING": lambda: self.prompts(node)[name == "negative"],
            "LATENT": lambda: self.latent,
            "MASK": lambda: self.circle if node in MASKED else None,
            "CNCORE_WEIGHTS": lambda: self.run("CNCore_BlockWeights", full=0.0, half=0.0)[0] if node in TIMED else None,
            "CNCORE_STACK": lambda: self.run("CNCore_ControlUnit", control_net=self.net, image=self.edges)[0],
        }.get(kind)
        if maker is None or (node, kind) in LEFT_OPEN:
            return None
        return maker()

    def image(self, node: str, name: str) -> torch.Tensor:
        """Return the picture for an IMAGE input: edges for control, a map if needed, else a photograph."""
        if "control_net" in self.inputs(node) or name == "hint":
            return self.edges
        if (node, name) in DRIFTED:
            return self.drifted
        if name == "picture" or node == "CNCore_TiledUpscale":
            return self.painted
        if node in MADE_BY:
            return self.run(MADE_BY[node], image=self.image(MADE_BY[node], name))[0]
        return self.run("CNCore_ExampleImage", **{"size": 256, **MAPS[node]})[0] if node in MAPS else self.photo

    def prompts(self, node: str) -> tuple[Any, ...]:
        """Return both prompts; with control, unless the node itself adds it."""
        return self.plain if "control_net" in self.inputs(node) or "stack" in self.inputs(node) else self.controlled

    def inputs(self, node: str) -> Mapping[str, Any]:
        return read_spec(node, self.classes[node]).inputs

    @cached_property
    def checkpoint(self) -> tuple[Any, ...]:
        return self.run("CNCore_LoadCheckpoint")

    @cached_property
    def net(self) -> Any:
        return self.run("CNCore_LoadControlNet", control_net="demo canny (built in)")[0]

    @cached_property
    def plain(self) -> tuple[Any, ...]:
        return self.run("CNCore_EncodePrompt", clip=self.checkpoint[1])

    @cached_property
    def controlled(self) -> tuple[Any, ...]:
        return self.apply(self.net)

    @cached_property
    def photo(self) -> torch.Tensor:
        return self.run("CNCore_ExampleImage", picture=PHOTO, size=384)[0]

    @cached_property
    def edges(self) -> torch.Tensor:
        (coins,) = self.run("CNCore_ExampleImage", picture="coins", size=PICTURE)[:1]
        smooth = self.run("CNCore_Preprocess", image=coins, kind="blur", settings="sigma=2")[0]
        return self.run("CNCore_Preprocess", image=smooth, kind="canny", settings="low=60, high=140")[0]

    @cached_property
    def circle(self) -> torch.Tensor:
        """A mask (1, H, W) of the photograph's size, white inside a circle."""
        height, width = self.photo.shape[1:3]
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        return (x**2 + y**2 < 0.25).float()[None]

    @cached_property
    def drifted(self) -> torch.Tensor:
        """The photograph, too dark and too blue."""
        return self.photo ** torch.tensor([1.8, 1.4, 0.8])

    @cached_property
    def latent(self) -> Any:
        return self.run("EmptyLatentImage", batch_size=1)[0]

    @cached_property
    def painted(self) -> torch.Tensor:
        return self.decoded(self.sampled(*self.controlled))

    # ---- outputs

    @cached_property
    def views(self) -> dict[str, Callable[[Any], Image.Image]]:
        """Type -> function that draws the values of this type."""
        return {
            "IMAGE": lambda image, *_: to_pil(image),
            "MASK": lambda mask, *_: to_pil(mask[..., None].expand(-1, -1, -1, 3)),
            "STRING": lambda *texts: draw_text("\n".join(map(str, texts))),
            "LATENT": lambda latent, *_: to_pil(self.decoded(latent)),
            "MODEL": lambda model: self.paint(*self.plain, model),
            "CONDITIONING": lambda *prompts: self.paint(*(prompts if prompts[1:] else (*prompts, self.plain[1]))),
            "CONTROL_NET": lambda net: self.paint(*self.apply(net)),
            "CNCORE_WEIGHTS": lambda weights: self.paint(*self.apply(self.net, block_weights=weights)),
            "CNCORE_SCHEDULE": lambda schedule: self.paint(*self.apply(self.net, schedule=schedule)),
            "CNCORE_OPTIONS": lambda options: self.paint(*self.apply(self.net, options=options)),
            "CNCORE_STACK": lambda stack: self.paint(*self.applied_stack(stack)),
        }

    def apply(self, net: Any, **unit: Any) -> tuple[Any, ...]:
        """Apply one net to the prompt."""
        positive, negative = self.plain
        given = {"positive": positive, "negative": negative, "control_net": net, "image": self.edges, **unit}
        return self.run("CNCore_ApplyControlNet", **given)

    def applied_stack(self, stack: Any) -> tuple[Any, ...]:
        """Apply a stack to the prompt."""
        positive, negative = self.plain
        return self.run("CNCore_ApplyControlStack", positive=positive, negative=negative, stack=stack)

    def sampled(self, positive: Any, negative: Any, model: Any = None) -> Any:
        """Sample a latent."""
        given = {"positive": positive, "negative": negative, "latent": self.latent}
        return self.run("CNCore_Sample", model=model or self.checkpoint[0], **given)[0]

    def decoded(self, latent: Any) -> torch.Tensor:
        """Decode a latent to an IMAGE."""
        return self.run("VAEDecode", samples=latent, vae=self.checkpoint[2])[0]

    def paint(self, positive: Any, negative: Any, model: Any = None) -> Image.Image:
        """Sample and decode the picture of a prompt."""
        return to_pil(self.decoded(self.sampled(positive, negative, model)))


PAINTED = (
    "MODEL", "CONDITIONING", "CONTROL_NET", "CNCORE_WEIGHTS", "CNCORE_STACK", "CNCORE_SCHEDULE", "CNCORE_OPTIONS",
)  # fmt: skip
"""Types that are shown by a picture of the demo model."""
LEFT_OPEN = {
    ("CNCore_ControlUnit", "CNCORE_STACK"),
    ("CNCore_LoadControlNet", "MODEL"),
    ("CNCore_PixelPerfect", "LATENT"),
}
MASKED = ("CNCore_InpaintHint", "CNCore_PasteBack", "CNCore_ScheduleKeyframe")
TIMED = ("CNCore_ScheduleKeyframe",)
DRIFTED = {("CNCore_TileColorFix", "image"), ("CNCore_PasteBack", "result")}
"""Inputs that get the photograph in wrong colours, as a sampler may return it."""
KINDS = ("kind", "method")
"""Fields whose choices are all shown."""
ONE_RUN = ("CNCore_ControlSweep",)
"""Nodes that show several runs themselves."""
MOST_RESULTS = 5
BETTER = {"prompt": PROMPT, "cfg": 5.0, "seed": 7, "width": PICTURE, "height": PICTURE}
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "CNCore_ExampleImage": {"picture": SCENE, "size": 256},
    "CNCore_DepthConvert": {"space": "disparity"},
    "CNCore_Shortcuts": {"deep_every": 2},
    "CNCore_PromptEdit": {"edits": "blue -> green"},
    "CNCore_ControlSweep": {"y": "mode", "y_values": "balanced, prompt", "steps": 10},
    "CNCore_ScheduleKeyframe": {"position": 0.2},
    "CNCore_TiledUpscale": {"width": 0, "height": 0, "tile_size": PICTURE, "overlap": 32, "denoise": 0.3},
    "CNCore_BlockWeights": {"half": 0.0, "quarter": 0.0, "eighth": 0.0, "middle": 0.0},
}


# ---- drawing


def to_pil(image: torch.Tensor) -> Image.Image:
    """Convert the first picture of IMAGE (B, H, W, C)."""
    pixels = np.asarray(image[0].detach().float().cpu().numpy())
    return Image.fromarray(np.clip(pixels * 255.0, 0, 255).astype(np.uint8)).convert("RGB")


def font(size: int) -> Any:
    return ImageFont.load_default(size)


def draw_text(text: str) -> Image.Image:
    """Draw the lines of a text output."""
    lines = [part for line in str(text).splitlines() for part in textwrap.wrap(line, 34) or [""]]
    sheet = Image.new("RGB", (TILE, TILE), FIELD)
    ImageDraw.Draw(sheet).multiline_text((6, 6), "\n".join(lines[:16]), PALE, font(9), spacing=2)
    return sheet


def draw_node(spec: NodeSpec, cls: Any, values: Mapping[str, Any]) -> Image.Image:
    """Draw a node with its sockets and fields, as in ComfyUI."""
    sockets = [item for item in spec.inputs.values() if not item.is_widget]
    height = ROW * (2 + max(len(sockets), len(spec.outputs)) + len(values)) + GAP
    card = Image.new("RGB", (CARD, height), BODY)
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, 0, CARD, ROW + 4), TITLE)
    pen.text((10, 6), cls.DISPLAY_NAME, PALE, font(12))
    for row, item in enumerate(sockets):
        y = ROW * (row + 2) - 4
        dot(pen, 8, y, item.type)
        pen.text((18, y - 6), item.name, PALE if item.required else GRAY, font(11))
    for row, (name, kind) in enumerate(zip(spec.output_names, spec.outputs, strict=True)):
        y = ROW * (row + 2) - 4
        dot(pen, CARD - 8, y, str(kind))
        pen.text((CARD - 18, y - 6), name, PALE, font(11), anchor="ra")
    top = ROW * (1 + max(len(sockets), len(spec.outputs))) + 12
    for row, (name, value) in enumerate(values.items()):
        y = top + ROW * row
        pen.rounded_rectangle((10, y, CARD - 10, y + ROW - 3), 8, FIELD)
        pen.text((20, y + 2), name, GRAY, font(11))
        pen.text((CARD - 20, y + 2), textwrap.shorten(str(value), 26, placeholder="..."), PALE, font(11), anchor="ra")
    return card


def dot(pen: ImageDraw.ImageDraw, x: int, y: int, kind: str) -> None:
    """Draw a socket in the colour of its type."""
    pen.ellipse((x - 4, y - 4, x + 4, y + 4), COLORS.get(kind, GRAY))


def side_by_side(card: Image.Image, tiles: list[tuple[str, Image.Image]]) -> Image.Image:
    """Draw the node, with labelled pictures at its right, at most three in a row."""
    columns = min(len(tiles), 3)
    rows = -(-len(tiles) // max(columns, 1))
    width = CARD + 2 * GAP + columns * (TILE + GAP)
    height = max(card.height, rows * (TILE + ROW + GAP) - GAP) + 2 * GAP
    sheet = Image.new("RGB", (width, height), DARK)
    sheet.paste(card, (GAP, GAP))
    pen = ImageDraw.Draw(sheet)
    for i, (label, tile) in enumerate(tiles):
        x = CARD + 2 * GAP + i % 3 * (TILE + GAP)
        y = GAP + i // 3 * (TILE + ROW + GAP)
        pen.text((x, y), label, PALE, font(12))
        sheet.paste(fitted(tile), (x, y + ROW))
    return sheet


def fitted(tile: Image.Image) -> Image.Image:
    """Scale a picture to fit into a square tile."""
    scale = TILE / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    method = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    sheet = Image.new("RGB", (TILE, TILE), FIELD)
    sheet.paste(tile.resize(size, method), ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return sheet


if __name__ == "__main__":
    main(Path(__file__).resolve().parent.parent / "web" / "docs" / "images", sys.argv[1:])
