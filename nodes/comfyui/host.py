"""The host inside ComfyUI: its folders, its models, its memory, its progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ... import controlnet_core
from ...controlnet_core.checkpoints.control import CONTROL_KINDS
from ...controlnet_core.checkpoints.detect import identify_file
from ...controlnet_core.errors import CheckpointError, MissingFileError, UnfitError
from ...controlnet_core.models.control import ControlModel
from ...controlnet_core.models.controlnet import ControlNet
from ...preprocessors.learned.library import Library
from ..folders import inside, join_shards
from ..values import Conditioning
from . import accelerate, annotators, apply, core_control, models, native_controlnet, sampling, shortcut_wrappers
from .model_patch_control import Inpainting, ModelPatchControl

HOST_FAMILIES = frozenset({"sd15", "sd2", "sdxl", "sdxl-refiner"})
"""Families whose checkpoints ComfyUI loads better than we do: casting, fp8, textual inversion."""
PREVIEW_SIDE = 512


class ComfyHost:
    """Answers nodes with ComfyUI's own objects, and keeps nothing but the nets of learned preprocessors.

    See `nodes.host.Host` for what each method does.
    """

    assets_dir = Path(controlnet_core.__file__).parent / "assets"

    # ---- files

    @property
    def temp_dir(self) -> Path:
        """ComfyUI's folder for images that are only shown."""
        return Path(folder_paths.get_temp_directory())

    @property
    def output_dir(self) -> Path:
        """ComfyUI's folder for files that nodes write."""
        return Path(folder_paths.get_output_directory())

    def files(self, kind: str) -> tuple[str, ...]:
        """Names of the files of a kind, as ComfyUI lists them; none for a kind that it does not have.

        A model in shards is one name, that of its folder.
        """
        if kind not in folder_paths.folder_names_and_paths:
            return ()
        return join_shards(name.replace("\\", "/") for name in folder_paths.get_filename_list(kind))

    def find(self, kind: str, name: str) -> Path:
        """The file of that name. Raises MissingFileError with the folders that were searched.

        ComfyUI keeps names inside its folders.
        """
        known = kind in folder_paths.folder_names_and_paths
        path = folder_paths.get_full_path(kind, name) if known else None
        folders = folder_paths.get_folder_paths(kind) if known else []
        if path is None and name in self.files(kind):
            # ComfyUI finds files only; a model in shards is a folder.
            path = next((place for folder in folders if (place := inside(Path(folder), name)).is_dir()), None)
        if path is None:
            searched = ", ".join(folders) if known else f"no folder for {kind}"
            raise MissingFileError(
                f"there is no {kind} file {name!r}: searched {searched}. Put it there and press R to refresh", name
            )
        return Path(path)

    # ---- models

    def load_checkpoint(self, path: Path) -> tuple[Any, Any, Any]:
        """ComfyUI's MODEL, CLIP and VAE; for shapes that it does not know, such as the demo model, built from its
        classes.
        """
        identity = identify_file(path)
        if identity.kind == "checkpoint" and identity.supported and identity.family not in HOST_FAMILIES:
            return models.load_own_checkpoint(path)
        if identity.kind in (*CONTROL_KINDS, "lora", "vae"):
            raise CheckpointError(
                f"{path.name} is of another kind: {identity.summary}; expected a checkpoint. Put it into "
                f"models/{identity.folder} and load it with the node for that kind",
                path,
            )
        return models.load_host_checkpoint(path, identity)

    def load_controlnet(self, path: Path, model: Any = None) -> Any:
        """CONTROL_NET: ours for the layouts that we read, else ComfyUI's own for what it reads."""
        identity = identify_file(path)
        if identity.kind in CONTROL_KINDS and identity.supported:
            return core_control.load(path, model)
        return native_controlnet.load(path, identity)

    def model_patch_control(self, model_patch: Any, vae: Any, image: Any, mask: Any) -> Any:
        """CONTROL_NET of a MODEL_PATCH: ComfyUI's control for diffusion transformers."""
        return ModelPatchControl(model_patch, vae, Inpainting(image, mask))

    def plain_net(self, control_net: Any) -> tuple[ControlNet, str]:
        """The ControlNet in a CONTROL_NET of ours. Raises UnfitError for ComfyUI's own and for other kinds."""
        net = getattr(getattr(control_net, "shared", None), "net", None)
        if not isinstance(net, ControlNet) or net.config.union is not None:
            raise UnfitError("only a plain ControlNet that this pack loaded can be saved: load it with our node")
        return net, ""

    def control_of(self, net: ControlModel, name: str) -> Any:
        """CONTROL_NET of a net that a node made."""
        return core_control.CoreControl(core_control.SharedNet(net, name))

    def training_device(self) -> torch.device:
        """ComfyUI's device. Its models are unloaded: training needs the memory."""
        comfy.model_management.unload_all_models()
        return comfy.model_management.get_torch_device()

    def library(self) -> Library:
        """Where learned preprocessors find their nets."""
        return self._library

    @cached_property
    def _library(self) -> Library:
        return annotators.HostLibrary()  # at the first use: other packs may register their folders late

    def encode_prompt(self, clip: Any, prompt: str) -> Conditioning:
        """CONDITIONING of a prompt, by the CLIP that came in."""
        if clip is None:
            raise CheckpointError("the checkpoint has no text encoder: load one that has, or a CLIP of its own")
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """IMAGE (B, H, W, C) -> latents (B, 4, h, w), not scaled, by the VAE that came in."""
        return vae.encode(pixels[..., :3])

    def enlarge(self, upscale_model: Any, image: Tensor) -> Tensor:
        """IMAGE enlarged by an UPSCALE_MODEL, by ComfyUI's own node, which makes room for the network."""
        node = sys.modules["nodes"].NODE_CLASS_MAPPINGS["ImageUpscaleWithModel"]
        # A class method in V3, a method before.
        made = (getattr(node, "execute", None) or node().upscale)(upscale_model, image[..., :3])
        return getattr(made, "result", made)[0].float()

    def hint_encoder(self, vae: Any) -> Callable[[Tensor], Tensor]:
        """IMAGE -> latents of this VAE, while sampling: the models that are in use are loaded again after it."""

        def encode(pixels: Tensor) -> Tensor:
            loaded = comfy.model_management.loaded_models(only_currently_used=True)
            latents = self.encode(vae, pixels)
            comfy.model_management.load_models_gpu(loaded)  # the VAE may have taken their place
            return latents

        return encode

    # ---- control and sampling, each in a file of its own

    apply_control = staticmethod(apply.apply_control)
    controlled = staticmethod(apply.controlled)
    reweigh = staticmethod(apply.reweigh)
    with_curve = staticmethod(apply.with_curve)
    crop_control = staticmethod(apply.crop_control)
    sample = staticmethod(sampling.sample)
    accelerate = staticmethod(accelerate.accelerate_model)
    with_options = staticmethod(shortcut_wrappers.with_options)
    options_of = staticmethod(shortcut_wrappers.options_of)

    def decode_prediction(self, model: Any, vae: Any, prediction: Tensor) -> Tensor:
        """IMAGE of the prediction of a step; the models that are in use are loaded again after it."""
        loaded = comfy.model_management.loaded_models(only_currently_used=True)
        image = self.decode(vae, model.model.process_latent_out(prediction))
        comfy.model_management.load_models_gpu(loaded)  # the VAE may have taken their place
        return image

    def memory(self, *sampling: Any) -> str:
        """Return an empty text: ComfyUI plans memory itself."""
        return ""

    # ---- progress

    cancelled = staticmethod(comfy.model_management.processing_interrupted)

    def decode(self, vae: Any, samples: torch.Tensor) -> torch.Tensor:
        """IMAGE of the latents, in tiles where ComfyUI finds no room for all of it."""
        return vae.decode(samples)

    def progress(self, done: int, total: int, preview: Any = None) -> None:
        """Move the node's bar. Raises ComfyUI's own interruption where the user pressed Cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        picture = None if preview is None else ("JPEG", preview, PREVIEW_SIDE)
        comfy.utils.ProgressBar(total).update_absolute(done, total, picture)


HOST = ComfyHost()
