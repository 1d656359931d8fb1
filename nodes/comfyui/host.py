"""The port's side in the editor: its folders, its models, its memory, its progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ... import controlnet_core
from ...controlnet_core.checkpoints.control import CONTROL_KINDS
from ...controlnet_core.checkpoints.detect import Identity, identify_file
from ...controlnet_core.control.report import Recorder
from ...controlnet_core.errors import CheckpointError, MissingFileError, UnfitError
from ...controlnet_core.models.controlnet import ControlNet
from ...controlnet_core.sample import SampleSettings
from ...controlnet_core.speed import Shortcuts
from ...preprocessors.learned.library import Library
from ..values import Conditioning, Controlled, ControlSpec, Latent

ASSETS = Path(controlnet_core.__file__).parent / "assets"
HOST_FAMILIES = frozenset({"sd15", "sd2", "sdxl", "sdxl-refiner"})
"""Families whose checkpoints the editor loads better than we do: casting, fp8, textual inversion."""
PREVIEW_SIDE = 512


class ComfyHost:
    """Answers nodes with the editor's own objects, and keeps nothing but the nets of learned preprocessors."""

    def __init__(self) -> None:
        self._library: Library | None = None

    @property
    def assets_dir(self) -> Path:
        """The models and pictures that come with the package."""
        return ASSETS

    @property
    def temp_dir(self) -> Path:
        """Where the editor keeps pictures that are only to be looked at."""
        import folder_paths

        return Path(folder_paths.get_temp_directory())

    @property
    def output_dir(self) -> Path:
        """Where the editor keeps what it makes."""
        import folder_paths

        return Path(folder_paths.get_output_directory())

    # ---- files

    def files(self, kind: str) -> tuple[str, ...]:
        """Names of the files of a kind, as the editor lists them; none for a kind that it does not have."""
        import folder_paths

        if kind not in folder_paths.folder_names_and_paths:
            return ()
        return tuple(name.replace("\\", "/") for name in folder_paths.get_filename_list(kind))

    def find(self, kind: str, name: str) -> Path:
        """The file of that name. Raises MissingFileError naming the folders searched.

        The editor keeps names inside its folders.
        """
        import folder_paths

        known = kind in folder_paths.folder_names_and_paths
        path = folder_paths.get_full_path(kind, name) if known else None
        if path is None:
            searched = ", ".join(folder_paths.get_folder_paths(kind)) if known else f"no folder for {kind}"
            raise MissingFileError(
                f"there is no {kind} file {name!r}: searched {searched}. Put it there and press R to refresh", name
            )
        return Path(path)

    # ---- models

    def load_checkpoint(self, path: Path) -> tuple[Any, Any, Any]:
        """The editor's MODEL, CLIP and VAE; for models of our own shape built from its classes."""
        from . import models

        identity = identify_file(path)
        if is_ours(identity):
            return models.load_own_checkpoint(path)
        if identity.kind in (*CONTROL_KINDS, "lora", "vae"):
            raise CheckpointError(
                f"{path.name} is of another kind: {identity.summary}; expected a checkpoint. Put it into "
                f"models/{identity.folder} and load it with the node for that kind",
                path,
            )
        return models.load_host_checkpoint(path, identity)

    def load_controlnet(self, path: Path, model: Any = None) -> Any:
        """CONTROL_NET: ours for the layouts that we read, else the editor's own for what it reads."""
        from . import core_control, native_controlnet

        identity = identify_file(path)
        if identity.kind in CONTROL_KINDS and identity.supported:
            return core_control.load(path, model)
        return native_controlnet.load(path, identity)

    def model_patch_control(self, model_patch: Any, vae: Any, image: Any, mask: Any) -> Any:
        """CONTROL_NET of a MODEL_PATCH: ComfyUI's control for diffusion transformers."""
        from .model_patch_control import Inpainting, ModelPatchControl

        return ModelPatchControl(model_patch, vae, Inpainting(image, mask))

    def plain_net(self, control_net: Any) -> tuple[ControlNet, str]:
        """The ControlNet in a CONTROL_NET of ours. Raises UnfitError for the editor's own and for other kinds."""
        shared = getattr(control_net, "shared", None)
        net = getattr(shared, "net", None)
        if not isinstance(net, ControlNet) or net.config.union is not None:
            raise UnfitError("only a plain ControlNet that this pack loaded can be saved: load it with our node")
        return net, ""

    def training_device(self) -> torch.device:
        """The editor's device, with its models unloaded."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        return comfy.model_management.get_torch_device()

    def library(self) -> Library:
        """Where learned preprocessors find their nets."""
        from . import annotators

        if self._library is None:
            self._library = annotators.HostLibrary()
        return self._library

    def encode_prompt(self, clip: Any, prompt: str) -> Conditioning:
        """CONDITIONING of a prompt, by the CLIP that came in."""
        if clip is None:
            raise CheckpointError("the checkpoint has no text encoder: load one that has, or a CLIP of its own")
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    # ---- control and sampling

    def apply_control(
        self, positive: Conditioning, negative: Conditioning, specs: Sequence[ControlSpec]
    ) -> tuple[Conditioning, Conditioning]:
        """Both halves with these units behind those that they have, ours and native ones alike."""
        from . import apply

        return apply.apply_control(positive, negative, specs)

    def controlled(self, model: Any, conditioning: Conditioning) -> Controlled:
        """Our units on a conditioning, with the model's noise levels."""
        from . import apply

        return apply.controlled(model, conditioning)

    def memory(self, model: Any, positive: Conditioning, latent: Any, settings: Any) -> str:
        """Nothing: in the editor memory is the editor's to plan."""
        return ""

    def reweigh(self, model: Any, conditioning: Conditioning, unit: int, factors: Sequence[float]) -> Conditioning:
        """The same conditioning with the block weights of one of our units multiplied."""
        from . import apply

        return apply.reweigh(model, conditioning, unit, factors)

    def sample(
        self,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent: Latent,
        settings: SampleSettings,
        recorder: Recorder | None = None,
    ) -> Latent:
        """The sampled LATENT, by our samplers inside the editor's guidance; recorders hear of our nets only."""
        from . import sampling

        return sampling.sample(model, positive, negative, latent, settings, recorder)

    def accelerate(self, model: Any, weights: str, node: str | None) -> tuple[Any, str]:
        """A clone of the MODEL with our engine around its UNet."""
        from . import accelerate

        return accelerate.accelerated(model, weights, node)

    def shorten(self, model: Any, shortcuts: Shortcuts, node: str | None) -> tuple[Any, str]:
        """A clone of the MODEL that is sampled with these shortcuts."""
        from . import shortcuts as parts

        return parts.shortened(model, shortcuts, node)

    def shortcuts_of(self, model: Any) -> Shortcuts:
        """What sampling of a MODEL may leave out."""
        from . import shortcuts as parts

        return parts.shortcuts_of(model)

    # ---- progress

    def progress(self, done: int, total: int, preview: Any = None) -> None:
        """Move the node's bar; raises the editor's own interruption where the user pressed Cancel."""
        import comfy.model_management
        import comfy.utils

        comfy.model_management.throw_exception_if_processing_interrupted()
        picture = None if preview is None else ("JPEG", preview, PREVIEW_SIDE)
        comfy.utils.ProgressBar(total).update_absolute(done, total, picture)

    def cancelled(self) -> bool:
        """Whether the user pressed Cancel."""
        import comfy.model_management

        return bool(comfy.model_management.processing_interrupted())


def is_ours(identity: Identity) -> bool:
    """Whether a checkpoint is of a shape that we load and the editor does not know, such as the demo model."""
    return identity.kind == "checkpoint" and identity.supported and identity.family not in HOST_FAMILIES
