"""ViTPose+ from its authors' file: one network for bodies, whole bodies and animals.

The last layer of each block has a shared part and one expert for each data set, and each data set has its own head. The
folders that transformers publishes have only the head of COCO's 17 points, so that whole bodies and animals need the
authors' file. One expert and its head are taken out of it: together with the shared part they are a plain ViTPose,
which the package transformers runs. Source: Xu et al. 2023, "ViTPose++: Vision Transformer for Generic Body Pose
Estimation".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import reading_weights
from ..pose.people import Person, Pose, person_from_whole_body
from .files import load_strict, read_state
from .pretrained import DETECTOR, VITPOSE, detect, find_keypoints, open_folder, transformers_class

if TYPE_CHECKING:
    from ..entry import Weights
    from .library import Library

MODELS = ("base", "small", "large", "huge")
"""The files that the authors publish, in the order of the entry's weights."""
# COCO's classes of animals: bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe.
_ANIMALS = range(14, 24)
_PERSON = range(1)
# The width does not tell the number of attention heads: the small net has heads of 32 channels, the others of 64 or 80.
_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}
# Names of the authors, and those of transformers.
_BACKBONE = (
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("pos_embed", "embeddings.position_embeddings"),
    ("blocks.", "encoder.layer."),
    ("attn.proj.", "attention.output.dense."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("last_norm.", "layernorm."),
)
_HEAD = {
    "deconv_layers.0": "deconv1", "deconv_layers.1": "batchnorm1", "deconv_layers.3": "deconv2",
    "deconv_layers.4": "batchnorm2", "final_layer": "conv",
}  # fmt: skip
_HEAD_KEY = re.compile(r"(keypoint_head|associate_keypoint_heads\.\d+)\.(deconv_layers\.\d|final_layer)\.(\w+)")


@dataclass(frozen=True)
class Task:
    """A data set of ViTPose+. expert: its number in the file. points: keypoints of one figure."""

    name: str
    expert: int
    points: int


# The order of the training: COCO, AI Challenger, MPII, AP-10K, APT-36K, COCO-WholeBody.
ANIMALS = Task("AP-10K", 3, 17)
WHOLE_BODY = Task("COCO-WholeBody", 5, 133)


def people(
    frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], hands: bool = False, face: bool = False,
    person_score: float = 0.3, point_score: float = 0.3, model: str = "base",
) -> list[Pose]:  # fmt: skip
    """(B,H,W,3) uint8 RGB -> a pose per frame: people found by RT-DETR, body, hands and face by ViTPose+.

    weights: the detector's folder, then a file for each of MODELS. hands, face: whether to return these parts.
    """

    def person(points: np.ndarray) -> Person:
        found = person_from_whole_body(points)
        sides = (found.left_hand, found.right_hand) if hands else (None, None)
        return Person(found.body, *sides, found.face if face else None)

    found = _figures(frames, library, weights, WHOLE_BODY, _PERSON, (person_score, point_score), model)
    height, width = frames.shape[1:3]
    return [Pose(tuple(map(person, figures)), height, width) for figures in found]


def animals(
    frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], person_score: float = 0.3,
    point_score: float = 0.3, model: str = "base",
) -> list[Pose]:  # fmt: skip
    """(B,H,W,3) uint8 RGB -> a pose per frame, with the 17 points of AP-10K for each animal that RT-DETR finds."""
    found = _figures(frames, library, weights, ANIMALS, _ANIMALS, (person_score, point_score), model)
    height, width = frames.shape[1:3]
    return [Pose((), height, width, animals=tuple(figures)) for figures in found]


def _figures(
    frames: np.ndarray, library: Library, weights: tuple[Weights, ...], task: Task, classes: range,
    scores: tuple[float, float], model: str,
) -> list[np.ndarray]:  # fmt: skip
    """The keypoints (N,K,3) of the figures in each frame. scores: the lowest of a figure, and of a point."""
    detector, detector_processor = open_folder(weights[0], library, DETECTOR)
    file = weights[1 + MODELS.index(model)]
    net, processor = library.folder(file, partial(open_file, task=task), task.name)
    net = library.place(net)
    boxes = detect(frames, detector, detector_processor, classes, scores[0])
    return [find_keypoints(frame, box, net, processor, scores[1]) for frame, box in zip(frames, boxes, strict=True)]


def open_file(path: Path, task: Task) -> tuple[nn.Module, Any]:
    """The plain ViTPose of one task, and its processor, from the authors' file of a ViTPose+.

    Raises WeightsError for another file, and without transformers or with too old a release of it.
    """
    network = transformers_class(VITPOSE.model, VITPOSE)
    state = read_state(path)
    with reading_weights(path, "is no file of a ViTPose+ with all its experts and heads"):
        plain = one_task(state, task)
        config = _config(plain, task)
        net = network(config)
    height, width = config.backbone_config.image_size
    return load_strict(net, plain, path), _processor(height, width)


def one_task(state: Mapping[str, Tensor], task: Task) -> dict[str, Tensor]:
    """The weights of one task, under transformers' names, of a file with all of them.

    The expert's outputs follow the shared ones, so that both are one linear layer: fc2 = [shared; expert].
    Raises KeyError if the file lacks the task.
    """
    own = "keypoint_head" if task.expert == 0 else f"associate_keypoint_heads.{task.expert - 1}"
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        head = _HEAD_KEY.fullmatch(key)
        # The class token is left over from the pretraining, and nothing reads it.
        if ".experts." in key or key == "backbone.cls_token" or (head is not None and head[1] != own):
            continue
        if ".mlp.fc2." in key:
            value = torch.cat([value, state[key.replace(".fc2.", f".experts.{task.expert}.")]])
        if head is not None:
            # A head may have more outputs than its data set has points; the first ones are trained.
            rows = value[: task.points] if head[2] == "final_layer" else value
            plain[f"head.{_HEAD[head[2]]}.{head[3]}"] = rows
            continue
        for theirs, name in _BACKBONE:
            key = key.replace(theirs, name)
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), value.split(len(value) // 3), strict=True):
                plain[key.replace(".attn.qkv.", f".attention.attention.{name}.")] = part
        else:
            plain[key] = value
    return plain


def _config(state: Mapping[str, Tensor], task: Task) -> Any:
    """The shape of the network that a state dict belongs to. Raises KeyError for another network's."""
    rows, width = state["backbone.embeddings.position_embeddings"].shape[1:]
    patch = state["backbone.embeddings.patch_embeddings.projection.weight"].shape[-1]
    hidden = state["backbone.encoder.layer.0.mlp.fc1.weight"].shape[0]
    depth = sum(key.endswith(".layernorm_before.weight") for key in state)
    # The pictures are 4 to 3, and one row of the positions belongs to the class token: 1 + 4 n x 3 n.
    unit = round(((rows - 1) / 12) ** 0.5)
    backbone = transformers_class("VitPoseBackboneConfig", VITPOSE)(
        image_size=[4 * unit * patch, 3 * unit * patch], patch_size=[patch, patch], hidden_size=width,
        num_hidden_layers=depth, num_attention_heads=_HEADS.get(width, max(1, width // 64)),
        mlp_ratio=hidden // width, num_experts=1, out_indices=[depth],
        # The authors' value. The folders of transformers have 1e-12.
        layer_norm_eps=1e-6,
    )  # fmt: skip
    config = transformers_class("VitPoseConfig", VITPOSE)
    return config(backbone_config=backbone, num_labels=task.points, use_simple_decoder=False)


def _processor(height: int, width: int) -> Any:
    """What crops figures out of a picture, and reads heat maps."""
    # Its class depends on whether torchvision is there, which the package decides when it opens a folder.
    settings = {"image_processor_type": "VitPoseImageProcessor", "size": {"height": height, "width": width}}
    with TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(settings), "utf-8")
        return transformers_class(VITPOSE.processor, VITPOSE).from_pretrained(folder, local_files_only=True)
