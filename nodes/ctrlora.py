"""The node that loads a CtrLoRA: a base ControlNet with a LoRA for one condition."""

from __future__ import annotations

from typing import Any

from .fields import Output, choice, vae
from .node import Node

NO_LORA = "none"


class LoadCtrLoRA(Node):
    """Loads a CtrLoRA for Stable Diffusion 1.5: the base ControlNet, and the LoRA of one condition for it. Its hints
    pass through the VAE. Link it to Apply ControlNet like any ControlNet.
    """

    DISPLAY_NAME = "Load CtrLoRA"
    CATEGORY = "ControlNet Core/load"
    SEARCH_ALIASES = ["ctrlora", "lora controlnet", "base controlnet"]
    INPUTS = (
        choice(
            "base",
            lambda host: list(host.files("controlnet")),
            "The base ControlNet, such as ctrlora_sd15_basecn700k, in models/controlnet.",
        ),
        choice(
            "lora",
            lambda host: [NO_LORA, *host.files("controlnet")],
            "The LoRA of the condition, in models/controlnet. none: the base as it is, if it was trained whole.",
        ),
        vae("vae", "The VAE of the checkpoint; it encodes the hint."),
    )
    OUTPUTS = (Output("CONTROL_NET", "control_net", "The net: link it to Apply ControlNet or Control Unit."),)

    def run(self, base: str, lora: str, vae: Any) -> tuple[Any]:
        """-> CONTROL_NET. Raises CheckpointError for other or incomplete files."""
        from ..controlnet_core.checkpoints.load_ctrlora import load_ctrlora
        from .hint_through_vae import HintThroughVae

        file = None if lora == NO_LORA else self.host.find("controlnet", lora)
        net = load_ctrlora(self.host.find("controlnet", base), file)
        name = base if file is None else lora
        return (self.host.control_of(net.with_encoder(HintThroughVae(self.host.hint_encoder(vae))), name),)
