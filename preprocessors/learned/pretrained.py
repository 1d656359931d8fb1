"""Models of the transformers package, from folders on disk: depth, segmentation, pose.

They are loaded by the package's own classes, since its key names change between releases. Nothing is downloaded. A
folder is the result of `save_pretrained` or of downloading the repository: config.json, weights, and
preprocessor_config.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError, reading_weights
from ..palettes import labels_to_hint, palette, panoptic_to_labels
from ..pose.people import Person, Pose, body_from_coco17
from .depth_anything import network_input
from .files import some
from .images import infer, to_input

if TYPE_CHECKING:
    from ..entry import Weights
    from .library import Library

# Or a picture of 1 or 3 rows would be read as one with that many channels.
_LAYOUT = "channels_last"
_NO_NAMES = "names.json"
# Weights that nothing reads: the first layer of a fusion has nothing to add, and converted DPT folders have no weights
# for it; batch normalisation counts its batches while training.
_UNREAD = re.compile(r"neck\.fusion_stage\.layers\.0\.residual_layer1\..+|.+\.num_batches_tracked")
_CLASSES_TO_PALETTE = {150: "ade20k", 133: "coco"}


@dataclass(frozen=True)
class Kind:
    """The classes that open a folder, and the first release of transformers that has them.

    processor: empty if this file prepares the pictures itself. tokenizer: for a model that also reads words.
    """

    model: str
    processor: str
    since: str
    tokenizer: str = ""


DEPTH = Kind("AutoModelForDepthEstimation", "AutoImageProcessor", "4.38")
# Its processor needs torchvision from 5.0 on.
DEPTH_PRO = Kind("DepthProForDepthEstimation", "", "4.49")
# Its processor cannot take long and narrow pictures: a side becomes 0.
DEPTH_ANYTHING_METRIC = Kind("DepthAnythingForDepthEstimation", "", "4.45")
SEMANTIC = Kind("AutoModelForSemanticSegmentation", "AutoImageProcessor", "4.38")
ONEFORMER = Kind("OneFormerForUniversalSegmentation", "OneFormerImageProcessor", "4.38", "CLIPTokenizer")
SAM = Kind("SamModel", "SamImageProcessor", "4.38")
DETECTOR = Kind("RTDetrForObjectDetection", "AutoImageProcessor", "4.48")
VITPOSE = Kind("VitPoseForPoseEstimation", "AutoImageProcessor", "4.48")


def open_folder(weights: Weights, library: Library, kind: Kind) -> tuple[Any, Any]:
    """Return (model on the library's device, processor) of the folder of `weights`. The library keeps them.

    Raises WeightsError without the folder, without transformers or with too old a release of it, and if the folder
    does not open or lacks weights of the model.
    """

    def load(path: Any) -> tuple[nn.Module, Any]:
        model = transformers_class(kind.model, kind)
        with reading_weights(path, f"does not open as {kind.model}"):
            net, info = model.from_pretrained(path, local_files_only=True, output_loading_info=True)
            _check_whole(path, kind, info)
            return net.eval().requires_grad_(False), _open_processor(path, kind)

    net, processor = library.folder(weights, load)
    return library.place(net), processor


def _check_whole(path: Path, kind: Kind, info: Mapping[str, Any]) -> None:
    """Raise WeightsError if weights are missing or have another shape: the package would leave them random."""
    missing = sorted(key for key in info["missing_keys"] if not _UNREAD.fullmatch(key))
    shapes = sorted(key if isinstance(key, str) else f"{key[0]} {tuple(key[1])}" for key in info["mismatched_keys"])
    if missing or shapes:
        raise WeightsError(
            f"{path} does not fit {kind.model}: {some('keys missing', missing)}{some('other shapes', shapes)}"
            "its weights are incomplete, or of another model: get the whole folder again",
            path,
        )


def _open_processor(path: Path, kind: Kind) -> Any:
    """The object that makes a model's inputs from pictures, and from words if there is a tokenizer."""
    if not kind.processor:
        return None
    images = transformers_class(kind.processor, kind)
    if not kind.tokenizer:
        return images.from_pretrained(path, local_files_only=True)
    # OneFormer's processor would download the names of its classes, which only training needs: it gets an empty list.
    with TemporaryDirectory() as folder:
        (Path(folder) / _NO_NAMES).write_text("{}", "utf-8")
        settings, _ = images.get_image_processor_dict(path, local_files_only=True)
        pictures = images.from_dict({**settings, "repo_path": folder, "class_info_file": _NO_NAMES})
    words = transformers_class(kind.tokenizer, kind).from_pretrained(path, local_files_only=True)
    return transformers_class("OneFormerProcessor", kind)(image_processor=pictures, tokenizer=words)


def transformers_class(name: str, kind: Kind) -> Any:
    """A class of the package transformers. Raises WeightsError without it or with too old a release."""
    try:
        import transformers
    except ImportError:
        message = f"this needs the package transformers, at least {kind.since}: pip install transformers"
        raise WeightsError(message) from None
    try:
        return getattr(transformers, name)
    # ImportError: the class is there, but a package that it needs is not.
    except (AttributeError, ImportError):
        version = transformers.__version__
        raise WeightsError(f"transformers {version} has no {name}: update it to at least {kind.since}") from None


def _inputs(processor: Any, frames: np.ndarray, net: nn.Module, **options: Any) -> dict[str, Any]:
    """The model's inputs on its device, pictures in its precision."""
    made = processor(images=list(frames), return_tensors="pt", input_data_format=_LAYOUT, **options)
    parameter = next(net.parameters())
    return {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in made.items()
    }


def depth(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) float32 nearness: DPT, MiDaS, Depth Anything as estimated.

    ZoeDepth's distances are clamped to their 2nd and 85th percentile and negated, as its official annotator does.
    """
    net, processor = open_folder(weights[0], library, DEPTH)
    maps = _depth_maps(net, _inputs(processor, frames, net), frames)
    if getattr(net.config, "model_type", "") != "zoedepth":
        return maps
    low = np.percentile(maps, 2, axis=(1, 2), keepdims=True)
    high = np.percentile(maps, 85, axis=(1, 2), keepdims=True)
    return (high - np.clip(maps, low, high)).astype(np.float32)


def depth_pro(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) float32 nearness: one over the distances of Depth Pro.

    The net looks at a square whose smallest copy is one of its patches, in -1..1; as its own processor does, the
    pictures are brought to that size bilinearly, without smoothing.
    """
    net, _ = open_folder(weights[0], library, DEPTH_PRO)
    side = round(net.config.patch_size / min(net.config.scaled_images_ratios))
    pictures = to_input(frames, net) / 127.5 - 1.0
    square = F.interpolate(pictures, (side, side), mode="bilinear", align_corners=False)
    return 1.0 / np.maximum(_depth_maps(net, {"pixel_values": square}, frames), 1e-3)


def depth_anything_metric(
    frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], scene: str = "indoor"
) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W) float32 nearness: one over the distances in metres of Depth Anything V2.

    weights: the folders for indoor and outdoor scenes. One over the distance is what the depth nets know from MiDaS,
    up to its scale. Raises WeightsError for a folder that estimates relative depth.
    """
    folder = weights[("indoor", "outdoor").index(scene)]
    net, _ = open_folder(folder, library, DEPTH_ANYTHING_METRIC)
    # Relative depth is a disparity already. Releases before 4.45 read a metric folder as if it were a relative one.
    if getattr(net.config, "depth_estimation_type", "") != "metric" or not hasattr(net.head, "max_depth"):
        raise WeightsError(
            f"{folder.file} gives relative depth, expected a folder with depth_estimation_type=metric, and a release "
            f"of transformers from {DEPTH_ANYTHING_METRIC.since} on: get it from {folder.source}",
            folder.file,
        )
    return 1.0 / np.maximum(_depth_maps(net, {"pixel_values": network_input(frames, net)}, frames), 1e-3)


def _depth_maps(net: Any, inputs: dict[str, Any], frames: np.ndarray) -> np.ndarray:
    """What a model estimates, at the size of the frames, (B,H,W) float32."""
    found = infer(lambda: net(**inputs).predicted_depth).float()
    return F.interpolate(found[:, None], frames.shape[1:3], mode="bilinear", align_corners=False)[:, 0].cpu().numpy()


def semantic(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W,3) float32 colours of the palette whose classes the model knows."""
    net, processor = open_folder(weights[0], library, SEMANTIC)
    logits = infer(lambda: net(**_inputs(processor, frames, net)).logits).float()
    labels = F.interpolate(logits, frames.shape[1:3], mode="bilinear", align_corners=False).argmax(1)
    return labels_to_hint(labels.cpu().numpy(), _palette_of(net, weights[0]))


def oneformer(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...]) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W,3) float32 colours of the palette whose classes the model knows."""
    net, processor = open_folder(weights[0], library, ONEFORMER)
    tasks = ["semantic"] * len(frames)
    output = infer(lambda: net(**_inputs(processor, frames, net, task_inputs=tasks)))
    sizes = [frames.shape[1:3]] * len(frames)
    labels = torch.stack(list(processor.post_process_semantic_segmentation(output, target_sizes=sizes)))
    return labels_to_hint(labels.cpu().numpy(), _palette_of(net, weights[0]))


def _palette_of(net: Any, weights: Weights) -> str:
    count = len(net.config.id2label)
    if count not in _CLASSES_TO_PALETTE:
        raise WeightsError(
            f"{weights.file} knows {count} classes; the segmentation nets read ADE20K's 150 or COCO's 133: use a "
            "model trained on one of these",
            weights.file,
        )
    return _CLASSES_TO_PALETTE[count]


def vitpose(
    frames: np.ndarray,
    *,
    library: Library,
    weights: tuple[Weights, ...],
    person_score: float = 0.3,
    point_score: float = 0.3,
) -> list[Pose]:
    """(B,H,W,3) uint8 RGB -> a pose per frame: people found by RT-DETR, their joints by ViTPose."""
    detector, detector_processor = open_folder(weights[0], library, DETECTOR)
    net, processor = open_folder(weights[1], library, VITPOSE)
    height, width = frames.shape[1:3]
    boxes = detect(frames, detector, detector_processor, range(1), person_score)
    poses = []
    for frame, found in zip(frames, boxes, strict=True):
        people = find_keypoints(frame, found, net, processor, point_score)
        poses.append(Pose(tuple(Person(body_from_coco17(points)) for points in people), height, width))
    return poses


def detect(frames: np.ndarray, detector: Any, processor: Any, classes: range, least: float) -> list[np.ndarray]:
    """Boxes (N,4) x, y, width, height in pixels of what has one of COCO's `classes`, for each frame (B,H,W,3).

    least: the lowest score of a box, 0 to 1.
    """
    found = infer(lambda: detector(**_inputs(processor, frames, detector)))
    sizes = torch.tensor([frames.shape[1:3]] * len(frames))
    boxes = []
    for figures in processor.post_process_object_detection(found, threshold=least, target_sizes=sizes):
        labels = figures["labels"]
        corners = figures["boxes"][(labels >= classes.start) & (labels < classes.stop)].float().cpu().numpy()
        boxes.append(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1))
    return boxes


def find_keypoints(frame: np.ndarray, boxes: np.ndarray, net: Any, processor: Any, least: float) -> np.ndarray:
    """Keypoints (N,K,3) in pixels, and scores, of the figures in `boxes` (N,4) of a frame (H,W,3), by a ViTPose.

    least: points below this score get 0, which means a missing point.
    """
    count = net.config.num_labels
    if not len(boxes):
        return np.zeros((0, count, 3))
    # The processor reads a picture of up to 3 rows as one with that many channels, whatever the layout says.
    frame = np.pad(frame, ((0, max(0, 4 - len(frame))), (0, 0), (0, 0)), mode="edge")
    inputs = _inputs(processor, frame[None], net, boxes=[boxes])
    # ViTPose+ has one expert per data set; 0 is COCO.
    if getattr(net.config.backbone_config, "num_experts", 1) > 1:
        inputs["dataset_index"] = torch.zeros(len(boxes), dtype=torch.long, device=inputs["pixel_values"].device)
    output = infer(lambda: net(**inputs))
    found = np.zeros((len(boxes), count, 3))
    for points, figure in zip(found, processor.post_process_pose_estimation(output, boxes=[boxes])[0], strict=True):
        labels = figure["labels"].cpu().numpy()
        points[labels, :2] = figure["keypoints"].float().cpu().numpy()
        scores = figure["scores"].float().cpu().numpy().ravel()
        points[labels, 2] = np.where(scores >= least, scores, 0.0)
    return found


def sam_regions(frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], points: int = 16) -> np.ndarray:
    """(B,H,W,3) uint8 RGB -> (B,H,W,3) float32: the regions that SAM finds, in colours that mean nothing.

    SAM makes masks for a grid of points x points. The surest and most stable ones are kept, and large ones are drawn
    first. The regions have no class.
    """
    net, processor = open_folder(weights[0], library, SAM)
    return np.stack([_regions(frame, net, processor, points) for frame in frames])


def _regions(frame: np.ndarray, net: Any, processor: Any, points: int) -> np.ndarray:
    height, width = frame.shape[:2]
    made = processor(images=[frame], return_tensors="pt", input_data_format=_LAYOUT)
    parameter = next(net.parameters())
    pixels = made["pixel_values"].to(parameter.device, parameter.dtype)
    reshaped = np.asarray(made["reshaped_input_sizes"][0], np.float64)
    grid = (np.stack(np.meshgrid(np.arange(points), np.arange(points)), -1).reshape(-1, 2) + 0.5) / points
    places = torch.from_numpy(grid * reshaped[::-1]).to(pixels)[None, :, None]
    embedding = infer(lambda: net.get_image_embeddings(pixels))
    masks: list[np.ndarray] = []
    for part in places.split(64, dim=1):
        output = infer(partial(net, image_embeddings=embedding, input_points=part))
        logits = processor.post_process_masks(
            output.pred_masks.float().cpu(), made["original_sizes"], made["reshaped_input_sizes"], binarize=False
        )[0].flatten(0, 1)
        sure = output.iou_scores.float().cpu().flatten() > 0.88
        stable = ((logits > 1.0).sum((1, 2)) / (logits > -1.0).sum((1, 2)).clamp(min=1)) > 0.92
        masks += [mask.numpy() for mask in (logits > 0)[sure & stable]]
    order = sorted(range(len(masks)), key=lambda index: -int(masks[index].sum()))
    segments = np.zeros((height, width), np.int64)
    for number, index in enumerate(order, start=1):
        segments[masks[index]] = number
    colours = palette("ade20k").colours
    labels = panoptic_to_labels(segments, {n: n % len(colours) for n in range(1, len(order) + 1)})
    return labels_to_hint(labels)
