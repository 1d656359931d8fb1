"""Prompt weights, sections, and what the text encoder makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO, TextConfig
from comfyui_controlnet_core.controlnet_core.errors import ShapeError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.prompt import (
    Section,
    Segment,
    parse_weights,
    tokenize_prompt,
)
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel, TextEncoder
from comfyui_controlnet_core.controlnet_core.models.tokenizer import (
    END_TOKEN,
    START_TOKEN,
    ClipTokenizer,
    VocabMap,
)

WORDS = ["a red sphere and a blue box, on green ground"]


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer.load()


def small_encoder(tokenizer: ClipTokenizer, layers: int = 3) -> TextEncoder:
    vocabulary = VocabMap.from_words(tokenizer, WORDS)
    config = replace(DEMO.text, width=32, heads=2, layers=layers, vocab_size=vocabulary.rows)
    torch.manual_seed(0)
    return TextEncoder(ClipTextModel(config), tokenizer, config, vocabulary)


@pytest.fixture(scope="module")
def encoder(tokenizer: ClipTokenizer) -> TextEncoder:
    return small_encoder(tokenizer)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("plain", [("plain", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((b))", [("b", 1.1 * 1.1)]),
        ("(b:1.3)", [("b", 1.3)]),
        ("((b:1.3))", [("b", 1.3)]),
        ("(a (b:0.5) c:2)", [("a ", 2.0), ("b", 0.5), (" c", 2.0)]),
        ("(a (b) c:2)", [("a ", 2.0), ("b", 2.2), (" c", 2.0)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(b:-1)", [("b", -1.0)]),
        ("(b: 1e1 )", [("b", 10.0)]),
        ("(b:x)", [("b:x", 1.1)]),
        ("(b:)", [("b:", 1.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(b:nan)", [("b:nan", 1.1)]),
        ("()", []),
        (r"\(b\)", [("(b)", 1.0)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        ("(open", [("(open", 1.0)]),
        ("((half)", [("(half", 1.1)]),
        ("a) (b:1.5)", [("a) (b:1.5)", 1.0)]),
        ("a) ((b))", [("a) (", 1.0), ("b", 1.1), (")", 1.0)]),
    ],
)
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    segments = parse_weights(prompt)
    assert [segment.text for segment in segments] == [text for text, _ in expected]
    assert [segment.weight for segment in segments] == pytest.approx([weight for _, weight in expected])


def test_deep_nesting_does_not_overflow() -> None:
    (segment,) = parse_weights("(" * 3000 + "x:0.5" + ")" * 3000)
    assert segment == Segment("x", 0.5)


def body(section: Section) -> list[int]:
    """Ids between the start mark and the first end mark."""
    return list(section.ids[1 : section.ids.index(END_TOKEN)])


def test_a_section_is_77_long_with_marks_and_padding(tokenizer: ClipTokenizer) -> None:
    (section,) = tokenize_prompt(tokenizer, "a (red:1.2) cat")
    assert len(section.ids) == len(section.weights) == 77
    assert section.ids[0] == START_TOKEN
    assert section.ids[4:] == (END_TOKEN,) * 73
    assert section.weights[:5] == (1.0, 1.0, 1.2, 1.0, 1.0)
    assert section.weighted
    (empty,) = tokenize_prompt(tokenizer, "")
    assert empty.ids == (START_TOKEN,) + (END_TOKEN,) * 76 and not empty.weighted
    assert tokenize_prompt(tokenizer, "", padding=0)[0].ids == (START_TOKEN, END_TOKEN) + (0,) * 75


@pytest.mark.parametrize(("words", "sections"), [(75, 1), (76, 2), (150, 2), (151, 3)])
def test_long_text_fills_sections(tokenizer: ClipTokenizer, words: int, sections: int) -> None:
    rows = tokenize_prompt(tokenizer, "cat " * words)
    assert [len(row.ids) for row in rows] == [77] * sections
    assert [token for row in rows for token in body(row)] == tokenizer.encode("cat") * words


def test_short_groups_are_not_torn(tokenizer: ClipTokenizer) -> None:
    first, second = tokenize_prompt(tokenizer, "cat " * 72 + "(one two three four:1.5)")
    assert len(body(first)) == 72
    assert body(second) == tokenizer.encode("one two three four")
    assert second.weights[1:5] == (1.5,) * 4


def test_long_groups_are_torn(tokenizer: ClipTokenizer) -> None:
    group = "one two three four five six seven eight"
    first, second = tokenize_prompt(tokenizer, "cat " * 72 + f"({group}:1.5)")
    assert body(first)[72:] + body(second) == tokenizer.encode(group)
    assert len(body(first)) == 75
    assert second.weights[1:7] == (1.5,) * 5 + (1.0,)


class TestTextEncoder:
    def test_shapes(self, encoder: TextEncoder) -> None:
        assert encoder.encode("a red sphere").shape == (1, 77, 32)
        z, pooled = encoder.encode_pooled("red " * 100)
        assert z.shape == (1, 154, 32)
        assert pooled.shape == (1, 32)
        assert not z.requires_grad

    def test_weights_interpolate_from_the_empty_prompt(self, encoder: TextEncoder) -> None:
        z = encoder.encode("a red sphere and a blue box")
        empty = encoder.encode("")
        weighted = encoder.encode("a (red:1.4) sphere and a (blue box:0.5)")
        w = torch.ones(77, 1)
        w[2], w[6:8] = 1.4, 0.5
        torch.testing.assert_close(weighted, (z - empty) * w + empty)
        assert torch.equal(weighted[0, 3], z[0, 3])

    def test_sections_are_encoded_apart(self, encoder: TextEncoder) -> None:
        z = encoder.encode("red " * 75 + "blue box")
        torch.testing.assert_close(z[:, 77:], encoder.encode("blue box"))

    def test_clip_skip_shares_weights_and_leaves_the_original(self, encoder: TextEncoder) -> None:
        before = encoder.encode("a red box")
        skipped = encoder.with_clip_skip(-2)
        assert skipped.model is encoder.model
        ids = encoder.tokenize(["a red box"])
        assert torch.equal(skipped.encode("a red box"), skipped(ids))
        assert not torch.allclose(skipped.encode("a red box"), before)
        assert torch.equal(encoder.encode("a red box"), before)
        # Beyond the first layer the host goes back to the last one.
        assert torch.equal(encoder.with_clip_skip(-4).encode("a red box"), before)
        assert torch.equal(skipped.encode_pooled("a red box")[1], encoder.encode_pooled("a red box")[1])
        with pytest.raises(ValueRangeError, match="-1 for the last layer"):
            encoder.with_clip_skip(0)

    def test_unknown_words_share_a_row_and_the_end_is_still_found(self, encoder: TextEncoder) -> None:
        assert torch.equal(encoder.encode("a zebra"), encoder.encode("a tractor"))
        _, pooled = encoder.encode_pooled("a zebra")
        hidden = encoder.encode("a zebra")
        torch.testing.assert_close(pooled, hidden[:, 3])

    def test_causal(self, encoder: TextEncoder) -> None:
        first, second = encoder.encode("a red box"), encoder.encode("a red sphere")
        torch.testing.assert_close(first[:, :3], second[:, :3])
        assert not torch.allclose(first[:, 3:], second[:, 3:])

    def test_can_be_trained(self, tokenizer: ClipTokenizer) -> None:
        encoder = small_encoder(tokenizer)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
        ids = encoder.tokenize(["a red box", "blue"])
        target = torch.randn(2, 77, 32)
        losses = []
        for _ in range(4):
            loss = (encoder(ids) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        assert all(parameter.grad is not None for parameter in encoder.parameters())

    def test_saved_with_its_vocabulary_and_loaded_from_meta(self, encoder: TextEncoder) -> None:
        state = encoder.state_dict()
        assert state["vocab_map"].dtype == torch.int32
        with on_meta():
            copy = TextEncoder(
                ClipTextModel(encoder.config),
                encoder.tokenizer,
                encoder.config,
                VocabMap.from_tensor(state["vocab_map"]),
            )
        copy.load_state_dict(state, assign=True)
        assert torch.equal(copy.encode("a (blue) box"), encoder.encode("a (blue) box"))

    def test_half_precision_still_gives_float32(self, tokenizer: ClipTokenizer) -> None:
        encoder = small_encoder(tokenizer)
        exact = encoder.encode("a red box")
        halved = encoder.to(torch.bfloat16).encode("a red box")
        assert halved.dtype == torch.float32
        torch.testing.assert_close(halved, exact, atol=0.1, rtol=0.1)

    def test_captions_are_cut_at_75_tokens(self, encoder: TextEncoder) -> None:
        ids = encoder.tokenize(["cat " * 100, "(cat:1.2)"])
        assert ids.shape == (2, 77)
        assert ids[0, -1] == END_TOKEN
        assert ids[1, 1 : ids[1].tolist().index(END_TOKEN)].tolist() == encoder.tokenizer.encode("(cat:1.2)")
        assert encoder.tokenize([]).shape == (0, 77)

    def test_what_does_not_fit(self, encoder: TextEncoder, tokenizer: ClipTokenizer) -> None:
        with pytest.raises(ShapeError, match=r"\(1, 78\)"):
            encoder.model(torch.zeros(1, 78, dtype=torch.long))
        with pytest.raises(ValueRangeError, match="choose 0 to 2"):
            encoder.model(torch.zeros(1, 77, dtype=torch.long), skip_last=3)
        with pytest.raises(ShapeError, match="49408 rows"):
            TextEncoder(encoder.model, tokenizer, encoder.config)
        with pytest.raises(ValueRangeError, match="5 heads"):
            ClipTextModel(TextConfig(width=32, heads=5))
        with pytest.raises(ValueRangeError, match="'relu'"):
            ClipTextModel(replace(encoder.config, activation="relu"))  # type: ignore[arg-type]


def test_weights_that_no_number_can_hold() -> None:
    with pytest.raises(ValueRangeError, match=r"the weight of 'x' in the prompt is 2\.\d+e\+41: remove parentheses"):
        parse_weights("(" * 1000 + "x" + ")" * 1000)
    with pytest.raises(ValueRangeError, match="parentheses 100000 deep, 4000 are the most"):
        parse_weights("(" * 100_000 + "x" + ")" * 100_000)
    with pytest.raises(ValueRangeError, match="of 'x' in the prompt is -1e\\+39"):
        parse_weights("(x:-1e39)")
