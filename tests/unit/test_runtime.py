"""Devices by name: what this machine has is found, what it lacks is said."""

from __future__ import annotations

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime, choose_device


def test_the_processor_is_always_there_and_auto_finds_something() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    assert Runtime.choose("cpu", "auto").dtype == torch.float32


@pytest.mark.parametrize("name", ["", "tpu", "cpu:x", "cuda:-1", "meta", "xpu", "CPU"])
def test_names_of_no_device_here(name: str) -> None:
    with pytest.raises(ValueRangeError, match=r"unknown: use auto, cpu, cuda, cuda:1 or mps"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_without_a_device(name: str) -> None:
    with pytest.raises(ValueRangeError, match=rf"device {name} is not there: torch .* sees no CUDA device"):
        choose_device(name)


def test_a_number_behind_the_last_device() -> None:
    with pytest.raises(ValueRangeError, match="device cpu:7 is not there: cpu:0 is the last of this machine"):
        choose_device("cpu:7")
