"""Load a hypernetwork, from a file of webui: a table {width: (networks for keys, networks for values)} with facts.

Dropout of the training is not applied. ComfyUI leaves it on, so that its pictures from files with dropout differ from
run to run; they have no result that could be matched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, UnfitError
from ..models.hypernetwork import ACTIVATIONS, Hypernetwork, HypernetworkConfig
from ..models.module_tree import on_meta
from .detect import identify
from .files import Header
from .headers import read_header
from .io import read_tensors

_KEY = re.compile(r"(\d+)\.([01])\.(.+)\.(weight|bias)")
_PARTS = ("weight", "bias")
_TRUE = "True"
"""How headers of pickles write it."""


def load_hypernetwork(path: str | Path) -> Hypernetwork:
    """Return the networks of a file.

    Raises UnfitError for a file of another kind or with an unknown activation, CheckpointError for a damaged one.
    """
    header = read_header(path)
    name, facts = header.path.name, header.metadata
    layers = _layers(header)
    if not layers:
        raise UnfitError(f"{name} is no hypernetwork but {identify(header).summary}: load one", header.path)
    activation = facts.get("activation_func", "linear")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnfitError(
            f"{name} has the activation {activation[:40]!r}, known are {known}: load another hypernetwork", header.path
        )
    normalised = facts.get("is_layer_norm") == _TRUE
    keys = [f"{stem}.{part}" for stems in layers.values() for stem in stems for part in _PARTS]
    try:
        tensors = read_tensors(header, keys)
        config = HypernetworkConfig(
            _sizes(layers, tensors, step=2 if normalised else 1), activation, normalised,
            facts.get("activate_output") == _TRUE,
        )  # fmt: skip
        with on_meta():
            net = Hypernetwork(config)
        net.load_state_dict(_renamed(layers, tensors, normalised), assign=True)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{name} is no complete hypernetwork ({reason}): load another one", header.path
        ) from error
    return net.eval().requires_grad_(False)


def _layers(header: Header) -> dict[tuple[int, int], list[str]]:
    """The layers of each network in their order in the file, by width and part: 0 for keys, 1 for values.

    Names of layers differ between versions of webui, their order does not.
    """
    found: dict[tuple[int, int], list[str]] = {}
    for key in header.tensors:
        if (match := _KEY.fullmatch(key)) and match[4] == "weight":
            found.setdefault((int(match[1]), int(match[2])), []).append(key.removesuffix(".weight"))
    return found


def _sizes(
    layers: Mapping[tuple[int, int], list[str]], tensors: Mapping[str, Tensor], step: int
) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Output widths of the linear layers. step: 2 where every second layer is a normalisation.

    Raises ValueError for networks that do not give back the width that they read.
    """
    sizes = {}
    for width in sorted({width for width, _ in layers}):
        both = [tuple(tensors[f"{stem}.weight"].shape[0] for stem in layers[width, part][::step]) for part in (0, 1)]
        if any(own[-1] != width for own in both):
            raise ValueError(f"a network of width {width} ends with {both[0][-1]} and {both[1][-1]}")
        sizes[width] = (both[0], both[1])
    return sizes


def _renamed(
    layers: Mapping[tuple[int, int], list[str]], tensors: Mapping[str, Tensor], normalised: bool
) -> dict[str, Tensor]:
    kinds = ("linears", "norms") if normalised else ("linears",)
    return {
        f"pairs.{width}.{part}.{kinds[index % len(kinds)]}.{index // len(kinds)}.{own}": tensors[f"{stem}.{own}"]
        for (width, part), stems in layers.items()
        for index, stem in enumerate(stems)
        for own in _PARTS
    }
