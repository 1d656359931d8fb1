"""ComfyUI's UNet as a base for control: its shape and its weights, by our names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...controlnet_core.checkpoints import ldm
from ...controlnet_core.checkpoints.keymap import KeyMap
from ...controlnet_core.config import UNetConfig


def base_config(model: Any) -> UNetConfig | None:
    """Shape of a BaseModel's UNet; None where the model is of another architecture."""
    described = model.model_config.unet_config
    if "model_channels" not in described or "channel_mult" not in described:
        return None
    widths = tuple(int(described["model_channels"] * mult) for mult in described["channel_mult"])
    blocks = described.get("num_res_blocks", 2)
    res_blocks = blocks if isinstance(blocks, int) else blocks[0]
    depths = described.get("transformer_depth") or [1] * len(widths)
    per_level = depths[::res_blocks] if len(depths) == res_blocks * len(widths) else depths
    middle = described.get("transformer_depth_middle", 1)
    head_dim = described.get("num_head_channels", -1)
    return UNetConfig(
        in_channels=described.get("in_channels", 4),
        out_channels=described.get("out_channels", 4),
        widths=widths,
        res_blocks=res_blocks,
        transformer_depth=tuple(int(depth) for depth in per_level[: len(widths)]),
        middle_depth=max(0, middle),
        middle_res=2 if middle >= 0 or "transformer_depth_middle" not in described else 1,
        num_heads=described.get("num_heads", 8),
        head_dim=head_dim if head_dim and head_dim > 0 else None,
        context_dim=described.get("context_dim") or 0,
        linear_projection=bool(described.get("use_linear_in_transformer", False)),
        label_dim=described.get("adm_in_channels"),
    )


def base_weights(model: Any, config: UNetConfig) -> Mapping[str, Tensor]:
    """Weights of a BaseModel's UNet, by our names, as they are now, patches that are in force included."""
    keymap = KeyMap(ldm.unet_rules(config))
    named = ((keymap.to_ours(name), tensor) for name, tensor in model.diffusion_model.state_dict().items())
    return {name: tensor for name, tensor in named if name is not None}
