"""Preprocessors through transformers: tiny random models in local folders, opened, run and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.learned import pretrained
from comfyui_controlnet_core.preprocessors.learned.catalog_pretrained import PRETRAINED
from comfyui_controlnet_core.preprocessors.learned.library import Library
from comfyui_controlnet_core.preprocessors.palettes import hint_to_labels, palette
from comfyui_controlnet_core.preprocessors.registry import Entry, Weights

from .conftest import make_pictures

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.modeling_outputs")
FRAMES = make_pictures(2, 50, 70)
SIZE = {"height": 32, "width": 32}


def dpt() -> tuple[Any, Any]:
    config = transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, is_hybrid=False,
    )  # fmt: skip
    processor = transformers.DPTImageProcessor(size=SIZE, do_pad=False)
    return transformers.DPTForDepthEstimation(config), processor


def segformer(classes: int = 150) -> tuple[Any, Any]:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[8, 16], num_attention_heads=[1, 2],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=classes,
    )  # fmt: skip
    processor = transformers.SegformerImageProcessor(size=SIZE)
    return transformers.SegformerForSemanticSegmentation(config), processor


def sam() -> tuple[Any, Any]:
    vision = transformers.SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16,
        num_pos_feats=8, mlp_dim=16, window_size=2, global_attn_indexes=[0],
    )  # fmt: skip
    prompt = transformers.SamPromptEncoderConfig(
        hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4, image_embedding_size=4
    )
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=decoder.to_dict()
    )
    processor = transformers.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return transformers.SamModel(config), processor


def rtdetr() -> tuple[Any, Any]:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[8, 16, 16],
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_layers=1,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        num_queries=12,
        num_denoising=0,
        num_labels=80,
        use_pretrained_backbone=False,
    )
    processor = transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})
    return transformers.RTDetrForObjectDetection(config), processor


def vitpose() -> tuple[Any, Any]:
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[32, 24],
        patch_size=[8, 8],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        out_indices=[1],
    )
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=True)
    processor = transformers.VitPoseImageProcessor(size={"height": 32, "width": 24})
    return transformers.VitPoseForPoseEstimation(config), processor


def save(folder: Path, make: Callable[[], tuple[Any, Any]]) -> None:
    torch.manual_seed(0)
    model, processor = make()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def models(tmp_path: Path, entry: Entry, *makers: Callable[[], tuple[Any, Any]]) -> Library:
    for weights, make in zip(entry.weights, makers, strict=True):
        save(tmp_path / "transformers" / weights.file, make)
    return Library([tmp_path])


def test_depth_is_a_range_of_grays_and_opened_once(tmp_path: Path) -> None:
    entry = preprocessors.get("depth_dpt")
    library = models(tmp_path, entry, dpt)
    hint = entry.process(FRAMES, library=library)
    assert hint.shape == (2, 50, 70, 3) and hint.min() == 0.0 and hint.max() == 1.0
    (kept,) = library._opened.values()
    assert np.array_equal(entry.process(FRAMES, library=library), hint)
    assert next(iter(library._opened.values())) is kept


@pytest.mark.parametrize(("classes", "name"), [(150, "ade20k"), (133, "coco")])
def test_segmentation_has_the_colours_of_the_palette(classes: int, name: str, tmp_path: Path) -> None:
    entry = preprocessors.get("segment_segformer")
    hint = entry.process(FRAMES, library=models(tmp_path, entry, lambda: segformer(classes)))
    assert hint.shape == (2, 50, 70, 3)
    assert (hint_to_labels(hint, name) >= 0).all()
    known = {tuple(colour) for colour in palette(name).colours.tolist()}
    assert {tuple(colour) for colour in np.rint(hint.reshape(-1, 3) * 255).astype(int).tolist()} <= known


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    entry = preprocessors.get("segment_segformer")
    with pytest.raises(preprocessors.WeightsError, match="knows 19 classes"):
        entry.process(FRAMES, library=models(tmp_path, entry, lambda: segformer(19)))


def test_sam_finds_regions_of_the_right_size(tmp_path: Path) -> None:
    entry = preprocessors.get("segment_sam")
    hint = entry.process(FRAMES, library=models(tmp_path, entry, sam), points=3)
    assert hint.shape == (2, 50, 70, 3) and np.isfinite(hint).all()


def test_vitpose_draws_people(tmp_path: Path) -> None:
    if not hasattr(transformers, "VitPoseForPoseEstimation"):
        pytest.skip("this release of transformers has no ViTPose")
    entry = preprocessors.get("pose_vitpose")
    library = models(tmp_path, entry, rtdetr, vitpose)
    hint = entry.process(FRAMES, library=library, person_score=0.0, point_score=0.0)
    assert hint.shape == (2, 50, 70, 3) and np.isfinite(hint).all()
    assert not entry.process(FRAMES, library=library, person_score=1.0).any(), "nobody is found, nobody is drawn"


@pytest.mark.parametrize("entry", PRETRAINED, ids=lambda entry: entry.name)
def test_a_missing_folder_is_an_error_that_helps(entry: Entry, tmp_path: Path) -> None:
    with pytest.raises(preprocessors.WeightsError) as caught:
        entry.process(FRAMES, library=Library([tmp_path]))
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
        entry.process(FRAMES, library=Library([tmp_path]))


def test_an_old_transformers_is_named() -> None:
    with pytest.raises(preprocessors.WeightsError, match=r"has no NetOfTheFuture: update it to at least 9\.9"):
        pretrained._class("NetOfTheFuture", pretrained.Kind("NetOfTheFuture", "AutoImageProcessor", "9.9"))


@pytest.mark.parametrize(("kind", "near_value"), [("dpt", 9.0), ("zoedepth", 1.0), ("depth_pro", 1.0)])
def test_disparities_and_distances_both_end_with_near_white(kind: str, near_value: float) -> None:
    """The left half is near: a large disparity, or a small distance."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = transformers.PretrainedConfig()
            self.config.model_type = kind
            self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            found = torch.full((len(pixel_values), 20, 30), 10.0 - near_value)
            found[:, :, :15] = near_value
            return transformers.modeling_outputs.DepthEstimatorOutput(predicted_depth=found)

    class Known(Library):
        def folder(self, weights: Weights, load: Any) -> Any:
            return Net(), lambda images, return_tensors: {"pixel_values": torch.zeros(len(images), 3, 20, 30)}

    hint = preprocessors.process("depth_dpt", FRAMES, library=Known(()))
    assert hint[:, 25, 5].min() > 0.9 and hint[:, 25, 65].max() < 0.1
