"""How much memory a run will take, told from shapes before anything is computed.

Counted are the tensors that are alive at once, as `engine.live` counts them while a run is made: what a block
holds beside its input is a number of values per cell and channel (`Forms`), and a walk over the blocks adds up
what is kept meanwhile. Scratch memory inside an operator is not counted, nor what an allocator keeps for later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import nn

from ..config import EMPTY, ControlNetConfig, UNetConfig, VAEConfig
from ..control.modes import block_heights
from ..models.adapter import Adapter, adapter_places
from ..models.controlnet import ControlNet
from ..models.narrow import NARROW
from ..models.unet import encoder_widths
from .backend import Backend
from .condition import Condition
from .fuse import FusedFeedForward
from .job import Job
from .prepare import unit_runs

MB = 1e6


@dataclass(frozen=True)
class Footprint:
    """Bytes of a run. weights: of the model and its nets, in the run's dtype. prepared: what is kept over the run
    (texts, timesteps, hints). preparing: the most that is alive while that is made. step: the most that an
    evaluation holds beside all of it."""

    weights: int
    prepared: int
    preparing: int
    step: int

    @property
    def peak(self) -> int:
        """Most bytes at once."""
        return self.weights + max(self.preparing, self.prepared + self.step)


class Forms(Protocol):
    """Values that a block holds at most beside its input, its output among them, for so many cells."""

    def residual(self, cells: int, width_in: int, width: int) -> int: ...

    def transformer(self, cells: int, width: int) -> int: ...


class PlainForms:
    """Blocks as `models.layers` has them."""

    def residual(self, cells: int, width_in: int, width: int) -> int:
        """The first activation with its input; the second with its input and the hidden state."""
        return cells * max(2 * width_in, width_in + width, 3 * width)

    def transformer(self, cells: int, width: int) -> int:
        """The feed-forward: 4 maps around it, 8 of its middle, 4 of the gate and 4 of the gated."""
        return 20 * cells * width


class FusedForms:
    """Blocks as `engine.fuse` has them."""

    def residual(self, cells: int, width_in: int, width: int) -> int:
        """Hidden state, activation and output, the latter on top of a widened input where there is one."""
        return cells * max(width_in + width, (3 if width_in != width else 2) * width)

    def transformer(self, cells: int, width: int) -> int:
        """Queries, keys and values of the self attention, or the feed-forward and one piece of its middle."""
        piece = min(FusedFeedForward.TOKENS, cells)
        return max(6 * cells, 4 * cells + 9 * piece) * width


@dataclass
class Ledger:
    """Values alive, and the most there were."""

    held: int = 0
    most: int = 0

    def keep(self, values: int) -> None:
        """So many more stay."""
        self.held += values
        self.passing(0)

    def passing(self, values: int) -> None:
        """So many more are there for a moment."""
        self.most = max(self.most, self.held + values)


@dataclass(frozen=True)
class Place:
    """A block. cells: rows x height x width of its output. depth: of its transformer, None for a plain convolution."""

    cells: int
    width_in: int
    width: int
    depth: int | None = None

    @property
    def values(self) -> int:
        """Of its output."""
        return self.cells * self.width

    def passing(self, forms: Forms) -> int:
        """Held at most while it runs, beside its input."""
        if self.depth is None:
            return self.values
        residual = forms.residual(self.cells, self.width_in, self.width)
        return max(residual, self.values + _transformer(forms, self.cells, self.width, self.depth))


def _transformer(forms: Forms, cells: int, width: int, depth: int) -> int:
    """Beside its input; one without blocks is a normalisation and two projections."""
    if depth == 0:
        return 0
    return 3 * cells * width if depth == EMPTY else forms.transformer(cells, width)


def encoder_places(config: UNetConfig, rows: int, size: tuple[int, int]) -> list[Place]:
    """The blocks of the encoder for rows of latents of this size (h, w)."""
    sides = zip(block_heights(config, size[0]), block_heights(config, size[1]), strict=True)
    cells = [rows * height * width for height, width in sides]
    widths = encoder_widths(config)
    places = [Place(cells[0], config.in_channels, widths[0])]
    for index, (width_in, width) in enumerate(pairwise(widths)):
        level, block = divmod(index, config.res_blocks + 1)
        depth = config.transformer_depth[level] if block < config.res_blocks else None
        places.append(Place(cells[index + 1], width_in, width, depth))
    return places


def middle_passing(config: UNetConfig, forms: Forms, cells: int) -> int:
    """Held at most by the middle, beside its input."""
    width = config.widths[-1]
    residual = forms.residual(cells, width, width)
    return cells * width + max(residual, _transformer(forms, cells, width, config.middle_depth))


def step_values(
    config: UNetConfig, nets: Sequence[tuple[UNetConfig, int]], rows: int, size: tuple[int, int], forms: Forms
) -> int:
    """Most values alive in an evaluation: the encoder, the nets one after the other (shape and rows), the decoder."""
    ledger = Ledger()
    places = encoder_places(config, rows, size)
    last = places[-1]
    ledger.keep(2 * places[0].cells * config.in_channels)
    for place in places:
        ledger.passing(place.passing(forms))
        ledger.keep(place.values)
    ledger.passing(middle_passing(config, forms, last.cells))
    ledger.keep(last.values)
    for net, net_rows in nets:
        ledger.passing(net_values(net, net_rows, size, forms))
    _decode(ledger, config, places, forms)
    return ledger.most


def net_values(config: UNetConfig, rows: int, size: tuple[int, int], forms: Forms) -> int:
    """Most values that a ControlNet holds: one feature map, and what the next block or its zero convolution takes."""
    places = encoder_places(config, rows, size)
    held = [0, *(place.values for place in places)]
    blocks = [values + place.passing(forms) for values, place in zip(held, places, strict=False)]
    outlets = [2 * place.values + place.width**2 for place in places]
    return max(*blocks, *outlets, places[-1].values + middle_passing(config, forms, places[-1].cells))


def residual_values(config: UNetConfig, rows: int, size: tuple[int, int]) -> int:
    """All residuals of a ControlNet."""
    places = encoder_places(config, rows, size)
    return sum(place.values for place in places) + places[-1].values


def _decode(ledger: Ledger, config: UNetConfig, skips: list[Place], forms: Forms) -> None:
    """The decoder: each block reads what came before it beside a skip, which is let go when it is read."""
    skips = list(skips)
    width, cells = skips[-1].width, skips[-1].cells
    for level in reversed(range(len(config.widths))):
        depth, level_width = config.transformer_depth[level], config.widths[level]
        for index in range(config.res_blocks + 1):
            skip = skips.pop()
            both = Place(cells, width + skip.width, level_width, depth)
            ledger.keep(cells * both.width_in)
            ledger.keep(-skip.values)
            ledger.passing(both.passing(forms))
            ledger.keep(both.values - cells * (width + both.width_in))
            width = level_width
            if level > 0 and index == config.res_blocks:
                larger = skips[-1].cells
                ledger.passing(2 * larger * width)
                ledger.keep((larger - cells) * width)
                cells = larger
    ledger.passing(2 * cells * width)


def _transformers(config: UNetConfig, decoder: bool) -> Iterator[tuple[int, int]]:
    """(width, depth) of every transformer."""
    count = config.res_blocks + (config.res_blocks + 1 if decoder else 0)
    yield config.widths[-1], config.middle_depth
    for width, depth in zip(config.widths, config.transformer_depth, strict=True):
        yield from [(width, depth)] * count


def text_values(config: UNetConfig, rows: int, tokens: int, decoder: bool) -> int:
    """Keys and values of the text in every cross attention."""
    return sum(2 * rows * tokens * width * max(depth, 0) for width, depth in _transformers(config, decoder))


def time_values(config: UNetConfig, timesteps: int, decoder: bool) -> int:
    """The timestep's projection for every residual block."""
    count = config.res_blocks + (config.res_blocks + 1 if decoder else 0)
    return timesteps * (config.middle_res * config.widths[-1] + count * sum(config.widths))


def hint_values(config: ControlNetConfig, pictures: int, size: tuple[int, int], factor: int) -> int:
    """Most values alive while hints are embedded: a convolution's input, its output and its activation."""
    cells = pictures * size[0] * size[1] * factor**2
    values, largest = cells * config.hint_channels, 0
    layers = [(config.hint_widths[0], 1)]
    for width, next_width in pairwise(config.hint_widths):
        layers += [(width, 1), (next_width, 4)]
    for width, shrink in layers:
        cells //= shrink
        largest = max(largest, values + 2 * cells * width)
        values = cells * width
    return pictures * size[0] * size[1] * factor**2 * config.hint_channels + largest


def decode_values(config: VAEConfig, rows: int, size: tuple[int, int]) -> int:
    """Most values alive while latents (rows, 4, h, w) become pictures."""
    forms = PlainForms()
    cells = rows * size[0] * size[1]
    widths = tuple(reversed(config.widths))
    ledger = Ledger(held=cells * 2 * config.latent_channels)
    ledger.passing(8 * cells * widths[0])  # the attention over all cells
    for level, (width_in, width) in enumerate(pairwise((widths[0], *widths))):
        ledger.held = cells * width_in
        ledger.passing(forms.residual(cells, width_in, width))
        ledger.keep(cells * width)
        ledger.passing(forms.residual(cells, width, width))
        if level < len(widths) - 1:
            ledger.passing(2 * 4 * cells * width)
            cells *= 4
    return ledger.most


def predict(job: Job, backend: Backend) -> Footprint:
    """The footprint of a run over the sigmas that are known.

    Of nets that are neither ControlNets nor T2I-Adapters the weights alone are counted.
    """
    conditions = job.conditions
    known = [sigma for sigma in job.sigmas if sigma > 0.0]
    moments = dict.fromkeys(
        tuple(i for i, c in enumerate(conditions) if job.schedule.in_window(s, c.start, c.end)) for s in known
    )
    groups = dict.fromkeys(
        tuple((i, conditions[i]) for i in moment if conditions[i].area == area)
        for moment in moments
        for area in dict.fromkeys(conditions[i].area for i in moment)
    )
    prepared = preparing = step = 0
    for members in groups:
        kept, making, evaluating = _group(members, job, len(known), backend)
        preparing = max(preparing, prepared + making)
        prepared, step = prepared + kept, max(step, evaluating)
    each = backend.runtime.dtype.itemsize
    weights = weights_of(models_of(job, backend), backend.runtime.dtype)
    return Footprint(weights, prepared * each, max(preparing, prepared) * each, step * each)


def models_of(job: Job, backend: Backend) -> list[nn.Module]:
    """The UNet and the nets that act on it, each once, as they are run on this base."""
    return list(dict.fromkeys([job.unet, *(backend.resolve(unit.net, job.unet) for unit in job.units)]))


def weights_of(models: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Bytes of their weights in a dtype; those in float8 stay so."""
    parameters = (p for model in models for p in model.parameters())
    return sum(p.numel() * (p.element_size() if p.dtype in NARROW else dtype.itemsize) for p in parameters)


def _group(
    members: tuple[tuple[int, Condition], ...], job: Job, evaluations: int, backend: Backend
) -> tuple[int, int, int]:
    """Values of conditions that are evaluated as one batch: kept, most while they are prepared, most in a step."""
    config, batch, area = job.config, job.shape[0], members[0][1].area
    size = (job.shape[-2], job.shape[-1]) if area is None else (area.height, area.width)
    rows, tokens = len(members) * batch, max(c.text.shape[1] for _, c in members)
    kept = most = _projected(config.unet, rows, tokens, evaluations, decoder=True)
    running: dict[ControlNet, int] = {}
    for unit, first, last in unit_runs(members, len(job.positive)):
        net, own, pictures = backend.resolve(unit.net, job.unet), (last - first) * batch, min(batch, len(unit.hint))
        if isinstance(net, ControlNet):
            running[net] = running.get(net, 0) + own
            most = max(most, kept + hint_values(net.config, pictures * len(unit.hints), size, config.vae.factor))
            kept += (1 if pictures == 1 else own) * size[0] * size[1] * net.config.unet.widths[0]
            kept += _projected(net.config.unet, own, tokens, evaluations, decoder=False)
        elif isinstance(net, Adapter):
            kept += _adapter_values(net, config.unet, 1 if pictures == 1 else own, size)
    nets = [(net.config.unet, own) for net, own in running.items()]
    forms = FusedForms() if backend.packs else PlainForms()
    step = step_values(config.unet, nets, rows, size, forms)
    if backend.runtime.side_by_side:
        step += sum(residual_values(net, own, size) + net_values(net, own, size, forms) for net, own in nets)
    return kept, max(most, kept), step


def _projected(config: UNetConfig, rows: int, tokens: int, evaluations: int, decoder: bool) -> int:
    """All that a net's projections hold: the text, its keys and values, the timesteps (one per row with labels)."""
    timesteps = evaluations * (1 if config.label_dim is None else rows)
    text = rows * tokens * config.context_dim if decoder else 0
    return text + text_values(config, rows, tokens, decoder) + time_values(config, timesteps, decoder)


def _adapter_values(net: Adapter, base: UNetConfig, rows: int, size: tuple[int, int]) -> int:
    """Its feature maps."""
    places = adapter_places(net.config, base) or ()
    cells = [place.cells for place in encoder_places(base, rows, size)]
    return sum([*cells, cells[-1]][place] * width for place, width in zip(places, net.config.widths, strict=False))
