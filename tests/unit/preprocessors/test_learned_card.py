"""Learned preprocessors on a graphics card that is pretended: no tensor is left behind, the hint is the processor's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.catalog.learned import LEARNED
from comfyui_controlnet_core.preprocessors.entry import Weights
from comfyui_controlnet_core.preprocessors.learned.library import Library
from few import few_of
from pretended_card import Card
from torch import nn

from .conftest import Random, make_pictures

IMAGE = make_pictures(1, 33, 47)
QUICK: dict[str, dict[str, Any]] = {
    "segment_sam": {"points": 2}, "pose_vitpose": {"person_score": 0.0, "point_score": 0.0}
}  # fmt: skip


class OnCard(Random):
    """Nets with random weights, brought to the card as a library does it."""

    def __init__(self) -> None:
        super().__init__()
        self.device = str(Card.device)

    def net(self, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
        return self.place(super().net(weights, build))


def assert_alike(made: np.ndarray, expected: np.ndarray) -> None:
    """But for pixels whose decision lies within the rounding of a sum."""
    assert made.shape == expected.shape
    assert (np.abs(made - expected).max(-1) > 1e-3).mean() < 0.01


@pytest.mark.parametrize("name", few_of([e.name for e in LEARNED], "soft_edge_hed", "normal_bae"))
def test_of_our_own(name: str, nets: Random, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = preprocessors.get(name)
    expected = preprocessors.process(entry, IMAGE, library=nets)
    with Card().install(monkeypatch) as card:
        assert_alike(preprocessors.process(entry, IMAGE, library=OnCard()), expected)
    assert card.launched and not card.races


def test_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from comfyui_controlnet_core.preprocessors.catalog.pretrained import PRETRAINED

    from .tiny_transformers import MAKERS, models

    entries = {entry.name: entry for entry in PRETRAINED}
    for name in ("depth_dpt", "segment_upernet", "segment_sam"):
        entry = entries.get(name)
        assert entry is not None, sorted(entries)
        library = models(tmp_path / name, entry, *MAKERS[name])
        expected = preprocessors.process(entry, IMAGE, library=library, **QUICK.get(name, {}))
        with Card().install(monkeypatch) as card:
            there = Library(library.folders, device=str(Card.device))
            assert_alike(preprocessors.process(entry, IMAGE, library=there, **QUICK.get(name, {})), expected)
        assert card.launched
