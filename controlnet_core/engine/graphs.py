"""A whole evaluation from buffers that stay where they are, so that a GPU can replay it as one CUDA graph.

Everything that changes from one evaluation to the next is a tensor here: the latent, sigma, the scale of the
guidance, the timestep's projections, and the factor of every residual (strength x window x curve x mode x block).
What is constant in a run (keys and values of the text, hints, masks) is copied in when a run begins. So another
step, seed, prompt, hint or strength replays what was captured; other sizes, other nets, or another set of nets in
their windows capture anew, each once.

On a device without graphs the evaluation is called on the same buffers instead: what is replayed is tested there.
Factors are in the model's dtype, so that in fp16 and bf16 a strength such as 0.7 is rounded like the residual is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from ..control.plan import words
from ..errors import CoreError
from ..models.control import Outlet
from ..models.transfer import sent
from ..models.unet import Projected, Stack
from .backend import Backend
from .blend import Blend
from .evaluate import blended, guided
from .prepare import Group, Moment, Prepared
from .run import Run
from .unit import Actor, PreparedUnit

Call = Callable[[], tuple[Tensor, Tensor]]
"""An evaluation on its buffers: the prediction, and whether the networks' outputs were finite."""


class Captured(NamedTuple):
    """An evaluation that can be repeated. pool: where its temporaries are, and the stream that they were taken on, for
    others to use as well."""

    replay: Call
    pool: Any = None
    stream: Any = None


Capture = Callable[[Call, torch.device, "Captured | None"], Captured]
"""Makes an evaluation on a device repeatable; with an earlier one, whose memory it uses too, None for the first."""
Hold = Callable[[Tensor], Tensor]
"""What takes the place of a tensor."""
WARM_UPS = 2


class CaptureError(CoreError):
    """An evaluation cannot be captured."""


def as_calls(evaluation: Call, device: torch.device, earlier: Captured | None) -> Captured:
    """No capture: it is called each time."""
    return Captured(evaluation)


def as_cuda_graph(evaluation: Call, device: torch.device, earlier: Captured | None) -> Captured:
    """Captured once and replayed; called a few times before, so that libraries have chosen their algorithms.

    Graphs share their memory: they are replayed one after the other, and what one gives is copied before the next.
    That needs one stream for all of them (`torch.cuda.graph`). Other threads may use the GPU meanwhile.
    Raises CaptureError where it cannot be captured.
    """
    graph, pool = torch.cuda.CUDAGraph(), None if earlier is None else earlier.pool
    aside = torch.cuda.Stream(device) if earlier is None else earlier.stream
    using = torch.cuda.current_stream(device)
    try:
        # The outer context comes back to the stream in use where torch does not: after a capture that failed.
        with torch.cuda.device(device), torch.cuda.stream(using):
            aside.wait_stream(using)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    evaluation()
            using.wait_stream(aside)
            with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                made = evaluation()
    except RuntimeError as error:
        raise CaptureError(f"an evaluation could not be captured ({str(error).splitlines()[0]})") from error

    def replay() -> tuple[Tensor, Tensor]:
        with torch.cuda.device(device):
            graph.replay()
        return made

    return Captured(replay, graph.pool(), aside)


def why_not(run: Run, backend: Backend) -> str:
    """Why a run is not replayed from graphs; empty where it can be."""
    return "weights are streamed" if backend.conveyor is not None else why_never(run, backend.runtime.device)


def why_never(run: Run, device: torch.device) -> str:
    """As `why_not`, wherever weights are."""
    if device.type != "cuda":
        return f"the device is {device.type}, graphs need CUDA"
    if run.check_every_step:
        return "each step is looked at, to find out what is not finite"
    if run.shortcuts.continues_nets or run.shortcuts.encoder_every > 1:
        return "what is left out by choice is decided from step to step"
    if run.recorder is not None and run.recorder.observe:
        return "the report looks into each evaluation"
    return ""


# ------------------------------------------------------------------------------- parts that hold still


class StillProjections:
    """The projections of whatever sigma the buffers hold."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def at(self, sigma: float) -> Stack:
        """The buffers."""
        return self.stack


@dataclass(frozen=True, eq=False)
class StillUnit(PreparedUnit):
    """A unit whose factors are a buffer. heard: whether each block is heard at all."""

    factors: Tensor = field(default_factory=lambda: torch.ones(0))
    heard: tuple[bool, ...] = ()

    def add(self, target: Tensor, feature: Tensor, outlet: Outlet, index: int, sigma: float) -> None:
        """As `PreparedUnit.add`."""
        if self.heard[index]:
            scale = self.factors[index] if self.scales is None else self.scales[index] * self.factors[index]
            target[self.rows].addcmul_(outlet(feature), scale)


@dataclass(frozen=True, eq=False)
class StillGroup(Group):
    """A group of which the same actors always act."""

    still: tuple[Actor, ...] = ()

    def active(self, sigma: float) -> tuple[PreparedUnit, ...]:
        """All units."""
        return self.units

    def actors(self, sigma: float) -> tuple[Actor, ...]:
        """All actors."""
        return self.still


def still_group(group: Group, sigma: float, constant: Hold, varying: Hold) -> StillGroup:
    """The group as it is at this sigma, each tensor that it reads passed through `constant` or `varying`."""

    def stack(of: Stack) -> Stack:
        parts = (p for p in of if p is not None)
        return Stack(*(Projected(_map(p.shifts, varying), _map(p.kv, constant)) for p in parts))

    def actor(of: Actor) -> Actor:
        changes: dict[str, Any] = {}
        for f in fields(of.bound) if is_dataclass(of.bound) else ():
            value = getattr(of.bound, f.name)
            if f.name == "projections":
                changes[f.name] = StillProjections(stack(value.at(sigma)))
            elif isinstance(value, Tensor | tuple):
                changes[f.name] = _map(value, constant)
        bound = replace(of.bound, **changes)  # type: ignore[type-var]
        return Actor(bound, tuple(unit(u, bound) for u in of.units))

    def unit(of: PreparedUnit, bound: Any) -> StillUnit:
        weights = of.weights(sigma)
        like = group.projections.context
        own = {f.name: getattr(of, f.name) for f in fields(of) if f.name not in ("bound", "scales")}
        factors = varying(sent(torch.tensor(weights), like.device, like.dtype))
        heard = tuple(weight != 0.0 for weight in weights)
        return StillUnit(**own, bound=bound, scales=_map(of.scales, constant), factors=factors, heard=heard)

    projections: Any = StillProjections(stack(group.projections.at(sigma)))
    still = tuple(actor(a) for a in group.actors(sigma))
    units = tuple(u for a in still for u in a.units)
    return StillGroup(group.area, group.members, projections, units, _map(group.beside, constant), still=still)


def still_blend(blend: Blend | None, constant: Hold) -> Blend | None:
    """A blend, its weights passed through `constant`."""
    if blend is None:
        return None
    parts = tuple(replace(part, weight=constant(part.weight)) for part in blend.parts)
    return Blend(parts, _map(blend.total, constant))


def still_moment(moment: Moment, sigma: float, constant: Hold, varying: Hold) -> Moment:
    """All that is computed at this sigma, its tensors passed through `constant` or `varying`."""
    groups = tuple(still_group(group, sigma, constant, varying) for group in moment.groups)
    positive, negative = (still_blend(blend, constant) for blend in (moment.positive, moment.negative))
    assert positive is not None
    return Moment(groups, positive, negative)


def _map(tree: Any, hold: Hold) -> Any:
    """Tuples of tensors, nested, with each tensor in its place exchanged; anything else stays."""
    if isinstance(tree, Tensor):
        return hold(tree)
    return tuple(_map(branch, hold) for branch in tree) if isinstance(tree, tuple) else tree


# ------------------------------------------------------------------------------------------- programs


class Program:
    """One evaluation on buffers of its own, for every run of this shape."""

    def __init__(self, prepared: Prepared, met: Met, x: Tensor, rescale: float, capture: Capture) -> None:
        self.changing = torch.empty_like(met.changing())
        views = iter(self.changing.split([t.numel() for t in met.varying]))
        self.constants: list[Tensor] = []
        self.x = torch.empty_like(x, memory_format=torch.contiguous_format)
        self.numbers = torch.zeros(2, device=x.device)
        self.still = still_moment(met.moment, met.sigma, self._keep, lambda t: next(views).view(t.shape))
        self.prepared = replace(prepared, conditions=(), known_moments={}, moments={})
        self.rescale, self.capture = rescale, capture
        self.bound: tuple[ref[Any], ...] = ()
        self.captured: Captured | None = None

    def _keep(self, tensor: Tensor) -> Tensor:
        self.constants.append(tensor.clone())
        return self.constants[-1]

    def bind(self, met: Met) -> None:
        """Copy in what is constant in a run, unless it is there already."""
        holders = (met.moment, *met.actors)
        if len(self.bound) == len(holders) and all(r() is h for r, h in zip(self.bound, holders, strict=True)):
            return
        for buffer, tensor in zip(self.constants, met.constants, strict=True):
            buffer.copy_(tensor)
        self.bound = tuple(ref(holder) for holder in holders)

    def __call__(self, x: Tensor, cfg: float, ready: Ready, earlier: Captured | None) -> tuple[Tensor, Tensor]:
        """-> the prediction, and whether all was finite. Nothing here makes the host wait for the GPU."""
        self.bind(ready.met)
        self.x.copy_(x)
        self.changing.copy_(ready.changing)
        for number, value in zip(self.numbers, (ready.met.sigma, cfg), strict=True):
            number.fill_(value)
        if self.captured is None:
            self.captured = self.capture(self._evaluate, self.x.device, earlier)
        prediction, finite = self.captured.replay()
        return prediction.clone(), finite.clone()

    def _evaluate(self) -> tuple[Tensor, Tensor]:
        run = Run(check_every_step=False, rescale=self.rescale, side_by_side=self.prepared.backend.beside)
        sigma, cfg = self.numbers
        prediction = blended(self.prepared, self.still, self.x, sigma, cfg, run, level=0.0)
        assert run.finite is not None
        return prediction, run.finite


class Met:
    """What an evaluation at one sigma reads besides x, in the order in which `still_moment` meets it."""

    def __init__(self, prepared: Prepared, sigma: float) -> None:
        self.sigma, self.moment = sigma, prepared.at(sigma)
        self.constants: list[Tensor] = []
        self.varying: list[Tensor] = []
        still_moment(self.moment, sigma, _noting(self.constants), _noting(self.varying))

    @property
    def actors(self) -> list[Actor]:
        """The nets that run."""
        return [actor for group in self.moment.groups for actor in group.actors(self.sigma)]

    def changing(self) -> Tensor:
        """All that changes with sigma, one behind the other."""
        return torch.cat([t.reshape(-1) for t in self.varying])


def _noting(met: list[Tensor]) -> Hold:
    def hold(tensor: Tensor) -> Tensor:
        met.append(tensor)
        return tensor

    return hold


@dataclass(frozen=True, eq=False)
class Ready:
    """An evaluation at a sigma, ready to be replayed."""

    program: Program
    met: Met
    changing: Tensor


@dataclass(eq=False)
class Graphs:
    """The evaluations of one run, from programs that the backend keeps for later ones.

    owners: the models that programs are made for, and go with. Where one cannot be captured, the run goes on without,
    and its report says why.
    """

    backend: Backend
    owners: tuple[object, ...]
    capture: Capture = as_cuda_graph
    ready: dict[Hashable, Ready] = field(default_factory=dict)
    gave_up: bool = False

    def evaluate(self, prepared: Prepared, x: Tensor, sigma: Tensor, cfg: float, run: Run) -> Tensor:
        """As `evaluate.guided`; whether all was finite is remembered in the run."""
        made = None if self.gave_up else self._replayed(prepared, x, sigma, cfg, run)
        if made is None:  # outside of the handler of the error, which holds on to what was computed before it
            return guided(prepared, x, sigma, cfg, run)
        ready, prediction, finite = made
        run.finite = finite if run.finite is None else run.finite & finite
        if run.recorder is not None:
            for unit in (unit for actor in ready.met.actors for unit in actor.units):
                run.recorder.unit(unit.key, unit.name, words(unit.key))
                run.recorder.net_ran(unit.key)
        return prediction

    def _replayed(
        self, prepared: Prepared, x: Tensor, sigma: Tensor, cfg: float, run: Run
    ) -> tuple[Ready, Tensor, Tensor] | None:
        """What was replayed, the prediction, and whether all was finite; None where it cannot be captured."""
        ready = self._ready(prepared, x, float(sigma), run.rescale)
        try:
            return ready, *ready.program(x, cfg, ready, self._earlier())
        except CaptureError as error:
            self._give_up(run, error)
        return None

    def _give_up(self, run: Run, error: CaptureError) -> None:
        """Let go of all programs: what was missing may have been the memory that they hold."""
        self.gave_up = True
        self.ready.clear()
        self.backend.programs.made.clear()
        if run.recorder is not None:
            run.recorder.notes.append(f"no graphs: {error}")

    def _earlier(self) -> Captured | None:
        """What was captured before, if anything."""
        captured = (program.captured for program in self.backend.programs)
        return next((c for c in captured if c is not None and c.pool is not None), None)

    def _ready(self, prepared: Prepared, x: Tensor, sigma: float, rescale: float) -> Ready:
        """With it, all sigmas that are known before the run: factors are sent to the device before the first step."""
        if (id(prepared), sigma) not in self.ready:
            missing = (s for s in dict.fromkeys((*prepared.announced, sigma)) if (id(prepared), s) not in self.ready)
            for known in missing:
                self.ready[id(prepared), known] = self._make_ready(prepared, x, known, rescale)
        return self.ready[id(prepared), sigma]

    def _make_ready(self, prepared: Prepared, x: Tensor, sigma: float, rescale: float) -> Ready:
        met = Met(prepared, sigma)
        key = (signature(prepared, met, x), rescale)
        program = self.backend.programs.once(
            key, self.owners, lambda: Program(prepared, met, x, rescale, self.capture)
        )
        return Ready(program, met, met.changing())


def signature(prepared: Prepared, met: Met, x: Tensor) -> Hashable:
    """Equal for evaluations that one program serves: the same modules, shapes and structure."""
    groups = []
    for group in met.moment.groups:
        actors = tuple(
            (type(a.bound), a.bound.entry, getattr(a.bound, "pool", None), tuple(_place(u, met.sigma) for u in a.units))
            for a in group.actors(met.sigma)
        )
        groups.append((group.area, tuple(index for index, _ in group.members), actors))
    blends = tuple(
        None if blend is None else (tuple((part.index, part.area) for part in blend.parts), blend.total is None)
        for blend in (met.moment.positive, met.moment.negative)
    )
    shapes = tuple((tuple(t.shape), t.dtype) for t in (x, *met.varying, *met.constants))
    return id(prepared.unet), prepared.config, prepared.schedule, tuple(groups), blends, shapes


def _place(unit: PreparedUnit, sigma: float) -> Hashable:
    """Which net, for which rows, and which of its blocks are heard."""
    return id(unit.net), unit.rows.start, unit.rows.stop, tuple(weight != 0.0 for weight in unit.weights(sigma))
