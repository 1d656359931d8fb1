"""Learned preprocessors as a user has them: files of the official names in a models folder, through the nodes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.controlnet_core.errors import Interrupted, MissingFileError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.preprocessors import pose
from comfyui_controlnet_core.preprocessors.catalog.learned import LEARNED
from comfyui_controlnet_core.preprocessors.catalog.pretrained import PRETRAINED
from comfyui_controlnet_core.preprocessors.entry import Entry
from comfyui_controlnet_core.preprocessors.families import FAMILIES
from comfyui_controlnet_core.preprocessors.learned.lineart import LineartGenerator
from comfyui_controlnet_core.preprocessors.learned.mlsd import MLSD
from comfyui_controlnet_core.preprocessors.learned.pidinet import PiDiNet
from comfyui_controlnet_core.preprocessors.learned.teed import TEED
from few import few_of

from .conftest import make_pictures, randomized
from .test_learned import IdealOpenPose

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


def run(host: StandaloneHost, entry: Entry, **given: Any) -> tuple[torch.Tensor, str]:
    """The node of the entry's family, its other fields at their defaults."""
    family = next(family for family in FAMILIES if entry.name in family.kinds)
    cls: Any = build_nodes(host)[f"CNCore_{family.name}"]
    declared = cls.INPUT_TYPES()
    values = {key: e[1]["default"] for group in declared.values() for key, e in group.items() if "default" in e[1]}
    kind = {"kind": entry.name} if "kind" in values else {}
    return cls().run(**{**values, **kind, "image": FRAMES, **given})["result"]


@pytest.mark.parametrize("entry", SMALL, ids=lambda entry: entry.name)
def test_a_batch_goes_through_the_node_and_the_net_is_kept(entry: Entry, models: Path) -> None:
    host = StandaloneHost(models_dirs=[models], device="cpu", dtype="fp32")
    hint, text = run(host, entry)
    assert hint.shape == FRAMES.shape and bool(torch.isfinite(hint).all()) and "3 images" in text
    assert text.startswith(f"{entry.name} (torch, learned)")
    kept = dict(host.library()._nets)
    assert torch.equal(run(host, entry)[0], hint)
    assert len(kept) == 1 and all(host.library()._nets[key] is value for key, value in kept.items())
    for index in range(3):
        single, _ = run(host, entry, image=FRAMES[index : index + 1])
        assert np.mean(np.abs(single[0].numpy() - hint[index].numpy()) > 1e-3) < 0.01


@pytest.mark.parametrize("entry", (*LEARNED, *PRETRAINED), ids=lambda entry: entry.name)
def test_a_missing_file_is_an_instant_error_of_the_node(entry: Entry, tmp_path: Path) -> None:
    host = StandaloneHost(models_dirs=[tmp_path], device="cpu", dtype="fp32")
    start = time.process_time()
    with pytest.raises(MissingFileError) as caught:
        run(host, entry)
    assert time.process_time() - start < 2.0
    weights = entry.weights[0]
    for part in (weights.file, weights.source, weights.licence, str(tmp_path)):
        assert part in str(caught.value)


def test_a_run_is_stopped_between_chunks(models: Path) -> None:
    calls: list[int] = []
    host = StandaloneHost(models_dirs=[models], device="cpu", dtype="fp32", cancelled=lambda: bool(calls))
    entry = preprocessors.get("soft_edge_teed")
    run(host, entry)
    calls.append(1)
    with pytest.raises(Interrupted):
        run(host, entry)


class PoseHost(StandaloneHost):
    """A host whose nets see one person, whatever the picture."""

    def library(self) -> Any:
        person = pose.template_pose("waving", 368, 320, box=(40, 30, 280, 340)).people[0]
        return IdealOpenPose(person.body)


@pytest.mark.parametrize("side", few_of([0, 400], 400))
def test_keypoints_of_the_pose_node_go_round_through_pose_render(side: int, tmp_path: Path) -> None:
    """In the form in which pose editors know them: a mapping per frame, flat lists of x, y, confidence in pixels."""
    nodes = build_nodes(PoseHost(output_dir=tmp_path))
    values = {"image": torch.zeros(2, 368, 320, 3), "resolution": side, "kind": "pose_openpose"}
    hint, text, frames = nodes["CNCore_Pose"]().run(**values, hands=True, face=True)["result"]
    assert frames == json.loads(json.dumps(frames)) and len(frames) == len(hint) == 2
    assert (frames[0]["canvas_height"], frames[0]["canvas_width"]) == tuple(hint.shape[1:3])
    ((person,), (_,)) = [frame["people"] for frame in frames]
    counts = {"pose_keypoints_2d": 18, "hand_left_keypoints_2d": 21, "hand_right_keypoints_2d": 21}
    assert {key: len(person[key]) // 3 for key in counts} == counts and len(person["face_keypoints_2d"]) == 3 * 70
    assert 1 < max(person["pose_keypoints_2d"]) <= max(hint.shape)
    drawn = {"json": "", "template": "standing", "width": 0, "height": 0, "body": True, "hands": True, "face": True}
    again, same, _ = nodes["CNCore_PoseRender"]().run(**drawn, stroke=1.0, pose_keypoint=frames)["result"]
    assert hint.any() and torch.equal(again, hint) and same == frames
    assert "pose_openpose" in text


def test_nobody_in_the_picture_is_an_empty_list_of_people(tmp_path: Path) -> None:
    class Empty(StandaloneHost):
        def library(self) -> Any:
            return IdealOpenPose(np.zeros((18, 3)))

    node = build_nodes(Empty(output_dir=tmp_path))["CNCore_Pose"]()
    hint, _, frames = node.run(image=torch.zeros(1, 64, 48, 3), resolution=0, kind="pose_openpose")["result"]
    assert not hint.any() and frames == [{"people": [], "canvas_height": 64, "canvas_width": 48}]
