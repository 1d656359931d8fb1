"""Nodes that apply control: optional inputs of a unit, other kinds of ControlNets, and ComfyUI's nodes for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import ldm
from comfyui_controlnet_core.controlnet_core.checkpoints.adapters import ADAPTER_RULES
from comfyui_controlnet_core.controlnet_core.checkpoints.fileconfig import CONFIG_KEY, config_to_json
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet, load_unet
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import AdapterConfig, ControlNetConfig, UnionConfig
from comfyui_controlnet_core.controlnet_core.errors import CoreError, ShapeError, UnfitError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.controlnet_core.models.union_types import UNION_CHOICES
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.nodes.values import ControlSpec, UnitOptions
from safetensors.torch import save_file

DEMO, CANNY = "demo (built in)", "demo canny (built in)"


@pytest.fixture
def scene(run: Any) -> dict[str, Any]:
    """Model, prompts, a net, a hint and an empty latent of 8x8 cells."""
    model, clip, _ = run("CNCore_LoadCheckpoint", checkpoint=DEMO)
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")
    (net,) = run("CNCore_LoadControlNet", control_net=CANNY)
    (latent,) = run("EmptyLatentImage", width=64, height=64, batch_size=2)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    return {"model": model, "positive": positive, "negative": negative, "net": net, "latent": latent, "hint": hint}


def controlled(run: Any, scene: dict[str, Any], steps: int = 2, **unit: Any) -> torch.Tensor:
    """The latent sampled with one unit."""
    given = {"control_net": scene["net"], "image": scene["hint"], **unit}
    halves = {name: scene[name] for name in ("positive", "negative")}
    positive, negative = run("CNCore_ApplyControlNet", **halves, **given)
    sampled = {"model": scene["model"], "latent": scene["latent"], "steps": steps}
    (latent,) = run("CNCore_Sample", positive=positive, negative=negative, **sampled)
    return latent["samples"]


# ---------------------------------------------------------------------------------------------------- controls


def test_a_workflow_saved_before_the_new_inputs_runs_as_it_did(run: Any, scene: dict[str, Any]) -> None:
    """The inputs that were added later are optional, and have no effect by default."""
    (options,) = run("CNCore_ControlOptions")
    (schedule,) = run("CNCore_StrengthSchedule", keyframes="0: 1")
    (weights,) = run("CNCore_BlockWeights")
    plain = controlled(run, scene)
    assert torch.equal(plain, controlled(run, scene, options=options, schedule=schedule, block_weights=weights))


def test_an_input_that_is_none_is_as_one_that_is_not_linked() -> None:
    unlinked: dict[str, Any] = dict.fromkeys(("mask", "block_weights", "schedule", "options", "more_hints"))
    spec = ControlSpec(None, torch.zeros(0), **unlinked)
    assert (spec.options, spec.more_hints) == (UnitOptions(), ())


def test_a_schedule_is_a_window_where_it_holds_0(run: Any, scene: dict[str, Any]) -> None:
    (schedule,) = run("CNCore_StrengthSchedule", keyframes="0: 0.9, 0.5: 0", easing="hold")
    scheduled = controlled(run, scene, steps=4, schedule=schedule)
    window = controlled(run, scene, steps=4, strength=0.9, end_percent=0.5)
    assert (scheduled - window).abs().max() < 1e-4
    assert not torch.equal(scheduled, controlled(run, scene, steps=4))


def test_presets_are_the_custom_weights_that_their_formula_gives(run: Any, scene: dict[str, Any]) -> None:
    (preset,) = run("CNCore_BlockWeights", preset="linear", preset_first=0.4, preset_last=1.0)
    numbers = ", ".join(str(0.4 + 0.1 * i) for i in range(7))
    (custom,) = run("CNCore_BlockWeights", custom=numbers)
    pictures = [controlled(run, scene, block_weights=weights) for weights in (preset, custom)]
    assert (pictures[0] - pictures[1]).abs().max() < 1e-4


def test_a_factor_per_picture_is_a_strength_of_its_own(run: Any, scene: dict[str, Any]) -> None:
    (options,) = run("CNCore_ControlOptions", per_picture="1, 0.25")
    both = controlled(run, scene, options=options)
    for i, strength in enumerate((1.0, 0.25)):
        assert (both[i] - controlled(run, scene, strength=strength)[i]).abs().max() < 1e-4


def test_a_plan_shows_the_optional_settings(run: Any, scene: dict[str, Any]) -> None:
    (schedule,) = run("CNCore_StrengthSchedule", keyframes="0: 1, 0.5: 0", easing="hold")
    (options,) = run("CNCore_ControlOptions", average_over_picture=True, hint_fit="pad")
    given = {"control_net": scene["net"], "image": scene["hint"], "schedule": schedule, "options": options}
    positive, _ = run("CNCore_ApplyControlNet", positive=scene["positive"], negative=scene["negative"], **given)
    text = run("CNCore_ControlPlan", model=scene["model"], positive=positive, latent=scene["latent"])["result"][0]
    assert "the positive half only" in text
    assert "schedule" in text


@pytest.mark.parametrize(
    ("node", "inputs", "said"),
    [
        ("CNCore_StrengthSchedule", {"keyframes": ""}, "schedule is empty"),
        ("CNCore_StrengthSchedule", {"keyframes": "1: 0, 0: 1"}, "sort them from 0 to 1"),
        ("CNCore_ControlOptions", {"per_picture": "1, many"}, "expected numbers"),
        ("CNCore_BlockWeights", {"custom": "1, inf"}, "expected numbers"),
    ],
)
def test_settings_that_are_refused(run: Any, node: str, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueRangeError, match=said):
        run(node, **inputs)


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (lambda run: {"block_weights": run("CNCore_BlockWeights", custom="1, 1")[0]}, "2 block weights came"),
        (lambda run: {"options": run("CNCore_ControlOptions", per_picture="1, 1, 1")[0]}, "3 factors per picture"),
        (lambda run: {"mask": torch.ones(3, 8, 8)}, "3 masks came for a batch of 2"),
        (lambda run: {"image": torch.rand(3, 64, 64, 3)}, "3 hints came for a batch of 2"),
        (
            lambda run: {"image": torch.rand(1, 32, 64, 3), **_options(run, hint_fit="pixel-perfect")},
            "the hint is 64x32 pixels, the picture 64x64",
        ),
        (
            lambda run: {"more_hints": run("CNCore_MoreHints", image=torch.rand(1, 64, 64, 3))[0]},
            "reads one hint image and got 2",
        ),
    ],
)
def test_units_that_do_not_fit(run: Any, scene: dict[str, Any], unit: Callable[..., Any], said: str) -> None:
    with pytest.raises(CoreError, match=said) as caught:
        controlled(run, scene, **unit(run))
    assert isinstance(caught.value, ShapeError | ValueRangeError)


def _options(run: Any, **options: Any) -> dict[str, Any]:
    return {"options": run("CNCore_ControlOptions", **options)[0]}


# ------------------------------------------------------------------------------------------------------- kinds


@pytest.fixture
def kinds(assets: Path, tmp_path: Path, host: StandaloneHost) -> Path:
    """A models folder with a difference file and a ControlNet Union for the tiny model; the host finds it too."""
    folder = tmp_path / "models" / "controlnet"
    folder.mkdir(parents=True)
    base = load_unet(assets / "demo_base.safetensors").state_dict()
    net, _ = load_controlnet(assets / "demo_canny.safetensors")
    to_theirs = KeyMap(ldm.controlnet_rules(net.config.unet)).to_theirs
    stored = {key: tensor - base[key] if key in base else tensor for key, tensor in net.state_dict().items()}
    state = {f"control_model.{to_theirs(key)}": tensor.contiguous() for key, tensor in stored.items()}
    save_file({**state, "difference": torch.tensor(1.0)}, folder / "difference.safetensors")
    torch.manual_seed(5)
    union = ControlNetUnion(
        ControlNetConfig(net.config.unet, hint_widths=net.config.hint_widths, union=UnionConfig(6, 32, 1, 16))
    )
    for parameter in union.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    named = {str(to_theirs(key)): tensor.contiguous() for key, tensor in union.state_dict().items()}
    # The number of heads stands in no weight, so this file of a shape of its own says it as ours do.
    save_file(named, folder / "union.safetensors", {CONFIG_KEY: config_to_json(union.config)})
    host.models_dirs = (*host.models_dirs, folder.parent)
    return folder


@pytest.mark.parametrize("loader", ["at sampling", "with a model", "DiffControlNetLoader"])
def test_a_difference_file_is_the_net_that_it_was_made_from(
    run: Any, scene: dict[str, Any], kinds: Path, loader: str
) -> None:
    name = "difference.safetensors"
    if loader == "DiffControlNetLoader":
        (net,) = run("DiffControlNetLoader", model=scene["model"], control_net_name=name)
    else:
        model = {"model": scene["model"]} if loader == "with a model" else {}
        (net,) = run("CNCore_LoadControlNet", control_net=name, **model)
    whole = controlled(run, scene)
    assert (controlled(run, scene, control_net=net) - whole).abs().max() < 1e-3 * whole.abs().max()


def test_a_difference_file_for_another_base_is_refused_when_it_is_loaded(
    run: Any, scene: dict[str, Any], kinds: Path, host: StandaloneHost
) -> None:
    config = scene["model"].base.config
    wide = UNet(replace(config.unet, widths=(32, 32, 64)))
    (kinds.parent / "checkpoints").mkdir()
    path = kinds.parent / "checkpoints" / "wide.safetensors"
    save_checkpoint(path, replace(config, unet=wide.config), wide, layout="core")
    other, _, _ = run("CNCore_LoadCheckpoint", checkpoint="wide.safetensors")
    with pytest.raises(UnfitError, match=r"difference\.safetensors was made for another base"):
        run("CNCore_LoadControlNet", control_net="difference.safetensors", model=other)


def test_both_nodes_set_the_hint_type_of_a_union(run: Any, scene: dict[str, Any], kinds: Path) -> None:
    (union,) = run("CNCore_LoadControlNet", control_net="union.safetensors")
    (native,) = run("SetUnionControlNetType", control_net=union, type="depth")
    (auto,) = run("SetUnionControlNetType", control_net=native, type="auto")
    silent = controlled(run, scene, control_net=union)
    told = controlled(run, scene, control_net=union, **_options(run, hint_type="depth"))
    assert torch.equal(told, controlled(run, scene, control_net=native))
    assert torch.equal(silent, controlled(run, scene, control_net=auto))
    assert not torch.equal(told, silent)
    more = run("CNCore_MoreHints", image=1.0 - scene["hint"], hint_type=UNION_CHOICES[3])[0]
    both = controlled(run, scene, control_net=native, more_hints=more)
    assert not torch.equal(both, told)
    with pytest.raises(ValueRangeError, match="knows types 0 to 5"):
        controlled(run, scene, control_net=union, **_options(run, hint_type="tile"))


@pytest.mark.parametrize("name", ["ControlNetInpaintingAliMamaApply", "ControlNetApplySD3"])
def test_apply_nodes_for_other_bases_apply_our_nets_as_the_advanced_one(
    name: str, run: Any, scene: dict[str, Any]
) -> None:
    """As in ComfyUI, which passes autoencoder and mask only to ControlNets that read them."""
    *_, vae = run("CNCore_LoadCheckpoint", checkpoint=DEMO)
    given = {"control_net": scene["net"], "image": scene["hint"], "strength": 0.7, "start_percent": 0.0,
             "end_percent": 0.5}  # fmt: skip
    halves = {half: scene[half] for half in ("positive", "negative")}
    mask = {"mask": torch.ones(1, 64, 64)} if "AliMama" in name else {}
    made = run(name, **halves, **given, **mask, vae=vae)
    expected = run("ControlNetApplyAdvanced", **halves, **given)
    settings = {name: scene[name] for name in ("model", "latent")}
    latents = [
        run("CNCore_Sample", **settings, positive=positive, negative=negative, steps=2)[0]["samples"]
        for positive, negative in (made, expected)
    ]
    assert torch.equal(*latents)


def test_an_adapter_of_another_base_is_refused(run: Any, scene: dict[str, Any], kinds: Path) -> None:
    adapter = Adapter(AdapterConfig(widths=(32, 64, 64), hint_channels=1))
    names = KeyMap(ADAPTER_RULES["t2i-adapter", "diffusers"](())).to_theirs
    state = {f"adapter.{names(key)}": tensor for key, tensor in adapter.state_dict().items()}
    save_file(state, kinds / "adapter.safetensors")
    (net,) = run("CNCore_LoadControlNet", control_net="adapter.safetensors")
    with pytest.raises(UnfitError, match=r"adapter.safetensors was made for a base of widths \(32, 64\)"):
        controlled(run, scene, control_net=net)
