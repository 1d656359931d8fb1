"""A ControlNet moved to another base (Zhang et al. 2023, section 4: transferring to community models).

    net' = net + strength * (target - source)      for each weight that net and bases share
"""

from __future__ import annotations

import torch

from ..errors import UnfitError
from ..models.controlnet import ControlNet
from ..models.unet import UNet

SHARED = ("time_embed.", "label_embed.", "encoder.", "middle.")
"""Parts of a ControlNet that are copies of its base's; the hint encoder and zero convolutions are its own."""


@torch.no_grad()
def transfer(net: ControlNet, source: UNet, target: UNet, strength: float = 1.0) -> ControlNet:
    """A new net for `target` from one that was trained on `source`; the old one stays as it is.

    Arithmetic in float32, the result in the net's dtype. Raises UnfitError where net and bases differ in shape.
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
        if name.startswith(SHARED) and name in before:
            change = after[name].float() - before[name].float()
            state[name] = (weight.float() + strength * change.to(weight.device)).to(weight.dtype)
    with torch.device("meta"):
        moved = ControlNet(net.config)
    moved.requires_grad_(False)
    moved.load_state_dict(state, strict=True, assign=True)
    return moved.eval()
