"""A run under the eyes of a recorder: what is cast before it, and each net in it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ..control.report import Recorder
from ..models.control import Outlet
from .prepare import Prepared
from .unit import Actor


@dataclass(frozen=True, eq=False)
class RecordedActor(Actor):
    """An actor that tells when its net runs, and, to a recorder that observes, how long and what it adds."""

    recorder: Recorder

    @property
    def keys(self) -> list[Hashable]:
        """Its units, as the recorder knows them."""
        return [unit.key for unit in self.units]

    def features(self, x: Tensor, sigma: float) -> Iterator[Tensor | None]:
        """As `Actor.features`; time counts while the net is asked for the next feature map."""
        for key in self.keys:
            self.recorder.net_ran(key)
        features = super().features(x, sigma)
        if not self.recorder.observe:
            yield from features
            return
        for _ in self.bound.outlets:
            with self.recorder.timing(self.keys, x.device):
                feature = next(features)
            yield feature

    def add(self, target: Tensor, feature: Tensor | None, outlet: Outlet, index: int, sigma: float) -> None:
        """As `Actor.add`; what is added is the change of the target, so that the picture stays as it is."""
        if feature is None or not self.recorder.observe:
            super().add(target, feature, outlet, index, sigma)
            return
        for unit, own in self.parts(feature):
            view = target[unit.rows]
            before = view.clone()
            with self.recorder.timing([unit.key], target.device):
                unit.add(target, own, outlet, index, sigma)
            if unit.weights(sigma)[index] != 0.0:
                self.recorder.residual(unit.key, index, view - before)


def note_casts(recorder: Recorder, prepared: Prepared) -> None:
    """What was cast when the run was prepared: texts, hints and masks, each once."""
    dtype = prepared.backend.runtime.dtype
    for condition in prepared.conditions:
        recorder.cast("text", condition.text.dtype, dtype)
    for unit in dict.fromkeys(unit for condition in prepared.conditions for unit in condition.units):
        for hint in unit.hints:
            recorder.cast("hint", hint.picture.dtype, dtype)
        if unit.mask is not None:
            recorder.cast("mask", unit.mask.dtype, dtype)
