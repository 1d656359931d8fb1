"""ComfyUI's node that applies a hypernetwork to a model."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.hypernetwork import HypernetworkControl
from ..fields import files, model, number
from ..node import Node
from .values import Model


class HypernetworkLoader(Node):
    """Changes the keys and values of the model's attentions by the networks of a file. Several of these nodes act one
    after the other."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("MODEL",)
    INPUTS = (model("model"), files("hypernetwork_name", "hypernetworks"), number("strength", 1.0, -10.0, 10.0))

    def run(self, model: Model, hypernetwork_name: str, strength: float) -> tuple[Model]:
        """-> MODEL. Raises UnfitError where no network of the file has a width of this model."""
        path = self.host.find("hypernetworks", hypernetwork_name)
        net = HypernetworkControl(self.host.load_hypernetwork(path), strength)
        if not net.fits(model.base.config.unet):
            raise UnfitError(
                f"{path.name} is for {net.made_for}, {model.path.name} has none of them: load a hypernetwork that was "
                "made for this base model"
            )
        if strength == 0.0:
            return (model,)
        # A hint that is not read, of a shade that no one takes for an empty one.
        unit = ControlUnit(net=net, hint=torch.full((1, 1, 8, 8), 0.5), name=path.name)
        return (replace(model, units=(*model.units, unit)),)
