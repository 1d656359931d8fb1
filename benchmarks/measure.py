"""Measure time and memory of a call, and describe the machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.runtime.tensor_memory import TensorMemory


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the wall time of one call in seconds, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak memory of a call in bytes, beyond what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - base
    with TensorMemory() as live:
        call()
    return live.peak


def machine(device: torch.device) -> dict[str, Any]:
    """Describe processor, threads and torch version; also the GPU, if one is used."""
    info = Path("/proc/cpuinfo")
    name = platform.processor()
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{names[0]}, {len(names)} cores" if names else name
    card = {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if device.type == "cuda" else {}
    return {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__, **card}
