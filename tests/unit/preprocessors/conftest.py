"""Pictures and options that every preprocessor can be run on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.entry import Entry, Weights
from comfyui_controlnet_core.preprocessors.learned import depth_anything
from comfyui_controlnet_core.preprocessors.learned.library import Library
from torch import nn

WEIGHT_FREE = tuple(entry for entry in ENTRIES if not entry.weights)


def make_pictures(count: int = 2, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth colour noise with a box in it, (B,H,W,3) float32, exactly representable in bytes."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        frame = cv2.GaussianBlur(rng.random((height, width, 3)), (0, 0), 3)
        frame = (frame - frame.min()) / max(float(np.ptp(frame)), 1e-9)
        frame[height // 4 : height // 2, width // 4 : width // 2] = rng.random(3)
        frames.append(frame)
    return np.rint(np.stack(frames) * 255).astype(np.float32) / np.float32(255)


def options_of(entry: Entry, image: np.ndarray) -> dict[str, Any]:
    """What an entry cannot run without: a mask for inpainting."""
    if not entry.masked:
        return {}
    mask = np.zeros(image.shape[:3], np.float32)
    mask[:, : max(1, image.shape[1] // 2)] = 1
    return {"mask": mask}


def tiny_depth() -> nn.Module:
    return depth_anything.DepthAnything(depth_anything.DepthConfig(24, 4, 2, (0, 1, 2, 3), 16, (8, 8, 16, 16), grid=4))


class Random(Library):
    """Nets with seeded random weights instead of files; depth nets are small ones."""

    def __init__(self) -> None:
        super().__init__(())
        self.made: list[str] = []
        self.kept: dict[str, nn.Module] = {}

    def find(self, weights: Weights) -> Path:
        return Path(weights.file)

    def net(self, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
        if weights.file not in self.kept:
            self.made.append(weights.file)
            self.kept[weights.file] = randomized(tiny_depth() if "depth" in weights.file else build())
        return self.kept[weights.file]


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            scale = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def nets() -> Random:
    """Every learned one's nets, made once for all tests."""
    return Random()


@pytest.fixture(params=WEIGHT_FREE, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param
