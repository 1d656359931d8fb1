"""How much memory a run takes, measured before it by running the engine itself on meta tensors.

Meta tensors have shapes and no contents, so that a run on them allocates nothing and takes a fraction of a second. The
same code prepares, evaluates and keeps what a real run would; `runtime.tensor_memory` counts the bytes. Changes of
the engine are counted automatically. Scratch memory inside an operator is not counted, nor what an allocator keeps.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import speed
from .backend import Backend
from .conditioning.batch_slice import differs_by_image, slice_job
from .conditioning.condition import Condition, fingerprint
from .conditioning.job import Job
from .config import ControlNetConfig, UNetConfig
from .control.modes import block_heights
from .control.unit import ControlUnit
from .models.control import BindContext, ControlModel, ResidualProjection, identity
from .models.controlnet import ControlNet
from .models.module_tree import meta_copy, on_meta
from .models.unet import encoder_widths
from .models.vae import AutoencoderKL
from .runtime.memory import Footprint
from .runtime.meta_shapes import SHAPE_RULES
from .runtime.tensor_memory import TensorMemory
from .runtime.weight_bytes import weight_bytes
from .sample import SampleSettings
from .speed import EvaluationClock, RunContext

META = torch.device("meta")
TOKENS = 77
STEPS = 30
"""Length of a text and number of noise levels that are assumed for a run whose job is not known."""


class MetaBackend(Backend):
    """A backend whose modules have shapes only, in the form in which another backend would run them."""

    def __init__(self, backend: Backend, winograd: bool) -> None:
        self.real = backend
        plain = {"memory": "resident", "compile": False, "keep_packed": False}
        super().__init__(replace(backend.runtime, device=META, winograd=winograd, **plain))

    @property
    def can_pack(self) -> bool:
        """Whether the other backend packs."""
        return self.real.packs

    def _new_work_buffer(self) -> Any:
        return speed.MetaBuffer() if self.can_pack else None

    def further_bytes(self) -> int:
        """Bytes of packed convolution weights beyond one form each: further sizes, and Winograd filters."""
        return sum(speed.further_bytes(twin) for twin in self._twins.values()) if self.packs else 0

    def buffer_bytes(self) -> int:
        """Bytes of the work buffer so far."""
        return 0 if self.work_buffer is None else self.work_buffer.nbytes


class CountedStreams:
    """Stands in for `RunContext.streams` on a GPU, where jobs that run at the same time add up."""

    def __init__(self, memory: TensorMemory) -> None:
        self.memory = memory

    def __call__(self, first: Callable[[], Any], others: Sequence[Callable[[], Any]]) -> tuple[Any, list[Any]]:
        """The result of each job, run one after the other."""
        memory, begin, highest, extra, results = self.memory, self.memory.live, self.memory.peak, 0, []
        for job in (first, *others):
            memory.peak = before = memory.live
            results.append(job())
            extra += memory.peak - before
        memory.peak = max(highest, begin + extra)
        return results[0], results[1:]


class UncountedNet(ControlModel):
    """Stands in for a kind of control that reads the values of tensors, which meta tensors do not have.

    It makes a feature map as large as each target in every evaluation.
    """

    def __init__(self, net: ControlModel) -> None:
        super().__init__()
        self.channels, self.kind, self.entry = net.hint_channels, type(net).__name__, net.entry  # type: ignore[misc]
        self.conditional_only = net.conditional_only

    @property
    def hint_channels(self) -> int:
        """Channels of the hint that the net reads."""
        return self.channels

    @property
    def made_for(self) -> str:
        """The kind of the net. No message shows it, because `fits` is always true."""
        return self.kind

    def fits(self, config: UNetConfig) -> bool:
        """True: the net itself was checked before the estimate."""
        return True

    def bind(self, context: BindContext) -> UncountedNet:
        """Note the shapes of the targets, (rows, C, h, w) each."""
        widths = (*encoder_widths(context.base), context.base.widths[-1])
        sides = zip(*(block_heights(context.base, side) for side in context.size), strict=True)
        self.shapes = [(context.rows, width, *side) for width, side in zip(widths, sides, strict=True)]
        return self

    def inputs_at(self, sigma: float) -> tuple[tuple[int, ...], ...]:
        """The shapes of the targets; they do not depend on the noise level."""
        return tuple(self.shapes)

    def features(self, x: Tensor, inputs: Any) -> Iterator[Tensor]:
        """A meta tensor for each target."""
        return (x.new_empty(shape) for shape in inputs)

    def projections(self, inputs: Any) -> Sequence[ResidualProjection]:
        """The identity for each target: nothing further is allocated."""
        return [identity] * len(inputs)


Build = Callable[..., Callable[[Tensor, Tensor], Tensor]]
"""`pipeline.build_denoiser`."""


def estimate_run(
    job: Job, backend: Backend, clock: EvaluationClock, graphs: bool, winograd: bool, images: int, build: Build
) -> Footprint:
    """The footprint of a run over its known sigmas, `images` of the batch at a time.

    graphs: whether evaluations are replayed. winograd: whether packed weights have Winograd filters. The result is kept
    by the backend for runs that differ in the seed, or in the height of strengths and noise levels.
    """
    key, owners = _key(job)
    how = (clock.key, graphs, winograd, images, backend.packs, tuple(clock.guides(s) for s in job.sigmas))

    def make() -> Footprint:
        # A kind of control that reads values cannot run on meta tensors, nor can a hook on the UNet.
        for convert in (meta_copy, UncountedNet):
            try:
                return _estimate(job, backend, clock, graphs, winograd, images, build, convert)
            except RuntimeError:  # NotImplementedError is one
                continue
        return Footprint(weight_bytes(backend.models(job), backend.runtime.dtype), 0, 0, 0, is_known=False)

    return backend.estimates.once((how, *key), owners, make)


def _key(job: Job) -> tuple[tuple[Hashable, ...], Iterable[object]]:
    """A key that is equal for jobs that hold the same bytes, and the objects that it means by their identity."""
    units = {unit: number for number, unit in enumerate(job.units)}
    pictures = {
        unit: [*(hint.picture for hint in unit.hints), unit.mask, *(frame.mask for frame in unit.keyframes)]
        for unit in units
    }

    def unit_key(unit: ControlUnit) -> Hashable:
        # Of the numbers of a unit only those that are 0 count: what they belong to is not computed.
        acts = tuple(
            tuple(map(bool, unit.weights_at(sigma, job.schedule, job.config.unet, job.shape[-2])))
            for sigma in job.sigmas
        )
        begun = tuple(unit.begun_count(sigma, job.schedule) for sigma in job.sigmas)
        halves, items = (bool(unit.positive), bool(unit.negative)), tuple(map(bool, unit.items or ()))
        kinds = tuple(hint.kind for hint in unit.hints)
        how = (acts, begun, halves, items, kinds, unit.mode, unit.fit, unit.pool)
        return (units[unit], id(unit.net), *map(id, pictures[unit]), how)

    def condition_key(condition: Condition) -> Hashable:
        acts = tuple(job.schedule.in_window(sigma, condition.start, condition.end) for sigma in job.sigmas)
        plain = fingerprint(replace(condition, start=0.0, end=1.0, units=()))
        return (*plain, acts, *(unit_key(unit) for unit in condition.units))

    halves = tuple(tuple(map(condition_key, half)) for half in (job.positive, job.negative))
    owners = [
        job.unet,
        *(unit.net for unit in units),
        *(x for some in pictures.values() for x in some if x is not None),
    ]
    return (id(job.unet), job.config, job.schedule, halves, tuple(job.shape)), owners


def _estimate(
    job: Job,
    backend: Backend,
    clock: EvaluationClock,
    graphs: bool,
    winograd: bool,
    images: int,
    build: Build,
    convert: Callable[[Any], nn.Module],
) -> Footprint:
    batch = job.shape[0]
    size = min(images, batch) or batch
    full, rest = divmod(batch, size)
    copies = differs_by_image(job.conditions)
    total = Footprint(0, 0, 0, 0)
    meta = MetaBackend(backend, winograd)
    meta_job = _meta_job(job, backend, convert)
    for part, count in ((size, full), (rest, 1)):
        if not part:
            continue
        one = _measure(slice_job(meta_job, range(part)), meta, clock, graphs, build)
        made = count if copies else 1
        # Parts are prepared one after the other, each on top of those before it.
        preparing = max(total.preparing, total.prepared + (made - 1) * one.prepared + one.preparing)
        prepared = total.prepared + made * one.prepared
        # Programs serve all parts of one size; what the clock's forecasts keep belongs to a single part.
        carried = total.carried + one.carried * (1 if graphs else count)
        total = Footprint(0, prepared, preparing, max(total.step, one.step), carried)
    weights = weight_bytes(backend.models(job), backend.runtime.dtype) + meta.further_bytes()
    return replace(total, weights=weights + _completed_bytes(job, backend))


def _measure(job: Job, backend: MetaBackend, clock: EvaluationClock, graphs: bool, build: Build) -> Footprint:
    """The footprint of one part of a batch, without weights."""
    runtime = replace(backend.runtime, graphs=graphs)
    settings = SampleSettings(cfg=7.0)
    memory, x = TensorMemory(SHAPE_RULES), torch.empty(job.shape, device=META)
    streams: Any = CountedStreams(memory) if backend.real.runtime.device.type == "cuda" else backend.streams
    owners = job.unet, *dict.fromkeys(unit.net for unit in job.units)
    context = RunContext(runtime, clock, streams, backend.programs, owners, checks_each_step=False)
    with torch.inference_mode():
        with TensorMemory(SHAPE_RULES):  # weights are counted elsewhere
            backend.place(job)
        with memory:
            denoise = build(job, backend, settings, job.shape[0], context)
            prepared, preparing, highest = memory.live, memory.peak, memory.live
            for sigma in _sigmas(job, clock, graphs):
                for _ in range(max(clock.steady_after, 1)):
                    memory.peak = memory.live
                    denoise(x, torch.tensor(sigma))
                highest = max(highest, memory.peak)
            kept = memory.live
    step = highest - kept + backend.buffer_bytes()
    return Footprint(0, prepared, preparing, step, kept - prepared)


def _sigmas(job: Job, clock: EvaluationClock, graphs: bool) -> Iterator[float]:
    """Noise levels at which different conditions, units or halves act.

    A level is left out where another one differs only in having more units. With graphs none is: each has buffers.
    """
    levels: dict[tuple[Any, tuple[bool, ...]], float] = {}
    for sigma in (s for s in job.sigmas if s > 0.0):
        conditions = tuple(job.schedule.in_window(sigma, c.start, c.end) for c in job.conditions)
        units = tuple(u.factor_at(sigma, job.schedule) != 0.0 for u in job.units)
        levels.setdefault(((clock.guides(sigma), conditions), units), sigma)
    for (rows, units), sigma in levels.items():
        # Other conditions or another half change the number of rows, and with it the form of packed weights.
        more = (u for r, u in levels if r == rows and u != units and all(map(operator.le, units, u)))
        if graphs or not any(more):
            yield sigma


def _meta_job(job: Job, backend: Backend, convert: Callable[[Any], nn.Module]) -> Job:
    """The job with meta tensors in the place of all tensors."""

    def meta(x: Tensor | None) -> Any:
        return None if x is None else torch.empty(x.shape, dtype=x.dtype, device=META)

    nets = {net: convert(net) for net in dict.fromkeys(backend.resolve(u.net, job.unet) for u in job.units)}
    units = {
        unit: replace(
            unit,
            net=nets[backend.resolve(unit.net, job.unet)],
            hint=meta(unit.hint),
            more_hints=tuple(replace(hint, picture=meta(hint.picture)) for hint in unit.more_hints),
            mask=meta(unit.mask),
            keyframes=tuple(replace(frame, mask=meta(frame.mask)) for frame in unit.keyframes),
        )
        for unit in job.units
    }

    def condition(c: Condition) -> Condition:
        tensors = {name: meta(getattr(c, name)) for name in ("text", "label", "mask", "concat")}
        return replace(c, units=tuple(units[unit] for unit in c.units), **tensors)

    return job.with_conditions(condition, unet=meta_copy(job.unet))


def _completed_bytes(job: Job, backend: Backend) -> int:
    """Bytes of nets that were completed with weights of their base and are kept in a packed copy as well.

    Other nets are mapped from their file, and the system takes those pages back.
    """
    if not backend.packs:
        return 0
    nets = [unit.net for unit in job.units]
    made = {own for own in (backend.resolve(net, job.unet) for net in nets) if own not in nets}
    return weight_bytes(made, torch.float32)


def control_bytes(net: ControlModel, size: tuple[int, int], rows: int, images: int, hints: int) -> int:
    """Bytes in float32 that a net holds besides its weights, all residuals included, for a host that adds them itself.

    size: (h, w) of the latent. rows: of x. images: how many different ones. hints: images that the unit reads.
    A net that is not a ControlNet is taken for one of SD1.5.
    """
    config = net.config if isinstance(net, ControlNet) else ControlNetConfig()
    base = config.unet
    with on_meta():
        twin = ControlNet(replace(config, union=None))
    with torch.inference_mode(), TensorMemory(SHAPE_RULES) as memory:
        hint = torch.empty(images, config.hint_channels, 8 * size[0], 8 * size[1], device=META)
        text = torch.empty(rows, TOKENS, base.context_dim, device=META)
        label = None if base.label_dim is None else torch.empty(rows, base.label_dim, device=META)
        context = BindContext(
            (hint,), ("",), text, label, _Timesteps(), tuple(range(1, STEPS + 1)),
            tuple(r % images for r in range(rows)), rows, size, config.global_pool, base, per_row=True,
        )  # fmt: skip
        bound = twin.bind(context)
        inputs = bound.inputs_at(1.0)
        x = torch.empty(rows, base.in_channels, *size, device=META)
        kept = [p(f) for f, p in zip(twin.features(x, inputs), twin.projections(inputs), strict=True)]
    del kept
    return memory.peak + (hints - 1) * images * (config.hint_channels * 64 + base.widths[0]) * 4 * size[0] * size[1]


class _Timesteps:
    def timestep(self, sigma: Tensor) -> Tensor:
        """Any number will do: only shapes are counted."""
        return sigma


def decode_bytes(vae: AutoencoderKL, dtype: torch.dtype, rows: int, size: tuple[int, int]) -> int:
    """Most bytes that an autoencoder holds beside its weights while it decodes latents (rows, 4, h, w) of this size."""
    latent = torch.empty(rows, vae.config.latent_channels, *size, dtype=dtype, device=META)
    twin = cast(AutoencoderKL, meta_copy(vae))
    with torch.inference_mode(), TensorMemory(SHAPE_RULES) as memory:
        twin.decode(latent)
    return memory.peak
