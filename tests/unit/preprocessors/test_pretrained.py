"""Preprocessors through transformers: tiny random models in local folders, opened, run and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.catalog.pretrained import PRETRAINED
from comfyui_controlnet_core.preprocessors.entry import Entry, Weights
from comfyui_controlnet_core.preprocessors.learned import pretrained
from comfyui_controlnet_core.preprocessors.learned.library import Library
from comfyui_controlnet_core.preprocessors.learned.selftest import check
from comfyui_controlnet_core.preprocessors.palettes import palette
from hint_reading import hint_to_labels
from safetensors.torch import load_file, save_file

from .conftest import make_pictures
from .tiny_transformers import depth_anything, dpt, models, rtdetr, sam, segformer, transformers, vitpose

FRAMES = make_pictures(2, 50, 70)


def test_depth_is_a_range_of_grays_and_opened_once(tmp_path: Path) -> None:
    entry = preprocessors.get("depth_dpt")
    library = models(tmp_path, entry, dpt)
    hint = preprocessors.process(entry, FRAMES, library=library)
    assert hint.shape == (2, 50, 70, 3) and hint.min() == 0.0 and hint.max() == 1.0
    (kept,) = library._nets.values()
    assert np.array_equal(preprocessors.process(entry, FRAMES, library=library), hint)
    assert next(iter(library._nets.values())) is kept


@pytest.mark.parametrize(("classes", "name"), [(150, "ade20k"), (133, "coco")])
def test_segmentation_has_the_colours_of_the_palette(classes: int, name: str, tmp_path: Path) -> None:
    entry = preprocessors.get("segment_segformer")
    hint = preprocessors.process(entry, FRAMES, library=models(tmp_path, entry, lambda: segformer(classes)))
    assert hint.shape == (2, 50, 70, 3)
    assert (hint_to_labels(hint, name) >= 0).all()
    known = {tuple(colour) for colour in palette(name).colours.tolist()}
    assert {tuple(colour) for colour in np.rint(hint.reshape(-1, 3) * 255).astype(int).tolist()} <= known


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    entry = preprocessors.get("segment_segformer")
    with pytest.raises(preprocessors.WeightsError, match="knows 19 classes"):
        preprocessors.process(entry, FRAMES, library=models(tmp_path, entry, lambda: segformer(19)))


def test_sam_finds_regions_of_the_right_size(tmp_path: Path) -> None:
    entry = preprocessors.get("segment_sam")
    hint = preprocessors.process(entry, FRAMES, library=models(tmp_path, entry, sam), points=3)
    assert hint.shape == (2, 50, 70, 3) and np.isfinite(hint).all()


def test_vitpose_draws_people(tmp_path: Path) -> None:
    if not hasattr(transformers, "VitPoseForPoseEstimation"):
        pytest.skip("this release of transformers has no ViTPose")
    entry = preprocessors.get("pose_vitpose")
    library = models(tmp_path, entry, rtdetr, vitpose)
    hint = preprocessors.process(entry, FRAMES, library=library, person_score=0.0, point_score=0.0)
    assert hint.shape == (2, 50, 70, 3) and np.isfinite(hint).all()
    assert not preprocessors.process(entry, FRAMES, library=library, person_score=1.0).any(), (
        "nobody is found, nobody is drawn"
    )


@pytest.mark.parametrize("entry", PRETRAINED, ids=lambda entry: entry.name)
def test_a_missing_folder_is_an_error_that_helps(entry: Entry, tmp_path: Path) -> None:
    with pytest.raises(preprocessors.WeightsError) as caught:
        preprocessors.process(entry, FRAMES, library=Library([tmp_path]))
    for part in (
        entry.weights[0].file,
        entry.weights[0].source,
        entry.weights[0].licence,
        "config.json",
        str(tmp_path),
    ):
        assert part in str(caught.value)


def test_a_damaged_folder_is_refused_by_name(tmp_path: Path) -> None:
    entry = preprocessors.get("depth_dpt")
    folder = tmp_path / entry.weights[0].file
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "dpt"}')
    with pytest.raises(preprocessors.WeightsError, match="does not open"):
        preprocessors.process(entry, FRAMES, library=Library([tmp_path]))


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {key: value for key, value in state.items() if not key.startswith("head.")},
        lambda state: {key.replace("head.", "heads."): value for key, value in state.items()},
    ],
    ids=["missing", "renamed"],
)
def test_a_folder_without_all_weights_is_refused_by_its_keys(change: Any, tmp_path: Path) -> None:
    """Not run on the random weights that the package puts in their place, nor called whole by the check of the nets."""
    entry = preprocessors.get("depth_dpt")
    library = models(tmp_path, entry, dpt)
    folder = tmp_path / "transformers" / entry.weights[0].file
    _rewrite(folder, change)
    with pytest.raises(preprocessors.WeightsError, match=r"keys missing \(head\.head\.0\.bias, ") as caught:
        preprocessors.process(entry, FRAMES, library=library)
    assert str(folder) in str(caught.value) and caught.value.path == folder
    finding = check(entry, FRAMES[0], library)
    assert finding.state == "refused" and "keys missing" in finding.text


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    entry = preprocessors.get("depth_dpt")
    library = models(tmp_path, entry, dpt)
    key = "head.head.0.weight"
    _rewrite(tmp_path / "transformers" / entry.weights[0].file, lambda state: {**state, key: state[key][:2].clone()})
    with pytest.raises(preprocessors.WeightsError, match="AutoModelForDepthEstimation"):
        preprocessors.process(entry, FRAMES, library=library)


def test_a_converted_dpt_has_no_weights_that_nothing_reads(tmp_path: Path) -> None:
    entry = preprocessors.get("depth_dpt")
    library = models(tmp_path, entry, dpt)
    expected = preprocessors.process(entry, FRAMES, library=library)
    unread = "neck.fusion_stage.layers.0.residual_layer1."
    _rewrite(
        tmp_path / "transformers" / entry.weights[0].file,
        lambda state: {key: value for key, value in state.items() if not key.startswith(unread)},
    )
    assert np.array_equal(preprocessors.process(entry, FRAMES, library=library), expected)


def test_other_weights_beside_the_same_config_are_read_again(tmp_path: Path) -> None:
    entry = preprocessors.get("depth_dpt")
    library = models(tmp_path, entry, dpt)
    before = preprocessors.process(entry, FRAMES, library=library)
    _rewrite(
        tmp_path / "transformers" / entry.weights[0].file,
        lambda state: {key: value.flip(0).contiguous() for key, value in state.items()},
    )
    assert not np.array_equal(preprocessors.process(entry, FRAMES, library=library), before)


def test_an_old_transformers_is_named() -> None:
    with pytest.raises(preprocessors.WeightsError, match=r"has no NetOfTheFuture: update it to at least 9\.9"):
        pretrained.transformers_class("NetOfTheFuture", pretrained.Kind("NetOfTheFuture", "AutoImageProcessor", "9.9"))


def test_metric_depth_is_one_over_the_metres_and_no_relative_folder_is_taken(tmp_path: Path) -> None:
    entry = preprocessors.get("depth_anything_v2_metric")
    if not hasattr(transformers, pretrained.DEPTH_ANYTHING_METRIC.model):
        pytest.skip("this release of transformers has no Depth Anything")
    library = models(tmp_path, entry, depth_anything, lambda: depth_anything("relative"))
    nearness = pretrained.depth_anything_metric(FRAMES, library=library, weights=entry.weights)
    assert nearness.shape == (2, 50, 70) and nearness.min() >= 1 / 20, "the net says at most 20 m"
    fixed = preprocessors.process(entry, FRAMES, library=library, normalize="fixed", near=1.0, far=0.0)
    assert np.allclose(fixed[..., 0], np.clip(nearness, 0, 1), atol=1e-6), "white is one metre, black is infinity"
    with pytest.raises(preprocessors.WeightsError, match="gives relative depth"):
        preprocessors.process(entry, FRAMES, library=library, scene="outdoor")


@pytest.mark.parametrize(("kind", "near_value"), [("dpt", 9.0), ("zoedepth", 1.0), ("depth_pro", 1.0), ("metric", 1.0)])
def test_disparities_and_distances_both_end_with_near_white(kind: str, near_value: float) -> None:
    """The left half is near: a large disparity, or a small distance."""

    class Head(torch.nn.Module):
        max_depth = 20

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = transformers.PretrainedConfig()
            self.config.model_type = kind
            self.config.patch_size, self.config.scaled_images_ratios = 4, [0.25, 1.0]
            self.config.depth_estimation_type = "metric"
            self.head = Head()
            self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            found = torch.full((len(pixel_values), 20, 30), 10.0 - near_value)
            found[:, :, :15] = near_value
            return transformers.modeling_outputs.DepthEstimatorOutput(predicted_depth=found)

    class Known(Library):
        def folder(self, weights: Weights, load: Any) -> Any:
            return Net(), lambda images, **options: {"pixel_values": torch.zeros(len(images), 3, 20, 30)}

    name = {"depth_pro": "depth_pro", "metric": "depth_anything_v2_metric"}.get(kind, "depth_dpt")
    hint = preprocessors.process(name, FRAMES, library=Known(()))
    assert hint[:, 25, 5].min() > 0.9 and hint[:, 25, 65].max() < 0.1
