"""The engines that `step.py` compares. Each has a step: one guided evaluation of a UNet with ControlNets.

A step takes no arguments and returns the prediction of x0, (B, 4, h, w). The other packages (peers) run as in their own
pipelines, on the same weights. On a CPU they share one set of weights in memory (see `Pool`), because three sets of a
full-size model with three nets do not fit in 24 GB. Ours has its own packed weights.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet, load_unet
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import SD15
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.finite import FiniteGuard
from comfyui_controlnet_core.controlnet_core.pipeline import build_denoiser, run_context
from comfyui_controlnet_core.controlnet_core.prepare import Prepared, prepare
from comfyui_controlnet_core.controlnet_core.run_options import EXACT, RunOptions, Shortcuts
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime, results_are_free
from comfyui_controlnet_core.controlnet_core.sample import Denoise, SampleSettings
from torch import Tensor, nn

CFG = 7.0
TIMESTEP = 500.0
SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {},
    "small": {"block_out_channels": (320, 320, 320, 320), "layers_per_block": 1},  # to try the scripts out
}
LDM = "ldm"
"""Folder with the same weights in the LDM layout, for ComfyUI: it reads only released shapes in diffusers' layout."""
Step = Callable[[], Tensor]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


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
    """Make random inputs for pictures of size x size."""
    g = torch.Generator().manual_seed(0)
    cells = size // 8
    x = torch.randn(batch, 4, cells, cells, generator=g) * 4.0
    return Case(x, torch.randn(2, 77, 768, generator=g), torch.rand(1, 3, size, size, generator=g), nets)


def write_weights(folder: Path, count: int, shape: str) -> None:
    """Write random weights of a UNet and of `count` ControlNets, in diffusers' layout, float32."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(cross_attention_dim=768, **SHAPES[shape]).save_pretrained(folder / "unet")
    for i in range(count):
        net = ControlNetModel(cross_attention_dim=768, **SHAPES[shape])
        for conv in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
            nn.init.normal_(conv.weight, std=0.02)
        net.save_pretrained(folder / f"net{i}")
    if SHAPES[shape]:
        unet = load_unet(folder / "unet")
        save_checkpoint(folder / LDM / "unet.safetensors", replace(SD15, unet=unet.config), unet)
        for i in range(count):
            save_controlnet(folder / LDM / f"net{i}.safetensors", load_controlnet(folder / f"net{i}")[0])


class Ours:
    """This package: prepares once, then evaluates as in a run."""

    name = "ours"

    def __init__(self, folder: Path, count: int, runtime: Runtime) -> None:
        self.counts_memory = not runtime.graphs  # a graph allocates its memory at capture, not at replay
        self.unet = load_unet(folder / "unet")
        self.nets = [load_controlnet(folder / f"net{i}")[0] for i in range(count)]
        self.backend, self.schedule = Backend(runtime), scaled_linear()

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the work buffer, which stays allocated between steps."""
        return 0 if self.backend.work_buffer is None else self.backend.work_buffer.nbytes

    def run(self, case: Case, body: Callable[[Step], None]) -> None:
        """Call `body` with a step."""
        x, sigma = case.x.to(self.backend.runtime.device), case.sigma
        denoise = self.denoiser(case)
        body(lambda: denoise(x, sigma))

    def denoiser(
        self, case: Case, shortcuts: Shortcuts = EXACT, units: tuple[ControlUnit, ...] | None = None
    ) -> Denoise:
        """Build the denoiser of a run, with the accelerations that the runtime asks for.

        units: those of an earlier run, whose preparation is used again.
        """
        job = self._job(case, self.units(case) if units is None else units)
        return denoiser_of(job, self.backend, shortcuts)

    def prepare(self, case: Case) -> Prepared:
        """Prepare a run: everything before the first step."""
        return prepare(self.backend.place(self._job(case, self.units(case))), self.backend.runtime)

    def prepare_with_new_seeds(self, case: Case) -> Iterator[Any]:
        """Prepare a new run, then runs with another seed. Yields what the backend keeps of each.

        The text tensors are new each time, as from a text encoder; the units are the same.
        """
        units = self.units(case)
        while True:
            own = replace(case, text=case.text.clone())
            denoiser_of(self._job(own, units), self.backend)
            yield list(self.backend.runs)[-1]

    def units(self, case: Case) -> tuple[ControlUnit, ...]:
        """Return a control unit for each net of the case."""
        return tuple(ControlUnit(net, case.hint) for net in self.nets[: case.nets])

    def _job(self, case: Case, units: tuple[ControlUnit, ...]) -> Job:
        halves = ([Condition(case.text[i : i + 1], units)] for i in range(2))
        config = replace(SD15, unet=self.unet.config)
        return Job(self.unet, config, self.schedule, *halves, tuple(case.x.shape), [float(case.sigma)])


def denoiser_of(job: Job, backend: Backend, shortcuts: Shortcuts = EXACT) -> Denoise:
    """Build the denoiser of a job as `generate` does, without a memory plan."""
    watches = results_are_free(backend.runtime.device)
    context = run_context(job, backend, RunOptions(shortcuts), watches)
    settings = SampleSettings(cfg=CFG)
    return build_denoiser(job, backend, settings, job.shape[0], context, FiniteGuard(every_step=watches))


class Pool:
    """Weights that the peers share: one tensor for all parameters with the same values, whatever their names.

    Only on a CPU. On a GPU each peer moves its own weights.
    """

    def __init__(self, device: torch.device) -> None:
        self.shares = device.type == "cpu"
        self.known: dict[tuple[Any, ...], Tensor] = {}

    def share(self, module: ModuleT) -> ModuleT:
        """Replace parameters by equal ones of the pool, add the others to the pool, and return the module."""
        for parameter in module.parameters() if self.shares else ():
            key = parameter.shape, parameter.dtype, tuple(parameter.detach().flatten()[:: _stride(parameter)].tolist())
            known = self.known.get(key)
            if known is None or not torch.equal(known, parameter):
                self.known[key] = known = (
                    parameter.detach().clone()
                )  # a copy in memory; the original is mapped from its file
            parameter.data = known
        return module


def _stride(parameter: Tensor) -> int:
    """Return a stride that leaves a few numbers of a tensor, to find equal tensors fast."""
    return max(1, parameter.numel() // 8)


RECIPES: dict[str, str] = {"plain": "diffusers", "fast": "diffusers fast", "compiled": "diffusers compiled"}
"""fast: channels_last and fused projections (diffusers' "Accelerate inference"). compiled: also torch.compile."""


class Diffusers:
    """StableDiffusionControlNetPipeline's step: every ControlNet on both halves, then the UNet.

    recipe: see `RECIPES`. It is compiled with the best mode of the device: max-autotune with CUDA graphs on a GPU;
    frozen weights on a CPU, which inductor reorders once for oneDNN, as our packed weights are.
    """

    def __init__(self, folder: Path, count: int, runtime: Runtime, pool: Pool, recipe: str = "plain") -> None:
        from diffusers import ControlNetModel, UNet2DConditionModel

        self.name, self.recipe = RECIPES[recipe], recipe
        self.device, self.dtype = runtime.device, runtime.dtype
        self.counts_memory = recipe != "compiled" or self.device.type == "cuda"
        self.buffer_bytes = 0
        self.unet = self._placed(pool, UNet2DConditionModel.from_pretrained(folder / "unet"))
        nets = (ControlNetModel.from_pretrained(folder / f"net{i}") for i in range(count))
        self.nets = [self._placed(pool, net) for net in nets]

    def _placed(self, pool: Pool, model: Any) -> Any:
        model = pool.share(model.to(self.device, self.dtype).eval())
        if self.recipe == "plain":
            return model
        model.fuse_qkv_projections()  # has no effect on a ControlNetModel in diffusers 0.42
        model = model.to(memory_format=torch.channels_last)
        if self.recipe == "fast":
            return model
        mode = None if self.device.type == "cpu" else "max-autotune"
        return torch.compile(model, mode=mode, fullgraph=True, dynamic=False)

    def run(self, case: Case, body: Callable[[Step], None]) -> None:
        """Call `body` with a step."""
        batch = len(case.x)
        x = case.x.to(self.device)
        rows = scale_input(x, case.sigma).to(self.dtype).repeat(2, 1, 1, 1)
        text = case.text.to(self.device, self.dtype).repeat_interleave(batch, dim=0)
        hints = case.hint.to(self.device, self.dtype).repeat(2 * batch, 1, 1, 1)
        t = torch.tensor(TIMESTEP, device=self.device)
        with self._frozen():
            body(lambda: self._step(x, rows, t, text, hints, self.nets[: case.nets], case.sigma))

    def _frozen(self) -> AbstractContextManager[Any]:
        """Make weights constants of the compiled code. It is no option of torch.compile: dynamo must know it before."""
        if self.recipe != "compiled" or self.device.type != "cpu":
            return nullcontext()
        return importlib.import_module("torch._inductor.config").patch(freezing=True)

    def _step(
        self, x: Tensor, rows: Tensor, t: Tensor, text: Tensor, hints: Tensor, nets: Sequence[Any], sigma: Tensor
    ) -> Tensor:
        if self.recipe == "compiled" and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the output of the nets is used within one step only
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

    counts_memory = True
    buffer_bytes = 0

    def __init__(self, folder: Path, count: int, runtime: Runtime, pool: Pool, comfyui: Path) -> None:
        sys.path[:0] = [str(comfyui), str(Path(__file__).parents[1] / "tests" / "integration")]
        importlib.import_module("comfyui_host").without_torchvision()
        kept, sys.argv = sys.argv, ["ComfyUI", "--disable-smart-memory", *self._options(runtime)]
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
        sys.argv = kept
        self.samplers: Any = importlib.import_module("comfy.samplers")
        self.unet: Any = importlib.import_module("comfy.sd").load_diffusion_model(_weights(folder, "unet"))
        pool.share(self.unet.model)
        load = importlib.import_module("comfy.controlnet").load_controlnet
        self.nets = []
        for i in range(count):
            self.nets.append(load(_weights(folder, f"net{i}")))
            pool.share(self.nets[-1].control_model)

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
            """A sampler that passes its model to `body` instead of sampling."""

            def sample(self, model: Any, sigmas: Tensor, extra_args: dict[str, Any], *_: Any, **__: Any) -> Tensor:
                x = case.x.to(sigmas.device)
                sigma = case.sigma.to(sigmas.device).expand(len(x))
                body(lambda: model(x, sigma, **extra_args))
                return x

        sigmas = torch.stack([case.sigma, torch.zeros(())])
        guider.sample(torch.zeros_like(case.x), torch.zeros_like(case.x), Inside(), sigmas, disable_pbar=True, seed=0)


class Accelerated(Comfy):
    """The same ComfyUI with this package: its MODEL behind the Accelerate node, our nets as CONTROL_NET."""

    def __init__(self, comfy: Comfy, folder: Path, count: int, weights: str) -> None:
        nodes = (f"comfyui_controlnet_core.nodes.comfyui.{name}" for name in ("accelerate", "core_control"))
        accelerate, control = (importlib.import_module(name) for name in nodes)
        self.name = f"Accelerate, {weights}"
        self.samplers = comfy.samplers
        self.unet, _ = accelerate.accelerate_model(comfy.unet, weights)
        self.nets = [control.load(Path(_weights(folder, f"net{i}"))) for i in range(count)]


def _weights(folder: Path, name: str) -> str:
    """Return the file of a model that ComfyUI reads."""
    ldm = folder / LDM / f"{name}.safetensors"
    return str(ldm if ldm.exists() else next((folder / name).glob("*.safetensors")))
