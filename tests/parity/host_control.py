"""Runs the real host's control models: `python host_control.py COMFYUI_DIR CASES OUT`.

Started as a program of its own by `test_control_host.py`, so that the host's modules and settings never
meet the tests' process. CASES is a safetensors file: tensors "base.KEY" of a UNet in the original layout, "NAME/KEY" of
control files, and the inputs "x", "hint", "t", "text". OUT gets "NAME.N", the residuals of each control
file in the order of the host's lists.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from typing import Any

import torch


class Anything:
    """Stands in for attributes of a module that nothing here uses."""

    def __getattr__(self, name: str) -> Any:
        return Anything()

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return Anything()


def prepare_host(folder: str) -> None:
    """The host's modules, on the CPU."""
    sys.path.insert(0, folder)
    sys.argv = ["host", "--cpu"]
    try:
        importlib.import_module("torchvision")
    except ImportError:
        importlib.import_module("transformers")  # which looks whether torchvision is there
        absent = types.ModuleType("torchvision")
        absent.transforms = Anything()  # type: ignore[attr-defined]
        sys.modules["torchvision"] = absent
    importlib.import_module("comfy.options").enable_args_parsing()


def host_model(base: dict[str, torch.Tensor], described: dict[str, Any]) -> Any:
    """A MODEL of the host with these weights in its UNet."""
    model_base = importlib.import_module("comfy.model_base")
    supported = importlib.import_module("comfy.supported_models")
    patcher = importlib.import_module("comfy.model_patcher")
    config = supported.SD15(described)
    config.unet_config.update(described)  # it puts SD1.5's eight heads in
    config.set_inference_dtype(torch.float32, None)
    model = model_base.BaseModel(config, model_base.ModelType.EPS, device="cpu")
    model.diffusion_model.load_state_dict(base, strict=True)
    model.diffusion_model.eval()
    return patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def residuals(net: Any, model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What a control object gives, whichever lists it puts it into."""
    sampling = model.model.model_sampling
    net.set_cond_hint(inputs["hint"])
    net.pre_run(model.model, sampling.percent_to_sigma)
    sigma = sampling.sigma(inputs["t"])
    cond = {"c_crossattn": inputs["text"]}
    found = net.get_control(inputs["x"], sigma, cond, 1, {})
    return [r for key in ("input", "output", "middle") for r in found.get(key, []) if r is not None]


def main() -> None:
    """Read the cases, run them, write what came out."""
    folder, cases, out = sys.argv[1:4]
    prepare_host(folder)
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(cases, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        described = json.loads(file.metadata()["unet"])
    base = {key[5:]: tensor for key, tensor in tensors.items() if key.startswith("base.")}
    model = host_model(base, described)
    inputs = {name: tensors[name] for name in ("x", "hint", "t", "text")}
    controlnet = importlib.import_module("comfy.controlnet")
    names = sorted({key.split("/")[0] for key in tensors if "/" in key})
    result = {}
    with torch.inference_mode():
        for name in names:
            state = {key[len(name) + 1 :]: t.clone() for key, t in tensors.items() if key.startswith(f"{name}/")}
            net = controlnet.load_controlnet_state_dict(state, model=model)
            for i, residual in enumerate(residuals(net, model, inputs)):
                result[f"{name}.{i}"] = residual.contiguous()
    save_file(result, out)


if __name__ == "__main__":
    main()
