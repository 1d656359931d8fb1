"""Moves a ControlNet to another base (Zhang et al. 2023, section 4: transfer to community models).

net' = net + strength * (target - source), for each weight that the net shares with both bases.
"""

from __future__ import annotations

import torch

from ..errors import UnfitError
from ..models.controlnet import COPIED, ControlNet
from ..models.module_tree import on_meta
from ..models.unet import UNet


@torch.no_grad()
def transfer_controlnet(net: ControlNet, source: UNet, target: UNet, strength: float = 1.0) -> ControlNet:
    """Make a new net for `target` from one that was trained on `source`, which is not changed.

    strength: 0 keeps the net as it is, 1 adds the whole difference of the bases. The arithmetic is in float32, the
    result has the net's dtype. Raises UnfitError where the shapes of net and bases differ.
    """
    for name, base in (("source", source), ("target", target)):
        if not net.fits(base.config) or base.config.in_channels != net.config.unet.in_channels:
            raise UnfitError(
                f"the net was made for {net.made_for}, the {name} base has widths {base.config.widths} and "
                f"{base.config.context_dim} wide text: all three have to be of one family"
            )
    state = dict(net.state_dict())
    before, after = source.state_dict(), target.state_dict()
    for name, weight in state.items():
        if name.split(".")[0] in COPIED and name in before:
            change = after[name].float() - before[name].float()
            state[name] = (weight.float() + strength * change.to(weight.device)).to(weight.dtype)
    # Built without memory: the weights are assigned, not copied.
    with on_meta():
        moved = ControlNet(net.config)
    moved.requires_grad_(False)
    moved.load_state_dict(state, strict=True, assign=True)
    return moved.eval()
