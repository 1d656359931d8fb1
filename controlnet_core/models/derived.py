"""ControlNets that are complete only with the weights of their base.

A difference file holds control minus base: W = W_base + D for every weight that the base has. A
Control-LoRA (Stability AI, 2023) holds a product of two thin matrices for the large weights, W = W_base
+ up down, and the others whole. What the base has and the file does not is the base's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..config import ControlNetConfig, DerivedConfig, UNetConfig
from ..errors import CheckpointError, UnfitError
from .control import BindContext, BoundNet, ControlModel
from .controlnet import ControlNet
from .float8 import computable
from .module_tree import on_meta
from .unet import UNet

OWN = ("hint.", "zero_convs.", "zero_conv_middle.")
"""What a ControlNet does not copy from its base."""


class DerivedControlNet(ControlModel):
    """Weights of a file by our names, to be completed with a base. A subclass says how."""

    title = "ControlNet"
    needs_base = True

    def __init__(self, config: DerivedConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        missing = [part for part in OWN if not any(name.startswith(part) for name in weights)]
        if missing:
            raise CheckpointError(
                f"the {self.title} has no weights below {', '.join(missing)}, which no base has either: the file is "
                "incomplete, download it again"
            )
        self.config = config
        # No parameters: nothing of this is run or moved, only what `resolve` makes of it.
        self.weights = dict(weights)

    def weight(self, name: str, base: Tensor | None) -> Tensor | None:
        """The complete weight, in float32, from the base's of that name; None where there is none."""
        raise NotImplementedError

    @property
    def context_dim(self) -> int | None:
        """Width of the text that its base reads, where the file tells."""
        return self.config.context_dim or None

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        text = f" with {self.config.context_dim} wide text" if self.config.context_dim else ""
        return f"another base{text} ({self.title}: its weights are added to those of its base)"

    def completed_config(self, unet: UNetConfig) -> ControlNetConfig:
        """Config of the net that is made on a base of this shape."""
        return ControlNetConfig(replace(unet, out_channels=4), self.config.hint_channels, self.config.hint_widths)

    def fits(self, config: UNetConfig) -> bool:
        """Whether every weight of the file has its place and shape in a ControlNet on this base."""
        if self.config.context_dim not in (0, config.context_dim):
            return False
        with on_meta():
            expected = ControlNet(self.completed_config(config)).state_dict()
        return all(_fits(name, tensor, expected) for name, tensor in self.weights.items())

    def resolve(self, unet: UNet) -> ControlNet:
        """The complete net on this base. Raises UnfitError where the file was made for another."""
        return self.complete(unet.config, unet.state_dict())

    def complete(self, config: UNetConfig, base: Mapping[str, Tensor]) -> ControlNet:
        """Make the complete net from the weights of its base, by our names; on their device and in their dtype.

        config: shape of the base. Raises UnfitError where the file was made for another base.
        """
        if not self.fits(config):
            raise UnfitError(
                f"this {self.title} was made for {self.made_for}, and its weights do not fit a base of widths "
                f"{config.widths} with {config.context_dim} wide text: load the base that it was made for"
            )
        like = base["encoder.blocks.0.conv.weight"]
        with on_meta():
            net = ControlNet(self.completed_config(config))
        state = {}
        for name, blank in net.state_dict().items():
            weight = self.weight(name, None if name.startswith(OWN) else base.get(name))
            if weight is None:
                raise CheckpointError(f"neither the {self.title} nor its base has the weight {name}: it is damaged")
            # A copy: the base's own weights may be moved, packed or changed by a LoRA later.
            state[name] = weight.reshape(blank.shape).to(like.device, computable(like.dtype), copy=True)
        net.load_state_dict(state, strict=True, assign=True)
        return net.eval().requires_grad_(False)

    def bind(self, context: BindContext) -> BoundNet:
        """Always raises: only the net that `resolve` returns can be bound."""
        raise UnfitError(f"this {self.title} is complete only with its base: call resolve(unet) and bind the result")


class ControlDifference(DerivedControlNet):
    """Control minus base; a weight that the file lacks is the base's."""

    title = "ControlNet difference file"

    def weight(self, name: str, base: Tensor | None) -> Tensor | None:
        """W_base + D."""
        own = self.weights.get(name)
        if own is None or base is None:
            return base if own is None else own.float()
        return base.float() + own.to(base.device).float().reshape(base.shape)


class ControlLora(DerivedControlNet):
    """Low-rank products for large weights, others whole."""

    title = "Control-LoRA"

    def weight(self, name: str, base: Tensor | None) -> Tensor | None:
        """W, whole or the base's, plus up down where there is a pair."""
        whole = self.weights.get(name, base)
        up = self.weights.get(name.removesuffix(".weight") + ".up") if name.endswith(".weight") else None
        if up is None or whole is None:
            return whole
        down = self.weights[name.removesuffix(".weight") + ".down"]
        # In float32: half precision would round the product before it is added.
        product = up.flatten(1).float() @ down.flatten(1).float()
        return whole.float() + product.to(whole.device).reshape(whole.shape)


def _fits(name: str, tensor: Tensor, expected: Mapping[str, Tensor]) -> bool:
    stem, _, end = name.rpartition(".")
    target = expected.get(f"{stem}.weight" if end in ("up", "down") else name)
    if target is None:
        return False
    # up is (out, rank), down (rank, in * k * k); a 1x1 convolution may be stored as a matrix, so numbers are counted
    if end == "up":
        return tensor.shape[0] == target.shape[0]
    return tensor[0].numel() == target[0].numel() if end == "down" else tensor.numel() == target.numel()
