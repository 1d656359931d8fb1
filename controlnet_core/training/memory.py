"""How much memory a training takes, estimated before it starts.

One batch goes forwards and backwards through networks of fake tensors (torch's FakeTensorMode), which have shape, type
and device, and no contents. It is the code of the trainer, with autocast and gradient checkpointing, and
`runtime.tensor_memory` counts what it holds. The rest follows from the number of weights. What the heap of a CPU keeps
is a measured fraction. Scratch memory inside an operator is not counted, nor what the allocator of a GPU keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ..checkpoints.load import Checkpoint
from ..config import ModelConfig
from ..diffusion.schedule import NoiseSchedule, make_schedule
from ..errors import OutOfMemory
from ..models.controlnet import ControlNet
from ..models.module_tree import on_meta
from ..models.unet import UNet
from ..models.vae import AutoencoderKL
from ..runtime.memory import MB, free_bytes, total_bytes
from ..runtime.tensor_memory import TensorMemory
from .control_lora import make_low_rank
from .controlnet_training import TrainingOptions, apply_options
from .encoders import find_vae
from .examples import Examples
from .latent_cache import MOST
from .loop import Recipe
from .processes import ALONE, BUCKET, Processes
from .step import control_predictor, noise_losses
from .tar_examples import TarExamples

TOKENS = 77
FLOAT, HALF = 4, 2
SMALL = 4096
"""bitsandbytes keeps the moments of smaller weights in 32 bits; of larger ones in 8, with one scale for 256."""
HEAP_BLOCK = 32 * 2**20
"""glibc takes smaller blocks from its heap, whose holes the system does not get back. Larger ones are returned."""
HEAP_HOLES = 0.25
"""Holes in the heap, as a fraction of the most that a batch holds there. Measured at 128 and 256 pixels: a process had
0.32 and 0.24 of it above its tensors, and none with a heap that returns every freed block (at 1.3 times the time)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training on its device.

    base: weights of the base, with its autoencoder and text encoders. net: weights that the net does not share with the
    base. optimizer: moments. average: averaged weights. step: the most that a batch holds beside these: activations and
    gradients. heap: freed memory that a CPU's allocator keeps, see `HEAP_HOLES`. encoding: the most that encoding one
    picture holds. cached: latents and texts, where they are kept on this device. free, total: of the device, None if
    unknown; the base is already loaded where `loaded` says so. processes: how many take this much each. advice: options
    that need less.
    """

    base: int
    net: int
    optimizer: int
    average: int
    step: int
    encoding: int
    heap: int = 0
    cached: int = 0
    free: int | None = None
    total: int | None = None
    loaded: int = 0
    processes: int = 1
    advice: tuple[str, ...] = ()
    is_known: bool = True

    @property
    def peak(self) -> int:
        """Most bytes at once, of one process."""
        kept = self.base + self.net + self.optimizer + self.average + self.cached
        return kept + max(self.step + self.heap, self.encoding)

    def words(self) -> str:
        """On one line."""
        each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        parts = [
            f"memory: {self.peak / MB:,.0f} MB{each}: base {self.base / MB:,.0f}, net {self.net / MB:,.0f}, gradients "
            f"and activations {self.step / MB:,.0f}, optimiser {self.optimizer / MB:,.0f}, averages "
            f"{self.average / MB:,.0f}"
        ]
        if self.heap:
            parts[0] += f", holes in the heap {self.heap / MB:,.0f}"
        if self.cached:
            parts[0] += f", latents and texts {self.cached / MB:,.0f}"
        if not self.is_known:
            parts.append("activations could not be counted")
        if self.free is not None:
            parts.append(f"{self.free / MB:,.0f} MB free")
            if (self.peak - self.loaded) * self.processes > self.free:
                parts.append(f"more than is free now: stop other programs, or use {', '.join(self.advice)}")
        return "; ".join(parts)

    def check(self) -> None:
        """Raise OutOfMemory where the device could not hold the training if nothing else ran."""
        needed = self.peak * self.processes
        if self.total is not None and needed > self.total:
            raise OutOfMemory(
                f"this training needs about {needed / MB:,.0f} MB, and the device has {self.total / MB:,.0f} MB: use "
                f"{', '.join(self.advice)}"
            )


def estimate_training(
    checkpoint: Checkpoint,
    data: Examples,
    recipe: Recipe,
    options: TrainingOptions | None = None,
    *,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
) -> TrainingMemory:
    """The memory of a training with these arguments of `prepare_training`. Nothing of its size is allocated."""
    options, device, config = options or TrainingOptions(), torch.device(device), checkpoint.config
    modules = (checkpoint.unet, find_vae(checkpoint), checkpoint.text_encoder())
    base = FLOAT * sum(p.numel() for module in modules for p in module.parameters())
    on_cpu = device.type == "cpu"
    (sizes, further, step, on_heap, encoding), is_known = _try_to_measure(
        config, data.size, max(1, recipe.batch // processes.count), recipe, options, device
    )
    averaged = bool(recipe.ema) and (on_cpu or not recipe.ema_on_cpu)
    trained = sizes + further
    if processes.count > 1:
        step += 2 * FLOAT * min(BUCKET, sum(trained))  # gradients are exchanged in buckets, which are copies
    return TrainingMemory(
        base,
        FLOAT * sum(sizes),
        optimizer_bytes(recipe.optimizer, trained),
        FLOAT * sum(trained) if averaged else 0,
        step,
        encoding,
        int(HEAP_HOLES * on_heap) if on_cpu else 0,
        _cached_bytes(config, data) if on_cpu else 0,
        free_bytes(device),
        total_bytes(device),
        base if on_cpu else 0,
        processes.count if on_cpu else 1,
        _advice(recipe, options, device, processes.count),
        is_known,
    )


def optimizer_bytes(name: str, sizes: Sequence[int]) -> int:
    """Bytes of both moments of weights with so many numbers; see `make_optimizer` for the name."""
    if name == "adamw":
        return 2 * FLOAT * sum(sizes)
    return sum(2 * FLOAT * size if size < SMALL else 2 * (size + FLOAT * -(-size // 256)) for size in sizes)


Measured = tuple[list[int], list[int], int, int, int]
"""Numbers in each trained weight of the net, and of the base; bytes of a step, of its small blocks, of encoding."""


def _try_to_measure(
    config: ModelConfig, side: int, rows: int, recipe: Recipe, options: TrainingOptions, device: torch.device
) -> tuple[Measured, bool]:
    # A device whose operators have no fake versions is counted as a CPU.
    # Other fields do not change what a batch holds: a training with more steps or another rate is not counted again.
    shape = Recipe(1, accumulate=min(recipe.accumulate, 2), bf16=recipe.bf16, fp16=recipe.fp16)
    defaults = TrainingOptions()
    options = replace(
        options, empty_captions=defaults.empty_captions, quick=defaults.quick, min_snr=0.0, noise_offset=0.0
    )
    for where in dict.fromkeys((device.type, "cpu")):
        try:
            return _measure(config, side, rows, shape, options, where), True
        except Exception:  # an estimate must not stop a training that may run
            continue
    with on_meta():
        net = ControlNet(config.controlnet)
    sizes = [p.numel() for p in net.parameters()]
    return (sizes, [], FLOAT * sum(sizes), 0, 0), False


# A second training of the same shape in this process, as in the editor, is not counted again.
@lru_cache(maxsize=16)
def _measure(
    config: ModelConfig, side: int, rows: int, recipe: Recipe, options: TrainingOptions, where: str
) -> Measured:
    from torch._subclasses.fake_tensor import FakeTensorMode  # imports sympy, which takes a second

    schedule = make_schedule(config.noise)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(where):
        unet = UNet(config.unet).requires_grad_(False)
        net = ControlNet(config.controlnet).requires_grad_(True)
        if options.rank:
            make_low_rank(net, unet, options.rank, torch.Generator())
        apply_options(options, net, unet)
        sizes, further = ([p.numel() for p in module.parameters() if p.requires_grad] for module in (net, unet))
        with TensorMemory(small=HEAP_BLOCK) as memory:
            # A second batch of a step meets the gradients of the first.
            for _ in range(recipe.accumulate):
                _run_batch(config, side, rows, recipe, options, where, schedule, net, unet)
        vae = AutoencoderKL(config.vae)
        with TensorMemory() as encoding, torch.no_grad():
            vae.encode(torch.empty(1, 3, side, side))
    return sizes, further, memory.peak, memory.small_peak, encoding.peak


def _run_batch(
    config: ModelConfig,
    side: int,
    rows: int,
    recipe: Recipe,
    options: TrainingOptions,
    where: str,
    schedule: NoiseSchedule,
    net: ControlNet,
    unet: UNet,
) -> None:
    """Forward and backward pass of a batch, as `Loop` and `ControlNetTraining` make them."""
    cells = side // config.vae.factor
    latents = torch.empty(rows, config.vae.latent_channels, cells, cells)
    noise, hints = torch.empty_like(latents), torch.empty(rows, config.controlnet.hint_channels, side, side)
    context = torch.empty(rows, TOKENS, config.unet.context_dim)
    label = None if config.unet.label_dim is None else torch.empty(rows, config.unet.label_dim)
    predict = control_predictor(unet, net, context, hints, options.only_mid_control, label)
    dtype = torch.float16 if recipe.fp16 else torch.bfloat16
    with torch.autocast(where, dtype, enabled=recipe.bf16 or recipe.fp16):
        t = torch.full((rows,), 500.0)
        losses = noise_losses(predict, latents, t, noise, schedule, config.parametrization)
        loss = losses.mean().float()
    loss.backward()


def _cached_bytes(config: ModelConfig, data: Examples) -> int:
    """Bytes of the latents and texts that are kept once all examples were drawn, see `LatentCache`."""
    latent = HALF * config.vae.latent_channels * (data.size // config.vae.factor) ** 2
    text = HALF * TOKENS * config.unet.context_dim
    latents = 0 if isinstance(data, TarExamples) else min(MOST, len(data) * latent)
    return latents + min(MOST, len(data) * text)


def _advice(recipe: Recipe, options: TrainingOptions, device: torch.device, processes: int) -> tuple[str, ...]:
    """Options of the command that would need less memory and are not in use."""
    advice = {
        "--gradient-checkpointing": not options.gradient_checkpointing,
        f"--batch {processes} with --accumulate {recipe.accumulate * recipe.batch // processes}": (
            recipe.batch > processes
        ),
        "--bf16": not (recipe.bf16 or recipe.fp16),
        "--optimizer adamw8bit": recipe.optimizer == "adamw",
        "--ema cpu": device.type != "cpu" and bool(recipe.ema) and not recipe.ema_on_cpu,
        "--ema off": bool(recipe.ema),
        "--kind control-lora": not options.rank,
        "a smaller --size": True,
    }
    return tuple(text for text, helps in advice.items() if helps)
