"""ControlNet-LLLite, ControlNet-XS, region prompts, prompt edits and references in ComfyUI, beside hooks on its layers
and headless.

Needs COMFYUI_DIR as `test_comfyui.py` does.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO, SDXL
from controlnet_xs_files import random_state, save_xs, xs_config
from ctrlora_files import save_base, save_lora
from load_script import load_script
from random_tensors import relative_error
from safetensors.torch import save_file
from sparsectrl_files import save_sparsectrl

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to run in"),
]
PARITY = 1e-4
"""Of the largest value of the latent after all steps."""
MEAN = 1e-3
CTRLORA = replace(DEMO.unet, widths=(64, 96), transformer_depth=(1, 0), context_dim=32, num_heads=8)
"""The shape of the random demo; the number of heads stands in no file and is that of SD1.x."""

host = load_script(Path(__file__).with_name("test_comfyui.py"))
scenario = load_script(Path(__file__).with_name("comfyui_attention.py"))
families = load_script(Path(__file__).with_name("comfyui_accelerate.py"))
pack = host.pack
headless = host.headless


@pytest.fixture(scope="module")
def found(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the scenario found."""
    folder = pack.parents[1] / "models" / "controlnet"
    for name, state in scenario.states().items():
        save_file(state, folder / name)
    save_base(folder, CTRLORA)
    save_lora(folder, CTRLORA)
    save_sparsectrl(folder / "sparse.safetensors", CTRLORA)
    for name, time_mix in (("xs", 1.0), ("xs_plain", None)):
        config = xs_config(CTRLORA, time_mix=time_mix)
        save_xs(folder / f"{name}.safetensors", config, random_state(config))
    config = xs_config(replace(SDXL.unet, **families.SMALL["sdxl"]))
    save_xs(folder / "xs_sdxl.safetensors", config, random_state(config))
    given = {"SCENARIOS": "attention_control", "HOST_ARGS": "--use-pytorch-cross-attention"}
    return host.run_scenarios(pack, tmp_path_factory.mktemp("attention"), **given)


@pytest.fixture(scope="module")
def tensors(found: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return found[1]


@pytest.mark.parametrize("name", scenario.PARITY)
def test_the_published_formula_in_comfyui(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Alone, with a ControlNet, and two with a ControlNet between them."""
    print(f"{name}: {relative_error(tensors[f'attention.{name}'], tensors[f'hooks.{name}']):.1e}")
    assert relative_error(tensors[f"attention.{name}"], tensors[f"hooks.{name}"]) <= PARITY
    assert relative_error(tensors[f"attention.{name}"], tensors["attention.none"]) > 100 * PARITY


@pytest.mark.parametrize("name", sorted(scenario.UNITS))
def test_the_same_picture_without_comfyui(name: str, headless: Any, tensors: dict[str, torch.Tensor]) -> None:
    samples = {"samples": tensors[f"attention.{name}"]}
    (theirs,) = headless.node("VAEDecode", samples=samples, vae=headless.vae)
    mine = headless.picture(scenario.applied(headless, scenario.UNITS[name]))
    assert host.difference(mine, theirs) <= MEAN


def test_region_prompts_are_attention_couple_in_comfyui(tensors: dict[str, torch.Tensor]) -> None:
    found = relative_error(tensors["attention.regions, cfg 1"], tensors["hooks.regions"])
    print(f"regions: {found:.1e}")
    assert found <= PARITY
    assert relative_error(tensors["attention.regions"], tensors["attention.none"]) > 100 * PARITY


@pytest.mark.parametrize("name", sorted(scenario.NEAR_REGIONS))
def test_region_prompts_give_the_same_picture_without_comfyui(
    name: str, headless: Any, tensors: dict[str, torch.Tensor]
) -> None:
    """Alone, with a ControlNet, and with a ControlNet-LLLite that changes the same attentions."""
    samples = {"samples": tensors[f"attention.{name}"]}
    (theirs,) = headless.node("VAEDecode", samples=samples, vae=headless.vae)
    assert host.difference(headless.picture(scenario.near_regions(headless, name)), theirs) <= MEAN


def test_region_prompts_under_a_lora(headless: Any, tensors: dict[str, torch.Tensor]) -> None:
    (theirs,) = headless.node("VAEDecode", samples={"samples": tensors["attention.regions, LoRA"]}, vae=headless.vae)
    model = host.program.Case(lora=True).model(headless)
    assert host.difference(headless.picture(scenario.with_regions(headless), model=model), theirs) <= MEAN
    assert relative_error(tensors["attention.regions, LoRA"], tensors["attention.regions"]) > 10 * PARITY


def test_a_prompt_edit_is_prompt_to_prompt_in_comfyui(tensors: dict[str, torch.Tensor]) -> None:
    """A swap, a weight, a removed and an added word."""
    found = relative_error(tensors["attention.edit, cfg 1"], tensors["hooks.edit"])
    print(f"edit: {found:.1e}")
    assert found <= PARITY
    assert relative_error(tensors["attention.edit"], tensors["attention.none"]) > 50 * PARITY


@pytest.mark.parametrize("name", sorted(scenario.EDITS))
def test_a_prompt_edit_gives_the_same_picture_without_comfyui(
    name: str, headless: Any, tensors: dict[str, torch.Tensor]
) -> None:
    """Alone, with a ControlNet, and with a ControlNet-LLLite that changes the same attentions."""
    samples = {"samples": tensors[f"attention.{name}"]}
    (theirs,) = headless.node("VAEDecode", samples=samples, vae=headless.vae)
    assert host.difference(headless.picture(scenario.with_edit(headless, name)), theirs) <= MEAN


def test_a_reference_is_reference_only_in_comfyui(tensors: dict[str, torch.Tensor]) -> None:
    found = relative_error(tensors["attention.reference, cfg 1"], tensors["hooks.reference"])
    print(f"reference: {found:.1e}")
    assert found <= PARITY
    # The demo's random base has few attentions, so that a reference moves it little.
    assert relative_error(tensors["attention.reference"], tensors["attention.none"]) > 50 * PARITY


@pytest.mark.parametrize("name", sorted(scenario.REFERENCES))
def test_a_reference_gives_the_same_picture_without_comfyui(
    name: str, headless: Any, tensors: dict[str, torch.Tensor]
) -> None:
    """Attention, AdaIN and both, with style fidelity, and with a ControlNet."""
    samples = {"samples": tensors[f"attention.{name}"]}
    (theirs,) = headless.node("VAEDecode", samples=samples, vae=headless.vae)
    assert host.difference(headless.picture(scenario.with_reference(headless, name)), theirs) <= MEAN


def test_a_ctrlora_gives_the_same_picture_without_comfyui(headless: Any, tensors: dict[str, torch.Tensor]) -> None:
    """The hint passes through the VAE of each home."""
    (theirs,) = headless.node("VAEDecode", samples={"samples": tensors["attention.ctrlora"]}, vae=headless.vae)
    assert host.difference(headless.picture(scenario.with_ctrlora(headless)), theirs) <= MEAN
    assert relative_error(tensors["attention.ctrlora"], tensors["attention.with a ControlNet"]) > 100 * PARITY


def test_a_sparsectrl_gives_the_same_video_without_comfyui(headless: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Its net sees all frames of each half of the guidance together."""
    samples = tensors["attention.sparsectrl"]
    (theirs,) = headless.node("VAEDecode", samples={"samples": samples}, vae=headless.vae)
    latent = {"samples": torch.zeros_like(samples)}
    mine = headless.picture(scenario.with_sparsectrl(headless), latent)
    assert host.difference(mine, theirs) <= MEAN
    assert host.difference(headless.picture(headless.prompts, latent), theirs) > 10 * MEAN


@pytest.mark.parametrize("name", sorted(scenario.EXCHANGES))
def test_a_controlnet_xs_gives_the_same_latent_without_comfyui(
    name: str, headless: Any, tensors: dict[str, torch.Tensor]
) -> None:
    """Alone, in one half, in a window, in chains; through ComfyUI's patches and in our own UNet."""
    theirs = tensors[f"attention.{name}"]
    mine = headless.latent(scenario.applied(headless, scenario.EXCHANGES[name]))
    print(f"{name}: {relative_error(mine, theirs):.1e}")
    assert relative_error(mine, theirs) <= PARITY
    assert relative_error(theirs, tensors["attention.none"]) > 50 * PARITY


def test_a_controlnet_xs_on_sdxl_in_comfyui(tensors: dict[str, torch.Tensor]) -> None:
    """The label is a part of what both read, behind the timestep's embedding that the net replaces."""
    found = relative_error(tensors["attention.xs sdxl"], tensors["engine.xs sdxl"])
    print(f"xs sdxl: {found:.1e}")
    assert found <= PARITY
    assert relative_error(tensors["attention.xs sdxl"], tensors["attention.sdxl"]) > 50 * PARITY


@pytest.mark.parametrize("mode", scenario.INPAINTING)
def test_inpainting_gives_the_same_picture_without_comfyui(
    mode: str, headless: Any, tensors: dict[str, torch.Tensor]
) -> None:
    """inpaint_only keeps the latent outside of its cells; the other mode changes it everywhere."""
    made = tensors[f"attention.{mode}"]
    *conditioning, latent = scenario.inpainting(headless, mode)
    (theirs,) = headless.node("VAEDecode", samples={"samples": made}, vae=headless.vae)
    assert host.difference(headless.picture(conditioning, latent), theirs) <= MEAN
    changed = (made - tensors[f"attention.{mode} before"]).abs()
    if mode == "inpaint_only":
        outside = latent["noise_mask"][0, 0] == 0
        assert float(changed[..., outside].max()) <= 1e-5 and float(changed[..., ~outside].mean()) > 0.1
    else:
        assert bool((changed.amax(dim=1) > 1e-3).all())


def test_accelerate_leaves_it_to_comfyui(
    found: tuple[dict[str, Any], dict[str, torch.Tensor]], tensors: dict[str, torch.Tensor]
) -> None:
    """The same latents, and nothing is left on the model."""
    assert relative_error(tensors["attention.accelerated"], tensors["attention.with a ControlNet"]) <= PARITY
    assert relative_error(tensors["attention.xs accelerated"], tensors["attention.xs"]) <= PARITY
    assert relative_error(tensors["attention.regions accelerated"], tensors["attention.regions"]) <= PARITY
    assert relative_error(tensors["attention.edit accelerated"], tensors["attention.edit"]) <= PARITY
    assert relative_error(tensors["attention.reference accelerated"], tensors["attention.reference both"]) <= PARITY
    assert "patches" not in found[0]["attention left"]
