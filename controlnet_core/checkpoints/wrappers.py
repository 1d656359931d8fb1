"""Keys as tools wrap them: prefixes of trainers, training state beside the weights, and the scales of float8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..errors import CheckpointError
from .files import TensorInfo
from .signatures import KeyIndex

WRAPPERS = ("state_dict.", "model_state_dict.", "params_ema.", "params.", "module.")
"""Prefixes that are removed where all keys have them: tables around the weights, and data-parallel training."""
MOST_WRAPPERS = 4
"""How many of them may stand before a key."""
COMMON_WORDS = ("model.", "net.", "ema.", "model_ema.", "controlnet.", "control_net.", "generator.", "weights.")
"""Wrappers that may also be parts of a model: they count where the keys are known without them, and not with them."""
WRAPPED_MODULES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What `torch.compile` and the wrappers of distributed training put before the keys of each module."""
TRAINING_STATE = frozenset({
    "global_step", "step", "epoch", "iteration", "num_updates", "lr", "ema_decay", "n_averaged", "loss",
    "optimization_step",
})  # fmt: skip
"""Tensors that trainers leave beside the weights."""
SCALES = (".scale_weight", ".weight_scale")
"""A float8 weight times this is the weight: names of ComfyUI's scaled fp8, older and newer."""
OTHER_SCALES = (".scale_input", ".input_scale", ".comfy_quant")
"""How to round the input of a layer to float8, and the name of the format: of no use where layers compute in 16 bit."""
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def plain_keys(tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """The tensors of a file without wrappers, training state and scales. Raises CheckpointError for unknown scales."""
    bare = {_bare(key): info for key, info in tensors.items()}
    tensors = bare if len(bare) == len(tensors) else tensors
    # Trainers nest: `module.` of data-parallel training around `state_dict.` of a checkpoint.
    for _ in range(MOST_WRAPPERS):
        # A file with nothing else is no training state: a learned word may be called "step".
        tensors = {key: info for key, info in tensors.items() if key not in TRAINING_STATE} or tensors
        wrapper = _find_wrapper(tensors)
        if not wrapper:
            break
        tensors = {key.removeprefix(wrapper): info for key, info in tensors.items()}
    return attach_scales(tensors)


def _bare(key: str) -> str:
    for wrapped in WRAPPED_MODULES:
        key = key.replace(wrapped, "")
    return key


def _find_wrapper(tensors: Mapping[str, TensorInfo]) -> str:
    """The prefix that all keys have, empty for none."""
    first = next(iter(tensors), "")
    wrapper = next((name for name in (*WRAPPERS, *COMMON_WORDS) if first.startswith(name)), "")
    if not wrapper or not all(key.startswith(wrapper) for key in tensors):
        return ""
    if wrapper in WRAPPERS:
        return wrapper
    # The keys of LDM's UNet and of OpenCLIP begin with `model.` too.
    inner = {key.removeprefix(wrapper): info for key, info in tensors.items()}
    is_wrapper = not KeyIndex(tensors).match() and (wrapper == "model." or bool(KeyIndex(inner).match()))
    return wrapper if is_wrapper else ""


def attach_scales(tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """Scaled fp8: each scale becomes a part of the float8 weight that it belongs to, which then counts as float16.

    Raises CheckpointError for scales of blocks, whose layout is not published.
    """
    scales = {key.removesuffix(end) + ".weight": key for end in SCALES for key in tensors if key.endswith(end)}
    # Other types with a scale are quantised in ways that are not read here; loading names them.
    scales = {key: scale for key, scale in scales.items() if key in tensors and tensors[key].dtype in FLOAT8}
    used = {*scales.values()}
    result: dict[str, TensorInfo] = {}
    for key, info in tensors.items():
        if key in used or key.endswith(OTHER_SCALES) or key.rpartition(".")[2] == "scaled_fp8":
            continue
        if scale := scales.get(key):
            if tensors[scale].count not in (1, info.shape[0] if info.shape else 1):
                raise CheckpointError(
                    f"scaled fp8: {key} is {list(info.shape)} with scales {list(tensors[scale].shape)}, expected one "
                    "scale, or one for each row: use the fp16 version of the model"
                )
            info = replace(info, dtype=torch.float16, scale=tensors[scale])
        result[key] = info
    return result
