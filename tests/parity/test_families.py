"""Each family of base models against diffusers and transformers: random weights, reduced shapes, fp32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.load import Checkpoint, load_checkpoint, load_text_model
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.config import (
    OPENCLIP_G,
    OPENCLIP_H,
    SD15,
    SD21,
    SDXL,
    SDXL_REFINER,
    ModelConfig,
    NoiseConfig,
    TextConfig,
    UNetConfig,
)
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input, to_x0, training_target
from comfyui_controlnet_core.controlnet_core.diffusion.guidance import Weights
from comfyui_controlnet_core.controlnet_core.diffusion.noise import initial_noise
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_schedule
from comfyui_controlnet_core.controlnet_core.models.label import PictureSize, ScoredSize, label_vector
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel, DualTextEncoder
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from random_tensors import assert_close, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
WIDTHS = (64, 128)
PROMPT = "a (red:1.3) ball on green ground"


def reduced_text(config: TextConfig, width: int = 64) -> TextConfig:
    projection = None if config.projection is None else 48
    return replace(config, width=width, layers=3, heads=1, projection=projection)


@dataclass(frozen=True)
class Family:
    """A reduced model, and what diffusers' UNet is told besides its shape."""

    config: ModelConfig
    kinds: tuple[str, ...]
    entries: dict[str, Any]

    @property
    def unet(self) -> UNetConfig:
        return self.config.unet


def reduced(base: ModelConfig, depth: tuple[int, ...], middle: int, **entries: Any) -> Family:
    unet = replace(base.unet, widths=WIDTHS, res_blocks=1, transformer_depth=depth, middle_depth=middle)
    text = reduced_text(base.text)
    text2 = None if base.text2 is None else reduced_text(base.text2)
    vae = replace(base.vae, widths=(32, 32), res_blocks=1)
    kinds = tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depth)
    return Family(replace(base, unet=unet, vae=vae, text=text, text2=text2), kinds, entries)


LABELLED: dict[str, Any] = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
FAMILIES = {
    "sd15": reduced(SD15, (1, 1), 1, attention_head_dim=8),
    "sd2": reduced(SD21, (1, 1), 1, attention_head_dim=[1, 2], use_linear_projection=True),
    "sdxl": reduced(
        SDXL, (0, 3), 3, attention_head_dim=[1, 2], use_linear_projection=True,
        transformer_layers_per_block=[1, 3], projection_class_embeddings_input_dim=2816, **LABELLED,
    ),
    "sdxl-refiner": reduced(
        SDXL_REFINER, (0, 2), 2, attention_head_dim=[1, 2], use_linear_projection=True,
        transformer_layers_per_block=2, projection_class_embeddings_input_dim=2560, **LABELLED,
    ),
}  # fmt: skip
CHANNELS = {"plain": 4, "inpainting": 9, "InstructPix2Pix": 8}


def reference_unet(family: Family, channels: int) -> Any:
    return diffusers.UNet2DConditionModel(
        in_channels=channels,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=family.kinds,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(family.kinds)),
        cross_attention_dim=family.unet.context_dim,
        **family.entries,
    )


def rendered(label_dim: int, pooled: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Our label vector, and diffusers' arguments for the same: sizes in their order."""
    numbers = (832.0, 1216.0, 16.0, 32.0, 800.0, 1200.0)
    size = PictureSize(*numbers) if label_dim == 2816 else ScoredSize(*numbers[:4], 6.5)
    times = torch.tensor([numbers if label_dim == 2816 else (*numbers[:4], 6.5)])
    return label_vector(pooled, size), {"text_embeds": pooled, "time_ids": times}


@pytest.mark.parametrize("variant", CHANNELS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_unet(name: str, variant: str, tmp_path: Path) -> None:
    """A diffusers folder, from disk: structure, label vector and further input channels."""
    family = FAMILIES[name]
    reference = randomise(reference_unet(family, CHANNELS[variant]))
    reference.save_pretrained(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.identity.family == name
    assert checkpoint.identity.details == (() if variant == "plain" else (variant,))
    assert checkpoint.unet.config.in_channels == CHANNELS[variant]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, CHANNELS[variant], 8, 8, generator=generator)
    context = torch.randn(1, 5, family.unet.context_dim, generator=generator)
    label, added = None, None
    if family.unet.label_dim is not None:
        label, added = rendered(family.unet.label_dim, torch.randn(1, 1280, generator=generator))
    t = torch.tensor([713.0])
    expected = reference(x, t, context, added_cond_kwargs=added).sample
    assert_close(checkpoint.unet(x, t, context, label), expected)


@cache
def reference_text(config: TextConfig) -> Any:
    entries = transformers.CLIPTextConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        hidden_act=config.activation,
        projection_dim=config.projection or 512,
        eos_token_id=49407,
    )
    kind = transformers.CLIPTextModel if config.projection is None else transformers.CLIPTextModelWithProjection
    return randomise(kind(entries))


def as_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names and tensors as OpenCLIP has them, written down independently of the package's table."""
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    result = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(1.0),
    }
    for kind in ("weight", "bias"):
        for layer in range(3):
            theirs, open_clip = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            for new, old in names.items():
                result[f"{open_clip}.{new}.{kind}"] = state[f"{theirs}.{old}.{kind}"]
            rows = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{open_clip}.attn.in_proj_{kind}"] = torch.cat(rows)
    return result


def ids(padding: int) -> Tensor:
    tokenizer = ClipTokenizer.load()
    row = [tokenizer.start, *tokenizer.encode("a red ball on green ground"), tokenizer.end]
    return torch.tensor([row + [padding] * (77 - len(row))])


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
@torch.no_grad()
def test_a_text_encoder_alone(layout: str, tmp_path: Path) -> None:
    reference = reference_text(reduced_text(OPENCLIP_G))
    state = {key: value.contiguous() for key, value in reference.state_dict().items()}
    path = tmp_path / "text.safetensors"
    save_file(state if layout == "transformers" else as_open_clip(state), path)
    model = load_text_model(path)
    model.layers.apply(lambda layer: setattr(layer, "activation", nn.functional.gelu))  # the file does not tell
    expected = reference(ids(0), output_hidden_states=True)
    hidden, pooled = model(ids(0), skip_last=1, apply_final_norm=False)
    assert_close(hidden, expected.hidden_states[-2])
    assert_close(pooled, expected.text_embeds)


def loaded(family: Family, folder: Path, texts: list[Any]) -> Checkpoint:
    """A single file of the original layout with these text encoders of transformers in it."""
    unet = UNet(family.unet)
    path = folder / "model.safetensors"
    save_checkpoint(path, family.config, unet)
    tensors = load_file(path)
    if len(texts) == 2:
        clip = {k: v.contiguous() for k, v in texts[0].state_dict().items() if "position_ids" not in k}
        prefix = "conditioner.embedders.0.transformer."
        old = "" if any(key.startswith("text_model.") for key in clip) else "text_model."
        tensors |= {f"{prefix}{old}{key}": value for key, value in clip.items()}
    prefix = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}.get(
        family.config.name, "conditioner.embedders.0.model."
    )
    tensors |= {f"{prefix}{key}": value for key, value in as_open_clip(texts[-1].state_dict()).items()}
    save_file(tensors, path)  # without our metadata
    return load_checkpoint(path)


@torch.no_grad()
def test_sd2_reads_the_last_layer_but_one_normalised(tmp_path: Path) -> None:
    family = FAMILIES["sd2"]
    reference = reference_text(family.config.text)
    checkpoint = loaded(family, tmp_path, [reference])
    assert checkpoint.config.text == family.config.text
    text, _ = checkpoint.text_encoder().encode_pooled("a red ball on green ground")
    states = reference(ids(0), output_hidden_states=True).hidden_states[-2]
    assert_close(text, reference.text_model.final_layer_norm(states))


@torch.no_grad()
def test_sdxl_reads_two_text_encoders(tmp_path: Path) -> None:
    """The last layer but one of both as it is, and the pooled text of the second; weights as the host counts them."""
    family = FAMILIES["sdxl"]
    assert family.config.text2 is not None
    first, second = reference_text(family.config.text), reference_text(family.config.text2)
    checkpoint = loaded(family, tmp_path, [first, second])
    assert (checkpoint.config.text, checkpoint.config.text2) == (family.config.text, family.config.text2)
    encoder = checkpoint.text_encoder()
    assert isinstance(encoder, DualTextEncoder)
    text, pooled = encoder.encode_pooled("a red ball on green ground")
    states = [m(ids(pad), output_hidden_states=True).hidden_states[-2] for m, pad in ((first, 49407), (second, 0))]
    assert_close(text, torch.cat(states, dim=-1))
    assert_close(pooled, second(ids(0)).text_embeds)
    other, same = encoder.encode_pair("a red ball on green ground", "a blue cone " * 60)
    assert other.shape[1] == 3 * 77
    assert_close(other[:, :77, : family.config.text.width], states[0])
    assert not torch.equal(same, pooled)


@torch.no_grad()
def test_the_refiner_reads_the_second_text_encoder_alone(tmp_path: Path) -> None:
    family = FAMILIES["sdxl-refiner"]
    reference = reference_text(family.config.text)
    checkpoint = loaded(family, tmp_path, [reference])
    text, pooled = checkpoint.text_encoder().encode_pooled("a red ball on green ground")
    expected = reference(ids(0), output_hidden_states=True)
    assert_close(text, expected.hidden_states[-2])
    assert_close(pooled, expected.text_embeds)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    """Through the original layout with its fused tensors, and back."""
    config = FAMILIES[name].config
    unet, text = randomise(UNet(config.unet)), randomise(ClipTextModel(config.text))
    text2 = None if config.text2 is None else randomise(ClipTextModel(config.text2))
    save_checkpoint(tmp_path / "a.safetensors", config, unet, None, text, text2)
    again = load_checkpoint(tmp_path / "a.safetensors")
    assert again.config == config
    for ours, theirs in ((text, again.text_model), (text2, again.text_model2), (unet, again.unet)):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            found = theirs.state_dict()
            for key, value in ours.state_dict().items():
                assert torch.equal(value, found[key]), key
    fused = [key for key in load_file(tmp_path / "a.safetensors") if key.endswith("in_proj_weight")]
    assert bool(fused) == (name != "sd15")


def test_a_sharded_pipeline_folder_of_two_text_encoders(tmp_path: Path) -> None:
    family = FAMILIES["sdxl"]
    assert family.config.text2 is not None
    second = reference_text(family.config.text2)
    parts = {
        "unet": randomise(reference_unet(family, 4)),
        "text_encoder": reference_text(family.config.text),
        "text_encoder_2": second,
    }
    for name, module in parts.items():
        module.save_pretrained(tmp_path / name, max_shard_size="2MB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True).save_pretrained(
        tmp_path / "scheduler"
    )
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    checkpoint = load_checkpoint(tmp_path)
    config = checkpoint.config
    assert (config.text, config.text2) == (family.config.text, family.config.text2)
    assert (config.parametrization, config.noise) == ("v", NoiseConfig(zero_terminal_snr=True))
    with torch.no_grad():
        _, pooled = checkpoint.text_encoder().encode_pooled("a red ball on green ground")
        assert_close(pooled, second(ids(0)).text_embeds)


def test_diffusers_leaves_out_the_layers_that_sd2_does_not_read() -> None:
    from comfyui_controlnet_core.controlnet_core.checkpoints.detect import read_as

    stored = replace(OPENCLIP_H, layers=23, stop_layer=-1)
    assert read_as(stored, OPENCLIP_H, cut=True) == stored
    assert read_as(replace(OPENCLIP_G, stop_layer=-1), OPENCLIP_G, cut=True) == OPENCLIP_G


# -------------------------------------------------------------------------------------- noise and prediction


def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alpha_bar = (1.0 - rescale_zero_terminal_snr(betas)).cumprod(0)[:-1]
    sigmas = make_schedule(NoiseConfig(zero_terminal_snr=True)).sigmas
    assert_close(sigmas[:-1].log(), ((1 - alpha_bar) / alpha_bar).sqrt().log().float())
    assert 4500 < float(sigmas[-1]) < 4520


@pytest.mark.parametrize(("parametrization", "kind"), [("edm", "epsilon"), ("v", "v_prediction")])
def test_edm_is_that_of_diffusers(parametrization: Any, kind: str) -> None:
    """Preconditioning of input, timestep and output (Playground 2.5, and v-prediction on continuous levels)."""
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, prediction_type=kind)
    schedule = make_schedule(NoiseConfig("edm", sigma_max=80.0, sigma_data=0.5))
    x, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    for sigma in torch.tensor([0.01, 0.3, 2.0, 60.0]):
        assert_close(scale_input(x, sigma, 0.5), scheduler.precondition_inputs(x, sigma))
        assert_close(schedule.timestep(sigma).reshape(1), scheduler.precondition_noise(sigma).reshape(1))
        ours = to_x0(parametrization, output, x, sigma, 0.5)
        assert_close(ours, scheduler.precondition_outputs(x, output, sigma))


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize("parametrization", ["eps", "v", "edm"])
def test_the_target_denoises_exactly(parametrization: Any, sigma_data: float) -> None:
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    sigma = torch.tensor(3.0, dtype=torch.float64)
    target = training_target(parametrization, clean, noise, sigma, sigma_data)
    again = to_x0(parametrization, target, clean + sigma * noise, sigma, sigma_data)
    torch.testing.assert_close(again, clean)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@torch.no_grad()
def test_guidance_by_two_scales_is_the_pipeline_of_diffusers(tmp_path: Path) -> None:
    """InstructPix2Pix, three steps of Euler on the pipeline's own sigmas, from the same noise."""
    family = FAMILIES["sd15"]
    reference = randomise(reference_unet(family, 8))
    reference.save_pretrained(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    checkpoint = load_checkpoint(tmp_path)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(32, 32, 32, 32), norm_num_groups=32)  # only asked for its shape
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
        vae, None, None, reference, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    scheduler.set_timesteps(3)
    sigmas = scheduler.sigmas.clone()
    generator = torch.Generator().manual_seed(1)
    text, empty = torch.randn(2, 1, 5, family.unet.context_dim, generator=generator).unbind(0)
    shown = torch.randn(1, 4, 8, 8, generator=generator)
    x = initial_noise((1, 4, 8, 8), 7) * (1.0 + sigmas[0] ** 2).sqrt()
    expected = pipe(
        image=shown, latents=x / scheduler.init_noise_sigma, prompt_embeds=text, negative_prompt_embeds=empty,
        guidance_scale=7.5, image_guidance_scale=1.5, num_inference_steps=3, output_type="latent",
    ).images  # fmt: skip
    weights = Weights.of(7.5, 1.5)
    middle, rest = weights.within_negative()
    negative = [
        Condition(empty, strength=middle, concat=shown), Condition(empty, strength=rest, concat=torch.zeros_like(shown))
    ]  # fmt: skip
    model = DiffusionModel(checkpoint.unet, checkpoint.config, make_schedule(checkpoint.config.noise))
    settings = SampleSettings(7, 3, weights.positive, sigmas=tuple(sigmas.tolist()))
    ours = generate(
        model, [Condition(text, concat=shown)], negative, torch.zeros(1, 4, 8, 8), settings, backend=Backend(Runtime())
    )
    assert_close(ours, expected)
