"""Key table of OpenCLIP's text transformer, and its two tensors with another shape.

OpenCLIP has the projections to queries, keys and values of a layer in one tensor, one below the other, and the
last projection transposed, as a plain parameter. `split_fused` replaces them in a header by the tensors of the table,
which are views: nothing is copied. `fuse` is the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .files import Header, TensorInfo
from .keymap import Pairs, Rule, nest

LAYER: Pairs = (
    ("ln_1", "norm1"),
    ("ln_2", "norm2"),
    ("mlp.c_fc", "fc1"),
    ("mlp.c_proj", "fc2"),
    *((f"attn.{part}_proj", f"attn.{part}") for part in ("q", "k", "v", "out")),
)
FUSED = ("weight", "bias")
PARTS = ("q", "k", "v")
PROJECTION = "text_projection"


def text_rules() -> tuple[Rule, ...]:
    """The text transformer, without a prefix."""
    return (
        Rule("token_embedding.{p}", "token_embedding.{p}"),
        Rule("positional_embedding", "position_embedding.weight"),
        *nest("transformer.resblocks.{i}", "layers.{i}", LAYER),
        Rule("ln_final.{p}", "norm_out.{p}"),
        Rule(f"{PROJECTION}.weight", "projection.weight"),
    )


def split_fused(header: Header) -> Header:
    """The header with one tensor for each key of the table; a header without OpenCLIP's tensors stays as it is."""
    tensors = {key: info for name, info in header.tensors.items() for key, info in _views(name, info)}
    return header if tensors.keys() == header.tensors.keys() else replace(header, tensors=tensors)


def _views(name: str, info: TensorInfo) -> Iterator[tuple[str, TensorInfo]]:
    stem, _, last = name.rpartition(".")
    kind = last.removeprefix("in_proj_")
    if last.startswith("in_proj_") and kind in FUSED and ".resblocks." in f".{stem}" and _in_three(info.shape):
        # Queries, keys and values lie one below the other: a third of the rows each, read as views.
        rows = info.shape[0] // 3
        for index, part in enumerate(PARTS):
            view = replace(info, shape=(rows, *info.shape[1:]), rows=(index * rows, (index + 1) * rows))
            yield f"{stem}.{part}_proj.{kind}", view
        return
    if last == PROJECTION and len(info.shape) == 2:
        yield f"{name}.weight", replace(info, shape=info.shape[::-1], transposed=True)
        return
    yield name, info


def _in_three(shape: tuple[int, ...]) -> bool:
    return len(shape) > 0 and shape[0] % 3 == 0


def fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of the table -> the tensors of OpenCLIP."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if name.endswith(f"{PROJECTION}.weight"):
            result[stem] = tensor.T.contiguous()
        elif ".resblocks." in f".{stem}" and stem.endswith(".q_proj"):
            attention = stem.removesuffix(".q_proj")
            rows = [tensors[f"{attention}.{part}_proj.{kind}"] for part in PARTS]
            result[f"{attention}.in_proj_{kind}"] = torch.cat(rows)
        elif not (".resblocks." in f".{stem}" and stem.endswith((".k_proj", ".v_proj"))):
            result[name] = tensor
    return result
