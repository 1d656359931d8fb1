"""The Accelerate node on a full-size model inside the real host: `python comfyui_full.py COMFYUI_DIR PACK OUT FAMILY`.

Started by `test_comfyui.py`. FAMILY is sd15, sd21 or sdxl; weights are random, some 3.5 or 10 GB of them.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfyui_accelerate import Accelerated, function_wrapper
from comfyui_host import Session

SIDE, STEPS = 128, 2
FAMILIES = {"sd15": "SD15", "sd21": "SD20", "sdxl": "SDXL"}
"""What the host calls them."""
LORA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def native_model(session: Session, family: str, device: str = "cpu", **changed: Any) -> Any:
    """The host's own model of a family with random weights, its UNet of the family's shape but for what is changed.

    On device "meta" it has shapes alone.
    """
    config = replace(getattr(session.part("controlnet_core.config"), family.upper()).unet, **changed)
    known = importlib.import_module("comfy.supported_models")
    described = session.part("nodes.comfyui.models").native_unet_config(config)
    made = getattr(known, FAMILIES[family])(described)
    made.unet_config.update({k: described[k] for k in ("num_heads", "num_head_channels")})
    made.set_inference_dtype(torch.float32, None)
    model = made.get_model({}, "", device=torch.device(device))
    torch.manual_seed(0)
    for module in model.diffusion_model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                scaled = name == "weight" and parameter.ndim > 1
                ones = name == "weight" and not scaled
                fill_in = parameter[0].numel() ** -0.5 if scaled else 0.0
                parameter.requires_grad_(False).normal_(1.0 if ones else 0.0, fill_in or 0.02)
    patcher = importlib.import_module("comfy.model_patcher").ModelPatcher
    return patcher(model, torch.device("cpu"), torch.device("cpu"))


def conditioning(family: str) -> tuple[Any, Any]:
    """Texts of the family's width that no encoder wrote."""
    width = {"sd15": 768, "sd21": 1024, "sdxl": 2048}[family]
    text = torch.sin(torch.arange(77.0 * width)).reshape(1, 77, width)
    extra = {"pooled_output": torch.cos(torch.arange(1280.0))[None]} if family == "sdxl" else {}
    return [[text, extra]], [[-text, extra]]


def lora(model: Any, strength: float) -> Any:
    """The model behind a LoRA of rank 4 on one query."""
    weight = model.model.diffusion_model.input_blocks[4][1].transformer_blocks[0].attn1.to_q.weight
    generator = torch.Generator().manual_seed(1)
    made = {
        f"{LORA}.lora_up.weight": torch.randn(weight.shape[0], 4, generator=generator),
        f"{LORA}.lora_down.weight": torch.randn(4, weight.shape[1], generator=generator),
    }
    return importlib.import_module("comfy.sd").load_lora_for_models(model, None, made, strength, 0.0)[0]


def measure(session: Session, family: str, weights: str, facts: dict[str, Any]) -> None:
    """Differences, memory, pointers and the time to bind."""
    run, texts = Accelerated(session, weights), conditioning(family)
    latent = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
    shared: list[bool] = []
    calls: list[float] = []

    def look(given: dict[str, Any]) -> None:
        if run.engine.bound is not None:
            theirs = run.native.model.diffusion_model
            ours = {p.data_ptr() for p in run.engine.bound.parameters()}
            shared.append(ours == {p.data_ptr() for p in theirs.parameters()})

    def compare(model: Any) -> Any:
        """The model, with each of its calls made natively as well."""
        clone = model.clone()

        def both(call: Any, given: dict[str, Any]) -> Any:
            x, level, c = given["input"], given["timestep"], given["c"]
            fast = call(x, level, **c)
            native = call(x, level, **{**c, "transformer_options": {**c["transformer_options"], "wrappers": {}}})
            calls.append(float((fast - native).abs().max() / native.abs().max()))
            return fast

        clone.set_model_unet_function_wrapper(both)
        return clone

    settings = {"steps": STEPS, "cfg": 7.0}
    with run.sampling(function_wrapper(look)(run.native)):
        session.ksampler(texts, latent, **settings)
    before = resident()
    with run.sampling(function_wrapper(look)(run.fast)):
        session.ksampler(texts, latent, **settings)
    facts[weights] = {
        "grown": resident() - before, "copied": run.report.copied_bytes, "shared": shared,
        "bind": run.report.bind_seconds, "report": run.report.text(),
    }  # fmt: skip
    for step, strength in (("none", 0.0), ("added", 1.0), ("changed", -0.5), ("removed", 0.0)):
        change = (lambda model, s=strength: lora(model, s)) if strength else None
        run.pair(f"full.{family}.{weights}.{step}", texts, latent, change=change, **settings)
        with run.sampling(compare(lora(run.fast, strength) if strength else run.fast)):
            session.ksampler(texts, latent, **settings)
    facts[weights]["calls"] = calls
    run.engine.forget()


def main(folder: str, pack: str, out: str, family: str) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    session = Session(Path(folder), Path(pack))
    session.load_pack()
    facts: dict[str, Any] = {}
    with torch.inference_mode():
        session.model = native_model(session, family)
        facts["weights"] = sum(p.nbytes for p in session.model.model.diffusion_model.parameters())
        for weights in ("shared", "packed") if family == "sd15" else ("shared",):
            measure(session, family, weights, facts)
    save_file({k: v.contiguous().clone() for k, v in session.tensors.items()}, str(Path(out) / "tensors.safetensors"))
    (Path(out) / "facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
