"""Control inside the attentions of ComfyUI's UNet, through the patches that ComfyUI's blocks call themselves.

The patches go into the options of one call of the model, behind those of other packs: nothing is left on the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.control.attention import attention_changes
from ...controlnet_core.control.bound_unit import NetInputs
from ...controlnet_core.models.control import Place
from ...controlnet_core.models.layers import AttentionChange
from ...controlnet_core.models.to_device import to_device_async

STACKS = {"input": "encoder", "middle": "middle", "output": "decoder"}
"""ComfyUI's names of the parts of a UNet, and ours."""
QUERY = "controlnet_core_query"
"""Where the options of a block, which ComfyUI makes for each, keep what its cross attention reads."""
BLOCKS = {"input": "input_blocks", "output": "output_blocks"}


class AttentionPatches:
    """The changes of one net in one call of the model.

    rows: of x, those that the net acts on. diffusion_model: ComfyUI's UNet, whose cross attentions attend to other
    texts for some kinds of control.
    """

    def __init__(self, net: NetInputs, rows: Sequence[int], x: Tensor, diffusion_model: Any) -> None:
        index = slice(None) if len(rows) == len(x) else to_device_async(torch.tensor(rows), x.device)
        units = tuple(unit._replace(rows=index) for unit in net.units)  # type: ignore[arg-type]
        self.net, self.diffusion_model = net._replace(units=units), diffusion_model
        self.changes: tuple[AttentionChange, ...] = ()

    def attach(self, options: dict[str, Any]) -> None:
        """Add the patches to the options of a call."""
        patches = dict(options.get("patches") or {})  # a new one: that of the model's options is shared by all calls
        given = {
            "attn1_patch": self.self_inputs,
            "attn2_patch": self.text_inputs,
            "attn2_output_patch": self.text_output,
        }
        for name, patch in given.items():
            patches[name] = [*patches.get(name, ()), patch]
        options["patches"] = patches

    def self_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ComfyUI calls a patch in front of a self attention."""
        self.changes = tuple(attention_changes(self.net, place_of(options), query))
        for change in self.changes:
            query, key, value = change.self_inputs(query, key, value)
        return query, key, value

    def text_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ComfyUI calls a patch in front of a cross attention: the second one of the same block."""
        for change in self.changes:
            query = change.text_query(query)
        options[QUERY] = query  # the last of our patches has the one that is attended with
        return query, key, value

    def text_output(self, output: Tensor, options: Mapping[str, Any]) -> Tensor:
        """As ComfyUI calls a patch behind a cross attention."""
        query = options[QUERY]
        for change in self.changes:
            output = change.text_output(output, query, lambda own, text: self._attention(options)(own, context=text))
        return output

    def _attention(self, options: Mapping[str, Any]) -> Any:
        """The cross attention of the block that runs now."""
        part, number = options["block"]
        unet = self.diffusion_model
        block = unet.middle_block if part == "middle" else getattr(unet, BLOCKS[part])[number]
        return block[1].transformer_blocks[options["block_index"]].attn2


def place_of(options: Mapping[str, Any]) -> Place:
    """The transformer block that runs now. ComfyUI numbers the blocks of the UNet's parts as we do."""
    part, number = options["block"]
    return Place(STACKS[part], number, options.get("block_index", 0))
