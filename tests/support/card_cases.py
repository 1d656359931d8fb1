"""Models with random weights and runs of all kinds, for tests of a graphics card: a pretended one, and a real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Area, Condition
from comfyui_controlnet_core.controlnet_core.config import DEMO, AdapterConfig, DerivedConfig, ModelConfig, UnionConfig
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit, Hint
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.control import ControlModel
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.controlnet_xs import ControlNetXS
from comfyui_controlnet_core.controlnet_core.models.derived import (
    OWN,
    ControlDifference,
    ControlLora,
    DerivedControlNet,
)
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions, Shortcuts
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from controlnet_xs_files import xs_config
from torch import Tensor, nn

CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64), transformer_depth=(1, 1), context_dim=32, label_dim=16))
UNLABELLED = replace(CONFIG, unet=replace(CONFIG.unet, label_dim=None))
"""Without a label vector, as SD1.5: what the halves of the guidance have in common is computed once."""
NET = replace(DEMO.controlnet, unet=CONFIG.unet)
TOLERANCE = 2e-5
"""Of the largest value: on the card kernels lie otherwise, and are summed in another order."""


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(net: nn.Module, seed: int) -> Any:
    """With no weight at zero."""
    torch.manual_seed(seed)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return net.eval()


class World:
    """Models with random weights, made anew for each run: a run on a card moves them."""

    def __init__(self) -> None:
        self.schedule = scaled_linear()
        self.build(CONFIG)

    def build(self, config: ModelConfig) -> None:
        """Models of this shape."""
        torch.manual_seed(0)
        self.config, self.unet = config, shaken(UNet(config.unet), 0)
        self.first, self.second = (shaken(ControlNet.from_unet(self.unet), seed) for seed in (1, 2))

    def unit(self, net: ControlModel | None = None, seed: int = 3, **more: Any) -> ControlUnit:
        """A net on a hint of its own."""
        return ControlUnit(net or self.first, rand(seed, 1, 3, 64, 64).clamp(0, 1), **{"strength": 0.8, **more})

    def sample(
        self,
        runtime: Runtime,
        units: Sequence[ControlUnit],
        *,
        batch: int = 2,
        negative_units: Sequence[ControlUnit] | None = None,
        more: Sequence[Condition] = (),
        settings: SampleSettings | None = None,
        backend: Backend | None = None,
        **others: Any,
    ) -> Tensor:
        """A latent."""
        positive = [Condition(rand(1, 1, 77, 32), tuple(units), rand(1, 1, 16)), *more]
        behind = units if negative_units is None else negative_units
        negative = [Condition(rand(2, 1, 77, 32), tuple(behind), rand(2, 1, 16))]
        model = DiffusionModel(self.unet, self.config, self.schedule)
        settings = settings or SampleSettings(steps=3, cfg=4.0)
        latent = rand(7, batch, 4, 8, 8)
        backend = backend or Backend(runtime)
        told = {name: others.pop(name) for name in [f.name for f in fields(RunOptions)] if name in others}
        return generate(
            model, positive, negative, latent, settings, backend=backend, options=RunOptions(**told), **others
        )


def on_card(dtype: torch.dtype = torch.float32, **more: Any) -> Runtime:
    return Runtime(torch.device("cuda", 0), dtype, **more)


def on_host(dtype: torch.dtype = torch.float32, **more: Any) -> Runtime:
    return Runtime(dtype=dtype, pack_weights=False, **more)


def assert_alike(made: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert made.device.type == "cpu" and made.isfinite().all()
    assert float((made - expected).abs().max()) <= tolerance * float(expected.abs().max())


Case = Callable[[World], dict[str, Any]]


def areas(world: World) -> dict[str, Any]:
    """Two rectangles and a mask beside the whole, one of them for a part of the run."""
    whole = Condition(rand(3, 1, 77, 32), (), rand(3, 1, 16))
    masked = replace(whole, mask=rand(4, 2, 8, 8).clamp(0, 1), strength=0.7, end=0.5)
    left = replace(whole, area=Area(0, 0, 8, 4), units=(world.unit(world.second),))
    return {"units": [world.unit()], "more": [left, replace(whole, area=Area(2, 2, 6, 6)), masked]}


def union(world: World) -> dict[str, Any]:
    config = replace(NET, union=UnionConfig(types=6, width=32, type_dim=16))
    net, more = shaken(ControlNetUnion(config), 5), (Hint(rand(6, 1, 3, 64, 64), "depth"),)
    return {"units": [world.unit(net, kind="canny", more_hints=more)]}


def exchange(world: World) -> dict[str, Any]:
    """A net beside the UNet's blocks, which replaces the timestep's embedding in one half."""
    net = shaken(ControlNetXS(xs_config(world.unet.config)), 4)
    return {"units": [world.unit(net, negative=0.0), world.unit()]}


def derived(kind: type[DerivedControlNet]) -> Case:
    """A net that is complete only with its base."""

    def case(world: World) -> dict[str, Any]:
        parts = (*OWN, "encoder.blocks.0.")
        weights = {name: w for name, w in world.first.state_dict().items() if name.startswith(parts)}
        return {"units": [world.unit(kind(DerivedConfig(hint_widths=world.first.config.hint_widths), weights))]}

    return case


def several(world: World) -> dict[str, Any]:
    """Nets with everything that a unit can say, one of them on two hints."""
    mask = rand(8, 2, 16, 16).clamp(0, 1)
    first = world.unit(mask=mask, items=(0.5, 1.5), start=0.1)
    second = world.unit(world.second, curve=lambda p: 1.5 - p, end=0.6)
    return {"units": [first, world.unit(seed=9, negative=0.5), second]}


def unlabelled(world: World) -> dict[str, Any]:
    """A net in both halves, one in one of them."""
    world.build(UNLABELLED)
    return {"units": [world.unit(), world.unit(world.second, seed=4, negative=0.0)]}


CASES: dict[str, Case] = {
    "no label": unlabelled,
    "no net": lambda world: {"units": []},
    "one net": lambda world: {"units": [world.unit()]},
    "several nets": several,
    "in one half": lambda world: {"units": [world.unit(mode="control"), world.unit(world.second, mode="cfg-rw")]},
    "averaged": lambda world: {"units": [world.unit(pool=True)]},
    "an adapter": lambda world: {
        "units": [world.unit(shaken(Adapter(AdapterConfig(widths=(32, 64), res_blocks=1)), 4)), world.unit()]
    },
    "a union of two kinds": union,
    "a ControlNet-XS": exchange,
    "a Control-LoRA": derived(ControlLora),
    "a difference": derived(ControlDifference),
    "areas, masks and windows": areas,
    "a part is painted": lambda world: {"units": [world.unit()], "noise_mask": rand(5, 1, 64, 64).clamp(0, 1)},
    "rescaled guidance": lambda world: {
        "units": [world.unit()],
        "settings": SampleSettings(steps=4, cfg=4.0, rescale=0.7),
    },
    "a report": lambda world: {"units": [world.unit()], "recorder": Recorder()},
    "lower levels now and then": lambda world: {
        "units": [world.unit()],
        "shortcuts": Shortcuts(deep_every=2, reuse_every=2, guidance_end=0.8),
    },
    "the encoder now and then": lambda world: {"units": [world.unit()], "shortcuts": Shortcuts(encoder_every=2)},
}


def everything(world: World) -> dict[str, Any]:
    """Nets, an adapter and an area in one."""
    case, adapter = several(world), CASES["an adapter"](world)["units"][0]
    area = replace(areas(world)["more"][0], units=(world.unit(world.second, seed=11),))
    return {"units": [*case["units"], adapter], "more": [area]}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"fused_qkv": True},
    "side by side": {"parallel_nets": True},
    "graphs": {"graphs": True},
    "graphs, side by side, wide": {"graphs": True, "parallel_nets": True, "fused_qkv": True},
    "streamed": {"memory": "streamed"},
    "streamed, side by side": {"memory": "streamed", "parallel_nets": True},
    "one picture at a time": {"chunk": 1},
}
