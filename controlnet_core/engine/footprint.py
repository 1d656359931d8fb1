"""How much memory a run will take, told from shapes before anything is computed.

Counted are the tensors that are alive at once, as `engine.live` counts them while a run is made: the weights, what is
prepared, what shortcuts and graphs keep between evaluations, and what an evaluation holds (`engine.activations`).
Nets tell their share themselves (`ControlModel.load`). Scratch memory inside an operator is not counted, nor what an
allocator keeps for later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import nn

from .accounts import Account, known_sigmas
from .backend import Backend
from .cut import differs
from .filters import Use, filter_values, layers_of, tile_buffer
from .job import Job
from .narrow import is_narrow
from .pack import PackedConv2d
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
    job: Job,
    backend: Backend,
    shortcuts: Shortcuts = EXACT,
    graphs: bool = False,
    tiles: bool = False,
    chunk: int = 0,
) -> Footprint:
    """The footprint of a run over the sigmas that are known.

    graphs: whether evaluations are replayed. tiles: whether large convolutions of packed weights go by tiles. chunk:
    pictures of the batch that are evaluated at a time; 0 for all.
    """
    accounts = list(_accounts(job, backend, shortcuts, chunk))
    before = list(accumulate((account.prepared for account in accounts), initial=0))
    making = [kept + account.preparing for kept, account in zip(before[:-1], accounts, strict=True)]
    prepared = before[-1] + sum(account.joined for account in accounts)
    step = max((scene.step(shortcuts) for account in accounts for scene in account.scenes), default=0)
    carried = sum(account.carried(shortcuts) + (account.buffers if graphs else 0) for account in accounts)
    dtype = backend.runtime.dtype
    prepared, preparing, step, carried = (dtype.itemsize * n for n in (prepared, max(making), step, carried))
    more, buffer = _packed(accounts, dtype, tiles) if backend.packs else (0, 0)
    return Footprint(model_bytes(job, backend) + more, prepared, preparing, step + buffer, carried)


def _packed(accounts: Iterable[Account], dtype: torch.dtype, tiles: bool) -> tuple[int, int]:
    """How much more the packed weights of all models are, for further sizes and by tiles, and the buffer for those."""
    uses: dict[nn.Module, list[Use]] = {}
    for account in accounts:
        for model, use in account.uses:
            uses.setdefault(model, []).append(use)
    wide = {model: list(dict.fromkeys(own)) for model, own in uses.items() if not is_narrow(model)}
    more = sum(_further_forms(model, own, dtype, tiles) for model, own in wide.items())
    return more, max((tile_buffer(own, dtype) for own in wide.values()), default=0) if tiles else 0


def _further_forms(model: nn.Module, uses: Sequence[Use], dtype: torch.dtype, tiles: bool) -> int:
    """Bytes of convolutions beyond one form each: packed once more for inputs of another size, and by tiles."""
    sizes = min(len(uses), PackedConv2d.SIZES)
    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    own = sum(part.weight.numel() for name, part in parts if not name.startswith("hint."))  # hints have one size
    more = (sizes - 1) * own
    if tiles:
        more += filter_values(uses, dtype, sizes) - sizes * sum(layer.values for layer in layers_of(uses[0]))
    return dtype.itemsize * more


def _accounts(job: Job, backend: Backend, shortcuts: Shortcuts, chunk: int) -> Iterator[Account]:
    """What is prepared: with guidance, and without where that is cut; each for all sizes of parts of the batch."""
    batch = job.shape[0]
    size = min(chunk, batch) or batch
    full, rest = divmod(batch, size)
    apart = differs(job.conditions)
    for half, sigmas in _halves(job, shortcuts):
        for pictures, parts in ((size, full), (rest, 1)):
            if pictures:
                part = replace(half, shape=(pictures, *job.shape[1:]))
                yield Account(part, backend, sigmas, parts, parts if apart else 1)


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
