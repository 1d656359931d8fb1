"""Results that no memory holds are refused before they are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.nodes.standalone import room
from comfyui_controlnet_core.workflows import cli

FREE = 2**30


def run(tmp_path: Path, *nodes: tuple[str, dict[str, Any]]) -> int:
    """Run a chain of nodes, each of which reads the one before it; returns the exit code."""
    graph: dict[str, Any] = {}
    for number, (name, values) in enumerate(nodes):
        links = {key: [str(number - 1), 0] for key, value in values.items() if value is None}
        graph[str(number)] = {"class_type": name, "inputs": {**values, **links}}
    last = str(len(nodes) - 1)
    graph["seen"] = {"class_type": "PreviewImage", "inputs": {"images": [last, 0]}}
    (tmp_path / "w.json").write_text(json.dumps(graph))
    return cli.main(["run", str(tmp_path / "w.json"), "--quiet", "--output", str(tmp_path / "out")])


PICTURE = ("EmptyImage", {"width": 1024, "height": 1024, "batch_size": 1, "color": 0})
SCALE = {"image": None, "upscale_method": "bilinear"}
SIDES = {"left": 8192, "top": 8192, "right": 8192, "bottom": 0, "feathering": 0}
CHAINS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "an empty picture": (("EmptyImage", {"width": 16384, "height": 16384, "batch_size": 4096, "color": 0}),),
    "doubled batches": (PICTURE, *[("ImageBatch", {"image1": None, "image2": None})] * 60),
    "a repeated batch": (PICTURE, ("RepeatImageBatch", {"image": None, "amount": 4096})),
    "a scaled picture": (PICTURE, ("ImageScale", {**SCALE, "width": 16384, "height": 16384, "crop": "disabled"})),
    "a wide border": (PICTURE, ("ImagePadForOutpaint", {"image": None, **SIDES})),
    "a mask": (("SolidMask", {"value": 1.0, "width": 16384, "height": 16384}), ("MaskToImage", {"mask": None})),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_result_that_no_memory_holds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: FREE // 8)
    monkeypatch.setattr(room, "_SMALL", FREE // 16)
    assert run(tmp_path, *CHAINS[name]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: node ") and "GB are free: use a smaller picture or batch" in line


def test_latents_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_controlnet_core.controlnet_core.errors import OutOfMemory
    from comfyui_controlnet_core.nodes.standalone.latents import EmptyLatentImage, RepeatLatentBatch

    monkeypatch.setattr(room, "free_bytes", lambda device: 0)
    monkeypatch.setattr(room, "_SMALL", 1000)
    (small,) = EmptyLatentImage().run(16, 16, 1)
    with pytest.raises(OutOfMemory, match="4096 x 4 x 64 x 64 numbers"):
        EmptyLatentImage().run(512, 512, 4096)
    with pytest.raises(OutOfMemory, match="64 x 4 x 2 x 2 numbers"):
        RepeatLatentBatch().run(small, 64)


def test_a_result_that_fits_is_made(tmp_path: Path) -> None:
    assert run(tmp_path, PICTURE, ("ImageInvert", {"image": None})) == 0
