"""Pictures and options that every preprocessor can be run on."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.registry import Entry

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


@pytest.fixture(params=WEIGHT_FREE, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param
