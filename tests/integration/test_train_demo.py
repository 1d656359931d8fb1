"""`controlnet train-demo`, from stage to stage, as somebody who makes the demo model again would run it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import comfyui_controlnet_core
import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.config import UnionConfig
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.derived import ControlLora
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.controlnet_core.models.union_types import union_type
from comfyui_controlnet_core.controlnet_core.training import demo_stages
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene, render_seed
from comfyui_controlnet_core.controlnet_core.training.step import initialise_union, noise_losses, union_predictor
from comfyui_controlnet_core.nodes.example_pictures import VIEWS
from comfyui_controlnet_core.workflows import cli

ASSETS = Path(comfyui_controlnet_core.__file__).parent / "controlnet_core" / "assets"


@pytest.mark.slow
def test_second_passes_go_on_from_the_first_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The first passes take hours: the shipped files stand in for them.
    shutil.copy(ASSETS / "demo_vae.safetensors", tmp_path)
    shutil.copy(ASSETS / "demo_base.safetensors", tmp_path / "base_rough.safetensors")
    shutil.copy(ASSETS / "demo_canny.safetensors", tmp_path / "canny_rough.safetensors")
    assert cli.main(["train-demo", "base", "canny", "--work", str(tmp_path), "--scenes", "8", "--steps", "2"]) == 0
    first = load_checkpoint(tmp_path / "base_rough.safetensors").unet.state_dict()
    second = load_checkpoint(tmp_path / "demo_base.safetensors").unet.state_dict()
    moved = sum(not torch.equal(first[name], second[name]) for name in first)
    assert moved > len(first) // 2
    net, identity = load_controlnet(tmp_path / "demo_canny.safetensors")
    assert identity.kind == "controlnet" and net.config.unet.widths == (64, 96, 128)
    recipe = read_header(tmp_path / "demo_canny.safetensors").metadata["controlnet_core.recipe"]
    assert recipe.startswith("train-demo canny --start fresh: Recipe(steps=3000") and "steps=2," in recipe
    assert "demo_canny.safetensors" in capsys.readouterr().out


@pytest.mark.slow
def test_the_union_starts_from_canny_and_learns_all_kinds(tmp_path: Path) -> None:
    for name in ("demo_vae", "demo_base", "demo_canny"):
        shutil.copy(ASSETS / f"{name}.safetensors", tmp_path)
    assert cli.main(["train-demo", "union", "--work", str(tmp_path), "--scenes", "8", "--steps", "2"]) == 0
    canny = load_controlnet(tmp_path / "demo_canny.safetensors")[0].state_dict()
    net, identity = load_control(tmp_path / "demo_union.safetensors")
    assert identity.kind == "controlnet-union" and isinstance(net, ControlNetUnion)
    assert net.config.union == UnionConfig(6, 64)
    union = net.state_dict()
    moved = sum(not torch.equal(weight, union[name]) for name, weight in canny.items())
    assert moved > len(canny) // 2
    assert union["union.projection.weight"].abs().max() > 0 and union["union.type_embed.linear2.weight"].abs().max() > 0
    header = read_header(tmp_path / "demo_union.safetensors")
    kept = {info.dtype for key, info in header.tensors.items() if ".input_blocks." in key and len(info.shape) > 1}
    assert kept == {torch.float8_e4m3fn}
    recipe = header.metadata["controlnet_core.recipe"]
    assert recipe.startswith("train-demo union --start canny: Recipe(steps=2")


@pytest.mark.slow
def test_a_control_lora_starts_as_the_canny_net_and_is_saved_in_its_own_layout(tmp_path: Path) -> None:
    for name in ("demo_vae", "demo_base", "demo_canny"):
        shutil.copy(ASSETS / f"{name}.safetensors", tmp_path)
    assert cli.main(["train-demo", "normal", "--work", str(tmp_path), "--scenes", "8", "--steps", "2"]) == 0
    net, identity = load_control(tmp_path / "demo_normal.safetensors")
    assert identity.kind == "control-lora" and isinstance(net, ControlLora)
    unet = load_checkpoint(tmp_path / "demo_base.safetensors", dtype=torch.float32).unet
    canny = load_controlnet(tmp_path / "demo_canny.safetensors", dtype=torch.float32)[0].state_dict()
    base, made = unet.state_dict(), net.resolve(unet).state_dict()
    # Its ranks keep most of what the canny net learned: it is nearer to that net than the base is.
    changes = [(canny[n] - base[n], canny[n] - made[n]) for n in base.keys() & made.keys() if base[n].ndim > 1]
    whole, left = (float(torch.cat([c[i].flatten() for c in changes]).norm()) for i in (0, 1))
    assert left < 0.8 * whole, (left, whole)


def test_a_fresh_union_gives_what_the_net_gives_that_it_starts_from() -> None:
    canny = load_controlnet(ASSETS / "demo_canny.safetensors", dtype=torch.float32)[0]
    net = ControlNetUnion(replace(canny.config, union=UnionConfig(6, 64)))
    initialise_union(net, canny)
    generator = torch.Generator().manual_seed(0)
    x, hint = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(2, 3, 64, 64, generator=generator)
    context, t = torch.randn(2, 77, canny.config.unet.context_dim, generator=generator), torch.full((2,), 500.0)
    with torch.inference_mode():
        expected, found = canny(x, t, context, hint), net(x, t, context, [hint], [3])
    assert all(map(torch.equal, (*expected.skips, expected.middle), (*found.skips, found.middle)))


def test_a_net_without_its_base_names_the_stage_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["train-demo", "canny", "--work", str(tmp_path), "--scenes", "2", "--steps", "1"])
    assert code == 3
    assert "controlnet train-demo base" in capsys.readouterr().err


@dataclass(frozen=True)
class Held:
    """Scenes that no net was trained on, with a mannequin each, and all that the loss on them needs besides hints."""

    unet: UNet
    net: ControlNetUnion
    scenes: list[RenderedScene]
    latents: torch.Tensor
    context: torch.Tensor
    noise: torch.Tensor

    def hints(self, kind: str) -> torch.Tensor:
        """(B, 3, H, W) in 0..1."""
        return torch.from_numpy(np.stack([VIEWS[kind](s) for s in self.scenes])).movedim(-1, 1).float()

    def loss(self, hints: torch.Tensor, number: int) -> float:
        """Of the noise at timestep 800, with hints of a type."""
        predict = union_predictor(self.unet, self.net, self.context, [hints], [number])
        t = torch.full((len(self.scenes),), 800.0)
        with torch.inference_mode():
            return float(noise_losses(predict, self.latents, t, self.noise, scaled_linear(), "eps").mean())


@pytest.fixture(scope="module")
def held() -> Held:
    checkpoint = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32)
    net = load_control(ASSETS / "demo_union.safetensors", dtype=torch.float32)[0]
    assert checkpoint.vae is not None and isinstance(net, ControlNetUnion)
    rendered = map(render_seed, range(1_000_100, 1_000_130))
    scenes = list(islice((scene for scene in rendered if "person" in scene.classes), 4))
    pictures = torch.from_numpy(np.stack([scene.image for scene in scenes])).movedim(-1, 1).float()
    text = checkpoint.text_encoder()
    with torch.inference_mode():
        latents = checkpoint.vae.encode(pictures * 2.0 - 1.0)
        context = torch.cat([text.encode(scene.caption) for scene in scenes])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    return Held(checkpoint.unet, net, scenes, latents, context, noise)


@pytest.mark.parametrize("kind", demo_stages.UNION_KINDS)
def test_the_shipped_union_follows_each_kind_and_knows_it_by_its_type(kind: str, held: Held) -> None:
    """The noise is told better with a scene's own hints than with another's, and than with these under a wrong type."""
    hints, number = held.hints(kind), union_type(demo_stages.UNION_KINDS[kind])
    own, other = held.loss(hints, number), held.loss(hints.roll(1, 0), number)
    mistaken = [held.loss(hints, wrong) for wrong in range(4) if wrong != number]
    assert own < 0.6 * other, (own, other)
    assert own < min(mistaken), (own, mistaken)
