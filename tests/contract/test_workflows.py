"""The workflows that come with the package: all of them valid, readable, and really run.

A model of the demo's shape with random weights stands in for the trained one: what is asked here is
whether everything fits together, not what the pictures show.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet
from comfyui_controlnet_core.controlnet_core.config import DEMO, UnionConfig
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.training.step import initialise_union
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import ASSETS, StandaloneHost
from comfyui_controlnet_core.workflows.bundled import FOLDER, bundled_names
from comfyui_controlnet_core.workflows.execution import execute
from comfyui_controlnet_core.workflows.formats import read_document
from comfyui_controlnet_core.workflows.graph import Graph
from comfyui_controlnet_core.workflows.overrides import apply_settings
from few import rows_of
from graphs import load_graph, validate
from PIL import Image

NAMES = bundled_names()
EXPECTED = (
    "canny_to_image",
    "scribble_to_image",
    "depth_and_pose",
    "union",
    "strength_and_window",
    "img2img_with_control",
    "canny_photo",
    "masks_for_two_nets",
    "strength_schedules",
    "block_weights",
    "inpaint_with_control",
    "tile_upscale",
    "control_study",
    "pose_editor",
    "region_prompts",
    "reference_look",
    "prompt_edit",
    "inpaint_only",
    "auto_strength",
    "tiled_upscale",
    "control_sweep",
)
SIZES = {"tiled_upscale": (256, 256), "tile_upscale": (256, 256), "control_sweep": (392, 344)}
KINDS = ("canny", "scribble", "depth", "openpose", "segmentation")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo files with random weights, beside the real example pictures."""
    folder = tmp_path_factory.mktemp("assets")
    (folder / "examples").symlink_to(ASSETS / "examples")
    torch.manual_seed(0)
    words = VocabMap.from_words(ClipTokenizer.load(), ["a photo of a red ball"])
    text_config = replace(DEMO.text, vocab_size=max(DEMO.text.vocab_size, words.rows))
    # Half as wide: the workflows are tried here, not the numbers.
    narrow = replace(DEMO.unet, widths=(32, 64, 64))
    config = replace(DEMO, text=text_config, unet=narrow)
    unet, vae, text = UNet(config.unet), AutoencoderKL(config.vae), ClipTextModel(config.text)
    extras = {"vocab_map": words.to_tensor()}
    save_checkpoint(folder / "demo_base.safetensors", config, unet, vae, text, extras=extras)
    net = ControlNet.from_unet(unet)
    for zero in (*net.zero_convs, net.zero_conv_middle):
        torch.nn.init.normal_(zero.conv.weight, std=0.02)
    for kind in KINDS:
        save_controlnet(folder / f"demo_{kind}.safetensors", net, family="demo")
    union = ControlNetUnion(replace(net.config, union=UnionConfig(6, net.config.unet.widths[0])))
    initialise_union(union, net)
    save_controlnet(folder / "demo_union.safetensors", union, family="demo")
    return folder


@pytest.fixture(scope="module")
def host(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host for all workflows, as in a server that stays: the demo model is loaded once."""
    folder = tmp_path_factory.mktemp("host")
    return StandaloneHost(folder / "input", folder / "output", device="cpu", assets_dir=assets)


@pytest.fixture(scope="module")
def classes(host: StandaloneHost) -> dict[str, type]:
    return build_nodes(host)


def shortened(graph: Graph, classes: Mapping[str, type]) -> Graph:
    """The same workflow with two steps in every sampler, and one sample where a node asks for several."""
    small = {"steps": 2, "samples": 1}
    found = [
        (node.id, name) for node in graph.nodes.values() for name in small if isinstance(node.inputs.get(name), int)
    ]
    return apply_settings(graph, classes, [f"{node_id}.{name}={small[name]}" for node_id, name in found])


def test_all_planned_workflows_are_there() -> None:
    assert set(EXPECTED) <= set(NAMES)


RUNS = [(name, again) for again in (False, True) for name in NAMES]
EACH_TIME = (*range(len(NAMES)), *range(len(NAMES), len(RUNS), 4))
"""All templates run; the picture of every fourth runs again."""


@pytest.mark.parametrize(("name", "again"), rows_of(RUNS, *EACH_TIME))
def test_workflow_runs_as_shipped_and_its_picture_runs_again(
    name: str, again: bool, host: StandaloneHost, classes: dict[str, type]
) -> None:
    graph = validate(load_graph(FOLDER / f"{name}.json", classes), classes)
    result = execute(shortened(graph, classes), classes)
    saved = [entry for entry in result.ui("images") if entry["type"] == "output"]
    assert saved
    for entry in saved:
        path = host.output_dir / entry["subfolder"] / entry["filename"]
        with Image.open(path) as picture:
            assert picture.size == SIZES.get(name, (128, 128))
            assert np.asarray(picture).std() > 0
        document = read_document(path)
        assert document.prompt is not None
        assert document.workflow is not None
    if not again:
        return
    first = host.output_dir / saved[0]["subfolder"] / saved[0]["filename"]
    rerun = execute(validate(load_graph(first, classes), classes), classes)
    other = next(entry for entry in rerun.ui("images") if entry["type"] == "output")
    second = host.output_dir / other["subfolder"] / other["filename"]
    assert first != second
    with Image.open(first) as a, Image.open(second) as b:
        assert np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", NAMES)
def test_workflow_says_what_it_does_and_where_own_models_go(name: str) -> None:
    notes = " ".join(str(node["widgets_values"]) for node in drawn(name)["nodes"] if node["type"] == "MarkdownNote")
    assert "models/checkpoints" in notes
    assert f"controlnet run {name}" in notes


def drawn(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def boxes(name: str) -> Iterator[tuple[str, float, float, float, float]]:
    """(name, left, top, right, bottom) of each node, title bar included."""
    for node in drawn(name)["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        yield f"{node['id']} {node['type']}", x, y - 30, x + width, y + height


@pytest.mark.parametrize("name", NAMES)
def test_workflow_is_laid_out_without_overlaps_and_from_left_to_right(name: str) -> None:
    for (a, *first), (b, *second) in itertools.combinations(boxes(name), 2):
        apart = first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]
        assert apart, f"{a} and {b} overlap"
    nodes = {node["id"]: node for node in drawn(name)["nodes"]}
    for _, origin, _, target, *_ in drawn(name)["links"]:
        (x, y), (_, height), (to_x, to_y) = nodes[origin]["pos"], nodes[origin]["size"], nodes[target]["pos"]
        assert x <= to_x or y + height < to_y, "a link leads back to the left, and not to a row below"


@pytest.mark.parametrize("name", NAMES)
def test_every_node_lies_in_a_titled_frame(name: str) -> None:
    frames = [group["bounding"] for group in drawn(name)["groups"]]
    assert all(group["title"] for group in drawn(name)["groups"])
    kinds = {f"{node['id']} {node['type']}" for node in drawn(name)["nodes"] if node["type"] == "MarkdownNote"}
    for label, left, top, right, bottom in boxes(name):
        inside = [x <= left and y <= top and right <= x + w and bottom <= y + h for x, y, w, h in frames]
        assert label in kinds or any(inside), f"{label} is in no frame"
