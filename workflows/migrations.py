"""Changes that the editor makes when it loads an old workflow: renamed node types, inputs and samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_TYPES = {
    # The old name ended with a space.
    "ConditioningAverage ": "ConditioningAverage",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
    "T2IAdapterLoader": "ControlNetLoader",
}
_RENAMED_INPUTS = {"t2i_adapter_name": "control_net_name"}
_SAMPLERS = frozenset({"KSampler", "KSamplerAdvanced"})


def current_type(class_type: str) -> str:
    """Return today's name of a node type."""
    return RENAMED_TYPES.get(class_type, class_type)


def current_inputs(class_type: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a node (of today's type) with today's names and sampler names."""
    current = dict(inputs)
    if class_type == "ControlNetLoader":
        current = {_RENAMED_INPUTS.get(name, name): value for name, value in inputs.items()}
    sampler = current.get("sampler_name")
    # The first versions wrote "sample_euler".
    if class_type in _SAMPLERS and isinstance(sampler, str):
        current["sampler_name"] = sampler.removeprefix("sample_")
    return current
