"""How much memory a run will take, told from shapes before anything is computed.

Counted are the tensors that are alive at once, as `engine.live` counts them while a run is made: the weights, what is
prepared, what shortcuts and graphs keep between evaluations, and what an evaluation holds (`engine.activations`).
Nets tell their share themselves (`ControlModel.load`). Scratch memory inside an operator is not counted, nor what an
allocator keeps for later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from .accounts import Account, known_sigmas
from .backend import Backend
from .filters import Use, tile_bytes
from .job import Job
from .narrow import is_narrow
from .run import EXACT, Shortcuts
from .weights import weights_of

MB = 1e6


@dataclass(frozen=True)
class Footprint:
    """Bytes of a run. weights: of the model and its nets, in the run's dtype. prepared: what is kept over the run
    (texts, timesteps, hints). preparing: the most that is alive while that is made. carried: what evaluations keep
    for later ones, by shortcuts or for graphs. step: the most that an evaluation holds beside all of it."""

    weights: int
    prepared: int
    preparing: int
    step: int
    carried: int = 0

    @property
    def peak(self) -> int:
        """Most bytes at once."""
        return self.weights + max(self.preparing, self.prepared + self.carried + self.step)


def predict(
    job: Job, backend: Backend, shortcuts: Shortcuts = EXACT, graphs: bool = False, tiles: bool = False
) -> Footprint:
    """The footprint of a run over the sigmas that are known. graphs: whether evaluations are replayed. tiles: whether
    large convolutions of packed weights go by tiles."""
    accounts = [Account(part, backend, sigmas) for part, sigmas in _halves(job, shortcuts)]
    prepared = preparing = 0
    for account in accounts:
        preparing = max(preparing, prepared + account.preparing)
        prepared += account.prepared
    scenes = list(dict.fromkeys(scene for account in accounts for scene in account.scenes))
    joined = sum(scene.joined for scene in scenes)
    step = max((scene.step(shortcuts) for scene in scenes), default=0)
    carried = sum(scene.carried(shortcuts) for scene in scenes)
    if graphs:
        carried += sum(account.buffers for account in accounts)
    dtype = backend.runtime.dtype
    prepared, preparing, step, carried = (
        dtype.itemsize * n for n in (prepared + joined, max(preparing, prepared), step, carried)
    )
    more, buffer = _tiled(accounts, dtype) if tiles else (0, 0)
    return Footprint(model_bytes(job, backend) + more, prepared, preparing, step + buffer, carried)


def _tiled(accounts: Iterable[Account], dtype: torch.dtype) -> tuple[int, int]:
    """How much larger the weights of all models are by tiles, and the buffer that they share."""
    uses: dict[nn.Module, list[Use]] = {}
    for account in accounts:
        for model, use in account.uses:
            uses.setdefault(model, []).append(use)
    wide = [tile_bytes(own, dtype) for model, own in uses.items() if not is_narrow(model)]
    return sum(more for more, _ in wide), max((buffer for _, buffer in wide), default=0)


def _halves(job: Job, shortcuts: Shortcuts) -> Iterator[tuple[Job, list[float]]]:
    """What is prepared, each with the sigmas at which it is evaluated: with guidance, and without where it is cut."""
    known = known_sigmas(job)
    if not shortcuts.limits_guidance:
        yield job, known
        return
    window = (shortcuts.guidance_start, shortcuts.guidance_end)
    yield job, [sigma for sigma in known if job.schedule.in_window(sigma, *window)]
    yield replace(job, negative=()), [sigma for sigma in known if not job.schedule.in_window(sigma, *window)]


def models_of(job: Job, backend: Backend) -> list[nn.Module]:
    """The UNet and the nets that act on it, each once, as they are run on this base."""
    return list(dict.fromkeys([job.unet, *(backend.resolve(unit.net, job.unet) for unit in job.units)]))


def model_bytes(job: Job, backend: Backend) -> int:
    """Bytes of all weights of a run, in the form in which they are run."""
    return weights_of(models_of(job, backend), backend.runtime.dtype) + completed_bytes(job, backend)


def completed_bytes(job: Job, backend: Backend) -> int:
    """Bytes of nets that were completed with their base's weights, where they are held beside their packed form.

    Other nets are mapped from their file, and the system takes those pages back.
    """
    if not backend.packs:
        return 0
    nets = [unit.net for unit in job.units]
    made = {own for own in (backend.resolve(net, job.unet) for net in nets) if own not in nets}
    return sum(p.numel() * p.element_size() for net in made for p in net.parameters())
