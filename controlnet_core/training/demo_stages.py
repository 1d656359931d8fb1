"""How the demo model was made: autoencoder, base, ControlNets, one stage after the other.

Each stage takes what the stage before it made, and returns a loop that is ready to run. `NETS` says how each of the
shipped ControlNets was trained; every file has its own recipe in its metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig, UnionConfig
from ..diffusion.schedule import scaled_linear
from ..models.controlnet import ControlNet
from ..models.text_encoder import ClipTextModel, TextEncoder
from ..models.tokenizer import ClipTokenizer, VocabMap
from ..models.unet import UNet
from ..models.union import ControlNetUnion
from ..models.union_types import union_type
from ..models.vae import AutoencoderKL
from .control_lora import make_low_rank, start_from
from .loop import Loop, Recipe
from .rendered_set import RenderedSet, draw_rows
from .step import (
    Predict,
    TimestepDraw,
    autoencoder_loss,
    base_predictor,
    control_predictor,
    high_noise_timesteps,
    initialise_hint_encoder,
    initialise_union,
    noise_losses,
    uniform_timesteps,
    union_predictor,
)

# Shorter memory than Adam's usual 0.999: these runs have a few thousand steps.
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


# The first pass of the shipped nets was on the base of its own first pass, the second on the base that is shipped.
NETS: Mapping[str, NetRecipe] = {
    "canny": _net("", 3000, 400),
    "segmentation": _net("canny", 800, 1200),
    "openpose": _net("canny", 450, 600),
    "depth": _net("segmentation", 500, 700),
    "scribble": _net("canny", 350, 400),
}
# The other conditions of the paper. They are Control-LoRAs, since whole nets would make the files too large together.
# Each starts as the canny net, which controls already.
LORA_NETS: Mapping[str, Recipe] = {
    kind: replace(CONTROL, steps=600, lr_end=0.02, warmup=30, seed=41, bf16=False)
    for kind in ("soft_edge", "lines", "lineart", "normal")
}
LORA_RANK = 16
LORA_START = "canny"
# Every batch has kinds of its own, so a step is two of them. The shipped Union was started as a run of 1200 steps: in
# its first 300 the learning rate fell more slowly.
UNION = replace(CONTROL, steps=750, batch=8, accumulate=2, lr=8e-4, lr_end=0.02, warmup=30, seed=31)
UNION_START = "canny"
NARROW = ("scribble", "union", "depth", "segmentation", "openpose")
"""Nets whose encoder is stored in float8, so that all files together stay below 40 MB."""
UNION_KINDS: Mapping[str, str] = {
    "openpose": "openpose", "depth": "depth", "scribble": "scribble", "canny": "canny", "segmentation": "segment"
}  # fmt: skip
"""Kind that the Union learns -> released name of its type. The sixth type, normals, is not trained."""
UNION_TYPES = 6
# The fraction of batches with two kinds of hint at once, so that the net learns to combine them.
UNION_PAIRS = 0.25
UNKNOWN_WORD, UNKNOWN_SHARE = "xylophone", 0.02
"""A word outside the vocabulary, and the fraction of words that it replaces, so that its row is trained too."""


@dataclass(frozen=True)
class DemoData:
    """What the stages after the autoencoder read.

    latents: scaled, (N, 4, h, w). ids: of the captions' CLIP tokens (N, 77). empty: those of the empty text (1, 77).
    """

    config: ModelConfig
    scenes: RenderedSet
    text: TextEncoder
    latents: Tensor
    ids: Tensor
    empty: Tensor

    @classmethod
    @torch.no_grad()
    def encode(cls, config: ModelConfig, scenes: RenderedSet, text: TextEncoder, vae: AutoencoderKL) -> DemoData:
        """Encode all scenes, once."""
        latents = [vae.encode(scenes.picture(rows)) for rows in torch.arange(len(scenes)).split(64)]
        ids, empty = text.tokenize(scenes.captions), text.tokenize([""])
        return cls(config, scenes, text, torch.cat(latents), ids, empty)

    def captions(self, batch: Tensor, empty_share: float, generator: torch.Generator) -> Tensor:
        """Token ids (B, 77) of the rows, some of them replaced by the empty text."""
        keep = torch.rand(len(batch), generator=generator) >= empty_share
        return torch.where(keep[:, None], self.ids[batch], self.empty)

    def loss(
        self,
        predict: Predict,
        batch: Tensor,
        draw: TimestepDraw,
        generator: torch.Generator,
    ) -> Tensor:
        """The diffusion loss of the rows, a scalar."""
        latents = self.latents[batch]
        t = draw(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator)
        return noise_losses(predict, latents, t, noise, scaled_linear(), self.config.parametrization).mean()


def autoencoder_stage(
    config: ModelConfig,
    scenes: RenderedSet,
    recipe: Recipe,
    state: Path | None,
    start: AutoencoderKL | None = None,
    kl_weight: float = KL_WEIGHT,
) -> Loop:
    """Train the autoencoder on the pictures, from `start` where it is given. Call `measure_scale` afterwards."""
    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL(config.vae)
    if start is not None:
        vae.load_state_dict(start.state_dict())

    def loss(generator: torch.Generator) -> Tensor:
        images = scenes.picture(draw_rows(len(scenes), recipe.batch, generator))
        # Half of the pictures are mirrored, which doubles the data; captions do not matter here.
        flipped = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return autoencoder_loss(vae, images, generator, kl_weight)

    return Loop({"vae": vae}, loss, recipe, state)


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, scenes: RenderedSet, count: int = 512) -> AutoencoderKL:
    """The same weights with the scaling factor 1 / std of the latents, so that these have unit variance."""
    # The noise schedule assumes latents of unit variance (Rombach et al. 2022, section D.1).
    std = torch.cat([vae.moments(scenes.picture(r))[0] for r in torch.arange(min(count, len(scenes))).split(32)]).std()
    scaled = AutoencoderKL(replace(vae.config, scaling_factor=round(float(1.0 / std), 5)))
    scaled.load_state_dict(vae.state_dict())
    return scaled


def demo_text_encoder(config: ModelConfig, vocabulary: Sequence[str], seed: int) -> TextEncoder:
    """A fresh text encoder with a row for each word of the captions, and one for all other words."""
    torch.manual_seed(seed)
    tokenizer = ClipTokenizer.load()
    vocab = VocabMap.from_words(tokenizer, vocabulary)
    text_config = replace(config.text, vocab_size=vocab.rows)
    return TextEncoder(ClipTextModel(text_config), tokenizer, text_config, vocab)


def base_stage(data: DemoData, recipe: Recipe, state: Path | None, start: UNet | None = None) -> Loop:
    """Train UNet and text encoder together; a tenth of the captions is empty, for guidance.

    start: the UNet of an earlier pass; `data.text` is then the text encoder of that pass.
    """
    torch.manual_seed(recipe.seed + 1)
    text, unet = data.text, UNet(data.config.unet)
    if start is not None:
        unet.load_state_dict(start.state_dict())
    else:
        # A UNet that starts with output 0 has the loss 1 from the first step, instead of a large one.
        for parameter in unet.conv_out.parameters():
            nn.init.zeros_(parameter)
    text.model.requires_grad_(True)
    unknown = text.tokenizer.encode(UNKNOWN_WORD)[0]

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_rows(len(data.latents), recipe.batch, generator)
        ids = data.captions(batch, BASE_EMPTY_CAPTIONS, generator)
        # Words outside the vocabulary share one row; it learns to mean nothing.
        strange = torch.rand(ids.shape, generator=generator) < UNKNOWN_SHARE
        strange &= (ids != text.tokenizer.start) & (ids != text.tokenizer.end)
        context = text(torch.where(strange, unknown, ids))
        return data.loss(base_predictor(unet, context), batch, uniform_timesteps, generator)

    return Loop({"unet": unet, "text": text.model}, loss, recipe, state)


def control_stage(
    data: DemoData, kind: str, unet: UNet, recipe: Recipe, state: Path | None, start: ControlNet | None = None
) -> Loop:
    """Train a ControlNet for one kind of hint on the locked UNet (Zhang et al. 2023, section 3.3).

    start: a trained net of another kind, instead of a fresh copy of the UNet. It controls already, so that only the
    hint encoder has much to learn.
    """
    torch.manual_seed(recipe.seed + 2)
    net = ControlNet.from_unet(unet, data.config.controlnet).requires_grad_(True)
    initialise_hint_encoder(net, HINT_STD, torch.Generator().manual_seed(recipe.seed))
    if start is not None:
        net.load_state_dict(start.state_dict())

    return _one_hint_loop(data, kind, unet, net, recipe, state)


def control_lora_stage(
    data: DemoData, kind: str, unet: UNet, recipe: Recipe, state: Path | None, start: ControlNet
) -> Loop:
    """Train a Control-LoRA of `LORA_RANK` for one kind of hint, from a trained net of another kind."""
    torch.manual_seed(recipe.seed + 2)
    net = ControlNet.from_unet(unet, data.config.controlnet)
    make_low_rank(net, unet, LORA_RANK, torch.Generator().manual_seed(recipe.seed))
    start_from(net, start)

    return _one_hint_loop(data, kind, unet, net, recipe, state)


def union_stage(data: DemoData, unet: UNet, recipe: Recipe, state: Path | None, start: ControlNet) -> Loop:
    """Train a ControlNet Union on all kinds of hint, from the weights of a net for one of them.

    A batch has one kind, or sometimes two at once; the net is told which, as at sampling.
    """
    torch.manual_seed(recipe.seed + 2)
    net = ControlNetUnion(replace(start.config, union=UnionConfig(UNION_TYPES, data.config.unet.widths[0])))
    initialise_union(net, start)
    net.requires_grad_(True)

    def predictor(batch: Tensor, generator: torch.Generator) -> Any:
        kinds = _draw_kinds(generator)
        hints, types = [data.scenes.hint(kind, batch) for kind in kinds], [union_type(UNION_KINDS[k]) for k in kinds]
        return lambda context: union_predictor(unet, net, context, hints, types)

    return _control_loop(data, unet, net, predictor, recipe, state)


def _one_hint_loop(data: DemoData, kind: str, unet: UNet, net: ControlNet, recipe: Recipe, state: Path | None) -> Loop:
    """The loop of a net that reads hints of one kind."""

    def predictor(batch: Tensor, generator: torch.Generator) -> Any:
        hint = data.scenes.hint(kind, batch)
        return lambda context: control_predictor(unet, net, context, hint)

    return _control_loop(data, unet, net, predictor, recipe, state)


def _control_loop(
    data: DemoData,
    unet: UNet,
    net: nn.Module,
    predictor: Callable[[Tensor, torch.Generator], Any],
    recipe: Recipe,
    state: Path | None,
) -> Loop:
    """predictor: (rows, generator) -> a function of the text (B, 77, width) that returns the function of (x, t)."""
    unet.requires_grad_(False)

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_rows(len(data.scenes), recipe.batch, generator)
        controlled = predictor(batch, generator)
        with torch.no_grad():
            context = data.text(data.captions(batch, CONTROL_EMPTY_CAPTIONS, generator))
        return data.loss(controlled(context), batch, high_noise_timesteps, generator)

    return Loop({"net": net}, loss, recipe, state)


def _draw_kinds(generator: torch.Generator) -> list[str]:
    """One kind, or two different ones in a fraction of the draws."""
    kinds = list(UNION_KINDS)
    count = 2 if float(torch.rand((), generator=generator)) < UNION_PAIRS else 1
    return [kinds[i] for i in torch.randperm(len(kinds), generator=generator)[:count].tolist()]
