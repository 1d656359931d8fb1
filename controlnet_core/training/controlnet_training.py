"""Trains a ControlNet on examples, with the recipe of the paper.

Source: Zhang, Rao, Agrawala 2023, section 3.3 (half of the prompts are empty), and the training notes of the release
(`sd_locked`, `only_mid_control`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backend import Backend
from ..checkpoints.load import Checkpoint
from ..conditioning.condition import Condition
from ..config import ModelConfig
from ..control.unit import ControlUnit
from ..diffusion.schedule import NoiseSchedule, make_schedule
from ..errors import UnfitError, ValueRangeError
from ..models.control import check_base
from ..models.controlnet import ControlNet
from ..models.to_device import to_device_async
from ..models.unet import UNet
from ..pipeline import DiffusionModel, SampleSettings, generate
from ..runtime.device import Runtime
from .compiled import compile_networks
from .control_lora import make_low_rank, to_control_lora
from .disk_cache import DiskCache
from .encoders import Conditioner, cached_conditioner, cached_latents, find_vae
from .examples import Examples
from .latent_cache import MOST, LatentCache
from .loop import Loop, Recipe
from .optimizers import check_fp16
from .probe import Probe, run_probe
from .processes import ALONE, Processes
from .read_ahead import ReadAhead
from .step import (
    Predict,
    control_predictor,
    high_noise_timesteps,
    initialise_hint_encoder,
    min_snr_weights,
    noise_losses,
    offset_noise,
    uniform_timesteps,
)

# The recipe of the paper: AdamW with learning rate 1e-5; control appears within 10,000 steps.
PAPER = Recipe(steps=10_000, batch=4, lr=1e-5)
# The learning rate of the release when the base's decoder is trained as well: the decoder is good already.
UNLOCKED_LR = 2e-6
# A product of two matrices, one of which starts at zero, needs larger steps: the rate of diffusers' LoRA examples.
LORA_LR = 1e-4
# For small models and short runs, see `TrainingOptions.quick`. The demo nets were made in this way.
QUICK = Recipe(steps=2_000, batch=16, lr=1e-3, lr_end=0.05, warmup=100, betas=(0.9, 0.99))
HINT_STD = 0.05
NATIVE_SIZES = {"demo": 128, "sd15": 512, "sd2": 768, "sdxl": 1024}
"""Name of a base's config -> side in pixels of the pictures that it was trained on."""


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained, beside the numbers of the recipe.

    empty_captions: fraction of captions that are replaced by the empty text, so that the net reads the hint instead.
    sd_locked: train only the net; False trains the base's decoder too. only_mid_control: the net controls only the
    middle block. quick: not from the paper: He's initialisation of the hint encoder, and more timesteps of high noise,
    for runs of hundreds of steps. gradient_checkpointing: compute blocks again in the backward pass instead of keeping
    their activations: less memory, more time, the same gradients. rank: above 0, train a Control-LoRA with so many
    columns for each large weight, instead of a whole ControlNet. min_snr: gamma of `min_snr_weights`, 0 for equal
    weights. noise_offset: strength of `offset_noise`.
    """

    empty_captions: float = 0.5
    sd_locked: bool = True
    only_mid_control: bool = False
    quick: bool = False
    gradient_checkpointing: bool = False
    rank: int = 0
    min_snr: float = 0.0
    noise_offset: float = 0.0

    def __post_init__(self) -> None:
        for name, high in (("min_snr", 1000.0), ("noise_offset", 1.0)):
            if not 0.0 <= getattr(self, name) <= high:
                raise ValueRangeError(f"{name} is {getattr(self, name)}: choose a number from 0 to {high:g}")
        if not 0.0 <= self.empty_captions <= 1.0:
            raise ValueRangeError(f"empty_captions is {self.empty_captions}: choose a share between 0 and 1")


@dataclass(frozen=True, eq=False)
class ControlNetTraining:
    """A ControlNet in training. `loop` trains it; `probe` and `sample` can be called between the steps.

    squares, square_latents: the examples of the probe and the samples, which are squares also where `data` is in
    buckets: hints can only be exchanged between pictures of one size. compiled: UNet and net for the steps, where they
    are compiled.
    """

    loop: Loop
    net: ControlNet
    unet: UNet
    checkpoint: Checkpoint
    data: Examples
    held_out: tuple[int, ...]
    latents: LatentCache
    squares: Examples
    square_latents: LatentCache
    condition: Conditioner
    schedule: NoiseSchedule
    options: TrainingOptions
    device: torch.device
    reader: ReadAhead
    disk: DiskCache | None = None
    compiled: tuple[Any, Any] | None = None

    def close(self) -> None:
        """End the threads that read ahead, and `flush`."""
        self.reader.close()
        self.flush()

    def flush(self) -> None:
        """Write encoded latents and texts that are not on the disk yet, where they are kept there."""
        if self.disk is not None:
            self.disk.flush()

    @torch.no_grad()
    def probe(self) -> Probe:
        """Measure control on the held-out examples, without captions. It does not change the training."""
        rows = list(self.held_out)
        latents, hints = (x.to(self.device) for x in (self.square_latents(rows), self.squares.hints(rows)))
        return run_probe(self.loop.step, latents, hints, self._losses)

    def _losses(self, latents: Tensor, noise: Tensor, timesteps: Tensor, hints: Tensor) -> Tensor:
        predict = self._predictor([""] * len(latents), hints)
        kind = self.checkpoint.config.parametrization
        return noise_losses(predict, latents, timesteps, noise, self.schedule, kind).float().cpu()

    def _predictor(self, captions: Sequence[str], hints: Tensor) -> Predict:
        with torch.no_grad():
            context, label = self.condition(captions, (hints.shape[-2], hints.shape[-1]))
        # A probe uses the plain networks: it would be compiled a second time, without gradients.
        compiled = self.compiled if torch.is_grad_enabled() else None
        unet, net = compiled or (self.unet, self.net)
        return control_predictor(unet, net, context, hints, self.options.only_mid_control, label)

    def _loss(self, rows: Sequence[int], generator: torch.Generator) -> Tensor:
        """The loss of this process's part of a batch: Zhang et al. 2023, equation 5, with some captions emptied."""
        # All random numbers are drawn for the whole batch, so that they do not depend on the number of processes.
        part = self.loop.processes.part
        keep = torch.rand(len(rows), generator=generator)[part] >= self.options.empty_captions
        chosen = rows[part]
        with self.loop.loading():
            captions = [text if kept else "" for text, kept in zip(self.data.captions(chosen), keep, strict=True)]
            latents, hints = self.latents(chosen), self.reader.hints(chosen)
        latents, hints = (to_device_async(x, self.device) for x in (latents, hints))
        draw = high_noise_timesteps if self.options.quick else uniform_timesteps
        t = draw(len(rows), generator)[part]
        # Noise is drawn on the CPU, so that the same seed trains the same net on every device.
        noise = torch.randn((len(rows), *latents.shape[1:]), generator=generator)
        if self.options.noise_offset:
            noise = offset_noise(noise, self.options.noise_offset, generator)
        noise = to_device_async(noise[part], self.device)
        predict = self._predictor(captions, hints)
        kind = self.checkpoint.config.parametrization
        losses = noise_losses(predict, latents, t, noise, self.schedule, kind)
        if self.options.min_snr:
            weights = min_snr_weights(self.schedule.sigma(t), self.options.min_snr, kind)
            losses = losses * to_device_async(weights, self.device)
        return losses.mean()

    def sample(self, count: int = 4, settings: SampleSettings | None = None) -> Tensor:
        """Pictures of the averaged net for held-out examples, with their captions.

        Returns (3 * count, 3, S, S) in [0, 1]: hint, generated picture, target, one example after the other.
        """
        settings = settings or SampleSettings(steps=20, cfg=5.0)
        with self.loop.averaged():
            # The engine samples plain nets only, so a Control-LoRA is completed, as at its loading.
            net = to_control_lora(self.net).resolve(self.unet) if self.options.rank else self.net
            return torch.cat([self._sample_row(net, row, settings) for row in self.held_out[:count]])

    @torch.no_grad()
    def _sample_row(self, net: ControlNet, row: int, settings: SampleSettings) -> Tensor:
        # Weights are not packed: they change at the next step.
        backend = Backend(Runtime(self.device, next(self.unet.parameters()).dtype, pack_weights=False))
        hint = self.squares.hints([row])
        side = self.squares.size
        mode = "mid-only" if self.options.only_mid_control else "balanced"
        units = (ControlUnit(net, hint, mode=mode),)
        halves = []
        for caption in (*self.data.captions([row]), ""):
            context, label = self.condition([caption], (side, side))
            halves.append((Condition(context.cpu(), units, None if label is None else label.cpu()),))
        model = DiffusionModel(self.unet, self.checkpoint.config, self.schedule)
        latent = torch.zeros_like(self.square_latents([row]))
        found = generate(model, halves[0], halves[1], latent, settings, backend=backend)
        pictures = [find_vae(self.checkpoint).decode(found.to(self.device)).cpu(), self.squares.pictures([row])]
        made, target = ((picture / 2.0 + 0.5).clamp(0.0, 1.0) for picture in pictures)
        return torch.cat([hint, made, target])


def prepare_training(
    checkpoint: Checkpoint,
    data: Examples,
    recipe: Recipe = PAPER,
    options: TrainingOptions | None = None,
    *,
    state_file: Path | None = None,
    start: ControlNet | None = None,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
    disk: DiskCache | None = None,
    keep_bytes: int = MOST,
    workers: int = 0,
    compiled: bool = False,
) -> ControlNetTraining:
    """Prepare a training on a base, whose weights are converted to float32 on the device.

    state_file: where the loop saves its state. start: a net to continue from, instead of a fresh copy of the base's
    encoder. processes: those that share each batch. disk: where latents and texts are kept for the next start.
    keep_bytes: of latents, and of texts, that are kept in memory; 0 encodes them at each step. workers: threads that
    read ahead. compiled: see `compile_networks`. Raises CheckpointError for a base without text encoder or autoencoder,
    UnfitError for a start made for another base, ValueRangeError for fewer than 2 examples, a size that the model does
    not divide, a batch that the processes do not divide, a base with EDM noise levels, or a device that cannot compute
    in fp16; MissingPackageError where there is no compiler.
    """
    options, device = options or TrainingOptions(), torch.device(device)
    check_training(checkpoint, data, options, start)
    processes.check_batch(recipe.batch)
    net, unet, vae = _place_networks(checkpoint, recipe, options, start, device), checkpoint.unet, find_vae(checkpoint)
    draw, held_out = data.split(recipe.seed)
    modules: dict[str, nn.Module] = {"net": net} if options.sd_locked else {"net": net, "base": unet}

    # The loop needs the loss, and the loss needs the record that holds the loop: it is looked up when it is called.
    def loss(generator: torch.Generator) -> Tensor:
        reader.expect(training.loop.drawn, lambda row: row not in latents)
        rows = draw(recipe.batch, training.loop.drawn)
        training.loop.drawn += len(rows)
        return training._loss(rows, generator)

    reader, squares = ReadAhead(data, draw, recipe.batch, processes.part, workers), data.squares()
    latents = cached_latents(vae, data, device, disk, keep_bytes, reader.picture)
    training = ControlNetTraining(
        Loop(modules, loss, recipe, state_file, processes),
        net,
        unet,
        checkpoint,
        data,
        held_out,
        latents,
        squares,
        latents if squares is data else cached_latents(vae, squares, device, disk, keep_bytes),
        cached_conditioner(checkpoint.text_encoder(), checkpoint.config.unet.label_dim, disk, keep_bytes),
        make_schedule(checkpoint.config.noise),
        options,
        device,
        reader,
        disk,
        compile_networks(unet, net, device) if compiled else None,
    )
    return training


def check_training(
    checkpoint: Checkpoint, data: Examples, options: TrainingOptions, start: ControlNet | None = None
) -> None:
    """Raise the errors of `prepare_training` for a base, examples and a start that do not go together."""
    config = checkpoint.config
    if config.parametrization == "edm" or config.noise.kind != "discrete":
        kind = "LCM" if config.noise.kind == "lcm" else "EDM"
        raise ValueRangeError(
            f"the {config.name} checkpoint has {kind} noise levels: train on a base with 1000 timesteps"
        )
    if len(data) < 2:
        raise ValueRangeError(f"there are {len(data)} examples: give at least 2, better thousands")
    multiple = size_multiple(config)
    if data.size < multiple or data.size % multiple:
        raise ValueRangeError(f"the size is {data.size} pixels, this base needs a multiple of {multiple}")
    if config.unet.in_channels != config.vae.latent_channels:
        raise UnfitError(f"the {config.name} checkpoint is for inpainting or editing: train on its plain base")
    if start is not None and options.rank:
        raise ValueRangeError(
            "a Control-LoRA starts as its base: leave the net to start from out, or train a ControlNet"
        )
    if start is not None:
        check_base(start, "the net to start from", config.unet, f"the base {config.name}")


def _place_networks(
    checkpoint: Checkpoint, recipe: Recipe, options: TrainingOptions, start: ControlNet | None, device: torch.device
) -> ControlNet:
    """Move the base to the device and lock it; returns the net."""
    if recipe.fp16:
        check_fp16(device)
    for module in (checkpoint.unet, find_vae(checkpoint), checkpoint.text_encoder()):
        module.to(device, torch.float32).requires_grad_(False)
    net = _make_net(checkpoint, recipe, options, start, device)
    apply_options(options, net, checkpoint.unet)
    return net


def _make_net(
    checkpoint: Checkpoint, recipe: Recipe, options: TrainingOptions, start: ControlNet | None, device: torch.device
) -> ControlNet:
    torch.manual_seed(recipe.seed)
    if start is not None:
        # A copy keeps the class: a net of one's own architecture is trained as it is.
        net = copy.deepcopy(start)
        return net.to(device, torch.float32).requires_grad_(True)
    # Trainable copies start as the locked blocks (Zhang et al. 2023, section 3.1).
    net = ControlNet.from_unet(checkpoint.unet, checkpoint.config.controlnet)
    if options.quick:
        initialise_hint_encoder(net, HINT_STD, torch.Generator().manual_seed(recipe.seed))
    net = net.to(device, torch.float32).requires_grad_(True)
    if options.rank:
        # Last, because moving the net would separate its weights from those of the base that they share.
        make_low_rank(net, checkpoint.unet, options.rank, torch.Generator().manual_seed(recipe.seed))
    return net


def apply_options(options: TrainingOptions, net: ControlNet, unet: UNet) -> None:
    """Unlock the base and recompute blocks where the options say so."""
    if not options.sd_locked:
        # The encoder stays locked: the net's copy of it was made for these features.
        for part in (unet.decoder, unet.norm_out, unet.conv_out):
            part.requires_grad_(True)
    # The base's encoder and middle keep nothing: nothing before the sum with the residuals needs a gradient.
    for stack in (net.encoder, net.middle, unet.decoder):
        stack.recompute = options.gradient_checkpointing


def size_multiple(config: ModelConfig) -> int:
    """What the sides of a base's pictures are multiples of: 64 pixels for SD1.5."""
    # Each level of the UNet but the last halves the latent.
    return config.vae.factor * 2 ** (len(config.unet.widths) - 1)


def usual_rate(recipe: Recipe, options: TrainingOptions) -> Recipe:
    """The recipe with the usual learning rate if it has the paper's: lower for an unlocked base, higher for a LoRA."""
    if recipe.lr != PAPER.lr:
        return recipe
    if not options.sd_locked:
        return replace(recipe, lr=UNLOCKED_LR)
    return replace(recipe, lr=LORA_LR) if options.rank else recipe
