"""The node that measures how well an image follows its hint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import preprocessors
from ..controlnet_core.analysis import fidelity
from ..controlnet_core.analysis.fidelity import Agreement
from ..controlnet_core.control.hint import fit_hint
from .fields import Output, choice, edge_tolerance, image, optional
from .node import Node, with_text
from .pictures import show_images, to_image
from .preprocess import check_weights, core_errors

if TYPE_CHECKING:
    from .host import Host

EDGE_KINDS = ("canny", "lines", "scribble", "lineart", "soft_edge")
FIDELITY_KINDS = (*EDGE_KINDS, "segmentation", "depth", "normal")
FINDERS = {**{kind: kind for kind in EDGE_KINDS}, "depth": "depth_anything_v2", "normal": "normal_bae"}
"""The preprocessor that makes a hint of each kind. Segments need none: they are compared by their colours."""


class ControlFidelity(Node):
    """Measures how well an image follows its hint, from 0 to 1: F1 score with a tolerance in pixels for edges,
    intersection over union for segments, the fraction of correct pixels for depth and normals, with the mean error. The
    output image marks what agrees, what is missing and what was not asked for.
    """

    DISPLAY_NAME = "Control Fidelity"
    CATEGORY = "ControlNet Core/look"
    SEARCH_ALIASES = ["f1", "score", "measure", "quality", "iou"]
    OUTPUT_NODE = True
    INPUTS = (
        image("picture", "The finished image."),
        image("hint", "The hint that the image should follow."),
        choice(
            "kind",
            FIDELITY_KINDS,
            "What the hint shows. Edges are found in the image without a network, segments by their colours. depth "
            "and normal need the network of their preprocessor, or a map linked to found.",
            "canny",
        ),
        edge_tolerance(),
        *optional(
            image(
                "found",
                "A map of the same kind, made from the finished image by a preprocessor of your choice. Without it, "
                "this node makes one.",
            )
        ),
    )
    OUTPUTS = (
        Output(
            # The output is called f1, since the first version compared edges only.
            "FLOAT",
            "f1",
            "Mean score of the batch, 0 to 1: F1 for edges, IoU for segments, fraction of correct pixels otherwise.",
        ),
        Output("STRING", "text", "The scores in words."),
        Output("IMAGE", "picture", "The hint, the image, and the image with agreement and errors in colour."),
    )

    @classmethod
    def check_files(cls, kind: Any = None, found: Any = None, **others: Any) -> None:
        """Raise MissingFileError for the network that finds maps of this kind, where no map is linked."""
        if found is None:
            check_finder(cls.host, kind)

    def run(
        self, picture: Tensor, hint: Tensor, kind: str, tolerance: float, found: Tensor | None = None
    ) -> dict[str, Any]:
        """-> score, the scores in words, IMAGE (B, H, W, 3)."""
        from ..controlnet_core.analysis.charts import draw_comparison

        wanted = _fitted_map(hint, picture)
        results = agreements(self.host, picture, hint, kind, tolerance, found)
        pictures = picture[..., :3].cpu().numpy()
        image = torch.cat(
            [
                to_image(draw_comparison(wanted[i % len(wanted)], pixels, result))
                for i, (pixels, result) in enumerate(zip(pictures, results, strict=True))
            ]
        )
        mean = mean_score(results)
        text = "\n".join([headline(kind, mean, tolerance), *(f"  {result.words}" for result in results)])
        return with_text(text, mean, text, image, **show_images(self.host, image))


def agreements(
    host: Host, picture: Tensor, hint: Tensor, kind: str, tolerance: float, found: Tensor | None = None
) -> list[Agreement]:
    """Compare each image of IMAGE (B, H, W, C) with its hint.

    hint: IMAGE, repeated for a larger batch. kind: what it shows. found: maps of the images; they are made if None.
    """
    wanted = _fitted_map(hint, picture)
    maps = _find(host, picture, kind) if found is None else _fitted_map(found, picture)
    # One hint may belong to a whole batch of images, so it is repeated.
    return [
        agreement(kind, wanted[i % len(wanted)], pixels, None if maps is None else maps[i % len(maps)], tolerance)
        for i, pixels in enumerate(picture[..., :3].cpu().numpy())
    ]


def mean_score(results: Sequence[Agreement]) -> float:
    """The mean over a batch."""
    return sum(result.score for result in results) / len(results)


def check_finder(host: Host, kind: Any) -> None:
    """Raise MissingFileError for the network that finds maps of this kind in pictures."""
    if kind in FINDERS:
        check_weights(host, FINDERS[kind], {})


def _find(host: Host, picture: Tensor, kind: str) -> np.ndarray | None:
    """(B, H, W, 3): the images as maps of the hint's kind; None for segments."""
    if kind not in FINDERS:
        return None
    with core_errors():
        entry = preprocessors.get(FINDERS[kind])
        library = host.library() if entry.weights else None
        return preprocessors.process(entry, picture[..., :3].cpu().numpy(), library=library)


def _fitted_map(image: Tensor, picture: Tensor) -> np.ndarray:
    """An IMAGE as an array (B, H, W, C) of the picture's size."""
    from .units import hint_of

    return fit_hint(hint_of(image), picture.shape[1], picture.shape[2]).movedim(1, -1).cpu().numpy()


def agreement(kind: str, hint: np.ndarray, picture: np.ndarray, found: np.ndarray | None, pixels: float) -> Agreement:
    """Compare an image (H, W, 3) with its hint (H, W, C). found: the image as a map (H, W, C) of the hint's kind."""
    if found is None:
        return fidelity.compare_segments_by_colour(_rgb(hint), picture)
    if kind in EDGE_KINDS:
        # Soft edges have gray values: half of the range counts as an edge.
        return fidelity.compare_edges(hint.max(axis=-1) > 0.5, found.max(axis=-1) > 0.5, pixels)
    compare, form = DENSE[kind]
    return compare(form(hint), form(found))


def _rgb(hint: np.ndarray) -> np.ndarray:
    return np.repeat(hint, 3, axis=-1) if hint.shape[-1] == 1 else hint[..., :3]


def _gray(hint: np.ndarray) -> np.ndarray:
    return hint[..., :3].mean(axis=-1)


DENSE: Mapping[str, tuple[Callable[..., Agreement], Callable[[np.ndarray], np.ndarray]]] = {
    "segmentation": (fidelity.compare_segments, _rgb),
    "depth": (fidelity.compare_depth, _gray),
    "normal": (fidelity.compare_normals, _rgb),
}
"""The comparison of each kind that has a value in every pixel, and the form of map that it reads."""


def headline(kind: str, score: float, tolerance: float) -> str:
    """The score in words."""
    measures = {
        "segmentation": f"mean IoU {score:.2f}",
        "depth": f"{score:.0%} of the pixels within 0.05 of the range",
        "normal": f"{score:.0%} of the pixels within {fidelity.STEEP_DEGREES} degrees",
    }
    measure = measures.get(kind, f"F1 {score:.2f} at {tolerance:g} pixels")
    return f"agreement of the image with the {kind} hint: {measure}"
