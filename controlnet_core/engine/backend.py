"""A backend runs modules in the form that suits its device, and remembers what it has made.

One backend lives as long as whoever owns it (a headless host, a test, one node in the editor);
nothing is kept in the module, and no module is kept alive. Twins are dropped when their original is; the last
prepared runs when newer ones take their place, or when a model or a unit that they were made for is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..control.unit import ControlUnit
from ..models.control import ControlModel
from ..models.unet import UNet
from .compiled import compile_blocks
from .fuse_gpu import widen
from .narrow import cast_at_use, is_narrow
from .pack import can_pack, pack, packed_bytes
from .rebuild import shell
from .runtime import Runtime
from .scratch import Scratch
from .stream import Conveyor, stream
from .streams import Streams
from .weights import weights_of

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MadeT = TypeVar("MadeT")


@dataclass(frozen=True, eq=False)
class _Kept:
    """What was made for a run, and the watches over those for whom it was made."""

    made: Any
    watches: tuple[ref[Any], ...]


class Memo:
    """What was made last, by key; a few of them."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.made: OrderedDict[Hashable, _Kept] = OrderedDict()

    def __iter__(self) -> Iterator[Any]:
        return (kept.made for kept in self.made.values())

    def once(self, key: Hashable, owners: Iterable[object], make: Callable[[], MadeT]) -> MadeT:
        """What `make` gives, made again only when `key` is not one of the last few.

        owners: what the key means by their identity, held weakly: when one of them goes, so does what was made,
        which therefore must not refer to them.
        """
        if key not in self.made:
            while len(self.made) >= self.kept:  # before there is one more
                self.made.popitem(last=False)
            known = self.made
            watches = tuple(ref(owner, lambda _: known.pop(key, None)) for owner in owners)
            self.made[key] = _Kept(make(), watches)
        self.made.move_to_end(key)
        return self.made[key].made


class Backend:
    """Optimised twins of modules, made once per module; and what was prepared for the last runs."""

    KEPT_RUNS = 2
    """A workflow that samples twice, at two sizes, prepares nothing again when only the seed changes."""
    KEPT_PROGRAMS = 8
    """Captured evaluations (see `engine.graphs`): one for each set of nets that act together, at two sizes."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._twins: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        self._runs = Memo(self.KEPT_RUNS)
        self.programs = Memo(self.KEPT_PROGRAMS)
        self._streams = Streams(runtime.device)
        self._placed: WeakKeyDictionary[UNet, WeakKeyDictionary[ControlUnit, ControlUnit]] = WeakKeyDictionary()
        self._resolved: WeakKeyDictionary[UNet, WeakKeyDictionary[ControlModel, ControlModel]] = WeakKeyDictionary()
        self.scratch: Scratch | None = Scratch() if runtime.winograd else None
        self.conveyor: Conveyor | None = None
        self.resident: int | None = None
        self._left = 0
        if runtime.memory == "streamed":
            self.stream_beyond(0)

    @property
    def packs(self) -> bool:
        """Whether modules are run as packed twins."""
        runtime = self.runtime
        return runtime.pack_weights and self.conveyor is None and can_pack(runtime.device, runtime.dtype)

    @property
    def tiles(self) -> bool:
        """Whether packed twins compute large convolutions by tiles."""
        return self.packs and self.scratch is not None

    def use_tiles(self, wanted: bool) -> None:
        """Whether packed twins do so from now on; what was made otherwise is dropped."""
        if self.packs and wanted != self.tiles:
            self.scratch = Scratch() if wanted else None
            self.release(())

    @property
    def may_stream(self) -> bool:
        """Whether weights are streamed where they do not fit, and only then."""
        return self.runtime.memory == "auto" and self.runtime.device.type == "cuda"

    @property
    def beside(self) -> Streams | None:
        """Where nets run beside the encoder; None where they are to run behind it."""
        return self._streams if self.runtime.side_by_side else None

    def holds(self, module: nn.Module) -> bool:
        """Whether a module's weights are in the form that is run already."""
        like = next(module.parameters(), None)
        there = like is None or (like.device, like.dtype) == (self.runtime.device, self.runtime.dtype)
        return module in self._twins or (there and not self.packs)

    def there(self, module: nn.Module) -> int:
        """Bytes of a module's weights that are on the device already, as they are run."""
        twin = self._twins.get(module)
        if self.conveyor is not None:
            return 0 if twin is None else sum(p.nbytes for p in twin.parameters())
        if self.packs:
            return 0 if twin is None else packed_bytes(twin)
        return weights_of([module], self.runtime.dtype) if self.holds(module) else 0

    def stream_beyond(self, resident: int | None) -> None:
        """From now on so many bytes of weights stay on the device, and the rest comes from the host at each use.

        None: all stay. What was made for another share is dropped.
        """
        if resident == self.resident:
            return
        self.conveyor = None if resident is None else Conveyor(self.runtime.device, self.runtime.dtype)
        self.resident, self._left = resident, resident or 0
        self.release(())

    def release(self, used: Collection[nn.Module]) -> bool:
        """Take all modules but these to the host, and drop what was made of them. -> whether there were any."""
        idle = [module for module in self._twins if module not in used]
        for module in idle:
            module.cpu()
            del self._twins[module]
        if idle:
            for kept in (self._placed, self._runs.made, self.programs.made):
                kept.clear()
        return bool(idle)

    def rest(self) -> None:
        """A run is over: what was under way for its next evaluation does not stay on the device."""
        if self.conveyor is not None:
            self.conveyor.rest()

    def optimise(self, module: ModuleT) -> ModuleT:
        """A twin of the module in the runtime's device and dtype, packed where the backend can; made once.

        A packed twin leaves the module as it is, and so do one whose weights are in float8 and cast at each use and
        one whose weights are streamed (the module is then taken to the host).
        Otherwise the module is moved in place and the twin shares its weights, so that they are not held twice: one
        module belongs to one backend.
        """
        device, dtype = self.runtime.device, self.runtime.dtype
        if self.conveyor is not None:
            return self._streamed(module)
        packs = self.packs
        narrow = not packs and is_narrow(module)
        if not (packs or narrow):
            module.to(device=device, dtype=dtype).eval()
            if device.type == "cuda":  # as `layout` has x: a weight in another layout is laid out anew at every call
                module.to(memory_format=torch.channels_last)
        if module not in self._twins:
            around = widen if self.runtime.wide else shell
            if packs:
                twin = pack(module, dtype, self.scratch)
            else:
                twin = cast_at_use(module, device, dtype) if narrow else around(module)
            compiles = self.runtime.compile and not (packs or narrow)
            self._twins[module] = (compile_blocks(twin) if compiles else twin).eval()
        return self._twins[module]  # type: ignore[return-value]

    def _streamed(self, module: ModuleT) -> ModuleT:
        assert self.conveyor is not None
        if module not in self._twins:
            self._twins[module], self._left = stream(module.cpu(), self.conveyor, self._left)
            self._twins[module].eval()
        return self._twins[module]  # type: ignore[return-value]

    def resolve(self, net: ControlModel, unet: UNet) -> ControlModel:
        """The net that is run on this base, asked for once; itself, unless it takes weights from the base."""
        known = self._resolved.setdefault(unet, WeakKeyDictionary())
        if net in known:
            return known[net]
        resolved = net.resolve(unet)
        if resolved is not net:  # see `optimise`
            known[net] = resolved
        return resolved

    def place(self, unit: ControlUnit, unet: UNet) -> ControlUnit:
        """The unit as it runs on this base, with the twin of its net; made once."""
        known = self._placed.setdefault(unet, WeakKeyDictionary())
        if unit not in known:
            known[unit] = replace(unit, net=self.optimise(self.resolve(unit.net, unet)))
        return known[unit]

    def once(self, key: Hashable, owners: Iterable[object], make: Callable[[], MadeT]) -> MadeT:
        """As `Memo.once`, for what is prepared for a run."""
        return self._runs.once(key, owners, make)

    def layout(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in the memory layout in which convolutions are fastest."""
        return x.contiguous(memory_format=torch.channels_last)
