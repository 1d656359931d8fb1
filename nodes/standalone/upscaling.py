"""ComfyUI's nodes that enlarge images with a network. The networks are spandrel's."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from ...controlnet_core.checkpoints.headers import read_header
from ...controlnet_core.checkpoints.io import read_tensors
from ...controlnet_core.errors import CheckpointError, CoreError, UnfitError
from ..fields import files, image, socket
from ..node import Node

WRAPPERS = ("params_ema.", "params-ema.", "params.")
"""Tables in which BasicSR saves weights: the averaged ones are the better ones."""
NEEDED = (
    "enlarging with a network needs the package spandrel: `pip install comfyui-controlnet-core[upscale]`, or mute the "
    "node and link its image directly"
)


class MissingPackage(CoreError):
    """An optional package is not installed."""

    exit_code = 3


def open_upscaler(path: Path) -> Any:
    """The network of a file, as spandrel describes it.

    Raises MissingPackage, CheckpointError for a file that spandrel does not know, UnfitError for a network that does
    not enlarge single images.
    """
    if find_spec("spandrel") is None:
        raise MissingPackage(NEEDED)
    from spandrel import ImageModelDescriptor, ModelLoader

    try:
        model = ModelLoader().load_from_state_dict(unwrapped(read_tensors(read_header(path))))
    except CoreError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path.name} is no network for images that spandrel knows: load another one") from error
    if not isinstance(model, ImageModelDescriptor):
        raise UnfitError(f"{path.name} is a network for image and mask, not for single images: load another one")
    return model.eval()


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of the network, without those that trainers put in front of them."""
    for wrapper in WRAPPERS:
        if any(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items() if key.startswith(wrapper)}
            break
    # Some files were saved from several GPUs.
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}


class UpscaleModelLoader(Node):
    """Loads a network that enlarges images, such as ESRGAN or SwinIR."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("UPSCALE_MODEL",)
    INPUTS = (files("model_name", "upscale_models"),)

    @classmethod
    def VALIDATE_INPUTS(cls) -> bool:
        """Raises MissingPackage before anything is loaded."""
        if find_spec("spandrel") is None:
            raise MissingPackage(NEEDED)
        return True

    def run(self, model_name: str) -> tuple[Any]:
        """-> UPSCALE_MODEL."""
        return (self.host.load_upscaler(self.host.find("upscale_models", model_name)),)


class ImageUpscaleWithModel(Node):
    """Enlarges images with a network, in tiles."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    INPUTS = (socket("UPSCALE_MODEL", "upscale_model"), image("image"))

    def run(self, upscale_model: Any, image: Tensor) -> tuple[Tensor]:
        """-> IMAGE."""
        return (self.host.enlarge(upscale_model, image),)
