"""The Pose Editor: what the browser makes of a pose is what Python reads and draws, and bad poses are refused.

The editor's own logic needs no browser; Node.js runs it (`tests/support/pose_editor.mjs`). What a user does in ComfyUI
is in tests/integration/test_browser_pose.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.preprocessors import PictureError, limits
from comfyui_controlnet_core.preprocessors import pose as poses
from comfyui_controlnet_core.workflows.execution import execute
from comfyui_controlnet_core.workflows.graph import Graph, Node

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "support" / "pose_editor.mjs"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js, which runs the editor's modules")
SIZE = {"width": 512, "height": 512}
SEEDS = 20


def canvas(people: list[dict[str, Any]], **more: Any) -> str:
    return json.dumps({"people": people, "canvas_width": 640, "canvas_height": 480, **more})


def flat(count: int, seed: int = 0, *, scale: float = 400.0) -> list[float]:
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.random((count, 2)) * scale, rng.random(count) > 0.2])
    points[points[:, 2] == 0] = 0
    return points.round(3).ravel().tolist()


BODIES = {f"body of {n}": canvas([{"pose_keypoints_2d": flat(n, n)}]) for n in (17, 18, 25, 133, 134)}
READ = {
    **BODIES,
    "all parts": canvas(
        [
            {
                "pose_keypoints_2d": flat(18, 1),
                "hand_left_keypoints_2d": flat(21, 2),
                "hand_right_keypoints_2d": flat(21, 3),
                "face_keypoints_2d": flat(count, 4),
            }
            for count in (56, 68, 70)
        ]
    ),
    "own parts of a whole body": canvas([{"pose_keypoints_2d": flat(134, 1), "face_keypoints_2d": flat(70, 2)}]),
    "parts of another length": canvas(
        [{"pose_keypoints_2d": flat(18), "hand_left_keypoints_2d": flat(20), "face_keypoints_2d": flat(12)}]
    ),
    "shares": canvas([{"pose_keypoints_2d": flat(18, 5, scale=1.0)}]),
    "shares, one outside": canvas([{"pose_keypoints_2d": [1.05, 0.5, 1, *flat(18, 6, scale=1.0)[3:]]}]),
    "a film": json.dumps([json.loads(text) for text in list(BODIES.values())[:3]]),
    "nobody": canvas([]),
    "empty parts": canvas([{"pose_keypoints_2d": [], "face_keypoints_2d": None}]),
    "nested points": canvas([{"pose_keypoints_2d": np.reshape(flat(18), (18, 3)).tolist()}]),
    "a hidden joint": canvas([{"pose_keypoints_2d": [100, 50, 0, *flat(18)[3:]]}]),
    "no canvas": json.dumps({"people": [{"pose_keypoints_2d": flat(18)}]}),
    "outside of the canvas": canvas([{"pose_keypoints_2d": [-5000, 9000, 1, *flat(18)[3:]]}]),
}
REFUSED = {
    "no JSON": "{",
    "not a pose": '{"people": 1}',
    "a number": "7",
    "NaN": canvas([{"pose_keypoints_2d": [float("nan"), 1, 1]}]),
    "huge": canvas([{"pose_keypoints_2d": [1e7, 1, 1]}]),
    "words": canvas([{"pose_keypoints_2d": ["a", "b", "c"]}]),
    "no triples": canvas([{"pose_keypoints_2d": [1, 2]}]),
    "body of 5": canvas([{"pose_keypoints_2d": flat(5)}]),
    "10,000 people": canvas([{}] * 10_000),
    "canvas of 20,000": canvas([], canvas_width=20_000),
    "canvas of 0.5": canvas([], canvas_width=0.5),
    "canvas of 16384 x 16384": canvas([], canvas_width=16384, canvas_height=16384),
    "people who are no people": canvas([3, 4]),  # type: ignore[list-item]
}


# ---- the browser's side


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the editor's modules answer to all texts, and the results of their own checks."""
    folder = tmp_path_factory.mktemp("pose")
    shutil.copytree(ROOT / "web" / "pose", folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')
    texts = [{"text": text, "size": SIZE} for text in (*READ.values(), *REFUSED.values())]
    given = json.dumps({"folder": str(folder), "texts": texts, "seeds": SEEDS})
    ran = subprocess.run([str(NODE), str(PROGRAM)], input=given, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


CHECKS = re.findall(r'^  "(.+)": (?:async )?\(\) => \{$', PROGRAM.read_text("utf-8"), re.MULTILINE)


@needs_node
@pytest.mark.parametrize("name", CHECKS)
def test_logic_of_the_editor(name: str, answers: dict[str, Any]) -> None:
    assert answers["checks"][name] == ""


@needs_node
def test_no_check_is_forgotten(answers: dict[str, Any]) -> None:
    assert sorted(answers["checks"]) == sorted(CHECKS)
    assert len(CHECKS) >= 18


@needs_node
@pytest.mark.parametrize("name", READ)
def test_the_editor_reads_what_python_reads(name: str, answers: dict[str, Any]) -> None:
    found = answers["parsed"][list(READ).index(name)]
    assert isinstance(found, str), found
    mine = poses.read_poses(found)
    expected = poses.read_poses(READ[name], **SIZE)
    assert [(p.width, p.height, len(p.people)) for p in mine] == [(p.width, p.height, len(p.people)) for p in expected]
    for ours, theirs in zip(mine, expected, strict=True):
        for one, other in zip(ours.people, theirs.people, strict=True):
            assert one.parts().keys() == other.parts().keys()
            for part, points in one.parts().items():
                assert np.abs(points - other.parts()[part]).max() <= 0.051  # a text has tenths of pixels


@needs_node
@pytest.mark.parametrize("name", REFUSED)
def test_the_editor_refuses_what_python_refuses(name: str, answers: dict[str, Any]) -> None:
    with pytest.raises(PictureError):
        poses.read_poses(REFUSED[name], **SIZE)
    found = answers["parsed"][len(READ) + list(REFUSED).index(name)]
    assert isinstance(found, dict), found
    assert found["said"] and "{" not in found["said"] and len(found["said"]) < 160


@needs_node
def test_templates_have_the_same_places(answers: dict[str, Any]) -> None:
    for name in poses.TEMPLATES:
        (person,) = poses.template_pose(name, 500, 300).people
        assert np.abs(np.array(answers["templates"][name]) - person.body).max() <= 1e-3


@needs_node
def test_python_draws_every_edited_pose(answers: dict[str, Any]) -> None:
    read = [poses.read_poses(text) for text in answers["edited"] if text]
    assert len(read) >= SEEDS // 2
    for frames in read:
        assert poses.render(frames).shape == (1, 512, 512, 3)


# ---- the node


@pytest.fixture
def node(tmp_path: Path) -> Any:
    return build_nodes(StandaloneHost(tmp_path, tmp_path, device="cpu"))["CNCore_PoseEditor"]()


def test_an_empty_pose_is_one_standing_person(node: Any) -> None:
    hint, keypoints, text = node.run("", 1.0)["result"]
    expected = poses.render([poses.template_pose("standing", 512, 512)])
    assert np.array_equal(hint.numpy(), expected)
    assert json.loads(text) == keypoints[0]


def test_a_saved_pose_is_drawn_and_given_on(node: Any) -> None:
    hint, keypoints, text = node.run(READ["all parts"], 1.0)["result"]
    assert np.array_equal(hint.numpy(), poses.render(poses.read_poses(READ["all parts"])))
    assert np.array_equal(poses.render(poses.read_poses(keypoints)), hint.numpy())
    assert np.array_equal(poses.render(poses.read_poses(text)), hint.numpy())
    thick = node.run(READ["all parts"], 2.0)["result"][0]
    assert (thick > 0).sum() > 1.5 * (hint > 0).sum()


def test_a_hidden_joint_is_not_drawn_and_keeps_its_place(node: Any) -> None:
    body = poses.template_pose("standing", 480, 640).people[0].body.copy()
    body[4, 2] = 0
    hint, keypoints, _ = node.run(canvas([{"pose_keypoints_2d": body.ravel().tolist()}]), 1.0)["result"]
    assert keypoints[0]["people"][0]["pose_keypoints_2d"][12:15] == body[4].tolist()
    x, y = body[4, :2].astype(int)
    assert not hint[0, y - 2 : y + 3, x - 2 : x + 3].any()


def test_a_linked_pose_is_used_until_something_is_edited(node: Any) -> None:
    linked = json.loads(READ["a film"])
    answer = node.run("", 1.0, pose_keypoint=linked)
    assert answer["result"][0].shape == (3, 480, 640, 3)
    assert poses.read_poses(answer["ui"]["linked_pose"][0])[2].people[0].body.shape == (18, 3)
    edited = node.run(READ["body of 18"], 1.0, pose_keypoint=linked)
    assert edited["result"][0].shape == (1, 480, 640, 3)
    assert edited["ui"]["linked_pose"] == answer["ui"]["linked_pose"]


def test_of_a_long_film_the_editor_gets_the_first_frame(node: Any) -> None:
    film = [json.loads(READ["all parts"])] * 150
    answer = node.run("", 1.0, pose_keypoint=[{**frame, "canvas_width": 64, "canvas_height": 48} for frame in film])
    assert answer["result"][0].shape[0] == 150
    assert len(poses.read_poses(answer["ui"]["linked_pose"][0])) == 1


def test_a_linked_image_gives_the_canvas_and_a_small_copy(node: Any) -> None:
    image = torch.zeros(2, 1500, 2100, 3)
    image[..., 0] = 1
    answer = node.run("", 1.0, image=image)
    assert answer["result"][0].shape == (1, 1500, 2100, 3)
    (shown,) = answer["ui"]["background"]
    assert (shown["width"], shown["height"], shown["type"]) == (2100, 1500, "temp")
    from PIL import Image

    with Image.open(node.host.temp_dir / shown["subfolder"] / shown["filename"]) as picture:
        assert picture.size == (700, 500)
        assert picture.getpixel((10, 10)) == (255, 0, 0)
    # An edited pose keeps its own canvas; a text without one gets that of the image.
    assert node.run(READ["body of 18"], 1.0, image=image)["result"][0].shape == (1, 480, 640, 3)
    assert node.run(READ["no canvas"], 1.0, image=image[:, :90, :70])["result"][0].shape == (1, 90, 70, 3)


@pytest.mark.parametrize("name", [*REFUSED, "no canvas", "no frames"])
def test_a_bad_pose_is_refused_in_one_line(name: str, node: Any) -> None:
    text = {**REFUSED, "no canvas": READ["no canvas"], "no frames": "[]"}[name]
    with pytest.raises(ValueRangeError) as caught:
        execute(
            Graph({"1": Node("1", "CNCore_PoseEditor", {"pose": text, "stroke": 1.0})}),
            {type(node).__name__: type(node), "CNCore_PoseEditor": type(node)},
        )
    message = str(caught.value)
    assert "\n" not in message and len(message) < 250


def test_the_limits_are_those_of_the_module(node: Any) -> None:
    most = canvas([{}] * limits.MAX_PEOPLE)
    assert node.run(most, 1.0)["result"][0].shape == (1, 480, 640, 3)
    with pytest.raises(ValueRangeError, match="1,001 people"):
        node.run(canvas([{}] * (limits.MAX_PEOPLE + 1)), 1.0)
