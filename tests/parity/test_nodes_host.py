"""Nodes under ComfyUI's IDs give what the real host's nodes give, to the bit. Needs COMFYUI_DIR, COMFYUI_PYTHON."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.gligen import load_gligen
from comfyui_controlnet_core.controlnet_core.checkpoints.hypernetwork import load_hypernetwork
from comfyui_controlnet_core.controlnet_core.checkpoints.vision import load_vision_encoder
from comfyui_controlnet_core.controlnet_core.config import NoiseConfig, UNetConfig
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import to_x0
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_schedule, make_sigmas, scaled_linear
from comfyui_controlnet_core.controlnet_core.models.control import Place, RowScale
from comfyui_controlnet_core.controlnet_core.models.gligen import GligenChange, GligenControl, TextBox
from comfyui_controlnet_core.controlnet_core.models.hypernetwork import HypernetworkControl
from comfyui_controlnet_core.controlnet_core.models.unclip import PictureHint, unclip_label
from comfyui_controlnet_core.nodes.standalone import native_nodes
from comfyui_controlnet_core.nodes.tiles import run_in_tiles
from hypernetwork_reference import random_file
from load_script import load_script
from safetensors.torch import load_file, save_file

program = load_script(Path(__file__).with_name("host_nodes.py"))
sampling = load_script(Path(__file__).with_name("host_sampling.py"))

NORMS = ("pre_layrnorm", "post_layernorm")
CHANGED = {"FeatherMask", "JoinImageWithAlpha"}
"""Nodes that were corrected after ComfyUI 0.3.64."""


def is_new() -> bool:
    """Whether the host is ComfyUI 0.33 or newer."""
    text = (Path(os.environ["COMFYUI_DIR"]) / "comfyui_version.py").read_text()
    major, minor = re.findall(r'"(\d+)\.(\d+)', text)[0]
    return (int(major), int(minor)) >= (0, 33)


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
    if case.name in CHANGED and not is_new():
        pytest.skip("this release does something else: ours does what 0.33 does")
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
    # 0.33 has one weight for all channels, which rounds products and sums together in another order.
    difference = run_in_tiles(x, function, tile, overlap, scale, 3) - host[f"tiled.{number}"]
    assert difference.abs().max() < 3e-7


@pytest.mark.parametrize("zsnr", [False, True])
def test_lcm_sampling_is_that_of_the_host(zsnr: bool, host: dict[str, torch.Tensor]) -> None:
    schedule = make_schedule(NoiseConfig("lcm", zero_terminal_snr=zsnr))
    sigmas, timesteps, percents = sampling.probes()
    assert torch.equal(schedule.timestep(sigmas), host[f"lcm.{zsnr}.timestep"])
    assert torch.equal(schedule.sigma(timesteps), host[f"lcm.{zsnr}.sigma"])
    assert torch.equal(
        torch.tensor([schedule.percent_to_sigma(percent) for percent in percents]), host[f"lcm.{zsnr}.percent"]
    )
    for name in sampling.SCHEDULES:
        for steps in program.LCM_STEPS:
            assert torch.equal(make_sigmas(schedule, name, steps), host[f"lcm.{zsnr}.{name}.{steps}"]), (name, steps)
    x, output = (program.values(len(program.LCM_SIGMAS), 4, 3, 5, seed=seed, signed=True) for seed in (0, 1))
    x0 = schedule.at_boundary(to_x0("eps", output, x, program.LCM_SIGMAS), x, program.LCM_SIGMAS)
    torch.testing.assert_close(x0, host[f"lcm.{zsnr}.x0"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", range(len(program.HINTS)))
def test_label_vectors_of_pictures_are_those_of_the_host(number: int, host: dict[str, torch.Tensor]) -> None:
    hints, seed, merged = program.HINTS[number]
    ours = unclip_label([PictureHint(*hint) for hint in hints], seed, merged)
    torch.testing.assert_close(ours, host[f"unclip.{number}"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("crop", ["center", "none"])
def test_pictures_are_read_as_by_the_host(crop: str, host: dict[str, torch.Tensor], tmp_path: Path) -> None:
    shapes = {"class_embedding": (48,), "patch_embedding.weight": (48, 3, 7, 7), "position_embedding.weight": (17, 48)}
    shapes = {f"vision_model.embeddings.{key}": shape for key, shape in shapes.items()}
    shapes |= {f"vision_model.{norm}.{kind}": (48,) for norm in NORMS for kind in ("weight", "bias")}
    shapes["visual_projection.weight"] = (20, 48)
    for layer in (f"vision_model.encoder.layers.{number}" for number in range(3)):
        widths = {f"self_attn.{part}_proj": (48, 48) for part in ("q", "k", "v", "out")}
        for name, (rows, columns) in {**widths, "mlp.fc1": (80, 48), "mlp.fc2": (48, 80)}.items():
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        shapes |= {f"{layer}.layer_norm{n}.{kind}": (48,) for n in (1, 2) for kind in ("weight", "bias")}
    save_file(program.vision_weights(shapes), tmp_path / "v.safetensors")
    nodes = native_nodes()
    reader = nodes["CLIPVisionEncode"]()
    reader.host = SimpleNamespace(runtime=SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32))
    (made,) = reader.run(load_vision_encoder(tmp_path / "v.safetensors"), program.IMAGE, crop)
    names = ("last_hidden_state", "penultimate_hidden_states", "image_embeds")
    for ours, name in zip(made, names, strict=True):
        theirs = host[f"vision.{crop == 'center'}.{name}"]
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max()), name


@torch.no_grad()
@pytest.mark.parametrize("number", range(len(program.BOXES)))
def test_text_boxes_are_those_of_the_host(number: int, host: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(program.gligen_weights(), tmp_path / "g.safetensors")
    weights = load_gligen(tmp_path / "g.safetensors")
    net = GligenControl(weights, [TextBox(text, tuple(place)) for text, *place in program.BOXES[number]])
    base = UNetConfig(widths=(16, 32), res_blocks=1, transformer_depth=(1, 0))
    grounding = net.bind(SimpleNamespace(size=(12, 20), base=base)).grounding
    for block, (_, width) in enumerate(program.FUSERS):
        x = program.values(2, 15, width, seed=block, signed=True)
        change = GligenChange(weights.fusers[block], grounding, RowScale(slice(None), torch.ones(1, 1, 1)))
        theirs = host[f"gligen.{number}.{block}"]
        assert float((change.between(x) - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("number", range(len(program.HYPERNETWORKS)))
def test_hypernetworks_are_those_of_the_host(number: int, host: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(random_file((24, 40), **program.HYPERNETWORKS[number]), tmp_path / "a.pt")
    net = HypernetworkControl(load_hypernetwork(tmp_path / "a.pt"), 0.7)
    base = UNetConfig(widths=(32, 40), res_blocks=1, transformer_depth=(1, 1), context_dim=24)
    for width, place in ((32, Place("encoder", 1, 0)), (40, Place("encoder", 3, 0))):
        key, value = (program.values(2, 9, width, seed=seed, signed=True) for seed in (1, 2))
        inputs = net.bind(SimpleNamespace(text=torch.zeros(2, 9, 24), base=base)).inputs_at(1.0)
        change = net.attention_change(inputs, place, RowScale(slice(None), torch.ones(1, 1, 1)))
        assert change is not None
        made = {width: change.self_inputs(key, key, value)}
        text = [program.values(2, 9, 24, seed=seed, signed=True) for seed in (1, 2)]
        made[24] = (text[0], *change.text_inputs(*text))
        for own, tensors in made.items():
            for name, ours in zip("qkv", tensors, strict=True):
                theirs = host[f"hypernetwork.{number}.{own}.{name}"]
                assert float((ours - theirs).abs().max()) <= 1e-6 * float(theirs.abs().max()), (own, name)
