"""Whole bodies and animals by ViTPose+: its file against transformers' mixture of experts, keypoints, drawing, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors import pose
from comfyui_controlnet_core.preprocessors.learned import vitpose_plus
from comfyui_controlnet_core.preprocessors.learned.library import Library

from .conftest import make_pictures
from .tiny_transformers import models, rtdetr, transformers
from .tiny_transformers import vitpose_plus as random_file

FRAMES = make_pictures(2, 50, 70)
needs_vitpose = pytest.mark.skipif(
    not hasattr(transformers, "VitPoseForPoseEstimation"), reason="this release of transformers has no ViTPose"
)


def _mixture(state: dict[str, torch.Tensor], head: str, points: int) -> torch.nn.Module:
    """Transformers' own network with six experts, filled layer by layer and not by names."""
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[32, 24], patch_size=[8, 8], hidden_size=16, num_hidden_layers=2, num_attention_heads=1, mlp_ratio=4,
        num_experts=6, part_features=4, out_indices=[2], layer_norm_eps=1e-6,
    )  # fmt: skip
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=points, use_simple_decoder=False)
    net = transformers.VitPoseForPoseEstimation(config).eval()

    def fill(module: Any, name: str) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, part, None) is not None:
                getattr(module, part).data.copy_(state[f"{name}.{part}"])

    embeddings = net.backbone.embeddings
    embeddings.position_embeddings.data.copy_(state["backbone.pos_embed"])
    fill(embeddings.patch_embeddings.projection, "backbone.patch_embed.proj")
    fill(net.backbone.layernorm, "backbone.last_norm")
    for number, layer in enumerate(net.backbone.encoder.layer):
        block = f"backbone.blocks.{number}"
        own = layer.attention.attention
        for index, linear in enumerate((own.query, own.key, own.value)):
            rows = slice(16 * index, 16 * index + 16)
            linear.weight.data.copy_(state[f"{block}.attn.qkv.weight"][rows])
            linear.bias.data.copy_(state[f"{block}.attn.qkv.bias"][rows])
        fill(layer.attention.output.dense, f"{block}.attn.proj")
        fill(layer.layernorm_before, f"{block}.norm1")
        fill(layer.layernorm_after, f"{block}.norm2")
        fill(layer.mlp.fc1, f"{block}.mlp.fc1")
        fill(layer.mlp.fc2, f"{block}.mlp.fc2")
        for expert, linear in enumerate(layer.mlp.experts):
            fill(linear, f"{block}.mlp.experts.{expert}")
    decoder = (net.head.deconv1, net.head.batchnorm1, net.head.deconv2, net.head.batchnorm2)
    for number, module in zip((0, 1, 3, 4), decoder, strict=True):
        fill(module, f"{head}.deconv_layers.{number}")
    fill(net.head.conv, f"{head}.final_layer")
    return net


@needs_vitpose
@pytest.mark.parametrize(("task", "index", "head"), [(vitpose_plus.WHOLE_BODY, 5, 4), (vitpose_plus.ANIMALS, 3, 2)])
@torch.inference_mode()
def test_one_expert_equals_the_mixture_of_experts(
    task: vitpose_plus.Task, index: int, head: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    state, pictures = random_file(), torch.randn(3, 3, 32, 24)
    torch.save({"state_dict": state}, tmp_path / "file.pth")
    net, _ = vitpose_plus.open_file(tmp_path / "file.pth", task)
    reference = _mixture(state, f"associate_keypoint_heads.{head}", task.points)
    expected = reference(pictures, dataset_index=torch.full((3,), index)).heatmaps
    found = net(pictures).heatmaps
    assert found.shape == (3, task.points, 16, 12)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    other = reference(pictures, dataset_index=torch.zeros(3, dtype=torch.long)).heatmaps
    assert (found - other).abs().max() > 1e-2 * expected.abs().max(), "another expert gives another result"


@needs_vitpose
def test_people_and_animals_come_from_one_file(tmp_path: Path) -> None:
    """One after the other with one library: the network of the first is not taken for the second."""
    people, animals = preprocessors.get("pose_vitpose_plus"), preprocessors.get("pose_animal")
    library = models(tmp_path, people, rtdetr, *[random_file] * 4)
    options: dict[str, Any] = {"library": library, "person_score": 0.0, "point_score": 0.0}
    found: list[pose.Pose] = []
    hint = preprocessors.process(people, FRAMES, hands=True, face=True, keep_pose=found.append, **options)
    assert hint.any() and [frame.animals for frame in found] == [(), ()]
    bare: list[pose.Pose] = []
    preprocessors.process(people, FRAMES, keep_pose=bare.append, **options)
    for full, body in zip(found[0].people, bare[0].people, strict=True):
        assert full.left_hand is not None and full.left_hand.shape == (21, 3)
        assert full.face is not None and full.face.shape == (68, 3)
        assert body.left_hand is None and body.right_hand is None and body.face is None
        assert np.array_equal(full.body, body.body)
    kept: list[pose.Pose] = []
    hint = preprocessors.process(animals, FRAMES, keep_pose=kept.append, **options)
    assert hint.any() and kept[0].animals and not kept[0].people
    assert all(animal.shape == (17, 3) for animal in kept[0].animals)
    assert not preprocessors.process(animals, FRAMES, library=library, person_score=1.0).any()


@needs_vitpose
def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    entry = preprocessors.get("pose_animal")
    library = models(tmp_path, entry, rtdetr, *[random_file] * 4)
    path = tmp_path / "transformers" / "vitpose+_base.pth"
    whole = random_file()
    faults = {
        "no experts": (
            {key: value for key, value in whole.items() if ".experts." not in key},
            "is no file of a ViTPose",
        ),
        "no heads": ({key: value for key, value in whole.items() if "associate" not in key}, "keys missing"),
        "more keys": ({**whole, "extra.weight": torch.zeros(1)}, r"does not know \(extra\.weight\)"),
    }
    for state, message in faults.values():
        torch.save({"state_dict": state}, path)
        with pytest.raises(preprocessors.WeightsError, match=message) as caught:
            preprocessors.process(entry, FRAMES, library=Library(library.folders), person_score=0.0)
        assert str(path) in str(caught.value)


def test_a_missing_file_of_the_chosen_size_is_named(tmp_path: Path) -> None:
    entry = preprocessors.get("pose_vitpose_plus")
    needed = entry.needed_weights(entry.values({"model": "huge"}))
    assert [weights.file for weights in needed] == ["rtdetr_r50vd_coco_o365", "vitpose+_huge.pth"]
    with pytest.raises(preprocessors.WeightsError, match=r"vitpose\+_huge\.pth was not found"):
        Library([tmp_path]).find(needed[1])


def test_whole_body_keypoints_go_to_their_parts() -> None:
    """Each point has its number as x. Left shoulder: 5 in COCO, 5 in OpenPose; right wrist: 10 in COCO, 4 there."""
    points = np.stack([np.arange(133.0), np.full(133, 100.0), np.ones(133)], axis=1)
    person = pose.person_from_whole_body(points)
    assert person.body[[0, 5, 4, 1, 14, 17], 0].tolist() == [0, 5, 10, 5.5, 2, 3]
    assert person.face is not None and person.face[[0, -1], 0].tolist() == [23, 90]
    assert person.left_hand is not None and person.left_hand[[0, -1], 0].tolist() == [91, 111]
    assert person.right_hand is not None and person.right_hand[[0, -1], 0].tolist() == [112, 132]
    (read,) = pose.read_poses({"people": [{"pose_keypoints_2d": points.tolist()}]}, height=200, width=200)
    for name, part in read.people[0].parts().items():
        assert np.array_equal(part, getattr(person, name)), "the reader of pose files splits them in the same way"
    with pytest.raises(preprocessors.PictureError, match=r"expected \(133,3\)"):
        pose.person_from_whole_body(points[:17])


def _animal() -> np.ndarray:
    """A cat from its left side, 512 pixels wide."""
    places = [
        (90, 150), (110, 150), (100, 180), (160, 200), (400, 220), (170, 260), (170, 320), (170, 390), (200, 260),
        (200, 320), (200, 390), (390, 270), (400, 330), (390, 400), (360, 270), (350, 330), (360, 400),
    ]  # fmt: skip
    return np.array([(x, y, 0.7) for x, y in places], np.float64)


def test_an_animal_is_drawn_as_its_net_was_trained() -> None:
    """The lines of the annotator, five pixels wide at 512, in its order and RGB colours; no dots."""
    frame = pose.Pose((), 512, 512, animals=(_animal(),))
    hint = pose.render([frame], as_bytes=True)[0]
    middle = {
        (160, 200, 400, 220): (255, 0, 255),
        (400, 220, 390, 270): (0, 150, 0),
        (170, 320, 170, 390): (255, 50, 255),
    }
    for (x0, y0, x1, y1), colour in middle.items():
        assert tuple(hint[(y0 + y1) // 2, (x0 + x1) // 2]) == colour
    line = np.zeros((512, 512, 3), np.uint8)
    cv2.line(line, (170, 320), (170, 390), (255, 50, 255), 5)
    assert np.array_equal(hint[330:380, 160:180], line[330:380, 160:180]), "as wide as the annotator's"
    missing = _animal()
    missing[4, 2] = 0.0
    hint = pose.render([pose.Pose((), 512, 512, animals=(missing,))], as_bytes=True)[0]
    assert not hint[210, 280].any(), "a line with a missing end is not drawn"
    assert not pose.render([frame], body=False).any()


def test_animals_are_written_and_read_as_other_packs_do() -> None:
    """Flat triples under "animals", with confidence 1: a smaller one reads as a missing point there."""
    animal = _animal()
    animal[3] = 0.0
    (written,) = pose.write_poses([pose.Pose((), 512, 512, animals=(animal,))])
    assert written["version"] == "ap10k" and written["people"] == []
    assert len(written["animals"][0]) == 51 and written["animals"][0][:3] == [90.0, 150.0, 1.0]
    assert written["animals"][0][9:12] == [0.0, 0.0, 0.0]
    (read,) = pose.read_poses(written)
    assert np.array_equal(read.animals[0][:, :2], animal[:, :2])
    # The node for animals of comfyui_controlnet_aux writes nested points, and names no people.
    nested = {"version": "ap10k", "animals": [animal.tolist()], "canvas_height": 512, "canvas_width": 512}
    (again,) = pose.read_poses(nested)
    assert np.array_equal(again.animals[0], animal)
    half = read.resized(256, 256)
    assert np.array_equal(half.animals[0][:, :2], animal[:, :2] / 2)
    assert "animals" not in pose.write_poses([pose.template_pose("standing", 512, 512)])[0]
    for bad, message in (([[1, 2, 3]], "an animal has 1 keypoints"), ("cat", "something else than a list of animals")):
        with pytest.raises(preprocessors.PictureError, match=message):
            pose.read_poses({**nested, "animals": bad})
