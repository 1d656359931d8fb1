"""Runs the real host's sampling on a network of one line: `python host_sampling.py COMFYUI_DIR CASES OUT`.

Started as a program of its own by `test_samplers_host.py`, so that the host's modules and settings never
meet the tests' process. CASES is a JSON list of `Case` fields, OUT the safetensors file that is written:
one tensor "samples.N", "sigmas.N" and "evaluated.N" (the sigmas asked for) per case, and those of `tables`.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SCHEDULES = ("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta")
TABLE_STEPS = (*range(1, 61), 100, 150, 333, 500, 1000)


@dataclass(frozen=True)
class Case:
    """One run of a sampler. `masked`: the left half of the latent is kept."""

    sampler: str
    scheduler: str
    steps: int = 12
    denoise: float = 1.0
    parametrization: str = "eps"
    masked: bool = False
    seed: int = 20231
    shape: tuple[int, ...] = (2, 4, 8, 8)


def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for a UNet that mixes neighbours: (B,C,H,W), (B,) -> (B,C,H,W)."""
    t = timestep.float().reshape(-1, 1, 1, 1) / 1000
    return (0.6 + 0.39 * t) * x + 0.05 * torch.sin(3 * x + 4 * t) + 0.03 * x.roll(1, -1)


def latent_of(case: Case) -> torch.Tensor:
    """Zeros at full denoise, otherwise a fixed pattern."""
    if case.denoise == 1.0 and not case.masked:
        return torch.zeros(case.shape)
    ramp = torch.arange(torch.Size(case.shape).numel()).reshape(case.shape)
    return torch.sin(0.37 * ramp)


def mask_of(case: Case) -> torch.Tensor | None:
    """(B,1,H,W): 1 where the picture is made anew."""
    if not case.masked:
        return None
    mask = torch.ones(case.shape[0], 1, *case.shape[2:])
    mask[..., : case.shape[3] // 2] = 0.0
    return mask


class _Anything:
    """Stands in for attributes of a module that sampling never uses."""

    def __getattr__(self, name: str) -> Any:
        return _Anything()

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return _Anything()


def import_host(folder: Path) -> types.SimpleNamespace:
    """The host's modules, on the CPU. torchvision is replaced where it is missing."""
    sys.path.insert(0, str(folder))
    sys.argv = ["host", "--cpu"]
    try:
        importlib.import_module("torchvision")
    except ImportError:
        importlib.import_module("transformers")  # which looks whether torchvision is there
        absent = types.ModuleType("torchvision")
        absent.transforms = _Anything()  # type: ignore[attr-defined]
        sys.modules["torchvision"] = absent
    importlib.import_module("comfy.options").enable_args_parsing()
    names = ("model_base", "model_patcher", "sample", "samplers", "supported_models")
    return types.SimpleNamespace(**{name: importlib.import_module(f"comfy.{name}") for name in names})


class _Network(torch.nn.Module):
    def __init__(self, evaluated: list[float]) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.evaluated = evaluated

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.evaluated.append(float(kwargs["transformer_options"]["sigmas"][0]))
        return network(x, timesteps)


def run_case(host: types.SimpleNamespace, case: Case) -> dict[str, torch.Tensor]:
    """The host's own sampler node, below its user interface."""
    evaluated: list[float] = []
    config = host.supported_models.SD15({"image_model": None})
    config.unet_config["disable_unet_model_creation"] = True
    config.memory_usage_factor = 1.0
    kind = {"eps": host.model_base.ModelType.EPS, "v": host.model_base.ModelType.V_PREDICTION}
    base = host.model_base.BaseModel(config, kind[case.parametrization], device="cpu")
    base.diffusion_model = _Network(evaluated)
    base.manual_cast_dtype = None
    model = host.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
    prompt = [[torch.zeros(1, 77, 8), {}]]
    latent = latent_of(case) / 0.18215  # the host scales what it is given
    samples = host.sample.sample(
        model, host.sample.prepare_noise(latent, case.seed), case.steps, 1.0, case.sampler, case.scheduler,
        prompt, prompt, latent, denoise=case.denoise, noise_mask=mask_of(case), seed=case.seed,
        disable_pbar=True,
    )  # fmt: skip
    walk = host.samplers.KSampler(model, case.steps, torch.device("cpu"), case.sampler, case.scheduler, case.denoise)
    return {"samples": samples * 0.18215, "sigmas": walk.sigmas, "evaluated": torch.tensor(evaluated)}


def tables(host: types.SimpleNamespace) -> dict[str, torch.Tensor]:
    """The host's schedule: "table.NAME.STEPS", and its conversions at the points of `probes`."""
    kinds = importlib.import_module("comfy.model_sampling")
    schedule = kinds.ModelSamplingDiscrete()
    sigmas, timesteps, percents = probes()
    found = {
        f"table.{name}.{steps}": host.samplers.calculate_sigmas(schedule, name, steps)
        for name in SCHEDULES
        for steps in TABLE_STEPS
    }
    found["timestep"] = schedule.timestep(sigmas)
    found["sigma"] = schedule.sigma(timesteps)
    found["percent"] = torch.tensor([schedule.percent_to_sigma(p) for p in percents])
    return found


def probes() -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Sigmas, timesteps and percents at which the schedules are compared."""
    percents = [i / 500 for i in range(-2, 503)]
    return torch.linspace(-4, 3, 5000).exp(), torch.linspace(0, 999, 5000), percents


def main(folder: str, cases: str, out: str) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    host = import_host(Path(folder))
    tensors = {name: tensor.float() for name, tensor in tables(host).items()}
    for number, fields in enumerate(json.loads(Path(cases).read_text())):
        case = Case(**{**fields, "shape": tuple(fields["shape"])})
        for name, tensor in run_case(host, case).items():
            tensors[f"{name}.{number}"] = tensor.float().contiguous()
    save_file(tensors, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
