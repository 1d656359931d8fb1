"""Nodes of other packs under their own IDs: what they run, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import MissingFileError, PathError, ShapeError, ValueRangeError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.folders import list_models
from comfyui_controlnet_core.nodes.replacements import REPLACEMENTS, STAND_INS
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.editor import to_graph
from comfyui_controlnet_core.workflows.formats import from_api
from graphs import check

PICTURE = torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def nodes(tmp_path: Path, notes: list[str]) -> dict[str, Any]:
    return build_nodes(StandaloneHost(tmp_path, tmp_path, device="cpu", dtype="fp32", on_note=notes.append))


def test_all_of_the_table_are_here(nodes: dict[str, Any]) -> None:
    assert {one.old for one in (*REPLACEMENTS, *STAND_INS)} <= nodes.keys()


@pytest.mark.parametrize("name", ["CannyEdgePreprocessor", "AIO_Preprocessor"])
def test_a_preprocessor_gives_the_hint_of_our_node_and_says_so(
    name: str, nodes: dict[str, Any], notes: list[str]
) -> None:
    expected = nodes["CNCore_Canny"]().run(image=PICTURE, resolution=64, low=100, high=200)["result"][0]
    own = {"low_threshold": 100, "high_threshold": 200}
    given = own if name == "CannyEdgePreprocessor" else {"preprocessor": "CannyEdgePreprocessor"}
    made = nodes[name]().run(image=PICTURE, resolution=64, unique_id="7", **given)
    assert torch.equal(made["result"][0], expected)
    assert len(made["result"]) == 1
    assert notes == ["node 7 (CannyEdgePreprocessor) ran as Canny Edges: its result may differ a little"]


def test_widgets_are_read_in_the_packs_order(nodes: dict[str, Any]) -> None:
    """The editor saves values by position: thresholds first, the resolution last."""
    drawing = {"nodes": [{
        "id": 1, "type": "CannyEdgePreprocessor", "mode": 0, "widgets_values": [50, 150, 768],
        "inputs": [{"name": "image", "type": "IMAGE", "link": None}],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}]}], "links": []}  # fmt: skip
    inputs = to_graph(drawing, nodes, "test").nodes["1"].inputs
    assert inputs == {"low_threshold": 50, "high_threshold": 150, "resolution": 768}


def test_a_widget_without_an_equivalent_takes_any_value(nodes: dict[str, Any]) -> None:
    work = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "HEDPreprocessor", "inputs": {"image": ["1", 0], "safe": "enable", "resolution": 512}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    # The node's file is all that is missing.
    (problem,) = check(from_api(work, "test"), nodes)[1]
    assert "ControlNetHED.pth was not found" in problem.message


def test_an_advanced_input_that_is_linked_is_refused(nodes: dict[str, Any]) -> None:
    work = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "CNCore_LoadCheckpoint", "inputs": {"checkpoint": "demo (built in)"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": ""}},
        "4": {"class_type": "CNCore_LoadControlNet", "inputs": {"control_net": "demo canny (built in)"}},
        "5": {"class_type": "ACN_AdvancedControlNetApply", "inputs": {
            "positive": ["3", 0], "negative": ["3", 0], "control_net": ["4", 0], "image": ["1", 0], "strength": 1.0,
            "start_percent": 0.0, "end_percent": 1.0}},
    }  # fmt: skip
    outputs = {"9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}}
    sampled = {
        "7": {"class_type": "KSampler", "inputs": {
            "model": ["2", 0], "positive": ["5", 0], "negative": ["5", 1], "latent_image": ["10", 0], "seed": 1,
            "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["2", 2]}},
        "10": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }  # fmt: skip
    flow = {**work, **sampled, **outputs}
    assert [problem.message for problem in check(from_api(flow, "test"), nodes)[1]] == []
    flow["5"]["inputs"]["timestep_kf"] = ["3", 0]
    (problem,) = check(from_api(flow, "test"), nodes)[1]
    assert "timestep_kf has no equivalent" in problem.message


def test_values_of_other_packs(nodes: dict[str, Any], tmp_path: Path) -> None:
    assert nodes["Text Multiline"]().run(text="a\nb") == ("a\nb",)
    assert nodes["Text String"]().run(text="a", text_c="c") == ("a", "", "c", "")
    assert nodes["Seed"]().run(seed=7) == ({"seed": 7}, 7.0, 7.0, 7)
    assert nodes["Seed (rgthree)"]().run(seed=7) == (7,)
    with pytest.raises(ValueRangeError, match="--seeds"):
        nodes["Seed (rgthree)"]().run(seed=-1)
    assert nodes["Any Switch (rgthree)"]().run(any_02=None, any_05=0, any_03="x") == ("x",)
    assert nodes["Any Switch (rgthree)"]().run() == (None,)
    assert nodes["ShowText|pysssss"]().run(text=["a", "b"])["result"] == (["a", "b"],)
    files = nodes["ImageCompare"]().run(image_a=PICTURE, image_b=PICTURE)["ui"]["images"]
    assert len(files) == 2


def test_a_text_file_comes_from_the_input_folder_only(nodes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    (tmp_path / "secret.json").write_text("{}")
    read = nodes["Load Text File"]()
    assert read.run(file_path="words.txt") == ("one\ntwo\n", {"words": ["one", "two"]})
    with pytest.raises(PathError):
        read.run(file_path="../words.txt")
    for name in ("none.txt", "secret.json"):
        with pytest.raises(MissingFileError):
            read.run(file_path=name)


@pytest.mark.parametrize(
    ("size", "nearest"), [((640, 640), (1024, 1024)), ((1920, 1080), (1344, 768)), ((200, 512), (640, 1536))]
)
def test_the_nearest_size_of_sdxl(nodes: dict[str, Any], size: tuple[int, int], nearest: tuple[int, int]) -> None:
    width, height = size
    assert nodes["CM_NearestSDXLResolution"]().run(image=torch.zeros(1, height, width, 3)) == nearest


def test_texts_of_other_packs(nodes: dict[str, Any], notes: list[str]) -> None:
    join = nodes["Text Concatenate"]()
    assert join.run(delimiter=", ", clean_whitespace="true", text_b=" b ", text_a="a", text_d=" ") == ("a, b",)
    assert join.run(delimiter="\\n", clean_whitespace="false", text_a="a", text_b=" ") == ("a\n ",)
    # What `random.seed(7); random.choice(...)` gives, as in that pack.
    assert nodes["Text Random Line"]().run(text="one\ntwo\nthree\nfour", seed=7) == ("three",)
    assert nodes["Text Find and Replace Input"]().run(text="aaa", find="aa", replace="a") == ("a", 2, 2.0, 2)
    with pytest.raises(ValueRangeError, match="does not end"):
        nodes["Text Find and Replace Input"]().run(text="a", find="a", replace="aa")
    assert nodes["Text to Console"]().run(text="a cat", label="prompt") == ("a cat",)
    assert notes == ["prompt: a cat"]
    assert nodes["Text _O"]().run(text="a") == ("a ",)
    assert nodes["SDXL Resolutions (JPS)"]().run(resolution="landscape - 1344x768 (16:9)") == (1344, 768)


def test_switches_and_contexts_of_other_packs(nodes: dict[str, Any]) -> None:
    choose = nodes["CR Image Input Switch"]()
    assert choose.run(Input=2, image1=None, image2=PICTURE)[0] is PICTURE
    with pytest.raises(ValueRangeError, match="input image1 is chosen"):
        choose.run(Input=1, image2=PICTURE)
    first = nodes["Context (rgthree)"]().run(model="m", seed=4)
    assert first[1:] == ("m", None, None, None, None, None, None, 4)
    second = nodes["Context (rgthree)"]().run(base_ctx=first[0], model="n", vae=None)
    assert (second[1], second[8]) == ("n", 4)
    empty = nodes["Context (rgthree)"]().run()
    assert nodes["Context Switch (rgthree)"]().run(ctx_01=None, ctx_02=empty[0], ctx_03=second[0])[1] == "n"


def test_sizes_of_pictures_and_latents_of_other_packs(nodes: dict[str, Any]) -> None:
    assert nodes["Get Image Size"]().run(image=PICTURE) == (64, 48)
    resize = {"image": PICTURE, "resampling": "bilinear", "rescale_factor": 0.5, "resize_width": 33, "resize_height": 8}
    for supersample in ("true", "false"):
        (made,) = nodes["Image Resize"]().run(mode="resize", supersample=supersample, **resize)
        assert made.shape == (1, 8, 40, 3)
        assert torch.equal(made * 255, (made * 255).round())
    assert nodes["Image Resize"]().run(mode="rescale", supersample="false", **resize)[0].shape == (1, 24, 32, 3)
    latent = {"samples": torch.rand(1, 4, 10, 12), "noise_mask": None}
    for align in ("true", "false"):
        (made,) = nodes["Latent Upscale by Factor (WAS)"]().run(latent, "bilinear", 1.25, align)
        assert made["samples"].shape == (1, 4, 12, 15)
        # The second cell's place in the original: 11 / 14 where corners are aligned, else 1.5 / 1.25 - 0.5.
        first, second = latent["samples"][..., 0, 0], latent["samples"][..., 0, 1]
        share = 11 / 14 if align == "true" else 0.7
        torch.testing.assert_close(made["samples"][..., 0, 1], first + share * (second - first))
    # 10 x 12 cells, 12.5 x 15 after the factor: to the nearest multiples of 8, the upper one of 12.
    (made,) = nodes["LatentUpscaleFactor _O"]().run(latent, "nearest-exact", 1.25, 1.25, "disabled")
    assert made["samples"].shape == (1, 4, 16, 16)
    assert made.keys() == latent.keys()


def test_a_blurred_mask_is_that_of_the_pack(nodes: dict[str, Any]) -> None:
    blur, dot = nodes["MaskBlur+"](), torch.zeros(1, 15, 15)
    dot[0, 7, 7] = 1
    # torchvision's Gaussian of 7 pixels: deviation 0.15 * 7 + 0.35.
    line = torch.exp(-0.5 * (torch.arange(-3, 4) / 1.4) ** 2)
    line /= line.sum()
    expected = torch.zeros(1, 15, 15)
    expected[0, 4:11, 4:11] = line[:, None] * line
    torch.testing.assert_close(blur.run(mask=dot, amount=6)[0], expected)
    assert torch.equal(blur.run(mask=dot, amount=0)[0], dot)
    with pytest.raises(ShapeError, match="15x15 cannot be blurred over 30 pixels"):
        blur.run(mask=dot, amount=30)


def test_onediff_runs_without_compiling_and_says_so(nodes: dict[str, Any], notes: list[str]) -> None:
    assert nodes["ModelSpeedup"]().run(unique_id="4", model="m", static_mode="enable") == ("m",)
    assert notes == [
        "node 4 (speed-up of the model) ran without OneDiff: the same picture but for rounding, in more time"
    ]
    # A booster may skip or quantize work, which is another picture: no class gives one here, so it is refused.
    work = {
        "1": {"class_type": "OneDiffModelBooster", "inputs": {}},
        "2": {"class_type": "ModelSpeedup", "inputs": {"model": ["1", 0], "custom_booster": ["1", 0]}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    assert "OneDiffModelBooster" in check(from_api(work, "test"), nodes)[1][0].message


def test_models_with_a_dot_in_front_are_listed(tmp_path: Path) -> None:
    """ComfyUI lists them, and workflows name them; what macOS writes beside a file is none."""
    for name in (".soft.safetensors", "._plain.safetensors", "plain.safetensors"):
        (tmp_path / name).touch()
    assert list_models([tmp_path]) == (".soft.safetensors", "plain.safetensors")
