"""Weights files: where they are searched, how they are read, and strict loading into a network.

Nothing is downloaded and no code in a file is run: pickles are read with `weights_only`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError, reading_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..entry import Weights

# Places below a models folder, and below the folder of the ControlNet auxiliary pack, which many users have.
SUBFOLDERS = (
    "",
    "annotators",
    "controlnet_annotators",
    "preprocessors",
    "controlnet_aux",
    "ckpts",
    "lllyasviel/Annotators",
    "ckpts/lllyasviel/Annotators",
    "controlnet/annotators",
    "depth_anything",
    "depthanything",
)
_CONTAINERS = ("state_dict", "model", "params")
_SHOWN = 4


def find_weights(weights: Weights, folders: Sequence[str | Path]) -> Path:
    """The file or folder of `weights` in the first of `folders`, or of their usual subfolders, that has it.

    Raises WeightsError that names the file, where to get it, its licence, and where to put it.
    """
    for folder in map(Path, folders):
        for below in (*SUBFOLDERS, *weights.subfolders):
            path = folder / below / weights.file
            if (path / "config.json" if weights.is_folder else path).is_file():
                return path
    what = f"the folder {weights.file} (with its config.json)" if weights.is_folder else weights.file
    where = ", ".join(map(str, folders))
    looked = f"looked in {where}, and in subfolders such as {SUBFOLDERS[1]}" if folders else "no folder was given"
    raise WeightsError(
        f"{what} was not found ({looked}): get it from {weights.source} (licence: {weights.licence}) and put it into "
        f"{Path(folders[0]) / SUBFOLDERS[1] if folders else 'models/annotators'}",
        weights.file,
    )


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a .safetensors file or a pickle, without the wrappers of training code.

    Raises WeightsError for a file that is damaged or holds anything but tensors.
    """
    import torch
    from safetensors.torch import load_file

    with reading_weights(path):
        is_pickle = path.suffix != ".safetensors"
        state: Any = torch.load(path, map_location="cpu", weights_only=True) if is_pickle else load_file(path)
        for container in _CONTAINERS:
            if isinstance(state, Mapping) and isinstance(state.get(container), Mapping):
                state = state[container]
        if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise WeightsError(f"{path} holds no state dict of tensors: get the file again", path)
        # Training on several devices puts a prefix before all keys.
        if state and all(key.startswith("module.") for key in state):
            return {key.removeprefix("module."): value for key, value in state.items()}
        return dict(state)


def load_strict(net: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> nn.Module:
    """Load `state` into `net` with every key and every shape.

    Raises WeightsError that names the file, and the keys that are missing, unexpected or of another shape.
    """
    wanted = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    # Batch normalisation counts its batches while training. Older files lack these counters, and nothing reads them.
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in given and key not in counters]
    unexpected = [key for key in given if key not in wanted]
    shapes = [key for key in wanted if key in given and wanted[key] != given[key]]
    if missing or unexpected or shapes:
        raise WeightsError(
            f"{path} does not fit {type(net).__name__}: {some('keys missing', missing)}"
            f"{some('keys that it does not know', unexpected)}"
            f"{some('other shapes', [f'{key} {given[key]} for {wanted[key]}' for key in shapes])}"
            "it is damaged, or made for another network",
            path,
        )
    complete = dict(state) | {key: net.state_dict()[key] for key in counters if key not in given}
    # Tensors of the right shape can still be of a kind that cannot be copied, such as sparse or quantized ones.
    with reading_weights(path):
        net.load_state_dict(complete, strict=True)
    return net.eval().requires_grad_(False)


def some(what: str, names: Sequence[str]) -> str:
    """Text such as "2 keys missing (a, b); ", with the first names only; empty for no names."""
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more}); "
