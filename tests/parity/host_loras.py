"""Merge LoRA files in the real host, and write its weights to a file.

    python host_loras.py COMFYUI_DIR FOLDER OUT

Run as a program of its own by `test_loras_host.py`. FOLDER holds unet.safetensors, a UNet under the host's
names, config.json, its shape as the host's config has it, and any number of LoRA files `*.lora`; OUT gets
one tensor "LORA/WEIGHT" for each weight that a LoRA changes, and "LORA/unread" with the number of its keys that the
host has no use for.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STRENGTH = 0.7


def import_host(folder: str) -> types.SimpleNamespace:
    """The host's LoRA code, on the CPU."""
    sys.path.insert(0, folder)
    sys.argv = ["host", "--cpu"]
    for name in ("torchvision", "torchaudio"):
        try:
            importlib.import_module(name)
        except ImportError:
            importlib.import_module("transformers")  # which looks whether it is there
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].transforms = types.SimpleNamespace()  # type: ignore[attr-defined]
    importlib.import_module("comfy.options").enable_args_parsing()
    return types.SimpleNamespace(lora=importlib.import_module("comfy.lora"))


def main(folder: str, files: str, out: str) -> None:
    torch.set_num_threads(1)
    host = import_host(folder)
    weights = load_file(Path(files) / "unet.safetensors")
    config = json.loads((Path(files) / "config.json").read_text())
    model: Any = types.SimpleNamespace(
        state_dict=lambda: weights, model_config=types.SimpleNamespace(unet_config=config)
    )
    names = host.lora.model_lora_keys_unet(model, {})
    results: dict[str, torch.Tensor] = {}
    for path in sorted(Path(files).glob("*.lora")):
        content = load_file(path)
        patches = host.lora.load_lora(content, names, log_missing=False)
        for key, patch in patches.items():
            merged = host.lora.calculate_weight([(STRENGTH, patch, 1.0, None, None)], weights[key].clone(), key)
            results[f"{path.stem}/{key}"] = merged.contiguous()
    save_file(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
