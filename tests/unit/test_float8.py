"""Weights in float8: held so from the file to the run, cast by each layer, and the result that of casting at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_base
from comfyui_controlnet_core.controlnet_core.checkpoints.lora_kinds import DIFFERENCE, Update
from comfyui_controlnet_core.controlnet_core.checkpoints.lora_places import merge
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.control.residuals import add_residual
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.float8 import FLOAT8
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.pack import can_pack
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64, 64), num_heads=2, context_dim=32))
CPU = torch.device("cpu")
RUNTIMES = {
    "packed": Runtime(CPU),
    "packed bf16": Runtime(CPU, torch.bfloat16),
    "plain": Runtime(CPU, pack_weights=False),
    "plain bf16": Runtime(CPU, torch.bfloat16, pack_weights=False),
    "streamed": Runtime(CPU, memory="streamed"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet in float16."""
    path = tmp_path_factory.mktemp("models") / "diffusion_models" / "unet.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, CONFIG, UNet(CONFIG.unet), dtype=torch.float16)
    return path


def rounded(path: Path, dtype: torch.dtype, stored: torch.dtype) -> Path:
    """The same file, every weight rounded to `dtype` and written as `stored`."""
    target = path.with_name(f"{dtype}_{stored}.safetensors".replace("torch.", ""))
    if not target.exists():
        weights = {key: weight.to(dtype).to(stored) for key, weight in load_file(path).items()}
        save_file(weights, target, read_header(path).metadata)
    return target


def output(unet: UNet, runtime: Runtime) -> Tensor:
    """What the UNet's twin in this runtime makes of a fixed input."""
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(2, *shape, generator=generator).to(runtime.dtype) for shape in ((4, 16, 16), (5, 32)))
    with torch.inference_mode():
        return Backend(runtime).optimise(unet)(x, torch.tensor([500.0, 20.0]), context)


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """All tensors that a module holds, as parameters or otherwise."""
    for part in module.modules():
        for value in (*part._parameters.values(), *vars(part).values()):
            if isinstance(value, Tensor):
                yield value
            if isinstance(value, dict):
                yield from (inner for inner in value.values() if type(inner) is Tensor)


def held_bytes(module: nn.Module) -> int:
    """What its tensors take, each memory once; packed ones by their shape."""
    found = {id(t): t.numel() * t.element_size() for t in tensors(module)}
    return sum(found.values())


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_a_float8_file_gives_what_casting_it_at_once_gives(dtype: torch.dtype, runtime: Runtime, file: Path) -> None:
    if runtime.pack_weights and not can_pack(CPU, runtime.dtype):
        pytest.skip(f"this processor has no packed layers in {runtime.dtype}")
    path = rounded(file, dtype, dtype)
    narrow, wide = load_base(path, narrow="stored").unet, load_base(path).unet
    assert {p.dtype for p in narrow.parameters() if p.ndim > 1} == {dtype}
    assert {p.dtype for p in wide.parameters()} == {torch.float16}
    assert torch.equal(output(narrow, runtime), output(wide, runtime))


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
def test_a_run_holds_one_byte_for_each_weight_and_shares_it_with_what_was_loaded(runtime: Runtime, file: Path) -> None:
    if runtime.pack_weights and not can_pack(CPU, runtime.dtype):
        pytest.skip(f"this processor has no packed layers in {runtime.dtype}")
    unet = load_base(file, narrow=torch.float8_e4m3fn).unet
    matrices = sum(p.numel() for p in unet.parameters() if p.ndim > 1)
    others = sum(p.numel() for p in unet.parameters() if p.ndim == 1)
    twin = Backend(runtime).optimise(unet)
    with torch.inference_mode():
        x, context = torch.randn(1, 4, 16, 16, dtype=runtime.dtype), torch.randn(1, 5, 32, dtype=runtime.dtype)
        twin(x, torch.tensor([500.0]), context)
    assert held_bytes(unet) == matrices + 2 * others
    assert held_bytes(twin) == matrices + runtime.dtype.itemsize * others
    theirs = {t.untyped_storage().data_ptr() for t in tensors(unet)}
    assert all(t.untyped_storage().data_ptr() in theirs for t in tensors(twin) if t.dtype in FLOAT8)


def test_a_control_net_in_float8_keeps_its_zero_convolutions_exact(file: Path) -> None:
    unet = load_base(file, dtype=torch.float32).unet
    net = ControlNet.from_unet(unet)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    net.requires_grad_(False)
    state = {k: v.to(torch.float8_e5m2) if v.ndim > 1 else v for k, v in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    twin = Backend(Runtime()).optimise(net)
    target = torch.randn(1, 32, 8, 8)
    h = torch.randn(1, 32, 8, 8)
    expected = target + 0.5 * net.zeros[0].float()(h)
    add_residual(target, twin.zeros[0](h), 0.5)
    torch.testing.assert_close(target, expected)


def test_what_a_lora_touches_is_held_wide_so_that_small_changes_count(file: Path) -> None:
    """Rounded to float8 again, a change of 0.1 % would be lost in nearly every weight."""
    unet = load_base(file, narrow=torch.float8_e4m3fn).unet
    key = "middle.res1.conv1.weight"
    old = unet.state_dict()[key]
    update = Update(DIFFERENCE, {"diff": 1e-3 * old.float()})
    merged = merge(unet, [({key: update}, 1.0)])
    found = {name: weight.dtype for name, weight in merged.state_dict().items() if weight.ndim > 1}
    assert found.pop(key) == torch.float16 and set(found.values()) == {torch.float8_e4m3fn}
    expected = (1.001 * old.float()).half()
    assert torch.equal(merged.state_dict()[key], expected) and not torch.equal(expected, old.half())
    assert not torch.equal(output(merged, RUNTIMES["plain"]), output(unet, RUNTIMES["plain"]))


@pytest.fixture(scope="module")
def run(file: Path) -> Callable[..., Any]:
    host = StandaloneHost(file.parent, file.parent, [file.parents[1]], device="cpu", dtype="fp32")
    classes = build_nodes(host)
    return lambda name, **inputs: getattr(classes[name](), classes[name].FUNCTION)(**inputs)


@pytest.mark.parametrize("choice", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_the_native_loader_rounds_all_weights_as_the_editor_does(choice: str, file: Path, run: Any) -> None:
    dtype = torch.float8_e5m2 if choice == "fp8_e5m2" else torch.float8_e4m3fn
    (model,) = run("UNETLoader", unet_name="unet.safetensors", weight_dtype=choice)
    (other,) = run("UNETLoader", unet_name=rounded(file, dtype, torch.float16).name, weight_dtype="default")
    (plain,) = run("UNETLoader", unet_name="unet.safetensors", weight_dtype="default")
    text = [[torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2)), {}]]
    settings = {
        "positive": text, "negative": text, "latent_image": {"samples": torch.zeros(1, 4, 16, 16)}, "seed": 1,
        "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    made, expected, exact = (run("KSampler", model=m, **settings)[0]["samples"] for m in (model, other, plain))
    assert torch.equal(made, expected) and not torch.allclose(made, exact, rtol=1e-3)
    assert {p.dtype for p in model.diffusion.unet.parameters() if p.ndim > 1} == {dtype}
