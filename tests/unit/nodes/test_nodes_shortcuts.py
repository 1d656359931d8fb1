"""The node Shortcuts: a workflow that has it is sampled as with the options of the command, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.control.report import RunReport
from comfyui_controlnet_core.controlnet_core.errors import UnfitError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.run_options import EXACT, RunOptions, Shortcuts
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.speed import ShortcutsNode
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows import cli
from few import rows_of
from graphs import load_graph
from PIL import Image

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / "workflows" / "canny_to_image.json"
STEPS = 6
FIELDS: tuple[tuple[Mapping[str, Any], list[str]], ...] = (
    ({"reuse_every": 2}, ["--reuse", "2"]),
    ({"reuse_tolerance": 0.3}, ["--reuse-tolerance", "0.3"]),
    ({"encoder_every": 2}, ["--encoder-every", "2"]),
    ({"deep_every": 2, "reuse_every": 4}, ["--deep-every", "2", "--reuse", "4"]),
    ({"deep_every": 3, "careful": True}, ["--deep-every", "3", "--careful"]),
    ({"guidance_start": 0.2, "guidance_end": 0.7}, ["--guidance", "0.2", "0.7"]),
)


@pytest.fixture
def scene(run: Any) -> dict[str, Any]:
    """Model, prompts with a net, and an empty latent of 8x8 cells."""
    model, clip, _ = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    halves = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="grey")
    (net,) = run("CNCore_LoadControlNet", control_net="demo canny (built in)")
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    halves = run("CNCore_ApplyControlNet", positive=halves[0], negative=halves[1], control_net=net, image=hint)
    (latent,) = run("EmptyLatentImage", width=64, height=64)
    return {"model": model, "positive": halves[0], "negative": halves[1], "latent": latent}


def shortened(run: Any, model: Any, **fields: Any) -> Any:
    return run("CNCore_Shortcuts", model=model, **fields)["result"][0]


def sample(run: Any, scene: dict[str, Any], **changes: Any) -> torch.Tensor:
    return run("CNCore_Sample", **{**scene, "steps": STEPS, "cfg": 4.0, **changes})[0]["samples"]


def test_the_defaults_change_nothing(run: Any, scene: dict[str, Any]) -> None:
    shown = run("CNCore_Shortcuts", model=scene["model"])
    model, text = shown["result"]
    assert text == "nothing is skipped" and shown["ui"] == {"text": [text]}
    assert torch.equal(sample(run, scene, model=model), sample(run, scene))


@pytest.mark.parametrize(("fields",), rows_of(((fields,) for fields, _ in FIELDS), 1, 3, 5), ids=str)
def test_the_node_is_the_shortcut_of_the_run(
    run: Any, scene: dict[str, Any], host: StandaloneHost, fields: Mapping[str, Any]
) -> None:
    model = shortened(run, scene["model"], **fields)
    node, exact = sample(run, scene, model=model), sample(run, scene)
    host.options = RunOptions(Shortcuts(**fields))
    assert torch.equal(node, sample(run, scene))
    assert not torch.equal(node, exact)


def test_what_ran_is_reported(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    reports: list[RunReport] = []
    host.on_report = reports.append
    sample(run, scene, model=shortened(run, scene["model"], reuse_every=2))
    (report,) = reports
    assert report.evaluations == STEPS
    assert [(unit.acted, unit.ran) for unit in report.units] == [(STEPS, 4)]


def test_a_net_goes_on_when_another_one_enters_or_leaves_its_window(
    run: Any, scene: dict[str, Any], host: StandaloneHost
) -> None:
    (other,) = run("CNCore_LoadControlNet", control_net="demo depth (built in)")
    window = {"control_net": other, "image": torch.ones(1, 64, 64, 3), "start_percent": 0.3, "end_percent": 0.6}
    halves = {name: scene[name] for name in ("positive", "negative")}
    positive, negative = run("CNCore_ApplyControlNet", **halves, **window)
    reports: list[RunReport] = []
    host.on_report = reports.append
    model = shortened(run, scene["model"], reuse_every=4)
    sample(run, scene, model=model, positive=positive, negative=negative, steps=12)
    whole, between = reports[0].units
    assert (whole.acted, whole.ran) == (12, 5)  # at the evaluations 0, 1, 3, 7 and 11
    assert 2 <= between.ran < between.acted < 12


def test_shortcuts_of_the_run_go_before_the_nodes_and_say_so(
    run: Any, scene: dict[str, Any], host: StandaloneHost
) -> None:
    model = shortened(run, scene["model"], deep_every=3)
    notes: list[str] = []
    host.on_note = notes.append
    exact, by_node = sample(run, scene), sample(run, scene, model=model)
    assert not any("shortcuts" in note for note in notes)
    host.options = RunOptions(EXACT)
    assert torch.equal(sample(run, scene, model=model), exact)
    assert "shortcuts: nothing is skipped, from the options of this run" in notes[-2] + notes[-1]
    assert "lower levels once in 3 evaluations" in notes[-2] + notes[-1]
    host.options = RunOptions(Shortcuts(reuse_every=2))
    assert not torch.equal(sample(run, scene, model=model), by_node)


def test_a_later_node_replaces_an_earlier_one(run: Any, scene: dict[str, Any]) -> None:
    first = shortened(run, scene["model"], deep_every=3, guidance_end=0.5)
    assert shortened(run, first, reuse_every=2).options.shortcuts == Shortcuts(reuse_every=2)
    assert torch.equal(sample(run, scene, model=shortened(run, first)), sample(run, scene))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoder_every": 2, "deep_every": 2}, "set only one of them"),
        ({"guidance_start": 0.8, "guidance_end": 0.2}, "the smaller one first"),
        ({"deep_every": 0}, "use 1 for every evaluation"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_before_the_run(
    run: Any, fields: dict[str, Any], words: str
) -> None:
    said = ShortcutsNode.VALIDATE_INPUTS(**fields)
    assert isinstance(said, str) and words in said and "\n" not in said
    linked = dict.fromkeys(fields, None)
    assert ShortcutsNode.VALIDATE_INPUTS(**linked) is True
    with pytest.raises(ValueRangeError, match=words):
        run("CNCore_Shortcuts", model=None, **fields)


def test_the_plan_says_that_not_all_is_computed(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    model = shortened(run, scene["model"], reuse_every=3)
    given = {"positive": scene["positive"], "latent": scene["latent"], "steps": STEPS}
    assert "shortcuts on this model: nets once in 3" in run("CNCore_ControlPlan", model=model, **given)["result"][0]
    assert "shortcuts" not in run("CNCore_ControlPlan", model=scene["model"], **given)["result"][0]
    host.options = RunOptions(EXACT)
    assert "shortcuts" not in run("CNCore_ControlPlan", model=model, **given)["result"][0]


def test_guidance_with_two_scales_refuses_an_interval(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    """The interval may come from the node or from the run."""
    halves = {"cond1": scene["positive"], "cond2": scene["positive"], "negative": scene["negative"]}
    scales = {"cfg_conds": 4.0, "cfg_cond2_negative": 1.5}
    with pytest.raises(UnfitError, match="one scale"):
        run("DualCFGGuider", model=shortened(run, scene["model"], guidance_end=0.5), **halves, **scales)
    run("DualCFGGuider", model=shortened(run, scene["model"], reuse_every=2), **halves, **scales)
    host.options = RunOptions(Shortcuts(guidance_end=0.5))
    with pytest.raises(UnfitError, match="one scale"):
        run("DualCFGGuider", model=scene["model"], **halves, **scales)
    host.options = RunOptions(EXACT)
    run("DualCFGGuider", model=shortened(run, scene["model"], guidance_end=0.5), **halves, **scales)


# ---- the command


def workflow_with(folder: Path, **fields: Any) -> Path:
    """canny_to_image in fewer steps, with the node before its sampler; fields: values other than its defaults."""
    classes = build_nodes(StandaloneHost(folder, folder, device="cpu", dtype="fp32"))
    graph = load_graph(WORKFLOW, classes)
    (sampler,) = (node.id for node in graph.nodes.values() if node.class_type == "CNCore_Sample")
    api = graph.with_value(sampler, "steps", STEPS).to_api()
    declared = ShortcutsNode.INPUT_TYPES()["required"]
    defaults = {name: entry[1]["default"] for name, entry in declared.items() if "default" in entry[1]}
    given = {**defaults, **fields, "model": api[sampler]["inputs"]["model"]}
    api["shortcuts"] = {"class_type": "CNCore_Shortcuts", "inputs": given}
    api[sampler]["inputs"]["model"] = ["shortcuts", 0]
    path = folder / "workflow.json"
    path.write_text(json.dumps(api))
    return path


def picture(folder: Path, workflow: Path, *options: str) -> bytes:
    """The pixels that `controlnet run` makes of a workflow."""
    output = folder / "output"
    before = set(output.glob("*.png"))
    assert cli.main(["run", str(workflow), "--output", str(output), "--device", "cpu", *options]) == 0
    (made,) = set(output.glob("*.png")) - before
    return Image.open(made).tobytes()


def test_the_command_takes_a_workflow_with_the_node_as_its_own_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields, options = FIELDS[3]
    workflow = workflow_with(tmp_path, **fields)
    by_node = picture(tmp_path, workflow, "--measure")
    said = capsys.readouterr()
    assert "latent error" in said.out and "latent error 0.00%" not in said.out
    exact = picture(tmp_path, workflow, "--reuse", "1")
    assert "from the options of this run" in capsys.readouterr().err
    plain = workflow_with(tmp_path)
    assert picture(tmp_path, plain) == exact != by_node
    assert picture(tmp_path, plain, *options) == by_node


def test_the_command_refuses_a_contradiction_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workflow = workflow_with(tmp_path, encoder_every=2, deep_every=2)
    assert cli.main(["run", str(workflow), "--strict", "--output", str(tmp_path / "output")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "set only one of them" in said[0]


@pytest.mark.parametrize(
    ("shortcuts", "words"),
    [
        (EXACT, "nothing is skipped"),
        (Shortcuts(reuse_every=2, reuse_tolerance=0.1),
         "nets once in 2 evaluations, nets when the latent has moved by 10.00%"),
        (Shortcuts(encoder_every=3, guidance_end=0.8), "encoder once in 3 evaluations, guidance from 0% to 80%"),
        (replace(EXACT, deep_every=2), "lower levels once in 2 evaluations"),
    ],
)  # fmt: skip
def test_shortcuts_in_words(shortcuts: Shortcuts, words: str) -> None:
    assert shortcuts.summary == words
