"""A backend holds modules in the form that suits its device, and what was prepared for the last runs.

It lives as long as its owner (a host, a test, one node in ComfyUI) and keeps no module alive: what was made of a module
is dropped when the module is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from . import speed
from .conditioning.condition import Condition
from .conditioning.job import Job
from .control.unit import ControlUnit
from .models.control import ControlModel
from .models.module_tree import shell
from .models.unet import UNet
from .runtime.device import Runtime
from .runtime.weight_bytes import weight_bytes
from .speed import TRANSFORMS, WeightPolicy, side_streams

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MadeT = TypeVar("MadeT")


@dataclass(frozen=True, eq=False)
class _Kept:
    """What was made for a run, and the weak references to those for whom it was made."""

    made: Any
    owners: tuple[ref[Any], ...]


class Memo:
    """The last few results, by key."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.made: OrderedDict[Hashable, _Kept] = OrderedDict()

    def __iter__(self) -> Iterator[Any]:
        return (kept.made for kept in self.made.values())

    def clear(self) -> None:
        """Forget everything."""
        self.made.clear()

    def once(self, key: Hashable, owners: Iterable[object], make: Callable[[], MadeT]) -> MadeT:
        """The result of `make`, made again only if `key` is not one of the last few.

        owners: the objects that the key means by their identity. They are held weakly, and the result is dropped with
        the first of them; it must not refer to them.
        """
        if key not in self.made:
            while len(self.made) >= self.kept:  # make room before, not after: results are large
                self.made.popitem(last=False)
            known = self.made
            watches = tuple(ref(owner, lambda _: known.pop(key, None)) for owner in owners)
            self.made[key] = _Kept(make(), watches)
        self.made.move_to_end(key)
        return self.made[key].made


class Backend:
    """Transformed twins of modules, made once per module (see `speed.TRANSFORMS`), and memos of the last runs."""

    KEPT_RUNS = 2
    """A workflow that samples twice, at two sizes, prepares nothing again when only the seed changes."""
    KEPT_PROGRAMS = 8
    """Captured evaluations: one for each set of nets that act together, at two sizes."""
    KEPT_ESTIMATES = 16

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.runs = Memo(self.KEPT_RUNS)
        self.programs = Memo(self.KEPT_PROGRAMS)
        self.estimates = Memo(self.KEPT_ESTIMATES)
        self.streams = side_streams(runtime)
        self.work_buffer: Any = self._new_work_buffer() if runtime.winograd else None
        self.kept: Any = speed.KeptWeights() if runtime.keep_packed and self.can_pack else None
        self.prefetcher: Any = None
        self.resident: int | None = None
        self._twins: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        self._placed: WeakKeyDictionary[UNet, WeakKeyDictionary[ControlUnit, ControlUnit]] = WeakKeyDictionary()
        self._resolved: WeakKeyDictionary[UNet, WeakKeyDictionary[ControlModel, ControlModel]] = WeakKeyDictionary()
        if runtime.memory == "streamed":
            self.offload_beyond(0)

    def _new_work_buffer(self) -> Any:
        return speed.WorkBuffer() if self.can_pack else None

    @property
    def can_pack(self) -> bool:
        """Whether packed weights are wanted and the processor supports them in this dtype."""
        runtime = self.runtime
        return runtime.pack_weights and speed.can_pack(runtime.device, runtime.dtype)

    @property
    def packs(self) -> bool:
        """Whether modules are run as packed twins."""
        return self.can_pack and self.prefetcher is None

    @property
    def uses_winograd(self) -> bool:
        """Whether packed twins compute large convolutions with Winograd's filters."""
        return self.packs and self.work_buffer is not None

    def use_winograd(self, wanted: bool) -> None:
        """Switch Winograd's filters on or off; twins that were made otherwise are dropped."""
        if self.packs and wanted != self.uses_winograd:
            self.work_buffer = self._new_work_buffer() if wanted else None
            self.release(())

    @property
    def may_offload(self) -> bool:
        """Whether weights that do not fit are to be copied to the device layer by layer."""
        return self.runtime.memory == "auto" and self.runtime.device.type == "cuda"

    def offload_beyond(self, resident: int | None) -> None:
        """Keep this many bytes of weights on the device from now on and copy the rest when used; None keeps all."""
        if resident == self.resident:
            return
        runtime, self.resident = self.runtime, resident
        self.prefetcher = None
        if resident is not None:
            self.prefetcher = speed.WeightPrefetcher(runtime.device, runtime.dtype, resident)
        self.release(())

    @property
    def policy(self) -> WeightPolicy:
        """How twins hold their weights."""
        return WeightPolicy(self.runtime, self.packs, self.work_buffer, self.prefetcher, self.kept)

    def loaded_bytes(self, module: nn.Module) -> int:
        """Bytes of a module's weights that are on the device already, in the form in which they are run."""
        twin = self._twins.get(module)
        if self.prefetcher is not None:
            return 0 if twin is None else sum(p.nbytes for p in twin.parameters())
        if self.packs:
            return 0 if twin is None else speed.packed_bytes(twin)
        like = next(module.parameters(), None)
        there = like is None or (like.device, like.dtype) == (self.runtime.device, self.runtime.dtype)
        return weight_bytes([module], self.runtime.dtype) if there or twin is not None else 0

    def release(self, used: Collection[nn.Module]) -> bool:
        """Move all modules but these to the host and drop what was made of them. Returns whether there were any."""
        idle = [module for module in self._twins if module not in used]
        for module in idle:
            module.cpu()
            del self._twins[module]
        if idle:
            for kept in (self._placed, self.runs, self.programs):
                kept.clear()
        return bool(idle)

    def end_run(self) -> None:
        """End a run: drop the weights that were copied ahead for an evaluation that will not come."""
        if self.prefetcher is not None:
            self.prefetcher.drop_copies()

    def keep_packed(self) -> list[str]:
        """Write weights that were packed in this run to the disk, if that is wanted. Returns lines for the user."""
        if self.kept is None:
            return []
        self.kept.write()
        notes, self.kept.notes = self.kept.notes, []
        return notes

    def optimise(self, module: ModuleT) -> ModuleT:
        """The module in the runtime's device and dtype, in the form in which it is run; made once.

        Most transforms leave the module as it is. Without one, the module is moved in place and shares its weights
        with the result, so that they are not held twice: one module belongs to one backend.
        """
        runtime = self.runtime
        transform = next((t for t in TRANSFORMS if t.applies(module, self.policy)), None)
        in_place = transform is None or not transform.copies_weights
        moved = any((p.device, p.dtype) != (runtime.device, runtime.dtype) for p in module.parameters())
        if in_place and moved:
            module.to(device=runtime.device, dtype=runtime.dtype)
            if runtime.device.type == "cuda":  # a kernel in another layout than x would be converted in every call
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if module not in self._twins:
            twin = shell(module) if transform is None else transform(module, self.policy)
            if runtime.compile and in_place:
                speed.compile_blocks(twin)
            self._twins[module] = twin.eval()
        return self._twins[module]  # type: ignore[return-value]

    def resolve(self, net: ControlModel, unet: UNet) -> ControlModel:
        """The net that is run on this base, made once; itself, unless it takes weights from the base."""
        known = self._resolved.setdefault(unet, WeakKeyDictionary())
        if net in known:
            return known[net]
        resolved = net.resolve(unet)
        if resolved is not net:  # a weak dictionary must not hold its own key
            known[net] = resolved
        return resolved

    def models(self, job: Job) -> list[nn.Module]:
        """The UNet and the nets that act on it, each once, as they are run on this base."""
        return list(dict.fromkeys([job.unet, *(self.resolve(unit.net, job.unet) for unit in job.units)]))

    def place(self, job: Job) -> Job:
        """The job with its UNet and nets in the form in which they are run."""
        known = self._placed.setdefault(job.unet, WeakKeyDictionary())
        for unit in job.units:
            if unit not in known:
                known[unit] = replace(unit, net=self.optimise(self.resolve(unit.net, job.unet)))

        def placed(condition: Condition) -> Condition:
            return replace(condition, units=tuple(known[unit] for unit in condition.units))

        return job.with_conditions(placed, unet=self.optimise(job.unet))
