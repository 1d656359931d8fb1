"""Prompt Edit: an empty edit gives the same bits, an edit of one word changes its object, bad input one clear line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import CoreError
from torch import Tensor

PROMPT = "a red ball on grey ground under a blue sky"


@pytest.fixture
def home(run: Any) -> Any:
    """The nodes on a tiny model, with its parts."""
    model, clip, _ = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    prompts = run("CNCore_EncodePrompt", clip=clip, prompt=PROMPT, negative_prompt="")
    return run, model, clip, prompts


def edit(home: Any, edits: str, **inputs: Any) -> Any:
    run, _, clip, (positive, negative) = home
    given = {
        "positive": positive, "negative": negative, "clip": clip, "prompt": PROMPT, "strength": 1.0,
        "start_percent": 0.2, "end_percent": 1.0, "keep_places_until": 0.5, **inputs,
    }  # fmt: skip
    return run("CNCore_PromptEdit", edits=edits, **given)


def sampled(home: Any, halves: Any) -> Tensor:
    run, model, _, _ = home
    settings = {"seed": 3, "steps": 2, "cfg": 4.0, "sampler": "euler", "scheduler": "normal", "denoise": 1.0}
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    given = {"model": model, "positive": halves[0], "negative": halves[1], "latent": latent, **settings}
    return run("CNCore_Sample", **given)[0]["samples"]


@torch.inference_mode()
def test_an_empty_edit_is_the_same_bits(home: Any) -> None:
    *_, prompts = home
    for edits in ("", "\n", "ball: 1", "red -> red"):
        positive, negative, text = edit(home, edits)["result"]
        assert positive is prompts[0] and negative is prompts[1] and text == PROMPT
    plain, on = sampled(home, prompts), {"start_percent": 0.0}
    assert torch.equal(sampled(home, edit(home, "red -> blue", strength=0.0, **on)["result"][:2]), plain)
    assert not torch.equal(sampled(home, edit(home, "red -> blue", **on)["result"][:2]), plain)


def test_two_units_follow_each_other(home: Any) -> None:
    """The old places up to keep_places_until, then the edited prompt by itself, both with the weights."""
    positive, negative, text = edit(home, "red -> blue: 2")["result"]
    first, second = positive[0][1]["control"]
    assert negative[0][1]["control"] == (first, second) and first.half_factor(positive=False) == 0.0
    assert [(u.start, u.end) for u in (first, second)] == [(0.2, 0.5), (0.5, 1.0)]
    assert text == "a blue ball on grey ground under a blue sky"
    before, after = first.net, second.net
    torch.testing.assert_close(before.keys, home[3][0][0][0])
    torch.testing.assert_close(after.values[0, 2], 2 * after.keys[0, 2])
    torch.testing.assert_close(after.values, before.values)
    only = edit(home, "red -> blue", keep_places_until=1.0)["result"][0][0][1]["control"]
    assert [(u.start, u.end) for u in only] == [(0.2, 1.0)]
    late = edit(home, "red -> blue", keep_places_until=0.1)["result"][0][0][1]["control"]
    assert [(u.start, u.end) for u in late] == [(0.2, 1.0)]


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "another prompt": (
        "red -> blue",
        {"prompt": "a red ball"},
        "positive was not encoded from the prompt 'a red ball'",
    ),
    "no such word": ("green -> blue", {}, "the prompt has no words 'green'"),
    "no change": ("red", {}, "says no change"),
    "a window that ends first": ("red -> blue", {"end_percent": 0.1}, "the edit starts at 0.2 and ends at 0.1"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_ends_in_one_clear_line(home: Any, name: str) -> None:
    edits, inputs, words = BAD[name]
    with pytest.raises(CoreError) as caught:
        edit(home, edits, **inputs)
    assert words in str(caught.value) and "\n" not in str(caught.value)
