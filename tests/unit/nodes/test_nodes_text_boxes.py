"""GLIGEN's text boxes: loaded from a file, applied, and sampled with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import SD15, ModelConfig
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, UnfitError
from comfyui_controlnet_core.controlnet_core.models.gligen import Gligen, GligenConfig, block_places
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.conditions import to_conditions
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from random_tensors import randomise
from safetensors.torch import save_file
from torch import Tensor

WIDTH = 32
EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}
BASE: ModelConfig = replace(
    SD15,
    unet=replace(
        SD15.unet, widths=(64, 64), res_blocks=1, transformer_depth=(1, 0), num_heads=2, context_dim=WIDTH
    ),
    vae=replace(SD15.vae, widths=(32, 32), res_blocks=1, patch=4),
    text=replace(SD15.text, width=WIDTH, layers=2, heads=1),
)  # fmt: skip
FUSERS = ("input_blocks.1.1", "middle_block.1", "output_blocks.2.1", "output_blocks.3.1")
NAMES = {"attn.q": "attn.to_q", "attn.k": "attn.to_k", "attn.v": "attn.to_v", "attn.out": "attn.to_out.0",
         "ff_proj": "ff.net.0.proj", "ff_out": "ff.net.2", "linear1": "linears.0", "linear2": "linears.2",
         "linear3": "linears.4", "no_text": "null_positive_feature", "no_box": "null_position_feature"}  # fmt: skip
Run = Callable[..., Any]


def gligen_file(**changes: float) -> dict[str, Tensor]:
    """A file of GLIGEN for the base. changes: value of all gates, for instance."""
    found = {}
    for key, value in randomise(Gligen(GligenConfig((64,) * 4, WIDTH, 48))).state_dict().items():
        place, _, rest = key.partition(".")
        name = f"position_net.{rest}"
        if place == "fusers":
            number, _, rest = rest.partition(".")
            name = f"{FUSERS[int(number)]}.transformer_blocks.0.fuser.{rest}"
        for ours, theirs in NAMES.items():
            name = name.replace(f".{ours}.", f".{theirs}.") if f".{ours}." in name else name
            name = name.removesuffix(ours) + theirs if name.endswith(f".{ours}") else name
        found[name] = torch.full_like(value, changes["gates"]) if "alpha" in name and changes else value
    return {key: value.contiguous().clone() for key, value in found.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("models")
    for name in ("checkpoints", "gligen"):
        (folder / name).mkdir()
    parts = [randomise(module) for module in (UNet(BASE.unet), AutoencoderKL(BASE.vae), ClipTextModel(BASE.text))]
    save_checkpoint(folder / "checkpoints" / "base.safetensors", BASE, *parts)
    save_file(gligen_file(), folder / "gligen" / "boxes.safetensors")
    save_file(gligen_file(gates=0.0), folder / "gligen" / "closed.safetensors")
    save_file(
        {key: value for key, value in gligen_file().items() if "ff" not in key}, folder / "gligen" / "cut.safetensors"
    )
    save_file({"a": torch.zeros(1)}, folder / "gligen" / "other.safetensors")
    classes = build_nodes(StandaloneHost(folder, folder, [folder], device="cpu", dtype="fp32"))

    def call(name: str, **inputs: Any) -> Any:
        return getattr(classes[name](), classes[name].FUNCTION)(**inputs)

    return call


def boxed(run: Run, conditioning: Any, clip: Any, file: str = "boxes", text: str = "a ball", x: int = 8) -> Any:
    (weights,) = run("GLIGENLoader", gligen_name=f"{file}.safetensors")
    inputs = {"conditioning_to": conditioning, "clip": clip, "gligen_textbox_model": weights, "text": text}
    return run("GLIGENTextBoxApply", **inputs, width=24, height=16, x=x, y=16)[0]


def test_boxes_change_the_picture_by_their_text_and_place(run: Run) -> None:
    model, clip, _ = run("CheckpointLoaderSimple", ckpt_name="base.safetensors")
    (text,) = run("CLIPTextEncode", clip=clip, text="a table")

    def sample(positive: Any) -> Tensor:
        settings = {"seed": 5, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        halves = {"positive": positive, "negative": text}
        return run("KSampler", model=model, latent_image=EMPTY, **halves, **settings)[0]["samples"]

    plain, one = sample(text), sample(boxed(run, text, clip))
    others = [
        sample(boxed(run, text, clip, text="a cube")), sample(boxed(run, text, clip, x=32)),
        sample(boxed(run, boxed(run, text, clip), clip, text="a cube")), plain,
    ]  # fmt: skip
    assert all(not torch.allclose(one, other, atol=1e-3) for other in others)
    # With closed gates the boxes do nothing: the blocks are those of the base.
    assert float((sample(boxed(run, text, clip, "closed")) - plain).abs().max()) <= 1e-5 * float(plain.abs().max())


def test_a_negative_prompt_takes_over_the_boxes(run: Run) -> None:
    _, clip, _ = run("CheckpointLoaderSimple", ckpt_name="base.safetensors")
    (text,) = run("CLIPTextEncode", clip=clip, text="a table")
    one, two = boxed(run, text, clip), boxed(run, boxed(run, text, clip), clip, text="a cube")
    positive, negative = to_conditions(two, text, (8, 8), BASE)
    assert positive[0].units[0] is negative[0].units[0]
    net = positive[0].units[0].net
    assert net.places == ((2, 3, 2, 1), (2, 3, 2, 1)) and net.texts.shape == (2, WIDTH)
    positive, negative = to_conditions(two, one, (8, 8), BASE)
    assert len(negative[0].units[0].net.places) == 1
    limited = [[own, {**options, "area": (4, 4, 0, 0)}] for own, options in one]
    assert not to_conditions(limited, text, (8, 8), BASE)[1][0].units


def test_places_are_in_the_order_of_the_file() -> None:
    places = [(place.stack, place.block) for place in block_places(BASE.unet)]
    assert places == [("encoder", 1), ("middle", 0), ("decoder", 2), ("decoder", 3)]
    assert len(block_places(SD15.unet)) == 16


def test_other_files_and_encoders_are_refused(run: Run) -> None:
    for name, error, said in (("other", UnfitError, "holds no text boxes"), ("cut", CheckpointError, "is no complete")):
        with pytest.raises(error, match=rf"{name}\.safetensors {said}"):
            run("GLIGENLoader", gligen_name=f"{name}.safetensors")
    with pytest.raises(UnfitError, match=r"the text encoder of SD1\.x"):
        boxed(run, [], None)
