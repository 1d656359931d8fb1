"""Control Sweep: each cell is the run of its settings, as in the command `sweep`; what is refused runs nothing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import CoreError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.control_sweep import NOTHING, SWEPT
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.nodes.sweep_runs import FIELDS
from comfyui_controlnet_core.workflows import cli, session, several_runs
from PIL import Image
from torch import Tensor

SIDE = 48
SETTINGS = {"seed": 3, "steps": 1, "cfg": 4.0}


@pytest.fixture
def given(run: Any) -> dict[str, Any]:
    """Two units on the tiny model, and an empty latent."""
    model, clip, vae = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="grey")
    hint = run("CNCore_ExampleImage", picture="demo scene 3", view="canny", size=64)[0]
    stack = None
    for name in ("canny", "depth"):
        (net,) = run("CNCore_LoadControlNet", control_net=f"demo {name} (built in)")
        (stack,) = run("CNCore_ControlUnit", control_net=net, image=hint, stack=stack)
    latent = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
    return {"model": model, "positive": positive, "negative": negative, "stack": stack, "latent": latent, "vae": vae,
            "clip": clip, **SETTINGS}  # fmt: skip


def sampled(run: Any, given: dict[str, Any], stack: Any = None, prompt: Any = None, **settings: Any) -> Tensor:
    """The picture of one cell by the nodes that the sweep stands for."""
    halves = {"positive": prompt or given["positive"], "negative": given["negative"]}
    positive, negative = run("CNCore_ApplyControlStack", **halves, stack=stack or given["stack"])
    latent = run("CNCore_Sample", model=given["model"], positive=positive, negative=negative, latent=given["latent"],
                 **{**SETTINGS, **settings})[0]  # fmt: skip
    return run("VAEDecode", samples=latent, vae=given["vae"])[0]


def rows(table: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table)))


@torch.inference_mode()
def test_each_cell_is_the_run_of_its_settings(run: Any, given: dict[str, Any], host: StandaloneHost) -> None:
    bars: list[tuple[int, int]] = []
    host.progress = lambda done, total, preview=None: bars.append((done, total))  # type: ignore[method-assign]
    shown = run("CNCore_ControlSweep", x="strength", x_values="0..1/3", y="mode", y_values="balanced\nprompt",
                unit=2, **given)  # fmt: skip
    grid, table, images = shown["result"]
    first, second = given["stack"]
    cells = [(mode, strength) for mode in ("balanced", "prompt") for strength in (0.0, 0.5, 1.0)]
    for picture, (mode, strength) in [*zip(images, cells, strict=True)][1::3]:
        unit = run("CNCore_ControlUnit", control_net=second.control_net, image=second.image, mode=mode,
                   strength=strength, stack=(first,))[0]  # fmt: skip
        assert torch.equal(picture, sampled(run, given, unit)[0])
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[2], images[5])
    assert grid.shape == (1, 2 * (SIDE + 3 * 14) + 4, 3 * SIDE + 8, 3)
    assert rows(table)[0] == ["mode", "strength", "fidelity", "measure"]
    assert [row[:2] for row in rows(table)[1:]] == [[mode, f"{strength:g}"] for mode, strength in cells]
    scores = [
        run("CNCore_ControlFidelity", picture=p[None], hint=second.image, kind="canny", tolerance=2.0)
        for p in images[:2]
    ]
    assert [float(row[2]) for row in rows(table)[1:3]] == pytest.approx([s["result"][0] for s in scores], abs=5e-5)
    assert bars[:6] == [(i + 1, 6) for i in range(6)] and shown["ui"]["text"] == [table]


OF_UNIT = {"start_percent": "start", "end_percent": "end", "positive_factor": "positive", "negative_factor": "negative"}
"""Inputs -> fields of the engine's units."""


def test_every_setting_can_be_swept(run: Any, given: dict[str, Any], host: StandaloneHost) -> None:
    values = {
        "strength": 0.7, "start_percent": 0.4, "end_percent": 0.0, "mode": "mid-only", "positive_factor": 0.5,
        "negative_factor": 0.0, "control_net": "demo depth (built in)", "seed": 2**64 - 1, "steps": 2, "cfg": 1.0,
        "sampler": "heun", "scheduler": "karras", "denoise": 0.5, "prompt": "a grey sphere, on ground",
    }  # fmt: skip
    assert tuple(values) == SWEPT and set(SWEPT) <= set(FIELDS)
    seen: list[Any] = []
    host.sample = lambda inputs, options: seen.append(inputs) or inputs.latent  # type: ignore[method-assign]
    host.decode = lambda vae, samples: torch.zeros(1, 8, 8, 3)  # type: ignore[method-assign,assignment]
    for name, value in values.items():
        table = run("CNCore_ControlSweep", x=name, x_values=f"{value}", kind=NOTHING, **given)["result"][1]
        assert rows(table)[1] == [str(value), "", ""]
    (others,) = run("CNCore_EncodePrompt", clip=given["clip"], prompt=values["prompt"], negative_prompt="")[:1]
    for inputs, (name, value) in zip(seen, values.items(), strict=True):
        text, options = inputs.positive[0]
        first, second = options["control"]
        settings = inputs.settings
        if name == "prompt":
            assert torch.equal(text, others[0][0])
        elif name == "control_net":
            assert first.net is second.net
        elif hasattr(settings, name):
            assert getattr(settings, name) == value
        else:
            field = OF_UNIT.get(name, name)
            # The first unit alone is changed.
            assert getattr(first, field) == value != getattr(second, field)
        assert name == "control_net" or first.net is not second.net


@torch.inference_mode()
def test_one_load_and_one_preparation(run: Any, given: dict[str, Any], host: StandaloneHost) -> None:
    loads: list[Any] = []
    for name in ("encode_prompt", "load_controlnet", "load_checkpoint"):
        method = getattr(host, name)
        setattr(host, name, lambda *args, _do=method: loads.append(args[-1]) or _do(*args))
    names = "demo canny (built in), demo depth (built in)"
    made = run("CNCore_ControlSweep", x="control_net", x_values=names, y="prompt", y_values="a | on",
               kind=NOTHING, **given)["result"]  # fmt: skip
    assert len(made[2]) == 4
    assert [str(load) for load in loads if isinstance(load, str)] == ["a", "on"]
    assert [load.name for load in loads if isinstance(load, Path)] == [
        "demo_canny.safetensors",
        "demo_depth.safetensors",
    ]


REFUSED = (
    ({"x_values": "0..1/100", "y": "seed", "y_values": "1..100"}, "has 10000 cells, more than 100: raise max"),
    ({"x_values": "0..1/200", "y": "seed", "y_values": "1..100", "max_cells": 10000}, "20000 cells, at most 10000"),
    ({"x_values": "0..1/9", "max_cells": 8}, "has 9 cells, more than 8"),
    ({"x": "seed", "x_values": "1..99999999999999999999"}, "cells or more"),
    ({"x_values": "0..1"}, "strength: 0..1 is no range"),
    ({"x_values": "0,11"}, "strength '11': give numbers from 0 to 10"),
    ({"x_values": "0,nan"}, "strength 'nan': give numbers from 0 to 10"),
    ({"x_values": "0,much"}, "strength 'much'"),
    ({"x": "steps", "x_values": "1.5"}, "steps '1.5': give whole numbers from 1 to 10000"),
    ({"x": "mode", "x_values": "balanced, other"}, "mode 'other' is unknown: choose from balanced"),
    ({"x": "control_net", "x_values": "none.safetensors"}, "control_net 'none.safetensors' is unknown"),
    ({"x_values": " , "}, "strength is swept, but has no values"),
    ({"y": "strength", "y_values": "1"}, "x and y are both strength"),
    ({"y_values": "balanced"}, "y_values is 'balanced', but y is 'nothing': choose what y changes"),
    ({"x": "prompt", "x_values": "a|b", "clip": None}, "link clip"),
    ({"unit": 3}, "unit is 3, but the stack has 2 ControlNets"),
    ({"x": "start_percent", "y": "end_percent", "y_values": "0.5"}, "start_percent is 1 and end_percent 0.5"),
)  # fmt: skip
"""Settings of the node, and what the error says of them."""


def test_what_is_refused_samples_nothing(run: Any, given: dict[str, Any], host: StandaloneHost) -> None:
    host.sample = None  # type: ignore[assignment,method-assign]
    for settings, message in REFUSED:
        with pytest.raises(CoreError) as caught:
            run("CNCore_ControlSweep", **{**given, **settings})
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_makes_the_same_grid(
    run: Any, given: dict[str, Any], host: StandaloneHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("CNCore_LoadCheckpoint", "CNCore_EncodePrompt", "CNCore_ExampleImage", "CNCore_LoadControlNet")
    load, text, example, net = ({"class_type": name} for name in names)
    load["inputs"] = {"checkpoint": "demo (built in)"}
    text["inputs"] = {"clip": ["1", 1], "prompt": "a red sphere", "negative_prompt": "grey"}
    example["inputs"] = {"picture": "demo scene 3", "view": "canny", "size": 64}
    net["inputs"] = {"control_net": "demo canny (built in)"}
    unit = {"control_net": ["4", 0], "image": ["3", 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0,
            "mode": "balanced"}  # fmt: skip
    sample = {"model": ["1", 0], "positive": ["6", 0], "negative": ["6", 1], "latent": ["7", 0], **SETTINGS,
              "sampler": "euler", "scheduler": "normal", "denoise": 1.0}  # fmt: skip
    others = {
        "5": ("CNCore_ControlUnit", unit),
        "6": ("CNCore_ApplyControlStack", {"positive": ["2", 0], "negative": ["2", 1], "stack": ["5", 0]}),
        "7": ("EmptyLatentImage", {"width": SIDE, "height": SIDE, "batch_size": 1}),
        "8": ("CNCore_Sample", sample),
        "9": ("VAEDecode", {"samples": ["8", 0], "vae": ["1", 2]}),
        "10": ("SaveImage", {"images": ["9", 0], "filename_prefix": "own"}),
    }
    graph = dict(zip("1234", (load, text, example, net), strict=True))
    graph |= {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in others.items()}
    (tmp_path / "w.json").write_text(json.dumps(graph))
    monkeypatch.setattr(several_runs, "open_session", lambda *_: session.Session(host, build_nodes(host)))
    words = ["--set", "5.mode=balanced,prompt", "--set", "5.strength=0..1/3", "--quiet"]
    assert cli.main(["sweep", str(tmp_path / "w.json"), "--output", str(host.output_dir), *words]) == 0
    given["stack"] = given["stack"][:1]
    swept = {"x": "strength", "x_values": "0..1/3", "y": "mode", "y_values": "balanced,prompt"}
    grid, table, _ = run("CNCore_ControlSweep", **swept, **given)["result"]
    saved = host.output_dir / "w_sweep_00001_.png"
    with Image.open(saved) as image:
        assert abs(np.asarray(image) - grid[0].numpy() * 255.0).max() <= 1.0
    assert saved.with_suffix(".csv").read_text().replace("5.", "") == table
