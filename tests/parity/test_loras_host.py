"""LoRA, LoHa, LoKr, DoRA and differences merged as the real host merges them, under the names it knows.

The host runs in a program of its own (`host_loras.py`). Needs COMFYUI_DIR; COMFYUI_PYTHON names the
interpreter of that installation where it is another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import diffusers, ldm
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.lora import read_lora
from comfyui_controlnet_core.controlnet_core.checkpoints.lora_places import merge, place_unet
from comfyui_controlnet_core.controlnet_core.config import SD15
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set"),
]

PROGRAM = Path(__file__).with_name("host_loras.py")
STRENGTH = 0.7
TOLERANCE = 1e-5
RANK = 4
CONFIG = replace(SD15.unet, widths=(32, 64, 64, 64), num_heads=2, context_dim=48)
HOST_CONFIG = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
Maker = Callable[[tuple[int, ...], torch.Generator], Mapping[str, Tensor]]


def some(generator: torch.Generator, *shape: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=generator)


def lora(shape: tuple[int, ...], g: torch.Generator) -> Mapping[str, Tensor]:
    """Up and down; a convolution's kernel is in the down half."""
    out, *rest = shape
    up = some(g, out, RANK, *[1] * (len(rest) - 1))
    return {"lora_up.weight": up, "lora_down.weight": some(g, RANK, *rest), "alpha": torch.tensor(3.0)}


def tucker(shape: tuple[int, ...], g: torch.Generator) -> Mapping[str, Tensor]:
    """The kernel between up and down."""
    if len(shape) != 4 or shape[2] == 1:
        return lora(shape, g)
    return {**lora((*shape[:2], 1, 1), g), "lora_mid.weight": some(g, RANK, RANK, *shape[2:])}


def loha(shape: tuple[int, ...], g: torch.Generator) -> Mapping[str, Tensor]:
    """Two low-rank matrices; in Tucker form for 3x3 convolutions."""
    out, inner = shape[0], torch.Size(shape[1:]).numel()
    alpha = {"alpha": torch.tensor(2.0)}
    if len(shape) == 4 and shape[2] == 3:
        sizes = {"a": (RANK, out), "b": (RANK, shape[1])}
        cores = {f"hada_t{i}": some(g, RANK, RANK, 3, 3) for i in (1, 2)}
        return {**{f"hada_w{i}_{x}": some(g, *size) for i in (1, 2) for x, size in sizes.items()}, **cores, **alpha}
    sizes = {"a": (out, RANK), "b": (RANK, inner)}
    return {**{f"hada_w{i}_{x}": some(g, *size) for i in (1, 2) for x, size in sizes.items()}, **alpha}


def lokr(shape: tuple[int, ...], g: torch.Generator) -> Mapping[str, Tensor]:
    """Each weight in another of the forms: both factors whole, the first, the second or both taken apart.

    Not in Tucker form: there the host (0.3.64, torch 2.13) logs an error and leaves the weight as it is; PEFT
    has that form, and `test_lora_diffusers.py` compares it.
    """
    out, inner, *kernel = shape
    form = int(torch.randint(4, (), generator=g))
    w1 = {"lokr_w1": some(g, 4, 4)} if form % 2 else {"lokr_w1_a": some(g, 4, 2), "lokr_w1_b": some(g, 2, 4)}
    second = (out // 4, inner // 4, *kernel)
    if form < 2 or kernel:
        w2 = {"lokr_w2": some(g, *second)}
    else:
        w2 = {"lokr_w2_a": some(g, second[0], RANK), "lokr_w2_b": some(g, RANK, second[1])}
    return {**w1, **w2, "alpha": torch.tensor(5.0)}


def dora(make: Maker, rows: bool) -> Maker:
    """The same with a magnitude for each row or each column."""

    def with_scale(shape: tuple[int, ...], g: torch.Generator) -> Mapping[str, Tensor]:
        sizes = [1] * len(shape)
        sizes[0 if rows else 1] = shape[0 if rows else 1]
        return {**make(shape, g), "dora_scale": some(g, *sizes).abs() + 0.1}

    return with_scale


def difference(shape: tuple[int, ...], g: torch.Generator) -> Mapping[str, Tensor]:
    """Weight and bias written out."""
    return {"diff": some(g, *shape)}


KINDS: dict[str, Maker] = {
    "lora": lora,
    "tucker": tucker,
    "loha": loha,
    "lokr": lokr,
    "dora": dora(lora, rows=True),
    "dora_columns": dora(lora, rows=False),
    "dora_loha": dora(loha, rows=True),
    "dora_lokr": dora(lokr, rows=True),
    "difference": difference,
}
NAMES: dict[str, tuple[KeyMap, str, bool]] = {
    "ldm": (KeyMap(ldm.unet_rules(CONFIG)), "lora_unet_", True),
    "diffusers": (KeyMap(diffusers.unet_rules(CONFIG)), "lora_unet_", True),
    "processor": (KeyMap(diffusers.unet_rules(CONFIG)), "", False),
    "generic": (KeyMap(ldm.unet_rules(CONFIG)), "diffusion_model.", False),
}


def write_loras(folder: Path, unet: UNet) -> None:
    """Each kind under the names of LDM, and the plain one under all names; every matrix and convolution has one."""
    cases = [(kind, "ldm") for kind in KINDS] + [("lora", names) for names in NAMES if names != "ldm"]
    for number, (kind, names) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        keymap, prefix, flat = NAMES[names]
        tensors: dict[str, Tensor] = {}
        for key, weight in unet.state_dict().items():
            theirs = keymap.to_theirs(key)
            if weight.ndim < 2 or min(weight.shape[:2]) < 8 or theirs is None:
                continue
            stem = theirs.removesuffix(".weight")
            if names == "processor":
                stem = stem.replace(".to_", ".processor.to_").removesuffix(".0")
            stem = prefix + (stem.replace(".", "_") if flat else stem)
            made = KINDS[kind](tuple(weight.shape), generator)
            tensors |= {f"{stem}.{end}": tensor for end, tensor in made.items()}
        save_file(tensors, folder / f"{kind}-{names}.lora")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, UNet, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("loras")
    torch.manual_seed(0)
    unet = UNet(CONFIG).requires_grad_(False)
    keymap = KeyMap(ldm.unet_rules(CONFIG))
    named = {f"diffusion_model.{keymap.to_theirs(key)}": value for key, value in unet.state_dict().items()}
    save_file(named, folder / "unet.safetensors")
    (folder / "config.json").write_text(json.dumps(HOST_CONFIG))
    write_loras(folder, unet)
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(PROGRAM), os.environ["COMFYUI_DIR"], str(folder), str(folder / "out.safetensors")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, unet, load_file(folder / "out.safetensors")


@pytest.mark.parametrize("name", [*(f"{kind}-ldm" for kind in KINDS), *(f"lora-{n}" for n in NAMES if n != "ldm")])
def test_merged_as_in_the_host(files: tuple[Path, UNet, dict[str, Tensor]], name: str) -> None:
    folder, unet, results = files
    placed = place_unet(read_lora(folder / f"{name}.lora"), unet)
    assert not placed.unplaced
    keymap = KeyMap(ldm.unet_rules(CONFIG))
    theirs = {key.removeprefix(f"{name}/"): value for key, value in results.items() if key.startswith(f"{name}/")}
    ours = merge(unet, [(placed.updates, STRENGTH)]).state_dict()
    assert {f"diffusion_model.{keymap.to_theirs(key)}" for key in placed.updates} == set(theirs)
    for key in placed.updates:
        expected = theirs[f"diffusion_model.{keymap.to_theirs(key)}"]
        assert (ours[key] - expected).abs().max() <= TOLERANCE * expected.abs().max(), key
        assert (unet.state_dict()[key] - expected).abs().max() > 100 * TOLERANCE * expected.abs().max(), key
