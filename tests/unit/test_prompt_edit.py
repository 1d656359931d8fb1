"""Prompt edits beside prompt-to-prompt written out (`support/prompt_edit_reference.py`), on random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_setting import BASES, AttentionSetting, layers
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.errors import UnfitError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.layers import Attention
from comfyui_controlnet_core.controlnet_core.models.prompt_edit import PromptEdit
from comfyui_controlnet_core.controlnet_core.models.prompt_words import align, edited_prompt, read_edits
from load_script import load_script
from prompt_edit_reference import hooked
from random_tensors import normal, relative_error
from torch import Tensor

TOLERANCE = 1e-5
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCENE = 3
"""Number of the scene of the benchmark: the one where the edited prompt alone changes the ground."""
NOTHING = torch.zeros(1, 3, 8, 8)
PROMPT = "a red ball on grass"
"""Places: the start mark 0, a 1, red 2, ball 3, on 4, grass 5, the end mark 6, padding 7 to 76."""
SAME: list[int | None] = list(range(77))
MOVED: list[int | None] = [0, 1, None, *range(2, 76)]
"""With a new word at 2: the places behind it move by one, and the last padding has no room."""
CASES: dict[str, tuple[str, list[int | None], dict[int, float]]] = {
    "word swap": ("red -> blue", SAME, {}),
    "weight": ("ball: 2.5", SAME, {3: 2.5}),
    "swap and weight": ("red -> blue: -1\non grass: 0.5", SAME, {2: -1.0, 4: 0.5, 5: 0.5}),
    "new word": ("red ball -> big red ball", MOVED, {}),
    "new word and weight": ("red ball -> big red ball\nbig red: 3", MOVED, {2: 3.0, 3: 3.0}),
}  # fmt: skip


class Setting(AttentionSetting):
    """A base whose cross attentions matter, and its predictions both ways."""

    def __init__(self, family: str) -> None:
        super().__init__(family, "attn2", ("k", "v", "out"), images=2)
        width = self.unet.config.context_dim
        self.prompt, self.edited, self.negative = (normal(1, 77, width, seed=n) for n in (1, 2, 3))
        self.texts = [self.prompt, self.negative]

    def net(self, edits: str) -> PromptEdit:
        alignment = align(PROMPT, read_edits(edits))[1]
        return PromptEdit(self.prompt, self.edited, alignment.moved, alignment.added)

    def plain(self, text: Tensor) -> Tensor:
        return self.by_unet(self.x, text)

    def by_reference(self, case: str) -> Tensor:
        _, places, weights = CASES[case]
        factors = [weights.get(place, 1.0) for place in range(77)]
        with hooked(self.attentions(), layers, self.prompt, self.edited, places, factors):
            return self.plain(self.prompt)

    def without_last_padding(self, case: str, net: PromptEdit) -> PromptEdit:
        """The published code leaves the map of a padding without a place out; ours adds it to the last one."""
        if "new word" not in case:
            return net
        alignment = align(PROMPT, read_edits(CASES[case][0]))[1]
        moved = alignment.moved.clone()
        assert float(moved[76, 76]) == 1.0
        moved[76, 76] = 0.0
        return PromptEdit(self.prompt, self.edited, moved, alignment.added)


def unit(net: PromptEdit, **settings: Any) -> ControlUnit:
    return ControlUnit(**{"net": net, "hint": NOTHING, "negative": 0.0, **settings})


@pytest.fixture(scope="module", params=sorted(BASES))
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


@torch.inference_mode()
@pytest.mark.parametrize("case", sorted(CASES))
def test_the_attention_is_that_of_prompt_to_prompt(setting: Setting, case: str) -> None:
    net = setting.without_last_padding(case, setting.net(CASES[case][0]))
    expected = setting.by_reference(case)
    assert relative_error(setting.by_engine(unit(net)), expected) <= TOLERANCE
    assert relative_error(setting.plain(setting.prompt), expected) > 100 * TOLERANCE
    assert relative_error(setting.plain(setting.edited), expected) > 100 * TOLERANCE


@torch.inference_mode()
def test_an_edit_that_changes_nothing_changes_nothing(setting: Setting) -> None:
    """The formula at the prompt itself, whose sum is only ordered otherwise. Strength 0 is the same bits."""
    net = PromptEdit(setting.prompt, setting.prompt, torch.eye(77), torch.zeros(77))
    plain = setting.by_engine()
    assert relative_error(setting.by_engine(unit(net)), plain) <= 1e-6
    assert torch.equal(setting.by_engine(unit(setting.net("red -> blue"), strength=0.0)), plain)


@torch.inference_mode()
def test_only_the_prompts_half_is_changed(setting: Setting) -> None:
    positive, negative = setting.by_reference("word swap"), setting.plain(setting.negative)
    made = setting.by_engine(unit(setting.net("red -> blue")), cfg=3.0)
    assert relative_error(made, negative + 3.0 * (positive - negative)) <= TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("how", [{"packed": True}, {"graphs": True}, {"chunk": 1}])
def test_accelerations_give_the_same(setting: Setting, how: dict[str, Any]) -> None:
    own = unit(setting.net(CASES["new word"][0]))
    assert relative_error(setting.by_engine(own, cfg=3.0, **how), setting.by_engine(own, cfg=3.0)) <= TOLERANCE


@torch.inference_mode()
def test_a_mask_keeps_the_edit_in_its_place() -> None:
    """In one attention: outside of the mask the output is that for the prompt, inside it is the edited one."""
    from comfyui_controlnet_core.controlnet_core.models.control import Place, RowScale

    torch.manual_seed(0)
    attention = Attention(16, 8, 2)
    texts = normal(1, 77, 8), normal(1, 77, 8, seed=1)
    query = normal(1, 4, 16, seed=2)
    output = attention.to_text(query, texts[0])
    where = torch.tensor([0.0, 1.0, 0.0, 1.0])[None, :, None]
    net = PromptEdit(*texts, torch.eye(77), torch.zeros(77))
    change = net.attention_change(None, Place("middle", 0, 0), RowScale(slice(None), where))
    made = change.text_output(output, query, attention.to_text)
    full = net.attention_change(None, Place("middle", 0, 0), RowScale(slice(None), torch.ones(1, 1, 1)))
    torch.testing.assert_close(made[:, ::2], output[:, ::2], rtol=0, atol=0)
    torch.testing.assert_close(made[:, 1::2], full.text_output(output, query, attention.to_text)[:, 1::2])


def test_texts_of_another_model_are_an_error(setting: Setting) -> None:
    net = PromptEdit(torch.zeros(1, 77, 99), torch.zeros(1, 77, 99), torch.eye(77), torch.zeros(77))
    with pytest.raises(UnfitError, match="99 wide text"):
        setting.by_engine(unit(net))


# ---- words


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ("red -> blue\nblue -> red", "a Blue ball, a red box, reddish"),
        ("red ball -> dark red ball\nred -> pink", "a dark red ball, a blue box, reddish"),
        (", a blue box ->", "a Red ball, reddish"),
        ("a: 2", "a Red ball, a blue box, reddish"),
        ("", "a Red ball, a blue box, reddish"),
    ],
)
def test_words_are_swapped_in_one_pass(edits: str, expected: str) -> None:
    made = edited_prompt("a Red ball, a blue box, reddish", read_edits(edits))
    assert made.lower() == expected.lower()


def test_words_of_different_lengths_share_the_place() -> None:
    """One word for two takes both places; two for one take half of it each."""
    two, one = (
        align("a red ball", read_edits("red -> dark blue"))[1],
        align("a dark red ball", read_edits("dark red -> blue"))[1],
    )
    assert two.moved[2, 2:4].tolist() == [0.5, 0.5] and float(two.moved[2].sum()) == 1.0
    assert one.moved[2:4, 2].tolist() == [1.0, 1.0]
    assert float(two.moved[3, 4]) == float(one.moved[4, 3]) == 1.0  # the ball
    # The weights move with the words.
    assert align("a red ball", read_edits("red -> dark blue: 4"))[1].moved[2, 2:4].tolist() == [2.0, 2.0]


def test_long_prompts_have_places_in_every_section() -> None:
    prompt = "red, " * 60 + "a red ball"
    edited, found = align(prompt, read_edits("ball -> box"))
    assert edited.endswith("a red box") and found.moved.shape == (154, 154)
    assert bool((found.moved == torch.eye(154)).all()) and not found.changes_nothing
    longer = align("red, " * 30, read_edits("red -> dark red"))[1]
    assert longer.moved.shape == (77, 154)
    shorter = align("dark red, " * 30, read_edits("dark red -> red"))[1]
    assert shorter.moved.shape == (154, 77)
    # Every map goes somewhere, but those of words that were removed.
    torch.testing.assert_close(longer.moved.sum(dim=1), torch.ones(77))
    sums = shorter.moved.sum(dim=1)
    assert set(sums.tolist()) == {0.0, 1.0} and int((sums == 0).sum()) == 30 and bool((sums[-70:] == 1).sum() > 50)


def test_nothing_edited_is_known() -> None:
    for edits in ("", "red: 1", "red -> red", "red -> Red"):
        assert align(PROMPT, read_edits(edits))[1].changes_nothing
    for edits in ("red: 1.01", "red -> blue", "red ->"):
        assert not align(PROMPT, read_edits(edits))[1].changes_nothing


BAD = {
    "two arrows": ("red -> blue -> green", "line 1 of the edits ('red -> blue -> green') has several arrows"),
    "words twice": ("red -> blue\nRed -> green", "the edits have two lines for 'red': write one"),
    "blank lines count": ("\n\nred", "line 3 of the edits ('red') says no change"),
    "no change": ("red", "line 1 of the edits ('red') says no change"),
    "no words": ("ball: 2\n -> blue", "line 2 of the edits ('-> blue') names no words"),
    "a weight": ("ball: heavy", "its weight is 'heavy', expected -10 to 10"),
    "NaN": ("ball: nan", "its weight is 'nan'"),
    "infinity": ("ball: 1e999", "its weight is '1e999'"),
    "words that do not occur": ("green -> blue", "the prompt has no words 'green' to edit"),
    "a part of a word": ("gras -> rock", "the prompt has no words 'gras' to edit"),
    "no word for the weight": ("red ->: 2", "no words '' to weigh"),
    "10,000 lines": ("red -> blue\n" * 10_000, "there are 10,000 edits, at most 64"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_edits_end_in_one_clear_line(name: str) -> None:
    edits, words = BAD[name]
    with pytest.raises(ValueRangeError) as caught:
        align(PROMPT, read_edits(edits))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_long_prompts_and_textual_inversions_are_refused() -> None:
    with pytest.raises(ValueRangeError, match="34 sections"):
        align("red ball and " * 850, read_edits("red -> blue"))
    with pytest.raises(ValueRangeError, match="embedding:"):
        align("a red embedding:cat", read_edits("red -> blue"))


# ---- the demo world


@torch.inference_mode()
def test_one_word_changes_the_ball_and_little_else() -> None:
    """A short form of `benchmarks/prompt_edit.py`: one scene, whose ground the edited prompt alone changes."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        script = load_script(BENCHMARKS / "prompt_edit.py")
    finally:
        sys.path.remove(str(BENCHMARKS))
    scenes = script.chosen_scenes(SCENE + 1)[SCENE:]
    demo = script.load_demo(script.ASSETS, scenes)
    net = script.load_controlnet(script.ASSETS / "demo_canny.safetensors", dtype=torch.float32)[0]
    before, after = (script.sample(demo, scenes[0], row, net) for row in ("unedited", "edit"))
    ball, others, blue = script.scores(scenes[0], before, after)
    assert ball > 0.95 and others <= 0.05 and blue > 0.7
