"""Nets of learned preprocessors, found in ComfyUI's folders and held by its memory manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from torch import nn

from ...preprocessors.learned.library import Library

OTHER_PACK = "comfyui_controlnet_aux"


class HostLibrary(Library):
    """Searches the folders for annotators that are registered with ComfyUI, then its models folder, then the
    folder in which the pack that most people have keeps its files."""

    def __init__(self) -> None:
        manage = comfy.model_management
        device = manage.get_torch_device()
        dtype = torch.float16 if manage.should_use_fp16(device) else torch.float32
        kinds = folder_paths.folder_names_and_paths
        named = [folder for kind in kinds if "annotator" in kind for folder in folder_paths.get_folder_paths(kind)]
        packs = [Path(folder) / OTHER_PACK for folder in folder_paths.get_folder_paths("custom_nodes")]
        super().__init__([*named, folder_paths.models_dir, *packs], device=str(device), dtype=dtype)
        self._patchers: dict[nn.Module, Any] = {}

    def place(self, net: nn.Module) -> nn.Module:
        """Bring a net to ComfyUI's device, where it makes room for it and may take it away again."""
        manage = comfy.model_management
        if net not in self._patchers:
            self._patchers[net] = comfy.model_patcher.ModelPatcher(
                net.to(dtype=self.dtype), manage.get_torch_device(), manage.unet_offload_device()
            )
        manage.load_models_gpu([self._patchers[net]], force_full_load=True)
        return net

    def forget(self) -> None:
        """Let go of all nets."""
        super().forget()
        self._patchers.clear()
