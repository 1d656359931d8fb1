"""SparseCtrl in a run: hints for some frames reach the others; frames and files that do not fit end in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import UNetConfig
from comfyui_controlnet_core.controlnet_core.errors import CoreError, ShapeError, UnfitError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.sparse_frames import place_frames, read_frames
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from sparsectrl_files import save_sparsectrl
from torch import Tensor

BASE = UNetConfig(
    widths=(64, 96, 128), res_blocks=1, transformer_depth=(1, 1, 0), num_heads=8, context_dim=128, middle_depth=1
)
"""The shape of the demo model."""
FRAMES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ with a net for pictures and one for latents."""
    path = tmp_path_factory.mktemp("models") / "controlnet"
    path.mkdir()
    save_sparsectrl(path / "scribble.safetensors", BASE)
    save_sparsectrl(path / "rgb.safetensors", BASE, latents=True)
    return path.parent


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Any:
    return runner(folder, tmp_path)


def runner(folder: Path, out: Path, **options: Any) -> Any:
    """Runs a node by its ID."""
    classes = build_nodes(StandaloneHost(output_dir=out, models_dirs=(folder,), device="cpu", dtype="fp32", **options))

    def run(name: str, **inputs: Any) -> Any:
        cls: Any = classes[name]
        with torch.inference_mode():
            return getattr(cls(), cls.FUNCTION)(**inputs)

    return run


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("file", ["scribble.safetensors", "rgb.safetensors"])
def test_a_hint_for_one_frame_reaches_all_frames(run: Any, file: str) -> None:
    model, clip, vae = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    (net,) = run("CNCore_LoadSparseCtrl", control_net=file, vae=vae if file == "rgb.safetensors" else None)
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")

    def sampled(hint: Tensor, strength: float = 0.2) -> Tensor:
        halves = run(
            "CNCore_ApplyControlNet", positive=positive, negative=negative, control_net=net, image=hint,
            strength=strength, start_percent=0.0, end_percent=1.0, mode="balanced",
        )  # fmt: skip
        settings = {"seed": 3, "steps": 1, "cfg": 2.0, "sampler": "euler", "scheduler": "normal", "denoise": 1.0}
        given = {"positive": halves[0], "negative": halves[1], "latent": {"samples": torch.zeros(FRAMES, 4, 8, 8)}}
        return run("CNCore_Sample", model=model, **given, **settings)[0]["samples"]

    def placed(image: Tensor, frames: str) -> Tensor:
        return run("CNCore_SparseFrames", image=image, frames=frames, length=FRAMES)[0]

    first = sampled(placed(picture(), "0"))
    changes = (first - sampled(placed(picture(1), "0"))).abs().amax(dim=(1, 2, 3))
    assert bool((changes > 1e-4).all()), "each frame sees the hint of the first"
    assert not torch.allclose(first, sampled(placed(picture(), "2")), atol=1e-4)
    assert not torch.allclose(first, sampled(picture()), atol=1e-4)  # without a mask it counts in every frame
    assert torch.equal(sampled(placed(picture(), "0"), 0.0), sampled(placed(picture(1), "0"), 0.0))


def test_a_batch_in_parts_is_refused(folder: Path, tmp_path: Path) -> None:
    run = runner(folder, tmp_path, runtime=Runtime(chunk=1))
    model, clip, _ = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    (net,) = run("CNCore_LoadSparseCtrl", control_net="scribble.safetensors")
    halves = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")
    positive, negative = run(
        "CNCore_ApplyControlNet", positive=halves[0], negative=halves[1], control_net=net, image=picture(),
        strength=1.0, start_percent=0.0, end_percent=1.0, mode="balanced",
    )  # fmt: skip
    settings = {"seed": 3, "steps": 1, "cfg": 2.0, "sampler": "euler", "scheduler": "normal", "denoise": 1.0}
    latent = {"samples": torch.zeros(FRAMES, 4, 8, 8)}
    with pytest.raises(UnfitError, match="needs all 3 images of the batch at once, and only 1 fit"):
        run("CNCore_Sample", model=model, positive=positive, negative=negative, latent=latent, **settings)


def test_frames_are_read_and_placed() -> None:
    assert read_frames("0, 8 15", 3, 16) == (0, 8, 15) and read_frames("-1", 1, 16) == (15,)
    assert read_frames("", 3, 16) == (0, 8, 15) and read_frames(" ", 1, 16) == (0,)
    both = torch.cat([picture(), picture(1)])
    made = place_frames(both, (3, 1), 4)
    assert made.shape == (4, 64, 64, 4)
    assert torch.equal(made[3, ..., :3], both[0]) and torch.equal(made[1, ..., :3], both[1])
    assert made[..., 3].mean(dim=(1, 2)).tolist() == [0.0, 1.0, 0.0, 1.0] and float(made[[0, 2]].abs().max()) == 0.0


BAD = {
    "outside": ("16", 1, "frame 16 is outside of the video: its frames are 0 to 15"),
    "words": ("first", 1, "frames is 'first', expected whole numbers"),
    "twice": ("3, -13", 2, "a frame is listed twice"),
    "too few": ("3", 2, "2 hints and 1 frames came"),
    "too many hints": ("", 17, "17 hints came for 16 frames"),
    "NaN": ("nan", 1, "expected whole numbers"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_frames_end_in_one_clear_line(name: str) -> None:
    text, count, words = BAD[name]
    with pytest.raises(ValueRangeError) as caught:
        read_frames(text, count, 16)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_hints_of_another_shape_are_an_error() -> None:
    with pytest.raises(ShapeError, match="expected images"):
        place_frames(torch.zeros(64, 64, 3), (0,), 4)


def test_files_that_do_not_fit_are_named(run: Any) -> None:
    with pytest.raises(UnfitError, match=r"rgb\.safetensors reads latents of its hints: link the VAE"):
        run("CNCore_LoadSparseCtrl", control_net="rgb.safetensors")
    with pytest.raises(CoreError, match="no controlnet file 'demo canny"):
        run("CNCore_LoadSparseCtrl", control_net="demo canny (built in)")
