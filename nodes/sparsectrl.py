"""Nodes for SparseCtrl: control of a video by hints for some of its frames."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fields import Output, choice, image, integer, optional, text, vae
from .node import Node


class LoadSparseCtrl(Node):
    """Loads a SparseCtrl net for AnimateDiff on Stable Diffusion 1.5. Sample a batch of as many images as the video has
    frames, under AnimateDiff. Sparse Frames makes its hint.
    """

    DISPLAY_NAME = "Load SparseCtrl"
    CATEGORY = "ControlNet Core/load"
    SEARCH_ALIASES = ["sparsectrl", "animatediff", "video controlnet", "keyframes"]
    INPUTS = (
        choice(
            "control_net",
            lambda host: list(host.files("controlnet")),
            "A SparseCtrl file, such as v3_sd15_sparsectrl_scribble, in models/controlnet.",
        ),
        *optional(vae("vae", "The VAE of the checkpoint, for files whose hints are latents (rgb).")),
    )
    OUTPUTS = (Output("CONTROL_NET", "control_net", "The net: link it to Apply ControlNet or Control Unit."),)

    def run(self, control_net: str, vae: Any = None) -> tuple[Any]:
        """-> CONTROL_NET. Raises CheckpointError for other files, UnfitError where a VAE is missing."""
        from ..controlnet_core.checkpoints.load_sparsectrl import load_sparsectrl
        from .hint_through_vae import HintThroughVae

        encode = None if vae is None else HintThroughVae(self.host.hint_encoder(vae), as_picture=True)
        net = load_sparsectrl(self.host.find("controlnet", control_net), encode)
        return (self.host.control_of(net, control_net),)


class SparseFrames(Node):
    """Places hints at frames of a video, as SparseCtrl reads them. The last channel of the hint marks the frames that
    have one.
    """

    DISPLAY_NAME = "Sparse Frames"
    CATEGORY = "ControlNet Core/control"
    SEARCH_ALIASES = ["sparsectrl", "animatediff", "keyframes", "frame index"]
    INPUTS = (
        image("image", "The hints, one for each frame that is listed."),
        text(
            "frames",
            "The frame of each hint, counted from 0: '0, 8, 15'. Negative numbers count from the end. Empty: spread "
            "evenly from the first frame to the last.",
            "0",
        ),
        integer("length", 16, 1, 32, "Frames of the video: the number of images in the latent batch."),
    )
    OUTPUTS = (Output("IMAGE", "image", "The hint of each frame: link it to Apply ControlNet."),)

    def run(self, image: Tensor, frames: str, length: int) -> tuple[Tensor]:
        """-> IMAGE (length, H, W, 4). Raises ValueRangeError or ShapeError."""
        from .sparse_frames import place_frames, read_frames

        return (place_frames(image, read_frames(frames, len(image), length), length),)
