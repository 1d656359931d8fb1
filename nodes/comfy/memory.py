"""What a net of ours holds at its peak besides its weights, counted before it runs, for the editor's memory manager."""

from __future__ import annotations

from ...controlnet_core.config import ControlNetConfig
from ...controlnet_core.control.modes import block_heights
from ...controlnet_core.models.unet import encoder_widths

TOKENS = 77
AT_WORK = 18
"""Feature maps of a block's own width that its widest moment holds: inside the gated feed-forward the input and
its normalised twin, the product (8), the gate's activation (4) and their product (4)."""
HINT_MAPS = 3
"""Maps of the hint encoder's first width, at the picture's size, that are there at once."""


def activations(config: ControlNetConfig, size: tuple[int, int], rows: int, pictures: int, factor: int) -> int:
    """Numbers that a ControlNet holds at its peak.

    size: (h, w) of the latent; rows: those of x that it sees; pictures: hints of different content; factor: pixels per
    cell. All residuals are there at the end; the block with the widest moment is counted beside them, though few are.
    """
    unet = config.unet
    widths = [*encoder_widths(unet), unet.widths[-1]]
    cells = [h * w for h, w in zip(*(block_heights(unet, side) for side in size), strict=True)]
    maps = [width * n for width, n in zip(widths, cells, strict=True)]
    depths = zip(unet.widths, unet.transformer_depth, strict=True)
    text_width = sum(unet.res_blocks * depth * width for width, depth in depths) + unet.middle_depth * unet.widths[-1]
    text = 2 * TOKENS * text_width
    timesteps = sum(widths) + 3 * unet.embed_dim
    per_row = sum(maps) + AT_WORK * max(maps) + text + timesteps
    pixels = size[0] * size[1] * factor**2
    hint = (config.hint_channels + HINT_MAPS * config.hint_widths[0]) * pixels + unet.widths[0] * cells[0]
    return rows * per_row + pictures * hint
