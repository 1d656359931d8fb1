"""Each family of base models through the nodes: one Euler step gives the prediction that is computed here by hand.

Reduced shapes, random weights. The expected latent is put together here from the UNet, the text encoders and the
published formulas, apart from the nodes and the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import Checkpoint, load_checkpoint
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import (
    SD15,
    SD21,
    SDXL,
    SDXL_REFINER,
    ModelConfig,
    NoiseConfig,
    TextConfig,
)
from comfyui_controlnet_core.controlnet_core.errors import CoreError, ShapeError, UnfitError
from comfyui_controlnet_core.controlnet_core.models.layers import timestep_embedding
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from random_tensors import assert_close, randomise
from safetensors.torch import save_file
from torch import Tensor

Run = Callable[..., Any]
WIDTH = 32
PROMPT, NEGATIVE = "a red ball", "blurred"


def reduced(base: ModelConfig, **changes: Any) -> ModelConfig:
    """The family's kind of model, as small as its rules allow; text widths add up to what the UNet reads."""

    def text(config: TextConfig) -> TextConfig:
        projection = None if config.projection is None else WIDTH
        return replace(config, width=WIDTH, layers=2, heads=1, projection=projection)

    numbers = {2816: 6, 2560: 5}.get(base.unet.label_dim or 0)
    unet = replace(
        base.unet, widths=(32, 32), res_blocks=1, transformer_depth=(0, 1), middle_depth=1, head_dim=16,
        context_dim=WIDTH * (2 if base.text2 else 1), label_dim=None if numbers is None else WIDTH + 256 * numbers,
        in_channels=changes.pop("in_channels", 4),
    )  # fmt: skip
    text2 = None if base.text2 is None else text(base.text2)
    vae = replace(base.vae, widths=(32, 32), res_blocks=1, patch=4)
    return replace(base, unet=unet, vae=vae, text=text(base.text), text2=text2, **changes)


BASES = {
    "sd15": reduced(SD15),
    "sd21": reduced(SD21),
    "sdxl": reduced(SDXL),
    "sdxl-refiner": reduced(SDXL_REFINER),
    "sdxl-ztsnr": reduced(SDXL, parametrization="v", noise=NoiseConfig(zero_terminal_snr=True)),
    "sdxl-edm": reduced(SDXL, parametrization="edm", noise=NoiseConfig("edm", sigma_max=80.0, sigma_data=0.5)),
    "sdxl-edm-v": reduced(SDXL, parametrization="v", noise=NoiseConfig("edm")),
    "sd15-inpaint": reduced(SD15, in_channels=9),
    "sd15-ip2p": reduced(SD15, in_channels=8),
    "sdxl-inpaint": reduced(SDXL, in_channels=9),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, config in BASES.items():
        texts = [randomise(ClipTextModel(text)) for text in (config.text, config.text2) if text is not None]
        path = folder / "checkpoints" / f"{name}.safetensors"
        save_checkpoint(path, config, randomise(UNet(config.unet)), randomise(AutoencoderKL(config.vae)), *texts)
    return folder


@dataclass(frozen=True)
class Bench:
    run: Run
    models: Path
    loaded: dict[str, tuple[Any, Any, Any, Checkpoint]] = field(default_factory=dict)

    def load(self, name: str) -> tuple[Any, Any, Any, Checkpoint]:
        if name not in self.loaded:
            parts = self.run("CheckpointLoaderSimple", ckpt_name=f"{name}.safetensors")
            self.loaded[name] = (*parts, load_checkpoint(self.models / "checkpoints" / f"{name}.safetensors"))
        return self.loaded[name]

    def sample(self, model: Any, positive: Any, negative: Any, latent: Any, **changes: Any) -> Tensor:
        settings = {"seed": 5, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
        return self.run("KSampler", **inputs, **{**settings, **changes})[0]["samples"]


@pytest.fixture(scope="module")
def bench(models: Path) -> Bench:
    host = StandaloneHost(models, models, [models], device="cpu", dtype="fp32")
    classes = build_nodes(host)

    def call(name: str, **inputs: Any) -> Any:
        return getattr(classes[name](), classes[name].FUNCTION)(**inputs)

    return Bench(call, models)


def predicted(checkpoint: Checkpoint, text: Tensor, label: Tensor | None, beside: Tensor | None) -> Tensor:
    """The picture after one step of Euler from pure noise, unscaled: the formulas of the papers, by hand."""
    config = checkpoint.config
    noise_config, d = config.noise, config.noise.sigma_data
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    sigma, t = float((1 / root[-1] ** 2 - 1).sqrt()), 999.0
    if noise_config.zero_terminal_snr:
        sigma = (1 / 4.8973451890853435e-08 - 1) ** 0.5
    if noise_config.kind == "edm":
        sigma = noise_config.sigma_max
        t = 0.25 * float(torch.tensor(sigma).log())
    noise = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(5))
    x = noise * (1 + sigma**2) ** 0.5
    seen = x / (sigma**2 + d**2) ** 0.5
    seen = seen if beside is None else torch.cat([seen, beside], dim=1)
    with torch.no_grad():
        output = checkpoint.unet(seen, torch.tensor([t]), text, label)
    s2 = sigma**2 + d**2
    x0 = {
        "eps": x - sigma * output,
        "v": x * d**2 / s2 - output * sigma * d / s2**0.5,
        "edm": x * d**2 / s2 + output * sigma * d / s2**0.5,
    }[config.parametrization]
    return x0 / config.vae.scaling_factor


def label_of(pooled: Tensor, *numbers: float) -> Tensor:
    return torch.cat([pooled, timestep_embedding(torch.tensor(numbers), 256).reshape(1, -1)], dim=1)


EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}


@pytest.mark.parametrize("name", [name for name in BASES if "inpaint" not in name and "ip2p" not in name])
def test_a_step_of_each_family(name: str, bench: Bench) -> None:
    model, clip, _, checkpoint = bench.load(name)
    (positive,) = bench.run("CLIPTextEncode", text=PROMPT, clip=clip)
    text, pooled = checkpoint.text_encoder().encode_pooled(PROMPT)
    label = None
    if checkpoint.config.unet.label_dim is not None:
        sizes = (64, 64, 0, 0, 6.0) if name == "sdxl-refiner" else (64, 64, 0, 0, 64, 64)
        label = label_of(pooled, *sizes)
    # From a sigma of 4519 an Euler step in float32 loses four digits: x + (x0 - x) / sigma * sigma.
    tolerance = 2e-3 if name == "sdxl-ztsnr" else 1e-4
    assert_close(bench.sample(model, positive, positive, EMPTY), predicted(checkpoint, text, label, None), tolerance)


def test_the_refiner_reads_another_score_for_the_negative_prompt(bench: Bench) -> None:
    model, clip, _, checkpoint = bench.load("sdxl-refiner")
    halves = [bench.run("CLIPTextEncode", text=text, clip=clip)[0] for text in (PROMPT, NEGATIVE)]
    ours = bench.sample(model, *halves, EMPTY, cfg=3.0)
    parts = []
    for prompt, score in ((PROMPT, 6.0), (NEGATIVE, 2.5)):
        text, pooled = checkpoint.text_encoder().encode_pooled(prompt)
        parts.append(predicted(checkpoint, text, label_of(pooled, 64, 64, 0, 0, score), None))
    assert_close(ours, parts[1] + 3.0 * (parts[0] - parts[1]))


def test_sdxl_reads_the_sizes_of_its_node(bench: Bench) -> None:
    model, clip, _, checkpoint = bench.load("sdxl")
    sizes = {"width": 900, "height": 800, "crop_w": 16, "crop_h": 8, "target_width": 1000, "target_height": 700}
    (positive,) = bench.run("CLIPTextEncodeSDXL", clip=clip, text_g=PROMPT, text_l=NEGATIVE, **sizes)
    text, pooled = checkpoint.text_encoder().encode_pair(NEGATIVE, PROMPT)  # type: ignore[union-attr]
    label = label_of(pooled, 800, 900, 8, 16, 700, 1000)
    assert_close(bench.sample(model, positive, positive, EMPTY), predicted(checkpoint, text, label, None))
    model, clip, _, checkpoint = bench.load("sdxl-refiner")
    (positive,) = bench.run("CLIPTextEncodeSDXLRefiner", clip=clip, text=PROMPT, ascore=8.0, width=900, height=800)
    text, pooled = checkpoint.text_encoder().encode_pooled(PROMPT)
    label = label_of(pooled, 800, 900, 0, 0, 8.0)
    assert_close(bench.sample(model, positive, positive, EMPTY), predicted(checkpoint, text, label, None))


def picture() -> Tensor:
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))


def half_mask() -> Tensor:
    return torch.cat([torch.zeros(1, 64, 32), torch.ones(1, 64, 32)], dim=2)


@pytest.mark.parametrize("name", ["sd15-inpaint", "sdxl-inpaint"])
def test_inpainting_models_see_the_mask_and_the_masked_picture(name: str, bench: Bench) -> None:
    model, clip, vae, checkpoint = bench.load(name)
    (text,) = bench.run("CLIPTextEncode", text=PROMPT, clip=clip)
    positive, negative, latent = bench.run(
        "InpaintModelConditioning", positive=text, negative=text, vae=vae, pixels=picture(), mask=half_mask(),
        noise_mask=False,
    )  # fmt: skip
    assert "noise_mask" not in latent
    assert checkpoint.vae is not None
    emptied = torch.where(half_mask()[..., None] > 0.5, 0.5, picture()).movedim(-1, 1) * 2 - 1
    with torch.no_grad():
        shown = checkpoint.vae.encode(emptied)
    mask = torch.cat([torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)], dim=3)
    states, pooled = checkpoint.text_encoder().encode_pooled(PROMPT)
    label = None if checkpoint.config.unet.label_dim is None else label_of(pooled, 64, 64, 0, 0, 64, 64)
    expected = predicted(checkpoint, states, label, torch.cat([mask, shown], dim=1))
    assert_close(bench.sample(model, positive, negative, {"samples": torch.zeros(1, 4, 8, 8)}), expected)


def test_inpainting_models_without_a_mask_see_gray_everywhere(bench: Bench) -> None:
    model, clip, _, checkpoint = bench.load("sd15-inpaint")
    (text,) = bench.run("CLIPTextEncode", text=PROMPT, clip=clip)
    gray = torch.tensor([1.0, 0.8223, -0.6876, 0.6364, 0.1380]).reshape(1, 5, 1, 1).expand(1, 5, 8, 8)
    states, _ = checkpoint.text_encoder().encode_pooled(PROMPT)
    assert_close(bench.sample(model, text, text, EMPTY), predicted(checkpoint, states, None, gray))


def test_an_inpainting_model_reads_the_noise_mask_of_the_latent(bench: Bench) -> None:
    """As with VAE Encode (for Inpainting): what is kept stays, and the model is shown the encoded picture."""
    model, clip, vae, checkpoint = bench.load("sd15-inpaint")
    (text,) = bench.run("CLIPTextEncode", text=PROMPT, clip=clip)
    (latent,) = bench.run("VAEEncodeForInpaint", pixels=picture(), vae=vae, mask=half_mask(), grow_mask_by=0)
    result = bench.sample(model, text, text, latent)
    scaled = latent["samples"] * checkpoint.config.vae.scaling_factor
    mask = torch.cat([torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)], dim=3)
    assert torch.allclose(result[..., :4], latent["samples"][..., :4], atol=1e-5)
    assert not torch.allclose(result[..., 4:], latent["samples"][..., 4:], atol=1e-2)
    plain = bench.sample(model, text, text, {**latent, "noise_mask": torch.ones_like(latent["noise_mask"])})
    assert not torch.allclose(plain[..., 4:], result[..., 4:], atol=1e-3)
    assert torch.cat([mask, scaled], dim=1).shape[1] == 5


def test_editing_models_see_the_picture_unscaled(bench: Bench) -> None:
    model, clip, vae, checkpoint = bench.load("sd15-ip2p")
    (text,) = bench.run("CLIPTextEncode", text=PROMPT, clip=clip)
    both = bench.run("InstructPixToPixConditioning", positive=text, negative=text, vae=vae, pixels=picture())
    positive, negative, latent = both
    assert not latent["samples"].any()
    assert checkpoint.vae is not None
    with torch.no_grad():
        mean, _ = checkpoint.vae.moments(picture().movedim(-1, 1) * 2 - 1)
    states, _ = checkpoint.text_encoder().encode_pooled(PROMPT)
    assert_close(bench.sample(model, positive, negative, latent), predicted(checkpoint, states, None, mean))
    none = predicted(checkpoint, states, None, torch.zeros(1, 4, 8, 8))
    assert_close(bench.sample(model, text, text, EMPTY), none)


def custom(bench: Bench, guider: Any, latent: Any, **changes: Any) -> tuple[Tensor, Tensor]:
    """The latents of SamplerCustomAdvanced with the settings of `Bench.sample`, and what it takes from the guider's."""
    settings = {"scheduler": "normal", "steps": 1, "denoise": 1.0, **changes}
    parts = {
        "noise": bench.run("RandomNoise", noise_seed=5)[0],
        "sampler": bench.run("KSamplerSelect", sampler_name="euler")[0],
        "sigmas": bench.run("BasicScheduler", model=guider.model, **settings)[0],
    }
    output, denoised = bench.run("SamplerCustomAdvanced", guider=guider, latent_image=latent, **parts)
    return output["samples"], denoised["samples"]


@pytest.mark.parametrize("style", ["regular", "nested"])
@pytest.mark.parametrize(("text_scale", "picture_scale"), [(7.5, 1.5), (1.5, 3.0), (2.0, 0.0)])
def test_editing_is_guided_by_a_scale_for_the_text_and_one_for_the_picture(
    text_scale: float, picture_scale: float, style: str, bench: Bench
) -> None:
    """Brooks et al. 2023, equation 3: each of the three predictions by itself, summed as printed there."""
    model, clip, vae, checkpoint = bench.load("sd15-ip2p")
    (text,), (empty,) = (bench.run("CLIPTextEncode", text=words, clip=clip) for words in (PROMPT, ""))
    cond1, cond2, latent = bench.run(
        "InstructPixToPixConditioning", positive=text, negative=empty, vae=vae, pixels=picture()
    )
    (guider,) = bench.run(
        "DualCFGGuider", model=model, cond1=cond1, cond2=cond2, negative=empty, cfg_conds=text_scale,
        cfg_cond2_negative=picture_scale, style=style,
    )  # fmt: skip
    assert checkpoint.vae is not None
    with torch.no_grad():
        shown, _ = checkpoint.vae.moments(picture().movedim(-1, 1) * 2 - 1)
    none = torch.zeros_like(shown)
    encoded = {words: checkpoint.text_encoder().encode_pooled(words)[0] for words in (PROMPT, "")}
    both, middle, neither = (
        predicted(checkpoint, encoded[words], None, beside)
        for words, beside in ((PROMPT, shown), ("", shown), ("", none))
    )
    if style == "nested":
        expected = neither + picture_scale * (middle + text_scale * (both - middle) - neither)
    else:
        expected = neither + picture_scale * (middle - neither) + text_scale * (both - middle)
    output, denoised = custom(bench, guider, latent)
    assert_close(output, expected)
    assert_close(denoised, output)


def test_guidance_with_two_scales_refuses_local_prompts_and_rescaling(bench: Bench) -> None:
    model, clip, _, _ = bench.load("sd15-ip2p")
    (text,) = bench.run("CLIPTextEncode", text=PROMPT, clip=clip)
    given = {"model": model, "cond1": text, "cond2": text, "negative": text, "cfg_cond2_negative": 1.5}
    (placed,) = bench.run("ConditioningSetArea", conditioning=text, width=32, height=32, x=0, y=0, strength=1.0)
    with pytest.raises(UnfitError, match="a prompt has the option area"):
        bench.run("DualCFGGuider", **{**given, "cond2": placed}, cfg_conds=7.5, style="regular")
    with pytest.raises(CoreError, match="choose another, such as"):
        bench.run("DualCFGGuider", **given, cfg_conds=1.0, style="regular")
    (rescaled,) = bench.run("RescaleCFG", model=model, multiplier=0.5)
    with pytest.raises(UnfitError, match="one scale"):
        bench.run("DualCFGGuider", **{**given, "model": rescaled}, cfg_conds=7.5, style="regular")


def test_custom_sampling_gives_the_latent_of_ksampler(bench: Bench) -> None:
    model, clip, _, _ = bench.load("sd15")
    halves = [bench.run("CLIPTextEncode", text=words, clip=clip)[0] for words in (PROMPT, NEGATIVE)]
    (guider,) = bench.run("CFGGuider", model=model, positive=halves[0], negative=halves[1], cfg=3.0)
    whole = bench.sample(model, *halves, EMPTY, cfg=3.0, steps=3, denoise=0.6)
    assert torch.equal(custom(bench, guider, EMPTY, steps=3, denoise=0.6)[0], whole)
    (alone,) = bench.run("BasicGuider", model=model, conditioning=halves[0])
    assert torch.equal(custom(bench, alone, EMPTY)[0], bench.sample(model, *halves, EMPTY, cfg=1.0))
    (sigmas,) = bench.run("BasicScheduler", model=model, scheduler="normal", steps=4, denoise=1.0)
    (none,) = bench.run("DisableNoise")
    (noise,), (euler,) = bench.run("RandomNoise", noise_seed=5), bench.run("KSamplerSelect", sampler_name="euler")
    parts = {"guider": guider, "sampler": euler}
    first, clean = bench.run("SamplerCustomAdvanced", noise=noise, sigmas=sigmas[:3], latent_image=EMPTY, **parts)
    assert not torch.allclose(first["samples"], clean["samples"])
    second, _ = bench.run("SamplerCustomAdvanced", noise=none, sigmas=sigmas[2:], latent_image=first, **parts)
    assert_close(second["samples"], bench.sample(model, *halves, EMPTY, cfg=3.0, steps=4))


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_rescaled_guidance_is_that_of_diffusers(share: float, bench: Bench) -> None:
    """On the velocity (Lin et al. 2023, section 3.4); told apart from the plain by far more than rounding."""
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    model, clip, _, checkpoint = bench.load("sdxl-edm-v")
    positive, negative = (bench.run("CLIPTextEncode", text=words, clip=clip)[0] for words in (PROMPT, NEGATIVE))
    (rescaled,) = bench.run("RescaleCFG", model=model, multiplier=share)
    ours = bench.sample(rescaled, positive, negative, EMPTY, cfg=7.5)
    sigma, factor = checkpoint.config.noise.sigma_max, checkpoint.config.vae.scaling_factor
    x = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(5)) * (1 + sigma**2) ** 0.5
    root = (sigma**2 + 1) ** 0.5
    velocities = []
    for words in (PROMPT, NEGATIVE):
        text, pooled = checkpoint.text_encoder().encode_pooled(words)
        x0 = predicted(checkpoint, text, label_of(pooled, 64, 64, 0, 0, 64, 64), None) * factor
        velocities.append((x / root**2 - x0) * root / sigma)
    guided = velocities[1] + 7.5 * (velocities[0] - velocities[1])
    v = module.rescale_noise_cfg(guided, velocities[0], guidance_rescale=share)
    assert_close(ours, (x / root**2 - v * sigma / root) / factor, 1e-3)
    assert not torch.allclose(ours, bench.sample(model, positive, negative, EMPTY, cfg=7.5), rtol=0.05)
    assert torch.equal(
        bench.sample(rescaled, positive, negative, EMPTY), bench.sample(model, positive, negative, EMPTY)
    )


def test_parts_from_files_of_their_own(bench: Bench, models: Path) -> None:
    """UNETLoader and DualCLIPLoader give what the checkpoint gives; sampling the model as another training does not."""
    model, clip, _, checkpoint = bench.load("sdxl-ztsnr")
    assert checkpoint.text_model is not None and checkpoint.text_model2 is not None
    parts = {
        "diffusion_models/unet.safetensors": {
            **{f"model.diffusion_model.{k}": v for k, v in _ldm(checkpoint).items()}, "v_pred": torch.zeros(0),
            "ztsnr": torch.zeros(0),
        },
        "text_encoders/l.safetensors": _transformers(checkpoint.text_model),
        "text_encoders/g.safetensors": _transformers(checkpoint.text_model2),
    }  # fmt: skip
    for name, tensors in parts.items():
        (models / name).parent.mkdir(exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, models / name)
    with pytest.raises(UnfitError, match="type 'flux'"):
        bench.run("DualCLIPLoader", clip_name1="l.safetensors", clip_name2="g.safetensors", type="flux")
    (alone,) = bench.run("CLIPLoader", clip_name="l.safetensors", type="stable_diffusion")
    assert alone.encode(PROMPT).shape == (1, 77, WIDTH)
    (text,) = bench.run("CLIPTextEncode", text=PROMPT, clip=clip)
    (eps,) = bench.run("ModelSamplingDiscrete", model=model, sampling="eps", zsnr=False)
    (back,) = bench.run("ModelSamplingDiscrete", model=eps, sampling="v_prediction", zsnr=True)
    assert torch.equal(bench.sample(back, text, text, EMPTY), bench.sample(model, text, text, EMPTY))
    assert not torch.allclose(bench.sample(eps, text, text, EMPTY), bench.sample(model, text, text, EMPTY))
    (edm,) = bench.run(
        "ModelSamplingContinuousEDM", model=model, sampling="edm_playground_v2.5", sigma_max=80.0, sigma_min=0.002
    )
    assert edm.diffusion.schedule.sigma_data == 0.5
    assert edm.diffusion.config.vae.latent_std
    with pytest.raises(UnfitError, match="sampling 'x0'"):
        bench.run("ModelSamplingDiscrete", model=model, sampling="x0", zsnr=False)
    (lcm,) = bench.run("ModelSamplingDiscrete", model=eps, sampling="lcm", zsnr=False)
    assert len(lcm.diffusion.schedule.sigmas) == 50 and len(eps.diffusion.schedule.sigmas) == 1000
    assert bench.sample(lcm, text, text, EMPTY).isfinite().all()


def _ldm(checkpoint: Checkpoint) -> dict[str, Tensor]:
    from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
    from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import LDM

    keymap = KeyMap(LDM.unet_rules(checkpoint.unet.config))
    return {str(keymap.to_theirs(key)): value for key, value in checkpoint.unet.state_dict().items()}


def _transformers(model: ClipTextModel) -> dict[str, Tensor]:
    from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
    from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import DIFFUSERS

    keymap = KeyMap(DIFFUSERS.text_rules())
    return {str(keymap.to_theirs(key)): value for key, value in model.state_dict().items()}


def test_texts_that_do_not_fit_are_refused(bench: Bench) -> None:
    model, clip, _, _ = bench.load("sdxl")
    _, other, _, _ = bench.load("sdxl-refiner")
    (text,) = bench.run("CLIPTextEncode", text=PROMPT, clip=other)
    with pytest.raises(CoreError, match=r"32 wide, this model reads 64"):
        bench.sample(model, text, text, EMPTY)
    (text,) = bench.run("CLIPTextEncode", text=PROMPT, clip=clip)
    wide = [[text[0][0], {"pooled_output": torch.zeros(1, 50)}]]
    with pytest.raises(ShapeError, match="pooled text of 50"):
        bench.sample(model, wide, wide, EMPTY)
    with pytest.raises(ShapeError, match="label vector"):
        bench.sample(model, [[text[0][0], {}]], [[text[0][0], {}]], EMPTY)
    _, plain, _, _ = bench.load("sd15")
    with pytest.raises(UnfitError, match="one text encoder"):
        sizes = dict.fromkeys(("width", "height", "crop_w", "crop_h", "target_width", "target_height"), 64)
        bench.run("CLIPTextEncodeSDXL", clip=plain, text_g=PROMPT, text_l=PROMPT, **sizes)
