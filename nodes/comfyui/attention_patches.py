"""Control inside the attentions of ComfyUI's UNet, through the patches that ComfyUI's blocks call themselves.

The patches go into the options of one call of the model, behind those of other packs: nothing is left on the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.control.attention import attention_changes, output_changes
from ...controlnet_core.control.bound_unit import NetInputs
from ...controlnet_core.models.control import Place
from ...controlnet_core.models.layers import AttentionChange
from ...controlnet_core.models.to_device import to_device_async
from .reference_pass import place_before, place_of

QUERY, SELF_INPUTS = "controlnet_core_query", "controlnet_core_self_inputs"
"""Where the options of a block, which ComfyUI makes for each, keep what its attentions read."""
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
            "attn1_output_patch": self.self_output,
            "attn2_patch": self.text_inputs,
            "attn2_output_patch": self.text_output,
        }
        if self.net.net.entry == "reference":
            given |= {"input_block_patch": self.after_input, "output_block_patch": self.before_output}
        for name, patch in given.items():
            patches[name] = [*patches.get(name, ()), patch]
        options["patches"] = patches

    def self_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Patch before a self attention: return its queries, keys and values, each (rows, N, width)."""
        self.changes = tuple(attention_changes(self.net, place_of(options), query))
        for change in self.changes:
            query, key, value = change.self_inputs(query, key, value)
        options[SELF_INPUTS] = query, key, value  # the last of our patches has those that are attended with
        return query, key, value

    def self_output(self, output: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Patch after a self attention: return its output (rows, N, width)."""
        for change in self.changes:
            attention = self._block(options).attn1
            output = change.self_output(
                output, options[SELF_INPUTS], lambda q, k, v, attend=attention: attend(q, context=k, value=v)
            )
        return output

    def text_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Patch before the cross attention of the same block: return its queries, keys and values."""
        for change in self.changes:
            query = change.text_query(query)
        options[QUERY] = query  # the last of our patches has the one that is attended with
        return query, key, value

    def text_output(self, output: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Patch after a cross attention: return its output (rows, N, width)."""
        for change in self.changes:
            attention = self._block(options).attn2
            output = change.text_output(
                output,
                options[QUERY],
                # Without values of their own, ComfyUI reads them from the keys' text too.
                lambda own, text, values=None, attend=attention: attend(own, context=text, value=values),
            )
        return output

    def after_input(self, h: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Patch after a block of the encoder: return its output (rows, C, h, w)."""
        return self._changed(Place("encoder", options["block"][1], 0), h)

    def before_output(self, h: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Patch before a block of the decoder: return the feature map that it reads, and its skip."""
        return self._changed(place_before(options["block"][1]), h), skip

    def _changed(self, place: Place, h: Tensor) -> Tensor:
        for change in output_changes(self.net, place, h):
            h = change(h)
        return h

    def _block(self, options: Mapping[str, Any]) -> Any:
        """The transformer block that runs now."""
        part, number = options["block"]
        unet = self.diffusion_model
        block = unet.middle_block if part == "middle" else getattr(unet, BLOCKS[part])[number]
        return block[1].transformer_blocks[options["block_index"]]
