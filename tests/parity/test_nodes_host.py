"""Nodes under ComfyUI's IDs give what the real host's nodes give, to the bit. Needs COMFYUI_DIR, COMFYUI_PYTHON."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.nodes.standalone import native_nodes
from comfyui_controlnet_core.nodes.tiles import run_in_tiles
from load_script import load_script
from safetensors.torch import load_file

program = load_script(Path(__file__).with_name("host_nodes.py"))

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set"),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("host") / "out.safetensors"
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(program.__file__), os.environ["COMFYUI_DIR"], str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize("number", range(len(program.CASES)), ids=lambda n: f"{program.CASES[n].name}-{n}")
def test_same_inputs_same_outputs(number: int, host: dict[str, torch.Tensor]) -> None:
    case = program.CASES[number]
    model = SimpleNamespace(base=SimpleNamespace(schedule=scaled_linear()))
    given = {name: model if value is program.MODEL else value for name, value in case.inputs.items()}
    before = {name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
    made = program.outputs(native_nodes()[case.name]().run(**given))
    assert len(made) == sum(key.startswith(f"{number}.") for key in host)
    for index, tensor in enumerate(made):
        assert torch.equal(tensor.float(), host[f"{number}.{index}"]), case
    # Inputs are shared with other nodes, so none may be written to.
    assert all(torch.equal(given[name], value) for name, value in before.items())


@pytest.mark.parametrize("number", range(len(program.TILED)))
def test_tiles_are_blended_as_there(number: int, host: dict[str, torch.Tensor]) -> None:
    function, tile, overlap, scale = program.TILED[number]
    x = program.values(2, 3, 40, 56, seed=4)
    assert torch.equal(run_in_tiles(x, function, tile, overlap, scale, 3), host[f"tiled.{number}"])
