"""How the demo model was made: autoencoder, base, ControlNets, in stages.

Each stage takes what the stage before it made and returns a loop ready to run. `NETS` says how each
of the shipped ControlNets was trained; every file carries its own recipe in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..config import ModelConfig, UnionConfig
from ..diffusion.schedule import NoiseSchedule
from ..models.controlnet import ControlNet
from ..models.text_encoder import ClipTextModel, TextEncoder
from ..models.tokenizer import ClipTokenizer, VocabMap
from ..models.unet import UNet
from ..models.union import ControlNetUnion, union_type
from ..models.vae import AutoencoderKL
from .data import SceneSet, draw_rows
from .loop import Loop, LossFunction, Recipe
from .step import (
    TimestepDraw,
    autoencoder_loss,
    base_predictor,
    control_predictor,
    high_noise_timesteps,
    initialise_hint_encoder,
    initialise_union,
    noise_loss,
    uniform_timesteps,
    union_predictor,
)

_FAST = (0.9, 0.99)
AUTOENCODER = Recipe(steps=1500, batch=12, lr=2e-3, lr_end=0.02, warmup=100, betas=_FAST, weight_decay=0.0)
AUTOENCODER_FINE = Recipe(
    steps=3000, batch=8, lr=1.5e-3, lr_end=0.02, warmup=100, betas=_FAST, weight_decay=0.0, seed=5, bf16=True
)
BASE = Recipe(steps=2000, batch=32, lr=1e-3, lr_end=0.05, warmup=200, betas=_FAST, bf16=True)
BASE_FINE = replace(BASE, steps=2000, lr=8e-4, warmup=100, lr_end=0.01, seed=11)
CONTROL = Recipe(steps=3000, batch=16, lr=1e-3, lr_end=0.05, warmup=100, betas=_FAST, bf16=True)
KL_WEIGHT, KL_WEIGHT_FINE = 1e-3, 1e-4
BASE_EMPTY_CAPTIONS = 0.1
CONTROL_EMPTY_CAPTIONS = 0.5
HINT_STD = 0.05


@dataclass(frozen=True)
class NetRecipe:
    """How a ControlNet was made: `first` from the net named `start` ("": a fresh copy of the UNet), then `second`."""

    first: Recipe
    start: str
    second: Recipe


def _net(start: str, first: int, second: int) -> NetRecipe:
    fine = replace(CONTROL, lr=5e-4, lr_end=0.02, warmup=30, seed=21)
    return NetRecipe(replace(CONTROL, steps=first), start, replace(fine, steps=second))


NETS: Mapping[str, NetRecipe] = MappingProxyType(
    {
        "canny": _net("", 3000, 400),
        "segmentation": _net("canny", 800, 1200),
        "openpose": _net("canny", 450, 600),
        "depth": _net("segmentation", 500, 700),
        "scribble": _net("canny", 350, 400),
    }
)
"""The shipped nets saw the base of the first pass in their own first pass, and only then the one that is shipped."""
UNION = replace(CONTROL, steps=750, batch=8, accumulate=2, lr=8e-4, lr_end=0.02, warmup=30, seed=31)
"""The Union of all five kinds, from the canny net; every batch has kinds of its own, so a step is two of them.

The shipped one was begun with 1200 steps in mind: its first 300 had the slower fall of the learning rate.
"""
NARROW = ("scribble", "union")
"""Nets whose encoder is kept in float8, so that all files together stay below 40 MB."""
UNION_START = "canny"
UNION_KINDS: Mapping[str, str] = MappingProxyType(
    {"openpose": "openpose", "depth": "depth", "scribble": "scribble", "canny": "canny", "segmentation": "segment"}
)
"""The kinds the Union learns, with the released name of their type. The sixth type, normals, stays untrained."""
UNION_TYPES = 6
UNION_PAIRS = 0.25
"""The share of batches with two kinds at once."""
UNKNOWN_WORD = "xylophone"
UNKNOWN_SHARE = 0.02


@dataclass(frozen=True)
class Latents:
    """What the diffusion stages read: scaled latents (N, 4, h, w) and CLIP ids (N, 77)."""

    latents: Tensor
    ids: Tensor
    empty: Tensor


def autoencoder_stage(
    config: ModelConfig,
    scenes: SceneSet,
    recipe: Recipe,
    state: Path | None,
    start: AutoencoderKL | None = None,
    kl_weight: float = KL_WEIGHT,
) -> Loop:
    """Trains the autoencoder on the pictures, from `start` where it is given.

    Its scaling factor is measured by `measure_scale` afterwards.
    """
    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL(config.vae)
    if start is not None:
        vae.load_state_dict(start.state_dict())

    def loss(generator: torch.Generator) -> Tensor:
        images = scenes.picture(draw_rows(len(scenes), recipe.batch, generator))
        flipped = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return autoencoder_loss(vae, images, generator, kl_weight)

    return Loop({"vae": vae}, loss, recipe, state)


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, scenes: SceneSet, count: int = 512) -> AutoencoderKL:
    """The same weights with the scaling factor 1 / std of the latents, so that they have unit variance."""
    std = torch.cat([vae.moments(scenes.picture(r))[0] for r in torch.arange(min(count, len(scenes))).split(32)]).std()
    scaled = AutoencoderKL(replace(vae.config, scaling_factor=round(float(1.0 / std), 5)))
    scaled.load_state_dict(vae.state_dict())
    return scaled


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, text: TextEncoder, scenes: SceneSet) -> Latents:
    """Latents and token ids of all scenes, computed once."""
    latents = [vae.encode(scenes.picture(rows)) for rows in torch.arange(len(scenes)).split(64)]
    return Latents(torch.cat(latents), text.tokenize(scenes.captions), text.tokenize([""]))


def demo_text_encoder(config: ModelConfig, vocabulary: Sequence[str], seed: int) -> TextEncoder:
    """A fresh text encoder that knows the captions' words, and one row for all others."""
    torch.manual_seed(seed)
    tokenizer = ClipTokenizer.load()
    vocab = VocabMap.from_words(tokenizer, vocabulary)
    text_config = replace(config.text, vocab_size=vocab.rows)
    return TextEncoder(ClipTextModel(text_config), tokenizer, text_config, vocab)


def base_stage(
    config: ModelConfig,
    data: Latents,
    text: TextEncoder,
    schedule: NoiseSchedule,
    recipe: Recipe,
    state: Path | None,
    start: UNet | None = None,
) -> Loop:
    """Trains UNet and text encoder together; a tenth of the captions is empty, for guidance.

    `start`: the UNet of an earlier pass to go on from; `text` is then that pass's text encoder.
    """
    torch.manual_seed(recipe.seed + 1)
    unet = UNet(config.unet)
    if start is not None:
        unet.load_state_dict(start.state_dict())
    else:
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)  # type: ignore[arg-type]
    text.model.requires_grad_(True)
    unknown = text.tokenizer.encode(UNKNOWN_WORD)[0]

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_rows(len(data.latents), recipe.batch, generator)
        ids = _with_empty(data, batch, BASE_EMPTY_CAPTIONS, generator)
        strange = torch.rand(ids.shape, generator=generator) < UNKNOWN_SHARE
        strange &= (ids != text.tokenizer.start) & (ids != text.tokenizer.end)
        context = text(torch.where(strange, unknown, ids))
        return _loss(base_predictor(unet, context), data.latents[batch], schedule, config, uniform_timesteps, generator)

    return Loop({"unet": unet, "text": text.model}, loss, recipe, state)


def control_stage(
    config: ModelConfig,
    data: Latents,
    scenes: SceneSet,
    kind: str,
    unet: UNet,
    text: TextEncoder,
    schedule: NoiseSchedule,
    recipe: Recipe,
    state: Path | None,
    start: ControlNet | None = None,
) -> Loop:
    """Trains a ControlNet for one kind of hint on the locked UNet (Zhang et al. 2023, section 3.3).

    `start`: a trained net of another kind to go on from, instead of a fresh copy of the UNet; its
    way of entering is learned already, and only the reading of the hint has to change.
    """
    torch.manual_seed(recipe.seed + 2)
    unet.requires_grad_(False)
    net = ControlNet.from_unet(unet, config.controlnet)
    initialise_hint_encoder(net, HINT_STD, torch.Generator().manual_seed(recipe.seed))
    if start is not None:
        net.load_state_dict(start.state_dict())
    net.requires_grad_(True)

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_rows(len(scenes), recipe.batch, generator)
        with torch.no_grad():
            context = text(_with_empty(data, batch, CONTROL_EMPTY_CAPTIONS, generator))
        predict = control_predictor(unet, net, context, scenes.hint(kind, batch))
        return _loss(predict, data.latents[batch], schedule, config, high_noise_timesteps, generator)

    return Loop({"net": net}, loss, recipe, state)


def union_stage(
    config: ModelConfig,
    data: Latents,
    scenes: SceneSet,
    unet: UNet,
    text: TextEncoder,
    schedule: NoiseSchedule,
    recipe: Recipe,
    state: Path | None,
    start: ControlNet,
) -> Loop:
    """Trains a ControlNet Union on all kinds of hint, from the weights of a net for one of them.

    A batch has one kind, or sometimes two at once; the net is told which, as it is at sampling.
    """
    torch.manual_seed(recipe.seed + 2)
    unet.requires_grad_(False)
    union = UnionConfig(UNION_TYPES, config.unet.widths[0])
    net = ControlNetUnion(replace(start.config, union=union))
    initialise_union(net, start)
    net.requires_grad_(True)

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_rows(len(scenes), recipe.batch, generator)
        kinds = _draw_kinds(generator)
        with torch.no_grad():
            context = text(_with_empty(data, batch, CONTROL_EMPTY_CAPTIONS, generator))
        hints = [scenes.hint(kind, batch) for kind in kinds]
        predict = union_predictor(unet, net, context, hints, [union_type(UNION_KINDS[kind]) for kind in kinds])
        return _loss(predict, data.latents[batch], schedule, config, high_noise_timesteps, generator)

    return Loop({"net": net}, loss, recipe, state)


def _draw_kinds(generator: torch.Generator) -> list[str]:
    """One kind, or two different ones in a share of the draws."""
    kinds = list(UNION_KINDS)
    count = 2 if float(torch.rand((), generator=generator)) < UNION_PAIRS else 1
    return [kinds[i] for i in torch.randperm(len(kinds), generator=generator)[:count].tolist()]


def _with_empty(data: Latents, batch: Tensor, share: float, generator: torch.Generator) -> Tensor:
    keep = torch.rand(len(batch), generator=generator) >= share
    return torch.where(keep[:, None], data.ids[batch], data.empty)


def _loss(
    predict: LossFunction | object,
    latents: Tensor,
    schedule: NoiseSchedule,
    config: ModelConfig,
    draw: TimestepDraw,
    generator: torch.Generator,
) -> Tensor:
    t = draw(len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator)
    return noise_loss(predict, latents, t, noise, schedule, config.parametrization)  # type: ignore[arg-type]
