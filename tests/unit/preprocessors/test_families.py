"""Families: every preprocessor has its node, and its settings reach it under clear names."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.nodes import build_nodes, own_nodes
from comfyui_controlnet_core.nodes.preprocess import read_settings
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.preprocessors import pose
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.entry import Entry
from comfyui_controlnet_core.preprocessors.examples import SAMPLES, example
from comfyui_controlnet_core.preprocessors.families import FAMILIES, Family

from .conftest import WEIGHT_FREE, make_pictures

CLASSES = build_nodes(StandaloneHost(device="cpu", dtype="fp32"))
IMAGE = torch.from_numpy(make_pictures(1, 64, 64))


def run(name: str, **inputs: Any) -> Any:
    """A node with its defaults, as the editor would run it."""
    declared = CLASSES[name].INPUT_TYPES()
    values = {key: e[1]["default"] for group in declared.values() for key, e in group.items() if "default" in e[1]}
    return CLASSES[name]().run(**{**values, **inputs})["result"]


def masked(family: Family) -> dict[str, torch.Tensor]:
    return {"mask": IMAGE[..., 0]} if family.needs_mask else {}


def test_every_preprocessor_belongs_to_one_family_and_every_family_is_a_node() -> None:
    kinds = [kind for family in FAMILIES for kind in family.kinds]
    assert sorted(kinds) == sorted(preprocessors.names())
    assert {f"CNCore_{family.name}" for family in FAMILIES} <= set(own_nodes())
    assert [family.name for family in FAMILIES if "soft_edge_hed" in family.kinds] == ["SoftEdge"]


def test_the_default_needs_no_files_wherever_an_honest_one_exists() -> None:
    learned = {family.name for family in FAMILIES if family.entries[0].weights}
    assert learned == {"Depth", "Normal", "Pose", "Segmentation"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_defaults_of_a_node_are_those_of_each_of_its_kinds(family: Family) -> None:
    defaults = {field.name: field.parameter.default for field in family.fields}
    for entry in family.entries:
        assert entry.values(family.parameters(entry.name, defaults)) == entry.values({})
        assert len(family.parameters(entry.name, defaults)) == len(entry.parameters)
    reserved = {"image", "kind", "resolution", "mask", "normalize", "seed"}
    assert not reserved & set(defaults)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if not family.entries[0].weights], ids=lambda family: family.name
)
def test_a_family_node_gives_the_hint_of_the_library_and_says_so(family: Family) -> None:
    for entry in family.entries:
        if entry.weights:
            continue
        kind = {"kind": entry.name} if len(family.kinds) > 1 else {}
        hint, text = run(f"CNCore_{family.name}", image=IMAGE, **kind, **masked(family))
        assert torch.equal(hint, preprocessors.process(entry, IMAGE, **masked(family)))
        assert text.startswith(f"{entry.name} ({entry.backend}, {entry.nature})") and entry.polarity in text
        assert f"64x64 to {hint.shape[2]}x64" in text


def test_settings_of_two_kinds_by_one_name_are_kept_apart() -> None:
    names = {field.name: field.kinds for field in next(f for f in FAMILIES if f.name == "Scribble").fields}
    assert names["threshold"] == ("scribble",) and names["scribble_drawing_threshold"] == ("scribble_drawing",)
    hint, text = run("CNCore_Scribble", image=IMAGE, kind="scribble_drawing", threshold=1, scribble_drawing_threshold=9)
    assert "threshold=9;" in text
    assert torch.equal(hint, preprocessors.process("scribble_drawing", IMAGE, threshold=9))


def test_normalize_and_seed_reach_their_kinds() -> None:
    depth = torch.stack([torch.linspace(1, 5, 64), torch.linspace(1, 9, 64)])[:, None, :, None].expand(2, 4, 64, 3)
    frame, batch = (run("CNCore_DepthConvert", image=depth, normalize=n)[0] for n in ("frame", "batch"))
    assert frame[0].min() == 0.0 and batch[0].min() == pytest.approx(0.5)
    one, other = (run("CNCore_Shuffle", image=IMAGE, seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(other, run("CNCore_Preprocess", image=IMAGE, kind="shuffle", resize="shortest", seed=1)[0])


def test_the_sky_of_a_z_pass_is_left_out_of_its_range() -> None:
    depth = torch.tensor([[[2.0, 4.0, 6.0, 65504.0, 1e10, float("inf")]]])[..., None].expand(1, 2, 6, 3)
    hint, _ = run("CNCore_DepthConvert", image=depth)
    assert hint[0, 0, :, 0].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("low=50, high=9.5", {"low": 50.0, "high": 9.5}),
        ("safe=true\nradius=2", {"safe": True, "radius": 2.0}),
        ("classes=sky, old tree, road, cell=8", {"classes": "sky, old tree, road", "cell": 8.0}),
    ],
)
def test_settings_as_text(text: str, expected: dict[str, Any]) -> None:
    assert read_settings(text) == expected


def test_wrong_settings_are_told_before_a_run() -> None:
    check = CLASSES["CNCore_Preprocess"].VALIDATE_INPUTS
    assert check(kind="canny", settings="low=5") is True and check(kind=None, settings="x") is True
    assert "it has low, high" in check(kind="canny", settings="lw=5")
    assert "name=value" in check(kind="canny", settings="low")
    assert "did you mean canny" in check(kind="cany", settings="")


def test_pose_render_reads_json_keypoints_and_templates() -> None:
    hint, keypoints, text = run("CNCore_PoseRender", template="waving", width=128, height=192)
    expected = pose.render([pose.template_pose("waving", 192, 128)])
    assert np.array_equal(hint, expected) and "template waving: 1 bodies" in text
    again, *_ = run("CNCore_PoseRender", json=json.dumps(keypoints))
    linked, *_ = run("CNCore_PoseRender", pose_keypoint=keypoints, json="not read", template="standing")
    assert torch.equal(again, hint) and torch.equal(linked, hint)
    larger, moved, _ = run("CNCore_PoseRender", pose_keypoint=keypoints, height=384, width=256)
    assert larger.shape == (1, 384, 256, 3) and (moved[0]["canvas_height"], moved[0]["canvas_width"]) == (384, 256)
    assert (larger > 0).any(-1).float().mean() == pytest.approx(float((hint > 0).any(-1).float().mean()), rel=0.25)
    assert not run("CNCore_PoseRender", pose_keypoint=keypoints, body=False)[0].any()
    thick = run("CNCore_PoseRender", pose_keypoint=keypoints, stroke=2.0)[0]
    assert (thick > 0).any(-1).sum() > 1.5 * (hint > 0).any(-1).sum()
    with pytest.raises(ValueRangeError, match="valid JSON"):
        run("CNCore_PoseRender", json="{")


def test_pixel_perfect_gives_the_resolution_at_which_the_hint_covers_the_picture() -> None:
    image = torch.zeros(1, 500, 741, 3)
    side, text = run("CNCore_PixelPerfect", image=image, width=512, height=768)
    assert side == 768 and "768" in text
    assert run("CNCore_PixelPerfect", image=image, width=512, height=768, fit="fill")[0] == 345
    assert run("CNCore_PixelPerfect", image=image, latent={"samples": torch.zeros(1, 4, 96, 64)})[0] == 768
    hint, _ = run("CNCore_Canny", image=image, resolution=side)
    assert hint.shape[1] >= 768 and hint.shape[2] >= 512


@pytest.mark.parametrize("entry", WEIGHT_FREE, ids=lambda entry: entry.name)
def test_every_help_page_has_its_example(entry: Entry) -> None:
    photo = np.rint(make_pictures(1, 120, 160)[0] * 255).astype(np.uint8)
    image, options = example(entry, photo)
    hint = preprocessors.process(entry, image, **options)
    assert hint.shape[1:3] == (120, 160) and hint.std() > 0.01


def test_examples_are_made_for_every_entry_that_names_one() -> None:
    assert {entry.sample for entry in ENTRIES} == set(SAMPLES)
    for entry in ENTRIES:
        entry.values(dict(entry.example))
        assert not entry.fallback or not preprocessors.get(entry.fallback).weights


def test_a_pose_without_a_canvas_takes_the_size_of_its_image() -> None:
    drawn = pose.template_pose("waving", 96, 64)
    face = [5.0, 5.0, 1.0]
    person = {"pose_keypoints_2d": drawn.people[0].body.ravel().tolist(), "face_keypoints_2d": face}
    text = json.dumps({"people": [person]})
    with pytest.raises(ValueRangeError, match="names no canvas size"):
        run("CNCore_PoseRender", json=text)
    hint, _, report = run("CNCore_PoseRender", json=text, image=torch.zeros(1, 96, 64, 3))
    assert np.array_equal(hint.numpy(), pose.render([drawn])) and "left out a face of 1 keypoints" in report
    larger, _, _ = run("CNCore_PoseRender", json=text, image=torch.zeros(1, 96, 64, 3), width=128, height=192)
    assert np.array_equal(larger.numpy(), pose.render([drawn.resized(192, 128)]))
    assert np.array_equal(run("CNCore_PoseRender", json=text, width=64, height=96)[0].numpy(), hint.numpy())
