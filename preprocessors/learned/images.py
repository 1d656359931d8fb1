"""Conversions between frames of bytes and the tensors of the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_input(frames: np.ndarray, net: nn.Module) -> torch.Tensor:
    """(B,H,W,C) uint8 -> (B,C,H,W) 0..255 on the network's device, in its precision."""
    # Bytes are copied to the device and converted there: a quarter of the float's traffic.
    parameter = next(net.parameters())
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).to(parameter.device)
    return tensor.permute(0, 3, 1, 2).to(parameter.dtype)


def imagenet(pictures: torch.Tensor) -> torch.Tensor:
    """Normalise (B,3,H,W) 0..1 by ImageNet's mean and standard deviation."""
    mean = pictures.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = pictures.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (pictures - mean) / std


def to_maps(output: torch.Tensor) -> np.ndarray:
    """(B,1,H,W) or (B,H,W) -> (B,H,W) float32 on the CPU."""
    maps = output[:, 0] if output.ndim == 4 else output
    return maps.float().cpu().numpy()


@torch.inference_mode()
def infer(net: Callable[..., Any], *inputs: torch.Tensor) -> Any:
    """Run a network without keeping the values that training would need."""
    return net(*inputs)
