"""Pictures that guide a model: CLIPVisionLoader, CLIPVisionEncode, unCLIPConditioning, unCLIPCheckpointLoader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import SD21, SDXL, ModelConfig, VisionConfig
from comfyui_controlnet_core.controlnet_core.errors import UnfitError
from comfyui_controlnet_core.controlnet_core.models.label import PictureSize, label_vector
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unclip import PictureHint, unclip_label
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.models.vision_encoder import ClipVisionModel
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.conditions import to_conditions
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from random_tensors import randomise
from safetensors.torch import load_file, save_file
from torch import Tensor

VISION = VisionConfig(width=32, layers=2, hidden=48, patch=7, side=28, projection=32)
EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}
Run = Callable[..., Any]


def reduced(base: ModelConfig, label_dim: int, context: int) -> ModelConfig:
    def text(config: Any) -> Any:
        return config and replace(config, width=32, layers=2, heads=1, projection=config.projection and 32)

    unet = replace(
        base.unet, widths=(64, 64), res_blocks=1, transformer_depth=(0, 1), middle_depth=1, head_dim=64,
        context_dim=context, label_dim=label_dim,
    )  # fmt: skip
    vae = replace(base.vae, widths=(32, 32), res_blocks=1, patch=4)
    return replace(base, unet=unet, vae=vae, text=text(base.text), text2=text(base.text2))


UNCLIP, XL = reduced(SD21, 64, 1024), reduced(SDXL, 32 + 6 * 256, 64)


def vision_file() -> dict[str, Tensor]:
    """Weights in OpenCLIP's names."""
    model = randomise(ClipVisionModel(VISION))
    found = {}
    for key, value in model.state_dict().items():
        for old, new in (("layers.", "transformer.resblocks."), (".norm1", ".ln_1"), (".norm2", ".ln_2"),
                         (".fc1", ".mlp.c_fc"), (".fc2", ".mlp.c_proj"), (".attn.out", ".attn.out_proj"),
                         ("norm_in", "ln_pre"), ("norm_out", "ln_post"), ("patches", "conv1"),
                         ("position_embedding.weight", "positional_embedding")):  # fmt: skip
            key = key.replace(old, new)
        found["proj" if key == "projection.weight" else key] = value.T if key == "projection.weight" else value
    for stem in {key.rpartition(".q.")[0] for key in found if ".attn.q." in key}:
        for kind in ("weight", "bias"):
            found[f"{stem}.in_proj_{kind}"] = torch.cat([found.pop(f"{stem}.{part}.{kind}") for part in "qkv"])
    return {f"visual.{key}": value.contiguous().clone() for key, value in found.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("models")
    path = folder / "checkpoints" / "unclip.safetensors"
    path.parent.mkdir()
    parts = [randomise(module) for module in (UNet(UNCLIP.unet), AutoencoderKL(UNCLIP.vae), ClipTextModel(UNCLIP.text))]
    save_checkpoint(path, UNCLIP, *parts)
    save_file({**load_file(path), **{f"embedder.model.{key}": value for key, value in vision_file().items()}}, path)
    (folder / "clip_vision").mkdir()
    save_file(vision_file(), folder / "clip_vision" / "v.safetensors")
    classes = build_nodes(StandaloneHost(folder, folder, [folder], device="cpu", dtype="fp32"))

    def call(name: str, **inputs: Any) -> Any:
        return getattr(classes[name](), classes[name].FUNCTION)(**inputs)

    return call


def read(run: Run, seed: int, vision: Any = None) -> Any:
    image = torch.rand(1, 40, 30, 3, generator=torch.Generator().manual_seed(seed))
    vision = vision or run("CLIPVisionLoader", clip_name="v.safetensors")[0]
    return run("CLIPVisionEncode", clip_vision=vision, image=image, crop="center")[0]


def guided(run: Run, conditioning: Any, picture: Any, strength: float = 1.0, noise: float = 0.0) -> Any:
    inputs = {"clip_vision_output": picture, "strength": strength, "noise_augmentation": noise}
    return run("unCLIPConditioning", conditioning=conditioning, **inputs)[0]


def test_a_checkpoint_of_unclip_follows_the_picture(run: Run) -> None:
    model, _, _, vision = run("unCLIPCheckpointLoader", ckpt_name="unclip.safetensors")
    assert model.diffusion.config.name == "sd2" and model.diffusion.config.unet.label_dim == 64
    text = [[torch.randn(1, 77, 1024, generator=torch.Generator().manual_seed(3)), {}]]

    def sample(positive: Any) -> Tensor:
        settings = {"seed": 5, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        return run("KSampler", model=model, positive=positive, negative=text, latent_image=EMPTY, **settings)[0][
            "samples"
        ]

    one, two = read(run, 1, vision), read(run, 2, vision)
    assert torch.equal(one.embeds, read(run, 1).embeds)
    plain = sample(text)
    assert not torch.allclose(sample(guided(run, text, one)), plain)
    assert not torch.allclose(sample(guided(run, text, one)), sample(guided(run, text, two)))
    assert torch.equal(sample(guided(run, text, one, 0.0)), plain)


def test_labels_of_the_conditions(run: Run) -> None:
    one, two = read(run, 1), read(run, 2)
    text = [[torch.zeros(1, 77, 64), {"pooled_output": torch.ones(1, 32)}]]
    both = guided(run, guided(run, text, one, 0.5, 0.1), two, -1.0, 0.3)
    hints = [PictureHint(one.embeds, 0.5, 0.1), PictureHint(two.embeds, -1.0, 0.3)]
    positive, negative = to_conditions(both, text, (8, 8), UNCLIP, seed=9)
    assert torch.equal(positive[0].label, unclip_label(hints, 9)) and not negative[0].label.any()
    positive, negative = to_conditions(both, text, (8, 8), XL, seed=9)
    size = PictureSize(64, 64, 0, 0, 64, 64)
    assert torch.equal(positive[0].label, label_vector(unclip_label(hints, 9, 0.0)[:, :32], size))
    assert torch.equal(negative[0].label, label_vector(torch.ones(1, 32), size))


def test_a_picture_of_another_encoder_is_named(run: Run) -> None:
    other = read(run, 1)._replace(embeds=torch.zeros(1, 48))
    text = [[torch.zeros(1, 77, 64), {"pooled_output": torch.ones(1, 32)}]]
    for config in (UNCLIP, XL):
        with pytest.raises(UnfitError, match="the image encoder gives 48 numbers, this model reads 32"):
            to_conditions(guided(run, text, other), text, (8, 8), config)
