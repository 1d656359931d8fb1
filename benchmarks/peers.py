"""The engines that `step.py` compares: each gives one guided evaluation of a UNet with ControlNets.

A step is called with nothing and returns the prediction of x0 (B, 4, h, w). Peers run as their own pipelines
do, on the same weights, read from the same files.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet, load_unet
from comfyui_controlnet_core.controlnet_core.config import SD15
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.engine.backend import Backend
from comfyui_controlnet_core.controlnet_core.engine.chunks import Part, evaluate_parts
from comfyui_controlnet_core.controlnet_core.engine.condition import Condition
from comfyui_controlnet_core.controlnet_core.engine.graphs import Graphs
from comfyui_controlnet_core.controlnet_core.engine.job import Job
from comfyui_controlnet_core.controlnet_core.engine.prepare import prepare
from comfyui_controlnet_core.controlnet_core.engine.run import Run
from comfyui_controlnet_core.controlnet_core.engine.runtime import Runtime, waits_for_results
from torch import Tensor, nn

CFG = 7.0
TIMESTEP = 500.0
SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {},
    "small": {"block_out_channels": (320, 320, 320, 320), "layers_per_block": 1},  # to try the script out
}
Step = Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """The input of a step. x: (B, 4, h, w). text: (2, 77, 768), positive first. hint: (1, 3, 8h, 8w)."""

    x: Tensor
    text: Tensor
    hint: Tensor
    nets: int

    @property
    def sigma(self) -> Tensor:
        """The noise level, 0-d."""
        return scaled_linear().sigma(torch.tensor(TIMESTEP))


def make_case(size: int, batch: int, nets: int) -> Case:
    """A case of random numbers for pictures of size x size."""
    g = torch.Generator().manual_seed(0)
    cells = size // 8
    x = torch.randn(batch, 4, cells, cells, generator=g) * 4.0
    return Case(x, torch.randn(2, 77, 768, generator=g), torch.rand(1, 3, size, size, generator=g), nets)


def write_weights(folder: Path, count: int, shape: str) -> None:
    """Random weights of a UNet and of `count` ControlNets, in diffusers' layout, float32."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(cross_attention_dim=768, **SHAPES[shape]).save_pretrained(folder / "unet")
    for i in range(count):
        net = ControlNetModel(cross_attention_dim=768, **SHAPES[shape])
        for conv in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
            nn.init.normal_(conv.weight, std=0.02)
        net.save_pretrained(folder / f"net{i}")


class Ours:
    """This package: `prepare` once, then evaluate as a run does."""

    name = "ours"

    def __init__(self, folder: Path, count: int, runtime: Runtime) -> None:
        self.unet = load_unet(folder / "unet")
        self.nets = [load_controlnet(folder / f"net{i}")[0] for i in range(count)]
        self.backend = Backend(runtime)

    def run(self, case: Case, body: Callable[[Step], None]) -> None:
        """Call `body` with a step."""
        runtime = self.backend.runtime
        parts = [Part(slice(0, len(case.x)), self.prepare(case))]
        x, sigma = case.x.to(runtime.device), case.sigma
        graphs = Graphs(self.backend, (self.unet, *self.nets)) if runtime.graphs else None
        watches = waits_for_results(runtime.device)
        run = Run(check_every_step=watches, graphs=graphs, side_by_side=runtime.side_by_side)
        body(lambda: evaluate_parts(parts, x, sigma, CFG, run))

    def prepare(self, case: Case) -> Any:
        """What `run` does before the first step."""
        units = tuple(ControlUnit(net, case.hint) for net in self.nets[: case.nets])
        halves = ([Condition(case.text[i : i + 1], units)] for i in range(2))
        shape = tuple(case.x.shape)
        config = replace(SD15, unet=self.unet.config)
        job = Job(self.unet, config, scaled_linear(), *halves, shape, [float(case.sigma)])
        return prepare(job, self.backend)


class Diffusers:
    """StableDiffusionControlNetPipeline's step: every ControlNet on both halves, then the UNet."""

    def __init__(self, folder: Path, count: int, runtime: Runtime, compiled: bool = False) -> None:
        from diffusers import ControlNetModel, UNet2DConditionModel

        self.name = "diffusers compiled" if compiled else "diffusers"
        self.device, self.dtype = runtime.device, runtime.dtype

        def place(model: nn.Module) -> Any:
            model = model.to(self.device, self.dtype).eval()
            if not compiled:
                return model
            return torch.compile(model.to(memory_format=torch.channels_last), mode="max-autotune", fullgraph=True)

        self.unet = place(UNet2DConditionModel.from_pretrained(folder / "unet"))
        self.nets = [place(ControlNetModel.from_pretrained(folder / f"net{i}")) for i in range(count)]

    def run(self, case: Case, body: Callable[[Step], None]) -> None:
        """Call `body` with a step."""
        batch = len(case.x)
        x = case.x.to(self.device)
        rows = scale_input(x, case.sigma).to(self.dtype).repeat(2, 1, 1, 1)
        text = case.text.to(self.device, self.dtype).repeat_interleave(batch, dim=0)
        hints = case.hint.to(self.device, self.dtype).repeat(2 * batch, 1, 1, 1)
        t = torch.tensor(TIMESTEP, device=self.device)
        body(lambda: self._step(x, rows, t, text, hints, self.nets[: case.nets], case.sigma))

    def _step(
        self, x: Tensor, rows: Tensor, t: Tensor, text: Tensor, hints: Tensor, nets: Sequence[Any], sigma: Tensor
    ) -> Tensor:
        skips, middle = None, None
        for net in nets:
            down, mid = net(rows, t, encoder_hidden_states=text, controlnet_cond=hints, return_dict=False)
            skips = down if skips is None else [a + b for a, b in zip(skips, down, strict=True)]
            middle = mid if middle is None else middle + mid
        noise = self.unet(
            rows, t, encoder_hidden_states=text, return_dict=False,
            down_block_additional_residuals=skips, mid_block_additional_residual=middle,
        )[0]  # fmt: skip
        positive, negative = noise.float().chunk(2)
        return x - (negative + CFG * (positive - negative)) * sigma


class Comfy:
    """ComfyUI from a folder, in this process: its loader, its CFGGuider, its chain of control objects."""

    name = "ComfyUI"

    def __init__(self, folder: Path, count: int, runtime: Runtime, comfyui: Path) -> None:
        sys.path[:0] = [str(comfyui), str(Path(__file__).parents[1] / "tests" / "integration")]
        importlib.import_module("comfyui_host").without_torchvision()
        kept, sys.argv = sys.argv, ["ComfyUI", "--disable-smart-memory", *self._options(runtime)]
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
        sys.argv = kept
        self.samplers: Any = importlib.import_module("comfy.samplers")
        self.unet: Any = importlib.import_module("comfy.sd").load_diffusion_model(_weights(folder / "unet"))
        load = importlib.import_module("comfy.controlnet").load_controlnet
        self.nets = [load(_weights(folder / f"net{i}")) for i in range(count)]

    @staticmethod
    def _options(runtime: Runtime) -> list[str]:
        dtype = {torch.float32: "--force-fp32", torch.bfloat16: "--bf16-unet", torch.float16: "--fp16-unet"}
        return [dtype[runtime.dtype], *(["--cpu"] if runtime.device.type == "cpu" else [])]

    def run(self, case: Case, body: Callable[[Step], None]) -> None:
        """Call `body` with a step, from inside a run of its sampler."""
        control = None
        for net in self.nets[: case.nets]:
            net = net.copy().set_cond_hint(case.hint, 1.0, (0.0, 1.0))
            net.set_previous_controlnet(control)
            control = net
        options = {} if control is None else {"control": control, "control_apply_to_uncond": False}
        guider = self.samplers.CFGGuider(self.unet)
        guider.set_conds(*([[case.text[i : i + 1], dict(options)]] for i in range(2)))
        guider.set_cfg(CFG)

        class Inside(self.samplers.Sampler):  # type: ignore[name-defined, misc]
            """A sampler that hands its model over instead of sampling."""

            def sample(self, model: Any, sigmas: Tensor, extra_args: dict[str, Any], *_: Any, **__: Any) -> Tensor:
                x = case.x.to(sigmas.device)
                sigma = case.sigma.to(sigmas.device).expand(len(x))
                body(lambda: model(x, sigma, **extra_args))
                return x

        sigmas = torch.stack([case.sigma, torch.zeros(())])
        guider.sample(torch.zeros_like(case.x), torch.zeros_like(case.x), Inside(), sigmas, disable_pbar=True, seed=0)


class Accelerated(Comfy):
    """The same ComfyUI with this package inside: its MODEL behind the Accelerate node, our nets as CONTROL_NET."""

    def __init__(self, comfy: Comfy, folder: Path, count: int, weights: str) -> None:
        nodes = (f"comfyui_controlnet_core.nodes.comfy.{name}" for name in ("accelerate", "control"))
        accelerate, control = (importlib.import_module(name) for name in nodes)
        self.name = f"Accelerate, {weights}"
        self.samplers = comfy.samplers
        self.unet, _ = accelerate.accelerated(comfy.unet, weights)
        self.nets = [control.load(Path(_weights(folder / f"net{i}"))) for i in range(count)]


def _weights(folder: Path) -> str:
    return str(next(folder.glob("*.safetensors")))
