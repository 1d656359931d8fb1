"""A graphics card that is only pretended: real arithmetic on the processor, and the rules of a card kept beside it.

Everything that torch is asked for goes through `Card`. It computes on the processor, and remembers of each tensor
whether it would lie on the card. So a picture comes out, and beside it is known

    mismatches     raised at once: an operation on tensors of both sides, as torch raises it
    waits          what makes the host wait for the card, each with its place in the code
    sent           copies from the host to the card
    races          memory that one stream uses while another may still write it, or that is given away too early
    reserved       what the allocator would hold: freed memory is used again on the stream that it was taken on
    captures       of CUDA graphs: operations are recorded with the tensors they met, and a replay repeats these and
                   nothing else, so that a number that was read when it was captured stays what it was

What only a card can tell is not told: speed, rounding, what its kernels and its driver do.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

BUILT_FOR_CUDA = (
    "torch is built for CUDA, whose own parts would ask the driver: the pretended card needs a build for the CPU"
)
POOL = 32
"""Streams that torch has of a device; it deals them out in turn."""
CAPACITY = 80 * 2**30
HOST_LOOKS = frozenset(
    (
        *("item", "tolist", "numpy", "nonzero", "argwhere", "is_nonzero", "equal", "allclose", "unique"),
        *("masked_select", "__array__", "__bool__", "__contains__", "__float__", "__format__", "__index__", "__int__"),
    )
)
"""Functions whose result the host needs, or whose result's shape depends on numbers."""
NO_SCALARS = frozenset(
    ("cat", "stack", "linear", "conv2d", "group_norm", "layer_norm", "matmul", "bmm", "scaled_dot_product_attention")
)
"""Functions that take no number from the host in place of a tensor."""
FROM_NUMBERS = frozenset(("tensor", "as_tensor", "asarray", "new_tensor"))
NO_KERNEL = frozenset(("requires_grad_", "detach_", "untyped_storage"))
NO_WORK = frozenset(("_parse_to", "_has_compatible_shallow_copy_type"))
"""Functions that only ask about tensors or words."""
Clock = dict["Stream", int]


def join(clock: Clock, other: Clock) -> None:
    """What `other` has seen, `clock` has seen as well."""
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)


class Stream:
    """Work in its order. clock: the last piece of each stream's work that is surely done before its next one."""

    def __init__(self, card: Card, name: str) -> None:
        self.card, self.name, self.device = card, name, card.device
        self.clock: Clock = {}
        self.live = self.most = 0

    def __repr__(self) -> str:
        return self.name

    def wait_stream(self, other: Stream) -> None:
        """All that `other` was given so far comes first."""
        self.card.forked(other, self)
        join(self.clock, other.clock)

    def record_event(self, event: Event | None = None) -> Event:
        """An event behind all that was given so far."""
        event = event or Event(self.card)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """What comes before the event comes first."""
        if event.stream is not None:
            self.card.forked(event.stream, self)
        join(self.clock, event.clock)

    def synchronize(self) -> None:
        """The host waits for all of it."""
        self.card.wait("Stream.synchronize", self)


class Event:
    """A place in the work of a stream."""

    def __init__(self, card: Card, **_: Any) -> None:
        self.card, self.stream = card, None
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        """Behind all that the stream was given so far."""
        self.stream = stream or self.card.current
        self.clock = dict(self.stream.clock)

    def wait(self, stream: Stream | None = None) -> None:
        """As `Stream.wait_event`."""
        (stream or self.card.current).wait_event(self)

    def synchronize(self) -> None:
        """The host waits for it."""
        self.card.wait("Event.synchronize", self.stream)

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds; the card has no clock."""
        return 1.0


@dataclass(eq=False)
class Room:
    """Memory on the card. home: where it was taken; written, read: by whom last; lent: streams that hold it too.
    private: whether it is a graph's."""

    home: Stream
    size: int
    written: tuple[Stream, int]
    read: Clock = field(default_factory=dict)
    lent: set[Stream] = field(default_factory=set)
    private: bool = False


@dataclass(eq=False)
class Operation:
    """A recorded call, and what came of it."""

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    made: list[Tensor]
    reads: list[Room]
    writes: list[Room]


class Graph:
    """A CUDA graph: what was recorded between its begin and end."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.operations: list[Operation] = []

    def pool(self) -> Any:
        """The name of its memory."""
        return self.handle

    def replay(self) -> None:
        """All operations once more, on the same memory."""
        for done in self.operations:
            self.card.launch(done.reads, done.writes)
            for old, new in zip(done.made, tensors(done.func(*done.args, **done.kwargs)), strict=True):
                if storage_of(old) is not storage_of(new):
                    old.copy_(new)


def storage_of(tensor: Tensor) -> Any:
    """The object that stands for the memory of a tensor and of its views."""
    return tensor.untyped_storage()


class Card(TorchFunctionMode):
    """The card. Used as a context, after `install`."""

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent: list[str] = []
        self.races: list[str] = []
        self.launched: Counter[str] = Counter()
        self.host: Clock = {}
        self.live = self.peak = 0
        self.default = self.current = Stream(self, "default stream")
        self.pool = [Stream(self, f"stream {number}") for number in range(POOL)]
        self.dealt = count()
        self.recording: Graph | None = None
        self.members: set[Stream] = set()
        self.captures = 0
        self.pinned: weakref.WeakSet[Any] = weakref.WeakSet()

    # ---- what torch.cuda is asked

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Card:
        """Put the card in the place of torch's for the time of a test, which is skipped if torch has its own."""
        if torch.backends.cuda.is_built():
            pytest.skip(BUILT_FOR_CUDA)

        def kind(name: str, make: Callable[..., Any]) -> type:
            return type(name, (), {"__new__": lambda _, *args, **more: make(*args, **more)})  # a class, as torch's are

        made = torch.Generator
        facts = SimpleNamespace(name="pretended", total_memory=CAPACITY, major=9, minor=0, multi_processor_count=132)
        stands_for: dict[str, Any] = {
            "Stream": kind("Stream", lambda *_, **__: self.pool[next(self.dealt) % POOL]),
            "Event": kind("Event", lambda **more: Event(self, **more)),
            "current_stream": lambda device=None: self.current,
            "default_stream": lambda device=None: self.default,
            "stream": self.on,
            "device": self.on_device,
            "CUDAGraph": kind("CUDAGraph", lambda *_, **__: Graph(self)),
            "graph": self.capture,
            "synchronize": lambda device=None: self.wait("cuda.synchronize", *self.pool, self.default),
            "is_available": lambda: True,
            "is_bf16_supported": lambda *_: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "empty_cache": lambda: None,
            "mem_get_info": lambda device=None: (CAPACITY - self.reserved, CAPACITY),
            "memory_reserved": lambda device=None: self.reserved,
            "memory_allocated": lambda device=None: self.live,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": self.reset_peak,
            "get_device_name": lambda device=None: facts.name,
            "get_device_properties": lambda device=None: facts,
            "get_device_capability": lambda device=None: (9, 0),
        }
        for name, stand_in in stands_for.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch, "Generator", kind("Generator", lambda device="cpu": made()))
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: self.lend(tensor, stream))
        return self

    def reset_peak(self, device: Any = None) -> None:
        """The peak counts from now on."""
        self.peak = self.live

    @property
    def reserved(self) -> int:
        """Bytes that the allocator holds: of each stream the most that were alive at once."""
        return sum(stream.most for stream in (self.default, *self.pool))

    @contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        """Work goes to this stream."""
        before, self.current = self.current, stream or self.current
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def on_device(self, device: Any) -> Iterator[None]:
        """There is one."""
        yield

    @contextmanager
    def capture(self, graph: Graph, pool: Any = None, stream: Stream | None = None, **_: Any) -> Iterator[None]:
        """Record; what was made is there only when it is replayed."""
        assert self.recording is None, "one capture at a time"
        self.wait("capture begins", *self.pool, self.default)
        own = stream or self.pool[-1]
        graph.handle = pool if pool is not None else object()
        self.recording, self.members = graph, {own}
        try:
            with self.on(own):
                yield
            late = [other for other in self.members if own.clock.get(other, 0) < other.clock.get(other, 0)]
            if late:
                raise RuntimeError(f"capture ends while {late} have not been joined")
        finally:
            self.recording = None
        self.captures += 1
        for stream in self.members:
            join(self.host, stream.clock)  # nothing has run, so there is nothing to wait for
        for made in (t for done in graph.operations for t in done.made):
            room = self.room(made)
            if room is not None and room.private and made.is_floating_point():
                made.fill_(float("nan"))

    def lend(self, tensor: Tensor, stream: Stream) -> None:
        """Freed memory of the tensor is given away only when this stream has done what it was given."""
        room = self.room(tensor)
        assert room is not None, "record_stream of a tensor on the host"
        room.lent.add(stream)

    def forked(self, first: Stream, then: Stream) -> None:
        """A stream that waits for a captured one is captured as well."""
        if first in self.members and self.recording is not None:
            self.members.add(then)

    # ---- what happens

    def wait(self, what: str, *streams: Stream | None) -> None:
        """The host waits for the card."""
        if self.recording is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} at {caller()}")
        self.waits.append(f"{what} at {caller()}")
        for stream in streams or (self.current,):
            if stream is not None:
                join(self.host, stream.clock)

    def launch(self, reads: list[Room], writes: list[Room]) -> None:
        """A kernel on the current stream."""
        stream = self.current
        if self.recording is not None and stream not in self.members:
            raise RuntimeError(f"{stream} works beside a capture at {caller()}")
        join(stream.clock, self.host)
        now = stream.clock[stream] = stream.clock.get(stream, 0) + 1
        for room in reads:
            self._ordered(stream, *room.written, "reads what is still written")
            room.read[stream] = now
        for room in writes:
            self._ordered(stream, *room.written, "writes what is still written")
            for reader, number in room.read.items():
                self._ordered(stream, reader, number, "writes what is still read")
            room.written, room.read = (stream, now), {}

    def _ordered(self, stream: Stream, other: Stream, number: int, what: str) -> None:
        if stream.clock.get(other, 0) < number:
            self.races.append(f"{stream} {what} by {other}, at {caller()}")

    def room(self, tensor: Tensor) -> Room | None:
        """Where a tensor is on the card; None for one on the host."""
        return getattr(storage_of(tensor), "room", None)

    def take(self, tensor: Tensor) -> Room:
        """Memory on the card for a new tensor."""
        storage, stream = storage_of(tensor), self.current
        room = Room(stream, storage.nbytes(), (stream, stream.clock.get(stream, 0)))
        room.private = self.recording is not None
        storage.room = room
        self.live += room.size
        stream.live += room.size
        self.peak, stream.most = max(self.peak, self.live), max(stream.most, stream.live)
        weakref.finalize(storage, self._freed, room)
        return room

    def _freed(self, room: Room) -> None:
        """The next that is taken on its home may get it: nobody else may be at it still."""
        self.live -= room.size
        room.home.live -= room.size
        for stream, number in () if room.private else (room.written, *room.read.items()):
            known = max(clock.get(stream, 0) for clock in (room.home.clock, self.host))
            if stream is not room.home and stream not in room.lent and known < number:
                self.races.append(f"memory of {room.home} is given away while {stream} uses it, at {caller()}")

    # ---- what torch is asked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.__name__
        if name in ("__get__", "__set__"):
            return self._attribute(func, *args)
        known = tensors(args, kwargs)
        asked = kwargs.get("device") or next((a for a in args if isinstance(a, torch.device) and is_meta(a)), None)
        if name in NO_WORK or is_meta(asked) or (asked is None and any(map(is_meta, known))):
            return func(*args, **kwargs)
        handler = getattr(self, f"_call_{name}", None)
        if handler is not None and known:
            return handler(func, args, kwargs)
        if name in HOST_LOOKS:
            return self._look(name, func, args, kwargs, known)
        return self._compute(name, func, args, kwargs, known)

    def _attribute(self, func: Any, *args: Any) -> Any:
        name, tensor = func.__self__.__name__, args[0]
        if name in ("device", "is_cuda") and self.room(tensor) is not None:
            return self.device if name == "device" else True
        found = func(*args)
        if name == "grad" and found is not None and self.room(tensor) is not None and self.room(found) is None:
            self.take(found)  # made by torch's own engine, which nobody is told of
        return found

    def _look(self, name: str, func: Any, args: Any, kwargs: Any, known: list[Tensor]) -> Any:
        there = [t for t in known if self.room(t) is not None]
        if there and name in ("numpy", "__array__"):
            raise TypeError(f"can't convert a tensor on the card to numpy, at {caller()}")
        if there:
            self.wait(name)
        result = func(*args, **kwargs)
        for made in tensors(result) if there else ():
            self.take(made)
        return result

    def _compute(self, name: str, func: Any, args: Any, kwargs: Any, known: list[Tensor]) -> Any:
        """Whatever has no rules of its own: on the card if one of its tensors is, or if that is asked for."""
        rooms = [room for room in map(self.room, known) if room is not None]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = "cpu"
        on_card = torch.device(asked).type == "cuda" if asked is not None else bool(rooms)
        if rooms:
            self._check_sides(name, known)
        if on_card and name in FROM_NUMBERS:
            self._send(name, pinned=False)
        before = {id(storage_of(t)) for t in known}
        result = func(*args, **kwargs)
        made = tensors(result)
        if on_card and made and name not in NO_KERNEL:
            changes = changes_its_input(name, kwargs)
            fresh = [t for t in made if id(storage_of(t)) not in before]
            writes = [self.take(t) for t in unique(fresh)]
            if changes:
                writes += [room for room in map(self.room, unique(made)) if room is not None and room not in writes]
            if writes:
                self.launched[name] += 1
                self._record(func, args, kwargs, made, [r for r in rooms if r not in writes], writes)
        return result

    def _record(
        self, func: Any, args: Any, kwargs: Any, made: list[Tensor], reads: list[Room], writes: list[Room]
    ) -> None:
        self.launch(reads, writes)
        if self.recording is not None:
            self.recording.operations.append(Operation(func, args, kwargs, made, reads, writes))

    def _check_sides(self, name: str, known: list[Tensor]) -> None:
        strangers = [t for t in known if self.room(t) is None and (t.dim() > 0 or name in NO_SCALARS)]
        if strangers:
            shapes = [tuple(t.shape) for t in strangers]
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {name} meets host tensors {shapes}, at {caller()}"
            )

    # ---- what is moved

    def _send(self, what: str, pinned: bool, non_blocking: bool = False) -> None:
        self.sent.append(f"{what} at {caller()}")
        if not (pinned and non_blocking):
            self.wait(f"{what} from the host")
        elif self.recording is not None:
            raise RuntimeError(f"a copy from the host while a stream is capturing, at {caller()}")

    def _call_to(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        tensor, *asked = args
        other = next((a for a in asked if isinstance(a, Tensor)), kwargs.pop("other", None))
        words = [a for a in asked if not isinstance(a, Tensor)]
        device = kwargs.pop("device", None) or next((w for w in words if isinstance(w, str | torch.device)), None)
        if other is not None:
            device, words = self.device if self.room(other) else "cpu", [other.dtype, *words]
        flags = [w for w in words if isinstance(w, bool)]
        non_blocking = kwargs.pop("non_blocking", False) or bool(flags and flags[0])
        dtype = kwargs.pop("dtype", None) or next((w for w in words if isinstance(w, torch.dtype)), None)
        there = self.room(tensor) is not None
        wanted = there if device is None else torch.device(device).type == "cuda"
        if there and not wanted:
            kwargs.pop("non_blocking", None)
            if not non_blocking:
                self.wait("to the host")
        made = tensor.to(dtype or tensor.dtype, **kwargs)
        if there == wanted:
            return self._result(func.__name__, tensor, made, dtype, kwargs)
        return self._moved(tensor, made, wanted, non_blocking)

    def _result(self, name: str, tensor: Tensor, made: Tensor, dtype: Any, kwargs: Any) -> Tensor:
        room = self.room(tensor)
        if room is not None and storage_of(made) is not storage_of(tensor):
            self.launched[name] += 1
            self._record(Tensor.to, (tensor, dtype or tensor.dtype), kwargs, [made], [room], [self.take(made)])
        return made

    def _moved(self, tensor: Tensor, made: Tensor, to_card: bool, non_blocking: bool) -> Tensor:
        if storage_of(made) is storage_of(tensor):
            made = made.clone()
        if to_card:
            self._send("copy", storage_of(tensor) in self.pinned, non_blocking)
            self.launch([], [self.take(made)])
        else:
            room = self.room(tensor)
            assert room is not None
            self.launch([room], [])
        return made

    def _call_cpu(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return self._call_to(Tensor.to, (args[0], "cpu"), kwargs)

    def _call_cuda(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return self._call_to(Tensor.to, (args[0], self.device), kwargs)

    def _call_copy_(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        target, source = args[:2]
        inward, outward = self.room(target), self.room(source)
        non_blocking = kwargs.get("non_blocking", False) or any(a is True for a in args[2:])
        if (inward is None) == (outward is None):
            return self._compute("copy_", func, args, kwargs, [target, source])
        if inward is not None:
            self._send("copy_", storage_of(source) in self.pinned, non_blocking)
            self.launch([], [inward])
        else:
            self.launch([outward], [])
            if not non_blocking:
                self.wait("copy_ to the host")
        return func(*args, **kwargs)

    def _call_pin_memory(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        assert self.room(args[0]) is None, "only memory of the host can be pinned"
        made = torch.empty_strided(args[0].size(), args[0].stride(), dtype=args[0].dtype).copy_(args[0])
        self.pinned.add(storage_of(made))
        return made

    def _call_is_pinned(self, func: Any, args: Any, kwargs: Any) -> bool:
        return storage_of(args[0]) in self.pinned

    def _call___getitem__(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._indexed(args[0], args[1])
        return self._compute("__getitem__", func, args, kwargs, [args[0]])

    def _call___setitem__(self, func: Any, args: Any, kwargs: Any) -> None:
        self._indexed(args[0], args[1])
        room, value = self.room(args[0]), args[2]
        if room is not None and isinstance(value, Tensor) and value.dim() and self.room(value) is None:
            self._send("__setitem__", pinned=False)
        func(*args, **kwargs)
        if room is not None:
            reads = [self.room(value)] if isinstance(value, Tensor) else []
            self._record(func, args, kwargs, [], [r for r in reads if r is not None], [room])

    def _indexed(self, tensor: Tensor, key: Any) -> None:
        """Numbers of the host as an index are copied first; a mask has to be counted."""
        if self.room(tensor) is None:
            return
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, list) or (isinstance(part, Tensor) and self.room(part) is None and part.dim()):
                self._send("an index", pinned=False)
            elif isinstance(part, Tensor) and part.dtype == torch.bool:
                self.wait("a mask as an index")


def tensors(*trees: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    found: list[Tensor] = []
    for tree in trees:
        if isinstance(tree, Tensor):
            found.append(tree)
        elif isinstance(tree, tuple | list):
            found += tensors(*tree)
        elif isinstance(tree, dict):
            found += tensors(*tree.values())
    return found


def is_meta(what: Any) -> bool:
    """Whether a tensor has no numbers, or a device makes such."""
    return what.is_meta if isinstance(what, Tensor) else what is not None and torch.device(what).type == "meta"


def unique(made: list[Tensor]) -> list[Tensor]:
    """One tensor for each piece of memory."""
    return list({id(storage_of(t)): t for t in made}.values())


def changes_its_input(name: str, kwargs: Any) -> bool:
    """Whether a function writes into what it was given."""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name.startswith("__i") or bool(kwargs.get("inplace")) or kwargs.get("out") is not None


def caller() -> str:
    """The place in the package that is at work."""
    frame = sys._getframe(1)
    found: list[str] = []
    while frame is not None and len(found) < 3:
        path = frame.f_code.co_filename
        ours = "torch" not in path.split("/") and not path.endswith("pretended_card.py") and "site-packages" not in path
        if ours and "contextlib" not in path:
            found.append(f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)
