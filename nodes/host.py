"""What nodes ask of the host that they run in.

`standalone.host.StandaloneHost` answers with files in folders and the engine's own models, `comfyui.host.ComfyHost`
with ComfyUI's folders, models and memory. A node class finds its host as the class attribute `host`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..controlnet_core.control.picture_part import PicturePart
from ..controlnet_core.control.unit import Curve
from ..controlnet_core.models.control import ControlModel
from ..controlnet_core.models.controlnet import ControlNet
from ..controlnet_core.run_options import DEFAULTS, RunOptions
from ..preprocessors.learned.library import Library
from .values import Conditioning, Controlled, ControlSpec, Halves, Latent, SamplerInputs


# A protocol, not a base class: ComfyUI's side must be importable without any code of the standalone host.
class Host(Protocol):
    """The interface of a host. MODEL, CLIP, VAE and CONTROL_NET are objects of the host, so they are typed Any."""

    @property
    def assets_dir(self) -> Path:
        """The folder of the models and images that come with the package."""
        ...

    @property
    def temp_dir(self) -> Path:
        """The folder for images that are only shown."""
        ...

    @property
    def output_dir(self) -> Path:
        """The folder for files that nodes write."""
        ...

    def files(self, kind: str) -> tuple[str, ...]:
        """Names of the files of a kind ("checkpoints", "controlnet", "vae", ...), with "/" after subfolders."""
        ...

    def find(self, kind: str, name: str) -> Path:
        """The file of that name. Raises PathError, or MissingFileError with the folders that were searched."""
        ...

    def load_checkpoint(self, path: Path) -> tuple[Any, Any, Any]:
        """MODEL, CLIP, VAE of a file."""
        ...

    def load_controlnet(self, path: Path, model: Any = None) -> Any:
        """CONTROL_NET of a file. model: the base of a file that holds only differences to one."""
        ...

    def model_patch_control(self, model_patch: Any, vae: Any, image: Tensor | None, mask: Tensor | None) -> Any:
        """CONTROL_NET of ComfyUI's MODEL_PATCH. image, mask: for nets that were trained for inpainting."""
        ...

    def plain_net(self, control_net: Any) -> tuple[ControlNet, str]:
        """The ControlNet in a CONTROL_NET, and its family. Raises UnfitError for other kinds of control."""
        ...

    def control_of(self, net: ControlModel, name: str) -> Any:
        """CONTROL_NET of a net that a node made. name: in messages."""
        ...

    def training_device(self) -> torch.device:
        """The device for training, with as much free memory as the host can provide."""
        ...

    def library(self) -> Library:
        """Where learned preprocessors find their networks. One for each host, so that each network is loaded once."""
        ...

    def encode_prompt(self, clip: Any, prompt: str) -> Conditioning:
        """CONDITIONING of a prompt."""
        ...

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """IMAGE (B, H, W, C) -> latents (B, 4, h, w), not scaled for a UNet."""
        ...

    def enlarge(self, upscale_model: Any, image: Tensor) -> Tensor:
        """IMAGE (B, H, W, C) enlarged by an UPSCALE_MODEL, by the factor of that."""
        ...

    def hint_encoder(self, vae: Any) -> Callable[[Tensor], Tensor]:
        """`encode` with this VAE, to be called while sampling."""
        ...

    def apply_control(self, positive: Conditioning, negative: Conditioning, specs: Sequence[ControlSpec]) -> Halves:
        """Both halves of the guidance, with these units added to those that they have."""
        ...

    def controlled(self, model: Any, conditioning: Conditioning) -> Controlled:
        """The units on a conditioning, with the noise levels and shapes of the model."""
        ...

    def memory(self, inputs: SamplerInputs) -> str:
        """The memory that sampling will take, in words; empty where the host cannot tell."""
        ...

    def reweigh(self, model: Any, conditioning: Conditioning, unit: int, factors: Sequence[float]) -> Conditioning:
        """The same conditioning with the block weights of one unit multiplied.

        unit: its index in `controlled`. factors: one for each block, the middle block last.
        """
        ...

    def with_curve(self, model: Any, positive: Conditioning, negative: Conditioning, unit: int, curve: Curve) -> Halves:
        """Both halves with the strength of one unit multiplied by a curve. unit: its index in `controlled`.

        The curve is asked at every evaluation of the model, so it may change while sampling.
        """
        ...

    def decode_prediction(self, model: Any, vae: Any, prediction: Tensor) -> Tensor:
        """IMAGE of the prediction of a step, while sampling. prediction: (B, C, h, w) in the scale of the model."""
        ...

    def crop_control(self, positive: Conditioning, negative: Conditioning, part: PicturePart) -> Halves:
        """Both halves with copies of their units for a part of the picture: its share of hints and masks."""
        ...

    def sample(self, inputs: SamplerInputs, options: RunOptions = DEFAULTS) -> Latent:
        """The sampled LATENT. Calls `progress` after each step, and tells the options what ran."""
        ...

    def decode(self, vae: Any, samples: Tensor) -> Tensor:
        """IMAGE of the latents (B, C, h, w)."""
        ...

    def accelerate(self, model: Any, weights: str, node: str | None) -> tuple[Any, str]:
        """A MODEL with our engine inside, and what to expect of it.

        weights: "shared" or "packed". node: ID of the node that shows what happened in each run.
        """
        ...

    def with_options(self, model: Any, options: RunOptions, node: str | None) -> Any:
        """A MODEL that is sampled with these options instead of its own. node: as in `accelerate`."""
        ...

    def options_of(self, model: Any) -> RunOptions:
        """The options that a MODEL is sampled with."""
        ...

    def progress(self, done: int, total: int, preview: Any = None) -> None:
        """Report the progress of the running node. preview: a PIL image or None."""
        ...

    def cancelled(self) -> bool:
        """Whether the user has cancelled."""
        ...
