"""Keyframes with masks and block weights, and schedules from ComfyUI's CURVE."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.control.picture_part import PicturePart
from comfyui_controlnet_core.controlnet_core.control.points import PointCurve, read_points
from comfyui_controlnet_core.controlnet_core.errors import ShapeError, ValueRangeError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.contract import read_spec
from comfyui_controlnet_core.workflows.formats import Document, to_graph
from random_tensors import uniform
from torch import Tensor

STEPS = 3


MASKS = [uniform(1, 20, 20, seed=seed) for seed in range(3)]


@pytest.fixture
def scene(run: Any) -> dict[str, Any]:
    model, clip, _ = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="grey")
    (net,) = run("CNCore_LoadControlNet", control_net="demo canny (built in)")
    return {"model": model, "prompts": (positive, negative), "net": net}


def sampled(run: Any, scene: dict[str, Any], *units: dict[str, Any], batch: int = 1) -> Tensor:
    """The latent of a few steps with these units."""
    positive, negative = scene["prompts"]
    for unit in units:
        given = {"control_net": scene["net"], "image": uniform(1, 48, 48, 3, seed=9), **unit}
        positive, negative = run("CNCore_ApplyControlNet", positive=positive, negative=negative, **given)
    latent = {"samples": torch.zeros(batch, 4, 6, 6)}
    settings = {"seed": 3, "steps": STEPS, "cfg": 4.0}
    made = run("CNCore_Sample", model=scene["model"], positive=positive, negative=negative, latent=latent, **settings)
    return made[0]["samples"]


def chained(run: Any, *frames: dict[str, Any], schedule: Any = None) -> Any:
    for frame in frames:
        (schedule,) = run("CNCore_ScheduleKeyframe", schedule=schedule, **frame)
    return schedule


@torch.inference_mode()
def test_keyframes_are_units_with_windows_that_follow_one_another(run: Any, scene: dict[str, Any]) -> None:
    (soft,) = run("CNCore_BlockWeights", preset="soft")
    frames = ({"position": 0.0, "mask": MASKS[0]}, {"position": 0.5, "mask": MASKS[1], "block_weights": soft})
    made = sampled(run, scene, {"schedule": chained(run, *frames)})
    first = {"mask": MASKS[0], "end_percent": 0.499}
    second = {"mask": MASKS[1], "block_weights": soft, "start_percent": 0.5}
    assert torch.equal(made, sampled(run, scene, first, second))
    # Each of the parts has an effect, so that the test can fail.
    for other in (
        (first,),
        (second,),
        (first, {**second, "mask": MASKS[0]}),
        (first, {**second, "block_weights": None}),
    ):
        assert not torch.equal(made, sampled(run, scene, *other))


@torch.inference_mode()
def test_what_a_keyframe_does_not_say_stays(run: Any, scene: dict[str, Any]) -> None:
    (soft,) = run("CNCore_BlockWeights", preset="soft")
    falling = run("CNCore_StrengthSchedule", keyframes="0: 1, 1: 0.2", easing="linear")[0]
    left, top = torch.zeros(2, 1, 48, 48)
    left[..., :20], top[:, :30] = 1.0, 1.0
    frames = ({"position": 0.4, "mask": left}, {"position": 0.7, "block_weights": soft})
    made = sampled(run, scene, {"schedule": chained(run, *frames, schedule=falling), "mask": top})
    # The mean of a product of a row and a column is that of their means, so the masks may be multiplied before.
    apart = [{"mask": top, "end_percent": 0.399, "schedule": falling},
             {"mask": top * left, "start_percent": 0.4, "end_percent": 0.699, "schedule": falling},
             {"mask": top * left, "start_percent": 0.7, "schedule": falling, "block_weights": soft}]  # fmt: skip
    torch.testing.assert_close(made, sampled(run, scene, *apart), atol=1e-5, rtol=0)
    assert not torch.allclose(made, sampled(run, scene, *apart[:2]), atol=1e-5, rtol=0)
    # In any order of the chain.
    swapped = chained(run, *reversed(frames), schedule=falling)
    assert torch.equal(made, sampled(run, scene, {"schedule": swapped, "mask": top}))


@torch.inference_mode()
def test_a_mask_for_each_image_in_parts_of_the_batch(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    schedule = chained(run, {"position": 0.5, "mask": torch.cat(MASKS[:2])})
    both = sampled(run, scene, {"schedule": schedule}, batch=2)
    apart = [{"end_percent": 0.499}, {"mask": torch.cat(MASKS[:2]), "start_percent": 0.5}]
    assert torch.equal(both, sampled(run, scene, *apart, batch=2))
    assert not torch.equal(
        both, sampled(run, scene, {"schedule": chained(run, {"position": 0.5, "mask": MASKS[0]})}, batch=2)
    )


def test_a_part_of_the_picture_has_its_part_of_the_masks(run: Any, scene: dict[str, Any]) -> None:
    schedule = chained(run, {"position": 0.2, "mask": MASKS[0]}, {"position": 0.5})
    halves = run("CNCore_ApplyControlNet", positive=scene["prompts"][0], negative=scene["prompts"][1],
                 control_net=scene["net"], image=uniform(1, 20, 20, 3), schedule=schedule)  # fmt: skip
    unit = halves[0][0][1]["control"][0]
    part = PicturePart((20, 20), 8, 0, 8, 16).unit(unit)
    assert torch.equal(part.keyframes[0].mask, MASKS[0][:, 8:16, :16]) and part.keyframes[1].mask is None


def test_keyframes_that_are_refused(run: Any, scene: dict[str, Any]) -> None:
    with pytest.raises(ValueRangeError, match=r"a keyframe at 0\.5 follows one at 0\.5: give each position once"):
        chained(run, {"position": 0.5}, {"position": 0.5, "mask": MASKS[0]})
    with pytest.raises(ValueRangeError, match="a keyframe is at position 2"):
        chained(run, {"position": 2.0})
    (wrong,) = run("CNCore_BlockWeights", custom="1, 2")
    with pytest.raises(ValueRangeError, match="2 block weights came"):
        sampled(run, scene, {"schedule": chained(run, {"position": 0.9, "block_weights": wrong})})
    with pytest.raises(ShapeError, match="3 masks came for a batch of 2"):
        sampled(run, scene, {"schedule": chained(run, {"position": 0.9, "mask": torch.cat(MASKS)})}, batch=2)


def test_the_plan_shows_keyframes(run: Any, scene: dict[str, Any]) -> None:
    (soft,) = run("CNCore_BlockWeights", full=0.5, half=0.5, quarter=0.5, eighth=0.5, middle=0.5)
    positive, _ = run("CNCore_ApplyControlNet", positive=scene["prompts"][0], negative=scene["prompts"][1],
                      control_net=scene["net"], image=uniform(1, 48, 48, 3),
                      schedule=chained(run, {"position": 0.5, "block_weights": soft}))  # fmt: skip
    latent = {"samples": torch.zeros(1, 4, 6, 6)}
    text = run("CNCore_ControlPlan", model=scene["model"], positive=positive, latent=latent, steps=4)["result"][0]
    assert "masks or block weights from 50%" in text
    weights = {tuple(line.split()[3:]) for line in text.splitlines() if "runs in" not in line and line[:1].isdigit()}
    assert {number for row in weights for number in row} >= {"1.00", "0.50"}, text


POINTS = ((0.0, 1.0), (0.3, 0.9), (0.5, 0.1), (0.8, 0.1), (1.0, 0.6))


@pytest.mark.parametrize("interpolation", ["linear", "monotone_cubic"])
def test_a_curve_passes_through_its_points_and_stays_between_them(interpolation: str) -> None:
    curve = read_points({"points": [list(point) for point in reversed(POINTS)], "interpolation": interpolation})
    x = np.linspace(-0.1, 1.1, 241)
    y = np.array([curve(float(at)) for at in x])
    assert y[0] == 1.0 and y[-1] == 0.6 and y.min() >= 0.1 and y.max() <= 1.0
    assert [curve(at) for at, _ in POINTS] == pytest.approx([value for _, value in POINTS])
    between = (x >= 0.5) & (x <= 0.8)
    assert abs(y[between] - 0.1).max() < 1e-9 and (np.diff(y[x < 0.5]) <= 1e-12).all()
    if interpolation == "linear":
        assert curve(0.15) == pytest.approx(0.95) and curve(0.9) == pytest.approx(0.35)
    else:
        # By hand: lines of slopes -1/3 and -4, so -13/6 at 0.3, 6.5 times the first: outside the circle of radius 3.
        scale = 3.0 / np.hypot(1.0, 6.5)
        start, end = -scale / 3, -6.5 * scale / 3
        assert curve(0.15) == pytest.approx(0.95 + 0.3 * (start - end) / 8)


def test_what_counts_as_a_curve() -> None:
    class LinearCurve(namedtuple("LinearCurve", "points")):
        """As ComfyUI's class of that name."""

    assert read_points(LinearCurve([(0, 1), (1, 0)])) == PointCurve(((0.0, 1.0), (1.0, 0.0)), "linear")
    assert read_points([(0.0, 0.25)])(0.7) == 0.25
    curve = read_points([[0, 1], [1, 0]])
    assert read_points(curve) is curve and curve.interp(0.5) == curve(0.5) == 0.5
    for wrong, message in (
        ([], "no points"), ({"points": []}, "no points"), ("x", "no list of points"), (7, "no list of points"),
        ([[0, float("nan")]], "not a finite number"), ({}, "no list of points"), ([[0, 1, 2]], "no list of points"),
        ({"points": [[0, 1]], "interpolation": "spline"}, "interpolation 'spline' is unknown"),
        ([[0, 1]] * 10001, "no list of points"),
    ):  # fmt: skip
        with pytest.raises(ValueRangeError, match=message) as caught:
            read_points(wrong)
        assert "\n" not in str(caught.value)


@torch.inference_mode()
def test_a_curve_is_a_schedule(run: Any, scene: dict[str, Any]) -> None:
    line = {"points": [[0.0, 1.0], [1.0, 0.0]], "interpolation": "linear"}
    (schedule,) = run("CNCore_StrengthSchedule", curve=run("CurveEditor", curve=line)[0])
    made = sampled(run, scene, {"schedule": schedule})
    assert torch.equal(
        made, sampled(run, scene, {"schedule": run("CNCore_StrengthSchedule", keyframes="0: 1, 1: 0")[0]})
    )
    assert not torch.equal(made, sampled(run, scene, {}))


def test_the_value_of_the_editors_widget_is_read_from_a_saved_workflow(host: StandaloneHost) -> None:
    classes = build_nodes(host)
    line = {"points": [[0.0, 1.0], [1.0, 0.0]], "interpolation": "linear"}
    saved = {
        "nodes": [
            {"id": 1, "type": "CurveEditor", "inputs": [], "widgets_values": [line], "mode": 0,
             "outputs": [{"name": "curve", "type": "CURVE", "links": [1]}]},
            {"id": 2, "type": "CNCore_StrengthSchedule", "widgets_values": ["0: 1", "linear"], "mode": 0,
             "inputs": [{"name": "curve", "type": "CURVE", "link": 1}], "outputs": []},
        ],
        "links": [[1, 1, 0, 2, 0, "CURVE"]],
    }  # fmt: skip
    graph = to_graph(Document("w", workflow=saved, prompt=None), classes)
    assert graph.nodes["1"].inputs["curve"] == line
    assert graph.nodes["2"].inputs["keyframes"] == "0: 1"
    # The schedule keeps a socket where the editor has a widget for curves.
    entry = classes["CNCore_StrengthSchedule"].INPUT_TYPES()["optional"]["curve"]
    assert entry[0] == "CURVE" and entry[1]["forceInput"] is True
    assert not read_spec("", classes["CNCore_StrengthSchedule"]).inputs["curve"].is_widget

    class HostEditor:
        """As ComfyUI describes its own node."""

        RETURN_TYPES = ("CURVE",)

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"curve": ("CURVE", {"socketless": True, "default": [[0, 0], [1, 1]]})}}

    assert read_spec("", HostEditor).inputs["curve"].is_widget
