"""Region Prompts: lines, masks, label maps and boxes; what is wrong with them ends in one clear line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import CoreError
from comfyui_controlnet_core.nodes.region_masks import (
    MOST_REGIONS,
    SIDE,
    describe,
    read_regions,
    region_masks,
    soften,
)
from comfyui_controlnet_core.nodes.regions import EXAMPLE
from comfyui_controlnet_core.preprocessors.palettes import palette
from torch import Tensor

SIZE = (40, 64)


def half(left: bool = True) -> Tensor:
    """MASK (1, 40, 64) of one half."""
    mask = torch.zeros(1, *SIZE)
    mask[..., : SIZE[1] // 2] = 1.0
    return mask if left else 1.0 - mask


def label_map() -> Tensor:
    """IMAGE (1, 40, 64, 3): sky above a road, and a red square of no class."""
    ade = palette("ade20k")
    colour = {name: torch.tensor(ade.colours[ade.classes.index(name)] / 255.0).float() for name in ("sky", "road")}
    picture = torch.zeros(1, *SIZE, 3)
    picture[:, :20], picture[:, 20:] = colour["sky"], colour["road"]
    picture[:, 30:40, 4:14] = torch.tensor([1.0, 0.0, 0.0])
    return picture


def made(lines: str, *masks: Tensor, map: Tensor | None = None) -> Tensor:
    return region_masks(read_regions(lines), masks, map)


def test_lines_have_a_name_a_weight_a_box_and_a_text() -> None:
    first, second, third = read_regions("sky: a (dark:1.2) sky, 5:30 pm\n\n ball (1.5) [0.1 0.2 0.3 0.4] : red\n(2): x")
    assert (first.name, first.text, first.weight, first.box) == ("sky", "a (dark:1.2) sky, 5:30 pm", 1.0, ())
    assert (second.title, second.text, second.weight) == ("ball", "red", 1.5)
    assert second.box == (0.1, 0.2, 0.3, 0.4)
    assert (third.title, third.name, third.weight) == ("region 3", "", 2.0)


def test_masks_go_to_lines_in_order_and_boxes_take_none() -> None:
    found = made("a: x\n[0, 0, 1, 0.5]: y\nb: z", torch.cat([half(), half(left=False)]))
    assert found.shape == (1, 3, *SIZE)
    assert torch.equal(found[0, 0], half()[0]) and torch.equal(found[0, 2], half(left=False)[0])
    assert torch.equal(found[0, 1], torch.cat([torch.ones(20, 64), torch.zeros(20, 64)]))


def test_a_label_map_gives_classes_and_colours_and_masks_the_rest() -> None:
    found = made("sky: x\n#ff0000: y\nroad: z\nmine: w", half(), map=label_map())
    assert found[0].mean(dim=(1, 2)).tolist() == pytest.approx([0.5, 100 / 2560, (1280 - 100) / 2560, 0.5])
    assert float((found[0, :3].sum(dim=0) - 1).abs().max()) == 0.0


def test_a_map_for_each_picture_of_a_batch() -> None:
    both = torch.cat([label_map(), label_map().flip(1)])
    found = made("sky: x\n[0, 0, 0.5, 1]: y", map=both)
    assert found.shape == (2, 2, *SIZE)
    assert torch.equal(found[0, 0].flip(0), found[1, 0]) and torch.equal(found[0, 1], found[1, 1])


def test_large_masks_are_made_small_by_area() -> None:
    large = torch.zeros(1, 4 * SIDE, 2 * SIDE)
    large[:, : 2 * SIDE] = 1.0
    found = made("a: x", large)
    assert found.shape == (1, 1, SIDE, SIDE // 2) and float(found.mean()) == 0.5


def test_soft_borders_keep_the_area_and_spare_the_inside() -> None:
    hard = half()[None]
    soft = soften(hard, 0.1)
    assert torch.equal(soften(hard, 0.0), hard)
    assert float(soft.mean()) == pytest.approx(0.5, abs=1e-4)
    assert float(soft[0, 0, 20, 4]) == pytest.approx(1.0, abs=1e-4)
    # A tenth of the shorter side, 4 pixels, from 0.16 to 0.84.
    border = soft[0, 0, 20, 30:34]
    assert 0.75 < float(border[0]) < 0.9 and 0.1 < float(border[3]) < 0.25


def test_overlaps_are_named_with_their_share() -> None:
    regions = read_regions("left: x\ntop [0, 0, 1, 0.5]: y")
    report = describe(regions, region_masks(regions, [half()], None)).splitlines()
    assert report == [
        "left: 50%", "top: 50%", "the prompt alone: 25%",
        "left and top overlap on 25.0%: both texts act there, by their weights",
    ]  # fmt: skip


NAN = torch.full((1, *SIZE), float("nan"))
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no line": ("\n  \n", {}, "there is no region"),
    "no text": ("sky: clouds\nball:  ", {}, "line 2 of the regions ('ball:') has no text"),
    "no colon": ("sky clouds", {}, "has no text: write the region, a colon"),
    "an empty mask": ("ball: red", {"masks": torch.zeros(1, *SIZE)}, "the region ball is empty"),
    "a class that the map lacks": ("tree: green", {"label_map": label_map()}, "the region tree is empty"),
    "no mask for a line": ("a: x\nb: y", {"masks": half()}, "the region b has no place"),
    "no place at all": ("sky: x", {}, "no label map is linked"),
    "more masks than lines": ("a: x", {"masks": torch.cat([half(), half()])}, "1 of 2 masks have no line"),
    "NaN in a mask": ("a: x", {"masks": NAN}, "the mask of the region a contains NaN"),
    "NaN in a map": ("sky: x", {"label_map": label_map() * float("nan")}, "the label map contains NaN"),
    "a map that is no image": ("sky: x", {"label_map": torch.zeros(1, 8, 8, 1)}, "the label map has shape"),
    "a weight": ("a (much): x", {"masks": half()}, "its weight is 'much'"),
    "a negative weight": ("a (-1): x", {"masks": half()}, "its weight is -1"),
    "a box outside": ("[0, 0, 2, 1]: x", {}, "its box is [0, 0, 2, 1]"),
    "a box of three": ("[0, 0, 1]: x", {}, "its box is [0, 0, 1]"),
    "10,000 lines": ("[0, 0, 1, 1]: x\n" * 10_000, {}, f"10,000 regions, at most {MOST_REGIONS}"),
}


@pytest.fixture
def home(run: Any) -> Any:
    """The nodes on a tiny model, with its parts."""
    model, clip, _ = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    prompts = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")
    return run, model, clip, prompts


def regions(home: Any, lines: str, **inputs: Any) -> Any:
    run, _, clip, (positive, negative) = home
    given = {"weight": 1.0, "softness": 0.02, "start_percent": 0.0, "end_percent": 1.0, **inputs}
    return run("CNCore_RegionPrompts", positive=positive, negative=negative, clip=clip, regions=lines, **given)


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_ends_in_one_clear_line(home: Any, name: str) -> None:
    lines, inputs, words = BAD[name]
    with pytest.raises(CoreError) as caught:
        regions(home, lines, **inputs)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_example_of_the_node_needs_nothing_linked(home: Any) -> None:
    positive, negative, report = regions(home, EXAMPLE)["result"]
    (unit,) = positive[0][1]["control"]
    assert negative[0][1]["control"] == (unit,)
    assert unit.half_factor(positive=True) == 1.0 and unit.half_factor(positive=False) == 0.0
    assert report.splitlines()[0] == "sky: 50%"


@torch.inference_mode()
def test_regions_change_the_picture_and_weight_0_does_not(home: Any) -> None:
    run, model, _, prompts = home
    settings = {"seed": 3, "steps": 2, "cfg": 4.0, "sampler": "euler", "scheduler": "normal", "denoise": 1.0}

    def sampled(halves: Any) -> Tensor:
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        given = {"model": model, "positive": halves[0], "negative": halves[1], "latent": latent, **settings}
        return run("CNCore_Sample", **given)[0]["samples"]

    plain, lines = sampled(prompts), "[0, 0, 0.5, 1]: grey ground"
    assert not torch.equal(sampled(regions(home, lines)["result"][:2]), plain)
    assert torch.equal(sampled(regions(home, lines, weight=0.0)["result"][:2]), plain)
