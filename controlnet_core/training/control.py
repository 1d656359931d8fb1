"""Training a ControlNet on examples, with the paper's recipe, and telling when it begins to control.

Source: Zhang, Rao, Agrawala 2023, sections 3.3 (training: half of the prompts empty, "sudden convergence") and the
release's training notes (`sd_locked`, `only_mid_control`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..checkpoints.load import Checkpoint
from ..control.unit import ControlUnit
from ..diffusion.schedule import NoiseSchedule, make_schedule
from ..engine.backend import Backend
from ..engine.condition import Condition
from ..engine.runtime import Runtime
from ..errors import CheckpointError, UnfitError, ValueRangeError
from ..models.control import check_base
from ..models.controlnet import ControlNet
from ..models.label import PictureSize, label_vector, size_kind
from ..models.text_encoder import DualTextEncoder, TextEncoder
from ..models.transfer import sent
from ..models.unet import UNet
from ..models.vae import AutoencoderKL
from ..pipeline import DiffusionModel, SampleSettings, generate
from .data import draw_rows
from .examples import LatentCache
from .loop import Loop, Recipe
from .step import (
    control_predictor,
    high_noise_timesteps,
    initialise_hint_encoder,
    noise_loss,
    noise_losses,
    uniform_timesteps,
)

PAPER = Recipe(steps=10_000, batch=4, lr=1e-5)
"""The paper's: AdamW, learning rate 1e-5, batches of 4; control appears within 10,000 steps."""
UNLOCKED_LR = 2e-6
"""The release's learning rate when the base's decoder is trained as well."""
QUICK = Recipe(steps=2_000, batch=16, lr=1e-3, lr_end=0.05, warmup=100, betas=(0.9, 0.99))
"""For small models and short runs, as the demo nets were made; see `Options.quick`."""
HINT_STD = 0.05
HELD_OUT, HELD_OUT_SHARE = 32, 0.05
ALL_TRAINED = 8
"""With fewer examples than this none is held out: they are probed with what they were trained on."""
PROBE_TIMESTEPS = (500.0, 700.0, 850.0, 950.0)
"""Where a picture's layout is decided, and the hint is worth most."""
PROBE_DRAWS = 32
"""Losses that a probe compares, at least: examples times noises."""
APPEARED, CERTAIN = 0.02, 3.0
"""Control has appeared when the hint lowers the loss by 2 %, three standard errors away from chance."""
NATIVE_SIZES = {"demo": 128, "sd15": 512, "sd2": 768, "sdxl": 1024}


class Examples(Protocol):
    """Examples by their row: see `training.examples`."""

    @property
    def size(self) -> int: ...
    def __len__(self) -> int: ...
    def pictures(self, rows: Sequence[int]) -> Tensor: ...
    def hints(self, rows: Sequence[int]) -> Tensor: ...
    def captions(self, rows: Sequence[int]) -> list[str]: ...


@dataclass(frozen=True)
class Options:
    """empty_captions: share of captions that are replaced by the empty text, so that the net reads the hint.

    sd_locked: train the net only; False trains the base's decoder too. only_mid_control: the net acts on the middle
    block alone. quick: not the paper's: a hint encoder that starts with He's initialisation, and timesteps that lean
    to high noise; for runs of hundreds of steps instead of thousands.
    """

    empty_captions: float = 0.5
    sd_locked: bool = True
    only_mid_control: bool = False
    quick: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.empty_captions <= 1.0:
            raise ValueRangeError(f"empty_captions is {self.empty_captions}: choose a share between 0 and 1")


@dataclass(frozen=True)
class Probe:
    """Whether the hint matters: the loss on held-out examples with their own hints and with others'.

    right, wrong: mean losses. control: by which share the right hint lowers the loss, averaged over the draws; 0 for
    a fresh net. certainty: control in standard errors.
    """

    step: int
    right: float
    wrong: float
    control: float
    certainty: float

    @property
    def appeared(self) -> bool:
        """Whether the net controls: see `APPEARED`."""
        return self.control >= APPEARED and self.certainty >= CERTAIN


@dataclass(frozen=True, eq=False)
class ControlTraining:
    """A ControlNet in training. `loop` runs it; `probe` and `sample` look at it at any time."""

    loop: Loop
    net: ControlNet
    unet: UNet
    checkpoint: Checkpoint
    data: Examples
    held_out: tuple[int, ...]
    latents: LatentCache
    condition: Callable[[Sequence[str]], tuple[Tensor, Tensor | None]]
    schedule: NoiseSchedule
    options: Options
    device: torch.device

    @torch.no_grad()
    def probe(self) -> Probe:
        """Compare the loss with the right and with exchanged hints, at fixed noise, without captions."""
        generator = torch.Generator().manual_seed(0)
        rows = list(self.held_out)
        latents, hints = self.latents(rows).to(self.device), self.data.hints(rows).to(self.device)
        found: list[tuple[Tensor, Tensor]] = []
        while len(found) * len(rows) < PROBE_DRAWS or len(found) % len(PROBE_TIMESTEPS):
            timestep = PROBE_TIMESTEPS[len(found) % len(PROBE_TIMESTEPS)]
            noise = torch.randn(latents.shape, generator=generator).to(self.device)
            exchanged = hints.roll(1 + len(found) % (len(rows) - 1), dims=0)
            right, wrong = (self._losses(latents, noise, timestep, shown) for shown in (hints, exchanged))
            found.append((right, wrong))
        right, wrong = (torch.cat(losses) for losses in zip(*found, strict=True))
        share = 1.0 - right / wrong
        error = float(share.std()) / len(share) ** 0.5
        control = float(share.mean())
        certainty = control / error if error else 0.0
        return Probe(self.loop.step, float(right.mean()), float(wrong.mean()), control, certainty)

    def _losses(self, latents: Tensor, noise: Tensor, timestep: float, hints: Tensor) -> Tensor:
        found = []
        for part in torch.arange(len(latents)).split(8):
            context, label = self.condition([""] * len(part))
            predict = control_predictor(
                self.unet, self.net, context, hints[part], self.options.only_mid_control, label
            )
            t = torch.full((len(part),), timestep)
            kind = self.checkpoint.config.parametrization
            found.append(noise_losses(predict, latents[part], t, noise[part], self.schedule, kind).float().cpu())
        return torch.cat(found)

    def sample(self, count: int = 4, settings: SampleSettings | None = None) -> Tensor:
        """Pictures (3 x count, 3, S, S) in [0, 1] of the averaged net: hint, what it makes of it, the target, in turn.

        Of the examples that are held out, with their captions.
        """
        settings = settings or SampleSettings(steps=20, cfg=5.0)
        with self.loop.averaged():
            return torch.cat([self._sampled(row, settings) for row in self.held_out[:count]])

    @torch.no_grad()
    def _sampled(self, row: int, settings: SampleSettings) -> Tensor:
        backend = Backend(Runtime(self.device, next(self.unet.parameters()).dtype, pack_weights=False))
        hint = self.data.hints([row])
        mode = "mid-only" if self.options.only_mid_control else "balanced"
        units = (ControlUnit(self.net, hint, mode=mode),)
        halves = []
        for caption in (*self.data.captions([row]), ""):
            context, label = self.condition([caption])
            halves.append((Condition(context.cpu(), units, None if label is None else label.cpu()),))
        model = DiffusionModel(self.unet, self.checkpoint.config, self.schedule)
        latent = torch.zeros_like(self.latents([row]))
        found = generate(model, halves[0], halves[1], latent, settings, backend=backend)
        vae = _vae(self.checkpoint)
        pictures = [vae.decode(found.to(self.device)).cpu(), self.data.pictures([row])]
        made, target = ((picture / 2.0 + 0.5).clamp(0.0, 1.0) for picture in pictures)
        return torch.cat([hint, made, target])


def control_training(
    checkpoint: Checkpoint,
    data: Examples,
    recipe: Recipe = PAPER,
    options: Options | None = None,
    *,
    state_file: Path | None = None,
    start: ControlNet | None = None,
    device: torch.device | str = "cpu",
) -> ControlTraining:
    """Prepare a training on a base, whose weights become float32 on the device.

    start: a net to go on from instead of a fresh copy of the base's encoder. state_file: where the state is kept.
    Raises CheckpointError for a base without text encoder or autoencoder, UnfitError for a start made for another
    base, ValueRangeError for no examples, a size that the autoencoder does not divide or a base of EDM noise levels.
    """
    options = options or Options()
    _check(checkpoint, data, start)
    device = torch.device(device)
    unet, vae, text = checkpoint.unet, _vae(checkpoint), checkpoint.text_encoder()
    for module in (unet, vae, text):
        module.to(device, torch.float32).requires_grad_(False)
    net = _net(checkpoint, recipe, options, start).to(device, torch.float32).requires_grad_(True)
    if not options.sd_locked:
        for part in (unet.decoder, unet.norm_out, unet.conv_out):
            part.requires_grad_(True)
    schedule = make_schedule(checkpoint.config.noise)
    condition = _conditioner(text, checkpoint.config.unet.label_dim, data.size)
    latents = LatentCache(lambda rows: _encode(vae, data, rows, device), len(data))
    train_rows, held_out = split(len(data))
    draw = high_noise_timesteps if options.quick else uniform_timesteps

    def loss(generator: torch.Generator) -> Tensor:
        rows = train_rows[draw_rows(len(train_rows), recipe.batch, generator)].tolist()
        keep = torch.rand(len(rows), generator=generator) >= options.empty_captions
        captions = [words if kept else "" for words, kept in zip(data.captions(rows), keep, strict=True)]
        known = sent(latents(rows), device)
        t, noise = draw(len(rows), generator), sent(torch.randn(known.shape, generator=generator), device)
        with torch.no_grad():
            context, label = condition(captions)
        hints = sent(data.hints(rows), device)
        predict = control_predictor(unet, net, context, hints, options.only_mid_control, label)
        return noise_loss(predict, known, t, noise, schedule, checkpoint.config.parametrization)

    modules: dict[str, nn.Module] = {"net": net} if options.sd_locked else {"net": net, "base": unet}
    loop = Loop(modules, loss, recipe, state_file)
    return ControlTraining(
        loop, net, unet, checkpoint, data, held_out, latents, condition, schedule, options, device
    )


def split(count: int) -> tuple[Tensor, tuple[int, ...]]:
    """Rows to train on, and rows that are held out for the probe; the same in every run."""
    if count < ALL_TRAINED:
        return torch.arange(count), tuple(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    held = min(HELD_OUT, max(2, round(count * HELD_OUT_SHARE)))
    return order[held:], tuple(order[:held].tolist())


def probes(training: ControlTraining, every: int, on_probe: Callable[[Probe], None]) -> Callable[[int], None]:
    """A callback for `Loop.run` that probes at every so many steps."""

    def on_step(step: int) -> None:
        if step % every == 0 or step == training.loop.recipe.steps:
            on_probe(training.probe())

    return on_step


def first_control(history: Sequence[Probe]) -> Probe | None:
    """The first of two probes in a row that both say that the net controls; None before that."""
    return next((a for a, b in pairwise(history) if a.appeared and b.appeared), None)


def _check(checkpoint: Checkpoint, data: Examples, start: ControlNet | None) -> None:
    config = checkpoint.config
    if config.parametrization == "edm" or config.noise.kind == "edm":
        raise ValueRangeError(f"the {config.name} checkpoint has EDM noise levels: train on a base with 1000 timesteps")
    if len(data) < 2:
        raise ValueRangeError(f"there are {len(data)} examples: give at least 2, better thousands")
    cells = config.vae.factor
    if data.size % (cells * 2 ** (len(config.unet.widths) - 1)):
        step = cells * 2 ** (len(config.unet.widths) - 1)
        raise ValueRangeError(f"the size is {data.size} pixels, this base needs a multiple of {step}")
    if config.unet.in_channels != config.vae.latent_channels:
        raise UnfitError(f"the {config.name} checkpoint is for inpainting or editing: train on its plain base")
    if start is not None:
        check_base(start, "the net to start from", config.unet, f"the base {config.name}")


def _net(checkpoint: Checkpoint, recipe: Recipe, options: Options, start: ControlNet | None) -> ControlNet:
    torch.manual_seed(recipe.seed)
    if start is not None:
        net = ControlNet(start.config)
        net.load_state_dict(start.state_dict())
        return net
    net = ControlNet.from_unet(checkpoint.unet, checkpoint.config.controlnet)
    if options.quick:
        initialise_hint_encoder(net, HINT_STD, torch.Generator().manual_seed(recipe.seed))
    return net


def _vae(checkpoint: Checkpoint) -> AutoencoderKL:
    if checkpoint.vae is None:
        raise CheckpointError(f"the {checkpoint.config.name} checkpoint has no autoencoder: use one that has")
    return checkpoint.vae


@torch.no_grad()
def _encode(vae: AutoencoderKL, data: Examples, rows: Sequence[int], device: torch.device) -> Tensor:
    return torch.cat([vae.encode(data.pictures(part.tolist()).to(device)) for part in torch.tensor(rows).split(8)])


def _conditioner(
    text: TextEncoder | DualTextEncoder, label_dim: int | None, size: int
) -> Callable[[Sequence[str]], tuple[Tensor, Tensor | None]]:
    """Captions -> text (B, 77, width), and the label vector where the model has one; captions are read as they are."""
    encoders = (text.first, text.second) if isinstance(text, DualTextEncoder) else (text,)

    def condition(captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        states = [encoder.states(encoder.tokenize(captions)) for encoder in encoders]
        context, pooled = torch.cat([hidden for hidden, _ in states], dim=-1), states[-1][1]
        if label_dim is None:
            return context, None
        if size_kind(pooled.shape[-1], label_dim) is not PictureSize:
            raise UnfitError("a refiner reads an aesthetic score, and no ControlNets are made for it: use its base")
        return context, label_vector(pooled, PictureSize(size, size, 0, 0, size, size))

    return condition


def trained_recipe(recipe: Recipe, options: Options) -> Recipe:
    """The recipe with the release's lower learning rate where the base is unlocked and none was asked for."""
    unlocked = not options.sd_locked and recipe.lr == PAPER.lr
    return replace(recipe, lr=UNLOCKED_LR) if unlocked else recipe
