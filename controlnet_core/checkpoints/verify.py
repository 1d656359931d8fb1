"""Verification of model files: recognised, loaded strictly, finite, and equal to diffusers where that is installed.

It is made for real files: a user runs `controlnet verify`, and can attach the report to an issue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, NonFiniteError
from ..models.adapter import Adapter
from ..models.controlnet import ControlNet
from ..models.lllite import ControlLLLite, LLLite
from ..models.text_encoder import ClipTextModel
from ..models.unet import UNet
from ..models.union import ControlNetUnion
from ..models.vae import AutoencoderKL
from . import ctrlora
from .control import CONTROL_KINDS, load_control
from .detect import Identity
from .embeddings import read_embedding
from .inspect import format_bytes, inspect_file
from .io import read_header, read_tensors
from .load import load_checkpoint, load_text_model, load_unet, load_vae
from .load_ctrlora import load_ctrlora
from .lora import read_lora
from .reference import NoReference, compare_with_diffusers

State = Literal["passed", "failed", "skipped"]
LATENT = 16
"""Side of the latent that the nets are tried on: divisible by all levels, and a second of work for Stable Diffusion."""


@dataclass(frozen=True)
class Check:
    """One check of a file. text: its result, or the reason why it failed or was skipped."""

    name: str
    state: State
    text: str


@dataclass(frozen=True)
class FileReport:
    """What verification found out about one file. digest: SHA-256 of a file, empty for a folder. size: in bytes."""

    path: Path
    summary: str
    size: int
    digest: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.state != "failed" for check in self.checks)

    def lines(self) -> list[str]:
        """The report as lines of Markdown. It has the name of the file and no folder, which may be private."""
        digest = f", SHA-256 {self.digest}" if self.digest else ""
        facts = [f"## {self.path.name}", "", f"{self.summary}; {format_bytes(self.size)}{digest}", ""]
        rows = [f"| {check.name} | {check.state} | {check.text.replace('|', '/')} |" for check in self.checks]
        return [*facts, "| check | result | details |", "| --- | --- | --- |", *rows, ""]


def run_check(name: str, action: Callable[[], str]) -> Check:
    """Run one check. action: returns the text of its result; an error that it raises becomes a part of the report."""
    try:
        return Check(name, "passed", action())
    except NoReference as reason:
        return Check(name, "skipped", str(reason))
    except Exception as error:  # whatever goes wrong with a real file belongs into the report
        return Check(name, "failed", " ".join(f"{type(error).__name__}: {error}".split()))


def verify_file(path: str | Path, device: str | torch.device = "cpu") -> FileReport:
    """Try everything that can be tried on one file alone, in float32. Errors become failed checks of the report."""
    try:
        report = inspect_file(path)
    except CheckpointError as error:
        return FileReport(Path(path), "not readable as a model", 0, "", (Check("readable", "failed", str(error)),))
    models: list[nn.Module] = []
    checks = [run_check("recognised", lambda: _recognise(report.identity))]

    def load() -> str:
        models.extend(load_models(report.path, report.identity, device))
        count = sum(tensor.numel() for model in models for tensor in model.state_dict().values())
        names = ", ".join(type(model).__name__ for model in models)
        return f"{names} with {count:,} values; every key of the file is used"

    if checks[0].state == "passed":
        checks.append(run_check("strict loading", load))
        checks += [run_check(f"finite: {type(model).__name__}", lambda m=model: check_finite(m)) for model in models]
        checks += [
            run_check(f"diffusers: {type(model).__name__}", lambda m=model: compare_with_diffusers(m, report.path))
            for model in models
        ]
    digest = _digest(report.path) if report.path.is_file() else ""
    return FileReport(report.path, report.identity.summary, report.size, digest, tuple(checks))


def _recognise(identity: Identity) -> str:
    if not identity.supported:
        raise CheckpointError(identity.problem)
    return identity.summary


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ models


class LooseTensors(nn.Module):
    """Tensors that are no network, such as those of a LoRA."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for number, tensor in enumerate(tensors.values()):
            self.register_buffer(f"value{number}", tensor)


def load_models(path: Path, identity: Identity, device: str | torch.device) -> list[nn.Module]:
    """Load every model of a file, in float32. Raises CheckpointError."""
    options: dict[str, Any] = {"dtype": torch.float32, "device": device}
    match identity.kind:
        case "checkpoint":
            loaded = load_checkpoint(path, **options)
            parts = (loaded.unet, loaded.vae, loaded.text_model, loaded.text_model2)
            return [part for part in parts if part is not None]
        case "unet":
            return [load_unet(path, **options)]
        case "vae":
            return [load_vae(path, **options)]
        case "text-encoder":
            return [load_text_model(path, **options)]
        case kind if kind in CONTROL_KINDS:
            return [load_control(path, **options)[0]]
        case ctrlora.BASE:
            return [load_ctrlora(path).to(device)]
        case ctrlora.LORA:
            return [LooseTensors(read_tensors(read_header(path)))]
        case "lora":
            updates = read_lora(path).updates.items()
            return [LooseTensors({f"{name}.{part}": t for name, update in updates for part, t in update.parts.items()})]
    return [LooseTensors(dict(read_embedding(path).vectors))]


@torch.no_grad()
def check_finite(model: nn.Module) -> str:
    """Run a network once on a small random input. Returns the size of its outputs; raises NonFiniteError."""
    outputs = list(run_once(model))
    bad = [tuple(output.shape) for output in outputs if not bool(torch.isfinite(output).all())]
    if bad:
        raise NonFiniteError(f"{len(bad)} of {len(outputs)} outputs have NaN or infinity, of shapes {bad[:3]}")
    largest = max((float(output.abs().max()) for output in outputs if output.numel()), default=0.0)
    return f"outputs: {len(outputs)}, the largest value is {largest:.4g}"


def run_once(model: nn.Module) -> Iterator[Tensor]:
    """Outputs of a network for a small random input; the weights themselves of what works only with a base."""
    make = torch.Generator().manual_seed(0)
    first = next(iter(model.state_dict().values()), torch.zeros(0))

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(first.device)

    def picture(channels: int) -> Tensor:
        return torch.rand(1, channels, 8 * LATENT, 8 * LATENT, generator=make).to(first.device)

    time = torch.tensor([500.0], device=first.device)
    if isinstance(model, (UNet, ControlNet)):
        unet = model.config if isinstance(model, UNet) else model.config.unet
        x, text = noise(1, unet.in_channels, LATENT, LATENT), noise(1, 77, unet.context_dim)
        label = None if unet.label_dim is None else noise(1, unet.label_dim)
    match model:
        case UNet():
            yield model(x, time, text, label)
        case ControlNetUnion():
            skips, middle = model(x, time, text, [picture(model.config.hint_channels)], [0], label)
            yield from (*skips, middle)
        case ControlNet():
            skips, middle = model(x, time, text, picture(model.config.hint_channels), label)
            yield from (*skips, middle)
        case Adapter():
            yield from model(picture(model.config.hint_channels))
        case ControlLLLite():
            for layer, net in zip(model.config.layers, model.layers.values(), strict=True):
                assert isinstance(net, LLLite)
                side = 8 * LATENT // layer.pixels
                yield net(noise(1, side * side, layer.width), net.embed_hint(picture(3), (side, side)))
        case AutoencoderKL():
            latent = model.encode(picture(model.config.image_channels) * 2 - 1)
            yield from (latent, model.decode(latent))
        case ClipTextModel():
            ids = torch.arange(model.config.max_length, device=first.device) % model.config.vocab_size
            yield from model(ids[None], end_positions=torch.tensor([model.config.max_length - 1]))
        case _:
            yield from (value.float() for value in model.state_dict().values() if value.is_floating_point())
