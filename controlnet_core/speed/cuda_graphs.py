"""Replay a whole evaluation as one CUDA graph, from buffers that stay where they are.

`StepInputs` are nested tuples of tensors and plain numbers. A program holds a buffer for each of these tensors, copies
in what has changed since the last evaluation, and replays. Another step, seed, prompt, hint or strength replays what
was captured; another size, net, or set of nets in their windows is captured anew, once.

On a device without graphs the evaluation is called on the same buffers instead, so that all but the capture itself is
tested there. Weights are tensors in the model's dtype here: in fp16 and bf16 a strength such as 0.7 is rounded like the
residual. Never measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from ..denoise import Denoiser, guided_prediction
from ..errors import CoreError
from ..models.to_device import to_device_async
from ..prepare import Prepared, StepInputs
from ..recording import INSIDE, record_acting
from .context import RunContext

Call = Callable[[], Tensor]
"""An evaluation on its buffers."""
WARM_UPS = 2


class Captured(NamedTuple):
    """An evaluation that can be repeated. pool, stream: memory and stream of its temporaries, for others too."""

    replay: Call
    pool: Any = None
    stream: Any = None


Capture = Callable[[Call, torch.device, "Captured | None"], Captured]
"""Makes an evaluation repeatable; the last argument is an earlier one whose memory can be shared, or None."""


class CaptureError(CoreError):
    """An evaluation could not be captured."""


def as_calls(evaluation: Call, device: torch.device, earlier: Captured | None) -> Captured:
    """No capture: the evaluation is called each time."""
    return Captured(evaluation)


def as_cuda_graph(evaluation: Call, device: torch.device, earlier: Captured | None) -> Captured:
    """Capture an evaluation. Raises CaptureError if that is not possible.

    It is called a few times first, so that libraries have chosen their algorithms. Graphs share their memory: they are
    replayed one after the other, and the result of one is copied before the next. `torch.cuda.graph` needs one stream
    for all graphs that share memory. Other threads may use the GPU meanwhile.
    """
    graph, pool = torch.cuda.CUDAGraph(), None if earlier is None else earlier.pool
    aside = torch.cuda.Stream(device) if earlier is None else earlier.stream
    using = torch.cuda.current_stream(device)
    try:
        # The outer context restores the stream in use where torch does not: after a capture that failed.
        with torch.cuda.device(device), torch.cuda.stream(using):
            aside.wait_stream(using)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    evaluation()
            using.wait_stream(aside)
            with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                result = evaluation()
    except RuntimeError as error:
        raise CaptureError(f"an evaluation could not be captured ({str(error).splitlines()[0]})") from error

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return result

    return Captured(replay, graph.pool(), aside)


def map_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples with each leaf replaced by `change(leaf)`; named tuples keep their type."""
    if not isinstance(tree, tuple):
        return change(tree)
    branches = [map_leaves(branch, change) for branch in tree]
    return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)


def graph_inputs(inputs: StepInputs, like: Tensor) -> StepInputs:
    """Inputs with weights as tensors, without the objects by which other accelerations know batches and units."""
    batches = []
    for batch in inputs.batches:
        nets = []
        for net in batch.nets:
            units = []
            for unit in net.units:
                numbers = to_device_async(torch.tensor(unit.weights), like.device, like.dtype)
                # A weight of 0 stays a number: the block is left out of the program.
                weights = tuple(n if w != 0.0 else 0.0 for w, n in zip(unit.weights, numbers, strict=True))
                units.append(unit._replace(weights=weights))
            nets.append(net._replace(units=tuple(units), owners=()))
        batches.append(batch._replace(nets=tuple(nets), key=None))
    return inputs._replace(batches=tuple(batches))


def signature(inputs: StepInputs) -> Hashable:
    """Equal for inputs that one program serves: the same modules, shapes and structure."""

    def describe(leaf: Any) -> Hashable:
        if isinstance(leaf, Tensor):
            return tuple(leaf.shape), leaf.dtype
        if isinstance(leaf, nn.Module):
            return id(leaf)
        return (leaf.start, leaf.stop) if isinstance(leaf, slice) else leaf

    return map_leaves(inputs, describe)


class Program:
    """One evaluation on buffers of its own, for every run of this signature."""

    def __init__(self, denoiser: Denoiser, inputs: StepInputs, x: Tensor, capture: Capture) -> None:
        self.denoiser, self.capture = denoiser, capture
        self.x = torch.empty_like(x, memory_format=torch.contiguous_format)
        self.numbers = torch.zeros(2, device=x.device)
        self.buffers: list[Tensor] = []
        self.copied: list[Callable[[], Tensor | None]] = []
        self.inputs = map_leaves(inputs, self._buffer)
        self.captured: Captured | None = None

    def _buffer(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        self.buffers.append(leaf.clone())
        self.copied.append(ref(leaf))
        return self.buffers[-1]

    def __call__(self, x: Tensor, sigma: float, cfg: float, inputs: StepInputs, earlier: Captured | None) -> Tensor:
        """The prediction. Nothing here makes the host wait for the GPU."""
        sources: list[Tensor] = []
        map_leaves(inputs, lambda leaf: sources.append(leaf) if isinstance(leaf, Tensor) else None)
        for index, (buffer, source) in enumerate(zip(self.buffers, sources, strict=True)):
            # By identity: a new tensor may have the address of an old one.
            if self.copied[index]() is not source:
                buffer.copy_(source)
                self.copied[index] = ref(source)
        self.x.copy_(x)
        for number, value in zip(self.numbers, (sigma, cfg), strict=True):
            number.fill_(value)
        if self.captured is None:
            self.captured = self.capture(self._evaluate, self.x.device, earlier)
        return self.captured.replay().clone()

    def _evaluate(self) -> Tensor:
        sigma, cfg = self.numbers
        return guided_prediction(self.denoiser, self.x, sigma, self.inputs, cfg)


class CudaGraphs:
    """Surrounds `Denoiser.step`. If an evaluation cannot be captured, the run continues without graphs and says why."""

    def __init__(self, inner: Any, context: RunContext, capture: Capture = as_cuda_graph) -> None:
        self.inner, self.context, self.capture = inner, context, capture
        self.ready: dict[int, tuple[StepInputs, StepInputs, Hashable]] = {}
        self.gave_up = False

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, inputs: StepInputs, cfg: float | Tensor) -> Tensor:
        """The prediction, replayed."""
        prediction = None if self.gave_up else self._replayed(denoiser, x, sigma, inputs, float(cfg))
        # Outside the error's handler, which would keep alive what the failed attempt computed.
        if prediction is None:
            return self.inner(denoiser, x, sigma, inputs, cfg)
        for net in (net for batch in inputs.batches for net in batch.nets if net.net.entry not in INSIDE):
            record_acting(self.context.options, net, ran=True)
        return prediction

    def _replayed(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, inputs: StepInputs, cfg: float) -> Tensor | None:
        prepared = denoiser.prepared
        graph, signed = self._ready(prepared, inputs)
        key = (
            signed,
            tuple(x.shape),
            x.dtype,
            denoiser.rescale_share,
            id(prepared.unet),
            prepared.config,
            prepared.job.schedule,
        )
        program = self.context.programs.once(key, self.context.owners, lambda: self._program(denoiser, graph, x))
        try:
            return program(x, float(sigma), cfg, graph, self._earlier())
        except CaptureError as error:
            self._give_up(error)
        return None

    def _ready(self, prepared: Prepared, inputs: StepInputs) -> tuple[StepInputs, Hashable]:
        """Inputs with tensor weights and their signature; those of all known sigmas are made before the first step."""
        if id(inputs) not in self.ready:
            like = prepared.unet.conv_out.weight
            for known in (*(prepared.inputs_at(sigma) for sigma in prepared.sigmas), inputs):
                if id(known) not in self.ready:
                    made = graph_inputs(known, like.new_empty(0, dtype=prepared.runtime.dtype))
                    self.ready[id(known)] = (known, made, signature(made))
        _, made, signed = self.ready[id(inputs)]
        return made, signed

    def _program(self, denoiser: Denoiser, inputs: StepInputs, x: Tensor) -> Program:
        # A denoiser of its own without the job's conditions: the program outlives the run.
        prepared = denoiser.prepared
        job = replace(prepared.job, positive=(), negative=())
        empty = replace(prepared, job=job, known_conditions={}, known_inputs={})
        plain = Denoiser(empty, 1.0, denoiser.rescale_share)
        plain.unet.features = denoiser.unet.features  # nets on streams of their own, if they are
        return Program(plain, inputs, x, self.capture)

    def _give_up(self, error: CaptureError) -> None:
        """Drop all programs: what was missing may have been the memory that they hold."""
        self.gave_up = True
        self.ready.clear()
        self.context.programs.clear()
        self.context.options.note(f"no graphs: {error}")

    def _earlier(self) -> Captured | None:
        """An earlier capture whose memory can be shared."""
        captured = (program.captured for program in self.context.programs)
        return next((c for c in captured if c is not None and c.pool is not None), None)


def wrap(denoiser: Denoiser, context: RunContext) -> None:
    """Replay the evaluations of a denoiser."""
    capture = as_cuda_graph if context.runtime.device.type == "cuda" else as_calls
    denoiser.step = CudaGraphs(denoiser.step, context, capture)
