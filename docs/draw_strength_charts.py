"""Draw the charts of docs/controls.md that nodes make: where a hint matters, and the closed loop.

python docs/draw_strength_charts.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.contract import read_spec
from PIL import Image

IMAGES = Path(__file__).parent / "images"
SCENE = "demo scene 2"
RUN = {"steps": 20, "cfg": 4.0, "sampler": "dpmpp_2m", "scheduler": "karras"}
GAINS = (0.5, 4.0)
"""The default proportional gain, and one that is too high."""


class Scene:
    """The demo model and a scene of its world, with nodes that are run by their names."""

    def __init__(self, folder: str) -> None:
        self.classes = build_nodes(StandaloneHost(folder, folder, device="cpu", dtype="fp32"))
        self.model, clip, self.vae = self.run("CNCore_LoadCheckpoint")
        _, caption = self.run("CNCore_ExampleImage", picture=SCENE, size=128)
        self.plain = self.run("CNCore_EncodePrompt", clip=clip, prompt=caption)
        (self.latent,) = self.run("EmptyLatentImage", width=128, height=128)

    def run(self, name: str, **inputs: Any) -> tuple[Any, ...]:
        """Run a node; fields that are not given have their defaults."""
        cls: Any = self.classes[name]
        fields = {item.name: item.default for item in read_spec(name, cls).inputs.values() if item.is_widget}
        with torch.inference_mode():
            result = getattr(cls(), cls.FUNCTION)(**{**fields, **inputs})
        return tuple(result["result"] if isinstance(result, Mapping) else result)

    def hint(self, kind: str) -> torch.Tensor:
        """The exact hint, (1, 128, 128, 3) in [0, 1]."""
        return self.run("CNCore_ExampleImage", picture=SCENE, view=kind, size=128)[0]

    def controlled(self, halves: tuple[Any, ...], kind: str, **settings: Any) -> tuple[Any, ...]:
        """Both prompts with one more ControlNet."""
        (net,) = self.run("CNCore_LoadControlNet", control_net=f"demo {kind} (built in)")
        given = {"positive": halves[0], "negative": halves[1], "control_net": net, "image": self.hint(kind)}
        return self.run("CNCore_ApplyControlNet", **given, **settings)[:2]

    def inputs(self, halves: tuple[Any, ...]) -> dict[str, Any]:
        """The inputs of a sampler node."""
        return {"model": self.model, "positive": halves[0], "negative": halves[1], "latent": self.latent, **RUN}


def information(scene: Scene) -> torch.Tensor:
    """The plan of two nets, of which one ends at 60 %, with the information of each step. Returns (1, H, W, 3)."""
    halves = scene.controlled(scene.controlled(scene.plain, "canny"), "depth", end_percent=0.6)
    (finished,) = scene.run("CNCore_Sample", **scene.inputs(halves))
    run = {name: RUN[name] for name in ("steps", "sampler", "scheduler")}
    given = {"model": scene.model, "positive": halves[0], "latent": scene.latent, "finished": finished}
    return scene.run("CNCore_ControlPlan", **given, **run)[2]


def closed_loop(scene: Scene) -> torch.Tensor:
    """Strength and fidelity over the steps with each gain, side by side. Returns (1, H, W, 3)."""
    halves = scene.controlled(scene.plain, "canny", strength=0.6)
    given = {**scene.inputs(halves), "vae": scene.vae, "hint": scene.hint("canny"), "kind": "canny", "target": 0.75}
    return torch.cat([scene.run("CNCore_SampleToTarget", **given, proportional=gain)[3] for gain in GAINS], dim=2)


def main() -> None:
    """Draw both charts."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        for name, picture in (("information_plan", information(scene)), ("closed_loop", closed_loop(scene))):
            image = Image.fromarray((picture[0].numpy() * 255.0 + 0.5).astype(np.uint8))
            image.save(IMAGES / f"{name}.png", optimize=True)
            print(f"{name}.png: {(IMAGES / f'{name}.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
