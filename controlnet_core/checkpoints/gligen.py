"""Load GLIGEN's text boxes: the gated attentions of all transformer blocks, and the network for boxes."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, UnfitError
from ..models.gligen import Gligen, GligenConfig
from ..models.module_tree import on_meta
from .headers import read_header
from .io import read_tensors

_STACKS = ("input_blocks", "middle_block", "output_blocks")
_FUSER = re.compile(rf"(?:.*\.)?({'|'.join(_STACKS)})\.(\d+)\.(?:.*\.)?transformer_blocks\.(\d+)\.fuser\.(.+)")
_GROUNDING = re.compile(r"(?:.*\.)?position_net\.(.+)")
_RENAMED = {
    "attn.to_q": "attn.q",
    "attn.to_k": "attn.k",
    "attn.to_v": "attn.v",
    "attn.to_out.0": "attn.out",
    "ff.net.0.proj": "ff_proj",
    "ff.net.2": "ff_out",
    "linears.0": "linear1",
    "linears.2": "linear2",
    "linears.4": "linear3",
    "null_positive_feature": "no_text",
    "null_position_feature": "no_box",
}


def load_gligen(path: str | Path) -> Gligen:
    """Return the weights of a file, which may hold a whole model. Raises CheckpointError, UnfitError."""
    header = read_header(path)
    name = Path(path).name
    blocks: dict[tuple[int, int, int], dict[str, str]] = {}
    ours: dict[str, str] = {}
    for key in header.tensors:
        if match := _FUSER.fullmatch(key):
            place = (_STACKS.index(match[1]), int(match[2]), int(match[3]))
            blocks.setdefault(place, {})[key] = match[4]
        elif match := _GROUNDING.fullmatch(key):
            ours[key] = f"grounding.{_renamed(match[1])}"
    if not blocks or not ours:
        raise UnfitError(f"{name} holds no text boxes of GLIGEN: load one, such as gligen_sd14_textbox_pruned", path)
    # Fusers are numbered in the order in which the blocks run.
    for number, place in enumerate(sorted(blocks)):
        ours |= {key: f"fusers.{number}.{_renamed(rest)}" for key, rest in blocks[place].items()}
    tensors: dict[str, Tensor] = {ours[key]: value for key, value in read_tensors(header, ours).items()}
    try:
        linears = [tensors[f"fusers.{number}.linear.weight"] for number in range(len(blocks))]
        hidden = tensors["grounding.linear1.weight"].shape[0]
        config = GligenConfig(tuple(weight.shape[0] for weight in linears), linears[0].shape[1], hidden)
        with on_meta():
            model = Gligen(config)
        model.load_state_dict(tensors, assign=True)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} is no complete file of GLIGEN ({reason}): load another one", path) from error
    return model.eval().requires_grad_(False)


def _renamed(key: str) -> str:
    for theirs, own in _RENAMED.items():
        if key == theirs or key.startswith(f"{theirs}."):
            return own + key[len(theirs) :]
    return key
