"""Learned preprocessors as a user has them: files of the official names in a models folder, through the nodes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.controlnet_core.errors import Interrupted, MissingFileError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.headless import HeadlessHost
from comfyui_controlnet_core.preprocessors.families import family_of
from comfyui_controlnet_core.preprocessors.learned.catalog import LEARNED
from comfyui_controlnet_core.preprocessors.learned.catalog_pretrained import PRETRAINED
from comfyui_controlnet_core.preprocessors.learned.lineart import LineartGenerator
from comfyui_controlnet_core.preprocessors.learned.mlsd import MLSD
from comfyui_controlnet_core.preprocessors.learned.pidinet import PiDiNet
from comfyui_controlnet_core.preprocessors.learned.teed import TEED
from comfyui_controlnet_core.preprocessors.registry import Entry

from .conftest import make_pictures, randomized

FILES = {
    "table5_pidinet.pth": PiDiNet,
    "7_model.pth": TEED,
    "mlsd_large_512_fp32.pth": MLSD,
    "sk_model.pth": LineartGenerator,
    "sk_model2.pth": LineartGenerator,
}
"""The small ones; the others differ in nothing but their size."""
SMALL = tuple(entry for entry in LEARNED if {weights.file for weights in entry.weights} <= set(FILES))
FRAMES = torch.from_numpy(make_pictures(3, 40, 56))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "annotators").mkdir()
    for seed, (name, build) in enumerate(FILES.items()):
        torch.save(randomized(build(), seed).state_dict(), folder / "annotators" / name)
    return folder


def run(host: HeadlessHost, entry: Entry, **given: Any) -> tuple[torch.Tensor, str]:
    """The node of the entry's family, its other fields at their defaults."""
    cls: Any = build_nodes(host)[f"CNCore_{family_of(entry.name).name}"]
    declared = cls.INPUT_TYPES()
    values = {key: e[1]["default"] for group in declared.values() for key, e in group.items() if "default" in e[1]}
    kind = {"kind": entry.name} if "kind" in values else {}
    return cls().run(**{**values, **kind, "image": FRAMES, **given})["result"]


@pytest.mark.parametrize("entry", SMALL, ids=lambda entry: entry.name)
def test_a_batch_goes_through_the_node_and_the_net_is_kept(entry: Entry, models: Path) -> None:
    host = HeadlessHost(models_dirs=[models], device="cpu", dtype="fp32")
    hint, text = run(host, entry)
    assert hint.shape == FRAMES.shape and bool(torch.isfinite(hint).all()) and "3 pictures" in text
    assert text.startswith(f"{entry.name} (torch, learned)")
    kept = dict(host.library()._nets)
    assert torch.equal(run(host, entry)[0], hint)
    assert len(kept) == 1 and all(host.library()._nets[key] is value for key, value in kept.items())
    for index in range(3):
        single, _ = run(host, entry, image=FRAMES[index : index + 1])
        assert np.mean(np.abs(single[0].numpy() - hint[index].numpy()) > 1e-3) < 0.01


@pytest.mark.parametrize("entry", (*LEARNED, *PRETRAINED), ids=lambda entry: entry.name)
def test_a_missing_file_is_an_instant_error_of_the_node(entry: Entry, tmp_path: Path) -> None:
    host = HeadlessHost(models_dirs=[tmp_path], device="cpu", dtype="fp32")
    start = time.process_time()
    with pytest.raises(MissingFileError) as caught:
        run(host, entry)
    assert time.process_time() - start < 2.0
    weights = entry.weights[0]
    for part in (weights.file, weights.source, weights.licence, str(tmp_path)):
        assert part in str(caught.value)


def test_a_run_is_stopped_between_chunks(models: Path) -> None:
    calls: list[int] = []
    host = HeadlessHost(models_dirs=[models], device="cpu", dtype="fp32", cancelled=lambda: bool(calls))
    entry = preprocessors.get("soft_edge_teed")
    run(host, entry)
    calls.append(1)
    with pytest.raises(Interrupted):
        run(host, entry)
