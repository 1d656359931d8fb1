"""The networks of a training through `torch.compile`."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import MissingPackageError
from ..models.controlnet import ControlNet
from ..models.unet import UNet


def compile_networks(unet: UNet, net: ControlNet, device: torch.device) -> tuple[Any, Any]:
    """Functions that compute what UNet and net compute. They are compiled at the first step, for minutes.

    The modules are not changed: probes, samples and files use them as they are. Raises MissingPackageError
    where torch finds no compiler for the device.
    """
    check_compiler(device)
    return torch.compile(unet), torch.compile(net)


def check_compiler(device: torch.device, backend: str = "inductor") -> None:
    """Raise MissingPackageError where `torch.compile` does not work on this device."""
    x = torch.ones(8, device=device)
    try:
        # Tried, because it depends on the compilers of the system. It takes some seconds; a training takes hours.
        torch.compile(lambda x: (x * 2.0).sin() + 1.0, backend=backend)(x)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if "compiler" in line.lower()), str(error))
        raise MissingPackageError(
            f"--compile: torch.compile does not work on {device} ({reason.strip()[:160]}): install a C++ compiler "
            "(g++, or Visual Studio's), and for a GPU Triton; or leave --compile out"
        ) from error
