"""Poses: colours, order and drawing of the keypoints, the JSON forms, templates and boxes."""

from __future__ import annotations

import colorsys
import json
import math

import cv2
import numpy as np
import pytest
from comfyui_controlnet_core.preprocessors import ParameterError, PictureError
from comfyui_controlnet_core.preprocessors import pose as poses
from comfyui_controlnet_core.preprocessors.pose.skeleton import BODY_COLOURS, BODY_LIMBS, BODY_NAMES


def person(rng: np.random.Generator, height: int, width: int, *, missing: float = 0.2) -> poses.Person:
    def points(count: int) -> np.ndarray:
        found = np.column_stack([rng.uniform(3, width - 3, count), rng.uniform(3, height - 3, count), np.ones(count)])
        found[rng.random(count) < missing] = 0
        return found

    return poses.Person(points(18), points(21), points(21), points(70))


def published(people: list[poses.Person], height: int, width: int) -> np.ndarray:
    """The v1.1 annotator's drawing, written out plainly."""
    limbs = "2-3 2-6 3-4 4-5 6-7 7-8 2-9 9-10 10-11 2-12 12-13 13-14 2-1 1-15 15-17 1-16 16-18"
    pairs = [tuple(int(n) - 1 for n in limb.split("-")) for limb in limbs.split()]
    ramp = [(255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)]
    ramp += [
        (0, 255, 85),
        (0, 255, 170),
        (0, 255, 255),
        (0, 170, 255),
        (0, 85, 255),
        (0, 0, 255),
        (85, 0, 255),
    ]
    ramp += [(170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)]
    canvas = np.zeros((height, width, 3), np.uint8)
    for one in people:
        for (a, b), colour in zip(pairs, ramp, strict=False):
            if one.body[a, 2] and one.body[b, 2]:
                y, x = one.body[[a, b], 0], one.body[[a, b], 1]
                length = ((x[0] - x[1]) ** 2 + (y[0] - y[1]) ** 2) ** 0.5
                angle = math.degrees(math.atan2(x[0] - x[1], y[0] - y[1]))
                centre = (int(np.mean(y)), int(np.mean(x)))
                polygon = cv2.ellipse2Poly(centre, (int(length / 2), 4), int(angle), 0, 360, 1)
                cv2.fillConvexPoly(canvas, polygon, [int(c * 0.6) for c in colour])
        for point, colour in zip(one.body, ramp, strict=True):
            if point[2]:
                cv2.circle(canvas, (int(point[0]), int(point[1])), 4, colour, thickness=-1)
        for hand in (one.left_hand, one.right_hand):
            for index in range(20):
                a, b = 0 if index % 4 == 0 else index, index + 1
                if hand[a, 2] and hand[b, 2]:
                    ends = [(int(hand[n, 0]), int(hand[n, 1])) for n in (a, b)]
                    colour = np.array(colorsys.hsv_to_rgb(index / 20, 1, 1)) * 255
                    cv2.line(canvas, *ends, colour, thickness=2)
            for point in hand[hand[:, 2] > 0]:
                cv2.circle(canvas, (int(point[0]), int(point[1])), 4, (0, 0, 255), thickness=-1)
        for point in one.face[one.face[:, 2] > 0]:
            cv2.circle(canvas, (int(point[0]), int(point[1])), 3, (255, 255, 255), thickness=-1)
    return canvas


@pytest.mark.parametrize("seed", range(3))
def test_drawn_as_published_at_512(seed: int) -> None:
    rng = np.random.default_rng(seed)
    people = [person(rng, 512, 640) for _ in range(3)]
    hint = poses.render([poses.Pose(tuple(people), 512, 640)])[0]
    assert np.array_equal(np.rint(hint * 255), published(people, 512, 640))
    bodies = np.stack([one.body for one in people])
    only_bodies = poses.render([poses.Pose(tuple(people), 512, 640)], hands=False, face=False)[0]
    assert np.array_equal(poses.draw_poses(bodies, 512, 640), only_bodies)


def test_order_and_colours_of_the_keypoints() -> None:
    assert BODY_NAMES[:5] == ("nose", "neck", "right_shoulder", "right_elbow", "right_wrist")
    assert BODY_NAMES[14:] == ("right_eye", "left_eye", "right_ear", "left_ear")
    named = {(BODY_NAMES[a], BODY_NAMES[b]): colour for (a, b), colour in zip(BODY_LIMBS, BODY_COLOURS, strict=False)}
    assert named["neck", "right_shoulder"] == (255, 0, 0) and named["neck", "left_shoulder"] == (255, 85, 0)
    assert named["neck", "right_hip"] == (0, 255, 0) and named["neck", "nose"] == (0, 0, 255)
    for index, name in enumerate(BODY_NAMES):
        alone = np.zeros((1, 18, 3))
        alone[0, index] = (32, 32, 1)
        assert tuple(np.rint(poses.draw_poses(alone, 64, 64)[32, 32] * 255)) == BODY_COLOURS[index], name


def test_missing_joints_draw_neither_dot_nor_limb() -> None:
    whole = poses.template_pose("standing", 256, 256)
    body = whole.people[0].body.copy()
    body[3, 2] = 0
    partial = poses.render([poses.Pose((poses.Person(body),), 256, 256)])[0]
    full = poses.render([whole])[0]
    elbow = tuple(int(v) for v in whole.people[0].body[3, 1::-1])
    assert full[elbow].any() and not partial[elbow].any()
    body[3] = (np.nan, 5, 1)
    assert np.array_equal(poses.render([poses.Pose((poses.Person(body),), 256, 256)])[0], partial)


def arm_thickness(pose: poses.Pose, size: int) -> int:
    """Pixels across the middle of the upper arm of a T pose, drawn at size x size."""
    hint = poses.render([pose], height=size, width=size)[0]
    shoulder, elbow = pose.people[0].body[2:4, 0] * size / pose.width
    return int(hint[:, int((shoulder + elbow) / 2)].any(axis=-1).sum())


@pytest.mark.parametrize("size", [64, 128, 200, 512, 768, 1024])
def test_strokes_scale_with_the_picture(size: int) -> None:
    """A limb of half-width w covers 2 w + 1 pixels, the outline included."""
    assert arm_thickness(poses.template_pose("t_pose", 512, 512), size) == pytest.approx(8 * size / 512 + 1, abs=1)


def test_a_large_canvas_is_drawn_at_the_size_asked_for() -> None:
    """Drawn at 4096 and shrunk to 512, a limb of 9 pixels would be one pixel wide."""
    assert arm_thickness(poses.template_pose("t_pose", 4096, 4096), 512) == 9


def test_json_round_trip() -> None:
    rng = np.random.default_rng(5)
    start = (poses.Pose((person(rng, 300, 400), poses.Person(np.ones((18, 3)) * 7)), 300, 400),)
    text = json.dumps(poses.write_poses(start))
    back = poses.read_poses(text)
    assert (back[0].height, back[0].width, len(back[0].people)) == (300, 400, 2)
    for before, after in zip(start[0].people, back[0].people, strict=True):
        assert np.array_equal(before.body, after.body)
        for part in ("left_hand", "right_hand", "face"):
            one, other = getattr(before, part), getattr(after, part)
            assert (one is None and other is None) or np.array_equal(one, other)
    assert np.array_equal(poses.render(start), poses.render(back))


def test_json_in_parts_of_the_canvas_and_in_25_points() -> None:
    body = np.column_stack([np.linspace(0.1, 0.9, 18), np.linspace(0.2, 0.8, 18), np.ones(18)])
    frame = {
        "people": [{"pose_keypoints_2d": body.ravel().tolist()}],
        "canvas_height": 100,
        "canvas_width": 200,
    }
    assert np.allclose(poses.read_poses(frame)[0].people[0].body[:, :2], body[:, :2] * (200, 100))
    many = np.column_stack([np.arange(25) + 5.0, np.arange(25) + 5.0, np.ones(25)])
    frame["people"] = [{"pose_keypoints_2d": many.tolist()}]
    read = poses.read_poses([frame, frame])
    assert len(read) == 2
    assert read[0].people[0].body[:, 0].tolist() == [*range(5, 13), *range(14, 24)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "valid JSON"),
        ({"bodies": []}, "people"),
        ({"people": []}, "canvas size"),
        ({"people": [{"pose_keypoints_2d": [1, 2]}], "canvas_height": 9, "canvas_width": 9}, "triples"),
        (
            {"people": [{"pose_keypoints_2d": [1, 2, 1]}], "canvas_height": 9, "canvas_width": 9},
            "of 1 keypoints",
        ),
    ],
)
def test_what_is_no_pose_is_refused(data: object, words: str) -> None:
    with pytest.raises(PictureError, match=words):
        poses.read_poses(data)


@pytest.mark.parametrize(
    ("part", "numbers", "said"),
    [
        ("face", [1, 2, 1], "left out a face of 1 keypoints, expected 56 to 70"),
        ("face", [1.0, 2.0, 1.0] * 55, "left out a face of 55 keypoints"),
        ("face", [1, 2], "face_keypoints_2d has 2 numbers; expected triples"),
        ("face", [1e300] * 210, "left out a face: face_keypoints_2d holds numbers that are no place"),
        ("face", [10**400] * 210, "face_keypoints_2d holds something else than numbers"),
        ("face", "none", "face_keypoints_2d holds something else than numbers"),
        ("hand_left", [1.0, 2.0, 1.0] * 20, "left out a left hand of 20 keypoints, expected 21"),
        ("hand_right", [math.nan] * 63, "left out a right hand: hand_right_keypoints_2d holds numbers"),
    ],
)
def test_a_face_or_hand_that_cannot_be_read_is_left_out_and_noted(part: str, numbers: object, said: str) -> None:
    body = poses.template_pose("waving", 64, 64).people[0].body
    frame = {"canvas_width": 64, "canvas_height": 64}
    person = {"pose_keypoints_2d": body.ravel().tolist(), f"{part}_keypoints_2d": numbers}
    (pose,) = poses.read_poses({**frame, "people": [person]})
    assert len(pose.notes) == 1 and said in pose.notes[0]
    assert list(pose.people[0].parts()) == ["body"]
    assert np.array_equal(poses.render([pose]), poses.render([poses.template_pose("waving", 64, 64)]))


@pytest.mark.parametrize("count", range(56, 71))
def test_faces_of_every_usual_size_are_drawn(count: int) -> None:
    face = np.column_stack([np.linspace(20, 60, count), np.linspace(70, 90, count), np.ones(count)])
    frame = {"canvas_width": 96, "canvas_height": 96, "people": [{"face_keypoints_2d": face.ravel().tolist()}]}
    (pose,) = poses.read_poses(frame)
    hint = poses.render([pose])[0]
    assert not pose.notes and all(hint[int(y), int(x)].all() for x, y, _ in face)


@pytest.mark.parametrize(("count", "neck"), [(133, False), (134, True)])
def test_whole_bodies_are_split_into_their_parts(count: int, neck: bool) -> None:
    points = np.column_stack([np.arange(count) * 3.0, np.arange(count) + 9.0, np.ones(count)])
    frame = {"canvas_width": 512, "canvas_height": 512, "people": [{"pose_keypoints_2d": points.ravel().tolist()}]}
    person = poses.read_poses(frame)[0].people[0]
    size = 18 if neck else 17
    body, (face, left, right) = points[:size], np.split(points[size + 6 :], (68, 89))
    assert np.array_equal(person.body, body if neck else poses.body_from_coco17(body))
    assert np.array_equal(person.face, face)
    assert np.array_equal(person.left_hand, left) and np.array_equal(person.right_hand, right)


def test_a_body_of_coco_is_drawn_with_a_neck() -> None:
    points = np.column_stack([np.arange(17) * 10.0 + 5, np.arange(17) * 3.0 + 5, np.full(17, 0.9)])
    frame = {"canvas_width": 256, "canvas_height": 256, "people": [{"pose_keypoints_2d": points.ravel().tolist()}]}
    assert np.array_equal(poses.read_poses(frame)[0].people[0].body, poses.body_from_coco17(points))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"people": [{"pose_keypoints_2d": [5.0, 5.0, 1.0] * 33}]}, "33 keypoints, the form of MediaPipe"),
        (
            {"people": [{"pose_keypoints_2d": [5.0, 5.0, 1.0] * 135}]},
            "135 keypoints, the form of OpenPose's whole body",
        ),
        ({"people": [{"pose_keypoints_2d": [5.0, 5.0, 1.0] * 26}]}, "26 keypoints, the form of Halpe"),
        ({"images": [], "annotations": []}, "a COCO data set"),
        ({"meta_info": {}, "instance_info": []}, "an MMPose prediction"),
        ([{"image_id": 1, "keypoints": []}], "a COCO or MMPose result"),
        (7, "something else"),
    ],
)
def test_other_forms_are_refused_by_name(data: object, name: str) -> None:
    data = {**data, "canvas_width": 64, "canvas_height": 64} if isinstance(data, dict) else data
    with pytest.raises(PictureError, match=name):
        poses.read_poses(data)


@pytest.mark.parametrize("outside", [1.05, 3.0, -0.4])
def test_shares_of_the_canvas_are_known_by_all_points_of_the_file(outside: float) -> None:
    whole = poses.template_pose("standing", 200, 100)
    shares = whole.people[0].body * (1 / 100, 1 / 200, 1)
    shares[4, :2] = outside
    people = [{"pose_keypoints_2d": shares.ravel().tolist()}]
    tiny = [{"pose_keypoints_2d": [0.5, 0.5, 1.0] + [0.0] * 51}]
    frames = [{"people": found, "canvas_width": 100, "canvas_height": 200} for found in (people, tiny, [])]
    read = poses.read_poses(frames)
    assert np.allclose(read[0].people[0].body[:, :2], shares[:, :2] * (100, 200))
    assert np.allclose(read[1].people[0].body[0], (50, 100, 1))


def test_a_small_figure_in_pixels_stays_small() -> None:
    small = poses.template_pose("standing", 12, 12).people[0].body
    frame = {"canvas_width": 512, "canvas_height": 512, "people": [{"pose_keypoints_2d": small.ravel().tolist()}]}
    assert np.array_equal(poses.read_poses(frame)[0].people[0].body, small)


def test_a_canvas_of_a_few_bytes_takes_no_memory() -> None:
    bomb = '{"people":[],"canvas_width":16384,"canvas_height":16384}'
    with pytest.raises(PictureError, match=r"16384x16384 has 268,435,456 pixels, expected at most 67,108,864"):
        poses.read_poses(bomb)
    frame = {"people": [], "canvas_width": 8192, "canvas_height": 8192}
    with pytest.raises(PictureError, match=r"the canvases have 1,140,850,688 pixels"):
        poses.read_poses([frame] * 17)
    with pytest.raises(PictureError, match=r"10,001 frames, expected at most 10,000"):
        poses.read_poses([{"people": [], "canvas_width": 1, "canvas_height": 1}] * 10_001)
    with pytest.raises(PictureError, match=r"2 hints of 8192x8192 have 134,217,728 pixels"):
        poses.render(poses.read_poses([frame] * 2))


def test_a_file_without_a_canvas_takes_the_size_that_is_given() -> None:
    body = poses.template_pose("t_pose", 64, 96).people[0].body
    frame = {"people": [{"pose_keypoints_2d": body.ravel().tolist(), "face_keypoints_2d": []}]}
    with pytest.raises(PictureError, match="names no canvas size"):
        poses.read_poses(frame)
    (pose,) = poses.read_poses(frame, height=64, width=96)
    assert np.array_equal(poses.render([pose]), poses.render([poses.template_pose("t_pose", 64, 96)]))


def test_coco_points_get_a_neck_between_the_shoulders() -> None:
    points = np.column_stack([np.arange(17) * 10.0, np.arange(17) * 3.0, np.full(17, 0.9)])
    body = poses.body_from_coco17(points)
    assert np.allclose(body[1, :2], (points[5, :2] + points[6, :2]) / 2)
    named = dict(zip(BODY_NAMES, body[:, 0] / 10, strict=True))
    assert named["left_shoulder"] == 5 and named["right_shoulder"] == 6 and named["right_ankle"] == 16
    assert named["left_eye"] == 1 and named["right_ear"] == 4 and named["left_wrist"] == 9
    points[6, 2] = 0
    assert poses.body_from_coco17(points)[1, 2] == 0


@pytest.mark.parametrize("name", poses.TEMPLATES)
def test_templates_fill_their_box(name: str) -> None:
    box = (30.0, 20.0, 180.0, 240.0)
    body = poses.template_pose(name, 256, 200, box=box).people[0].body
    low, high = body[:, :2].min(axis=0), body[:, :2].max(axis=0)
    assert (low >= np.array(box[:2]) - 1e-6).all() and (high <= np.array(box[2:]) + 1e-6).all()
    assert high[1] == pytest.approx(box[3])
    assert high[1] - low[1] == pytest.approx(220) or high[0] - low[0] == pytest.approx(150)
    assert body[2, 0] < body[5, 0], "the person's right is on the left of the picture"
    stretched = poses.fit_to_box(poses.template(name), box, keep_aspect=False).body
    assert np.allclose(stretched[:, :2].max(axis=0), box[2:])


def test_unknown_template_and_mixed_canvases() -> None:
    with pytest.raises(ParameterError, match="standing"):
        poses.template("flying")
    mixed = [poses.template_pose("standing", 64, 64), poses.template_pose("standing", 64, 96)]
    with pytest.raises(PictureError, match="64x64, 64x96"):
        poses.render(mixed)
    assert poses.render(mixed, height=32, width=48).shape == (2, 32, 48, 3)
    with pytest.raises(PictureError, match="18 body keypoints"):
        poses.draw_poses(np.zeros((1, 17, 3)), 64, 64)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"canvas_width": 1e9}, r"the canvas width is '1000000000.0': expected pixels, from 1 to 16384"),
        ({"canvas_height": -5}, "canvas height is '-5'"),
        ({"canvas_height": math.nan}, "canvas height is 'nan'"),
        ({"canvas_width": "wide"}, "canvas width is 'wide'"),
        ({"people": 1}, '"people" holds something else'),
        ({"people": [1]}, '"people" holds something else'),
        ({"people": {"a": 1}}, '"people" holds something else'),
        ({"people": [{"pose_keypoints_2d": ["a"] * 54}]}, "pose_keypoints_2d holds something else than numbers"),
        ({"people": [{"pose_keypoints_2d": [[1, 2], [3]]}]}, "pose_keypoints_2d holds something else than numbers"),
        ({"people": [{"pose_keypoints_2d": 5}]}, "has 1 numbers; expected triples"),
        ({"people": [{"pose_keypoints_2d": [math.nan] * 54}]}, "no place in a picture"),
        ({"people": [{"pose_keypoints_2d": [1e300] * 54}]}, "pose_keypoints_2d holds numbers that are no place"),
        ({"people": [{"pose_keypoints_2d": [10**400] * 54}]}, "pose_keypoints_2d holds something else than numbers"),
        ({"people": [{}] * 1001}, r"a frame has 1,001 people, expected at most 1,000"),
    ],
)
def test_poses_that_are_none(changes: dict[str, object], said: str) -> None:
    frame = {"canvas_width": 64, "canvas_height": 64, "people": [], **changes}
    with pytest.raises(PictureError, match=said):
        poses.read_poses(frame)
    with pytest.raises(PictureError, match=said):
        poses.read_poses(json.dumps([frame]))


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{"])
def test_texts_that_are_no_json(text: str) -> None:
    with pytest.raises(PictureError, match="the pose is not valid JSON"):
        poses.read_poses(text)


def test_keypoints_far_outside_the_canvas_are_drawn_as_far_as_they_reach_in() -> None:
    points = np.tile([30.0, 30.0, 1.0], (18, 1))
    points[4] = [-900_000.0, 900_000.0, 1.0]
    frame = {"canvas_width": 64, "canvas_height": 64, "people": [{"pose_keypoints_2d": points.ravel().tolist()}]}
    hint = poses.render(poses.read_poses(frame))
    assert hint.shape == (1, 64, 64, 3)
    assert hint.any()


def test_parts_of_another_kind_than_the_file_are_read_as_what_they_are() -> None:
    share = np.column_stack([np.random.default_rng(0).random((18, 2)), np.ones(18)])
    pixels = share * (100.0, 200.0, 1.0)
    face = np.tile([[0.5, 0.25, 1.0]], (68, 1))
    canvas = {"canvas_width": 100, "canvas_height": 200}

    def person(body: np.ndarray, **parts: np.ndarray) -> dict[str, list[float]]:
        return {"pose_keypoints_2d": body.ravel().tolist(), **{k: v.ravel().tolist() for k, v in parts.items()}}

    for people in (
        [person(share), person(share), person(pixels)],
        [person(pixels), person(pixels), person(share)],
        [person(pixels, face_keypoints_2d=face)],
    ):
        (found,) = poses.read_poses({"people": people, **canvas})
        for one in found.people:
            assert np.allclose(one.body, pixels)
            assert one.face is None or np.allclose(one.face[:, :2], (50.0, 50.0))
        assert found.notes and found.notes[-1].startswith("1 parts of a figure are in ")
    frames = [{"people": [person(body)], **canvas} for body in (share, share, pixels)]
    assert all(np.allclose(found.people[0].body, pixels) for found in poses.read_poses(frames))


def test_a_few_points_do_not_say_what_they_are() -> None:
    # Two seen points at pixels (1, 1) and (2, 2) of a file of pixels stay where they are.
    few = [1.0, 1.0, 1.0, 2.0, 2.0, 1.0] + [0.0] * 48
    many = np.column_stack([np.full((18, 2), 60.0), np.ones(18)]).ravel().tolist()
    people = [{"pose_keypoints_2d": few}, {"pose_keypoints_2d": many}]
    (found,) = poses.read_poses({"people": people, "canvas_width": 100, "canvas_height": 100})
    assert np.allclose(found.people[0].body[:2, :2], [[1, 1], [2, 2]]) and not found.notes


def test_an_empty_list_is_no_pose_file() -> None:
    with pytest.raises(PictureError, match="holds no frame"):
        poses.read_poses("[]")
