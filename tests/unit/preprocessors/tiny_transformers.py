"""Models of the package transformers, as small as they come and random, in folders as `save_pretrained` gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.preprocessors.entry import Entry
from comfyui_controlnet_core.preprocessors.learned.library import Library

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.modeling_outputs")
SIZE = {"height": 32, "width": 32}
# A model with its processor, or the state dict of a file.
Maker = Callable[[], tuple[Any, ...] | dict[str, torch.Tensor]]


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
    net = transformers.RTDetrForObjectDetection(config)
    # It sees people and cats wherever it looks: a random one hardly ever finds any.
    for layer in net.model.decoder.class_embed:
        layer.bias.data[[0, 15]] = 4.0
    return net, processor


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


def vitpose_plus() -> dict[str, torch.Tensor]:
    """A file of ViTPose+'s authors: six experts, the heads of COCO, AIC, MPII, AP-10K, APT-36K, COCO-WholeBody."""
    width, hidden, part = 16, 64, 4
    shapes = {
        "backbone.cls_token": (1, 1, width),
        "backbone.pos_embed": (1, 13, width),
        "backbone.patch_embed.proj.weight": (width, 3, 8, 8), "backbone.patch_embed.proj.bias": (width,),
        "backbone.last_norm.weight": (width,), "backbone.last_norm.bias": (width,),
    }  # fmt: skip
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (hidden, width)}
    layers |= {"mlp.fc2": (width - part, hidden), **{f"mlp.experts.{expert}": (part, hidden) for expert in range(6)}}
    for block in ("backbone.blocks.0", "backbone.blocks.1"):
        for name, shape in layers.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
    heads = ("keypoint_head", *(f"associate_keypoint_heads.{number}" for number in range(5)))
    for head, points in zip(heads, (17, 14, 16, 17, 17, 133), strict=True):
        for layer, inputs in ((0, width), (3, 256)):
            shapes[f"{head}.deconv_layers.{layer}.weight"] = (inputs, 256, 4, 4)
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{head}.deconv_layers.{layer + 1}.{name}"] = (256,)
        shapes |= {f"{head}.final_layer.weight": (points, 256, 1, 1), f"{head}.final_layer.bias": (points,)}
    state = {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}
    return {name: value.abs() + 0.5 if name.endswith("running_var") else value for name, value in state.items()}


def depth_anything(kind: str = "metric") -> tuple[Any, Any]:
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind, max_depth=20,
    )  # fmt: skip
    return transformers.DepthAnythingForDepthEstimation(config), _Nothing()


def upernet() -> tuple[Any, Any]:
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_in_channels=16, auxiliary_channels=8, num_labels=150
    )
    return transformers.UperNetForSemanticSegmentation(config), transformers.SegformerImageProcessor(size=SIZE)


def zoedepth() -> tuple[Any, Any]:
    backbone = transformers.BeitConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        reshape_hidden_states=False, use_relative_position_bias=True,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone, backbone=None, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8,
        bottleneck_features=8, bin_embedding_dim=8, num_relative_features=8, num_attractors=[4, 4, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
        patch_transformer_hidden_size=16, patch_transformer_intermediate_size=16,
        patch_transformer_num_attention_heads=2,
    )  # fmt: skip
    processor = transformers.ZoeDepthImageProcessor(size=SIZE, keep_aspect_ratio=False, ensure_multiple_of=8)
    return transformers.ZoeDepthForDepthEstimation(config), processor


def depth_pro() -> tuple[Any, Any]:
    vision = {
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2,
        "image_size": 16, "patch_size": 4, "use_mask_token": False,
    }  # fmt: skip
    config = transformers.DepthProConfig(
        fusion_hidden_size=8, patch_size=16, initializer_range=0.02, intermediate_hook_ids=[3, 1],
        intermediate_feature_dims=[8, 8], scaled_images_ratios=[0.25, 0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.5, 0.25],
        scaled_images_feature_dims=[16, 8, 8], merge_padding_value=1, use_batch_norm_in_fusion_residual=False,
        use_bias_in_fusion_residual=True, use_fov_model=False, num_fov_head_layers=2,
        image_model_config=vision, patch_model_config=vision, fov_model_config=vision,
    )  # fmt: skip
    return transformers.DepthProForDepthEstimation(config), _Nothing()


class _Nothing:
    """In place of a processor that ours does without: from 5.0 on Depth Pro's needs torchvision."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "DepthProImageProcessor"}', "utf-8")


def oneformer(classes: int = 150) -> tuple[Any, ...]:
    backbone = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.OneFormerConfig(
        backbone_config=backbone, num_queries=6, hidden_dim=64, conv_dim=64, mask_dim=64, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, query_dec_layers=1,
        text_encoder_width=16, text_encoder_num_layers=1, text_encoder_vocab_size=600, text_encoder_n_ctx=2,
        is_training=False, num_labels=classes, use_pretrained_backbone=False,
    )  # fmt: skip
    return transformers.OneFormerForUniversalSegmentation(config), _OneFormerFiles()


class _OneFormerFiles:
    """What a download of a OneFormer repository holds beside the weights: its names of classes are elsewhere."""

    def save_pretrained(self, folder: Path) -> None:
        images = {
            "image_processor_type": "OneFormerImageProcessor", "processor_class": "OneFormerProcessor",
            "class_info_file": "ade20k_panoptic.json", "repo_path": "shi-labs/oneformer_demo", "num_text": 4,
            "do_resize": True, "do_rescale": True, "do_normalize": True, "do_reduce_labels": False, "ignore_index": 255,
            "size": {"shortest_edge": 32, "longest_edge": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        }  # fmt: skip
        letters = sorted("abcdefghijklmnopqrstuvwxyz")
        tokens = ["<|startoftext|>", "<|endoftext|>", "th", *letters, *(f"{letter}</w>" for letter in letters)]
        files = {
            "preprocessor_config.json": images,
            "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
            "vocab.json": {token: number for number, token in enumerate(tokens)},
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content), "utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\nt h\n", "utf-8")


MAKERS: dict[str, tuple[Maker, ...]] = {
    "depth_dpt": (dpt,),
    "depth_zoe": (zoedepth,),
    "depth_pro": (depth_pro,),
    "segment_oneformer_ade20k": (oneformer,),
    "segment_oneformer_coco": (lambda: oneformer(133),),
    "segment_segformer": (segformer,),
    "segment_upernet": (upernet,),
    "segment_sam": (sam,),
    "pose_vitpose": (rtdetr, vitpose),
    "pose_vitpose_plus": (rtdetr, *[vitpose_plus] * 4),
    "pose_animal": (rtdetr, *[vitpose_plus] * 4),
    "depth_anything_v2_metric": (depth_anything, depth_anything),
}
"""What stands in for the folders of each kind."""


def save(folder: Path, make: Callable[[], tuple[Any, Any]]) -> None:
    torch.manual_seed(0)
    model, processor = make()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def models(tmp_path: Path, entry: Entry, *makers: Callable[[], Any]) -> Library:
    for weights, make in zip(entry.weights, makers, strict=True):
        path = tmp_path / "transformers" / weights.file
        if weights.is_folder:
            save(path, make)
        else:
            torch.manual_seed(0)
            torch.save({"state_dict": make(), "meta": {"epoch": 1}}, path)
    return Library([tmp_path])
