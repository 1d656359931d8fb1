"""CLIP's tokenizer against recorded ids, and reduced vocabularies."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import MissingFileError, ShapeError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.prompt import tokenize_prompt
from comfyui_controlnet_core.controlnet_core.models.tokenizer import (
    END_TOKEN,
    START_TOKEN,
    ClipTokenizer,
    VocabMap,
    map_ids,
)

GOLDENS = json.loads((Path(__file__).parent / "data" / "tokenizer_goldens.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer.load()


def test_goldens_are_many_and_all_agree(tokenizer: ClipTokenizer) -> None:
    cases = GOLDENS["cases"]
    assert len({text for text, _ in cases}) >= 200
    wrong = [(text, ids, tokenizer.encode(text)) for text, ids in cases if tokenizer.encode(text) != ids]
    assert not wrong


def test_known_ids(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert (tokenizer.start, tokenizer.end) == (49406, 49407)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat", ["a", "cat"]),
        ("it's 42!?", ["it", "'s", "4", "2", "!?"]),
        ("!'s", ["!'", "s"]),
        ("'re'x", ["'re", "'", "x"]),
        ("a\u3000b\x1cc", ["a", "b", "\x1c", "c"]),
        ("", []),
    ],
)
def test_words_are_encoded_one_by_one(tokenizer: ClipTokenizer, text: str, words: list[str]) -> None:
    assert tokenizer.encode(text) == [token for word in words for token in tokenizer.encode(word)]
    assert tokenizer.decode(tokenizer.encode(text)) == " ".join(words)


@pytest.mark.parametrize("unit", ["a", "xq", "cat ", "(cat:1.2), ", "<|endoftext|>"])
def test_time_grows_with_length_not_with_its_square(tokenizer: ClipTokenizer, unit: str) -> None:
    def seconds(letters: int) -> float:
        text, times = unit * (letters // len(unit)), []
        for _ in range(3):
            started = time.process_time()
            tokenize_prompt(tokenizer, text)
            times.append(time.process_time() - started)
        return min(times)

    # 16 times the text: about 16 times as long. With a quadratic step it would be 256 times.
    assert seconds(80_000) < 64 * max(seconds(5_000), 1e-3)


def test_decode_gives_the_text_back(tokenizer: ClipTokenizer) -> None:
    for text in ("a photo of an astronaut", "crème brûlée", "🤖 日本語", "<|startoftext|> cat <|endoftext|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_refuses_foreign_ids(tokenizer: ClipTokenizer) -> None:
    with pytest.raises(ValueRangeError, match="49408"):
        tokenizer.decode([320, 49408])


def test_lone_surrogates_do_not_stop_it(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.encode("a \ud800 b") == tokenizer.encode("a ? b")


def test_missing_and_wrong_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.gz"):
        ClipTokenizer.load(tmp_path / "none.gz")
    with pytest.raises(ValueRangeError, match="2 pairs"):
        ClipTokenizer([("a", "b"), ("c", "d")])
    (tmp_path / "text.gz").write_text("no gzip file")
    with pytest.raises(ValueRangeError, match=r"text\.gz"):
        ClipTokenizer.load(tmp_path / "text.gz")


class TestVocabMap:
    def test_keeps_words_marks_and_one_row_for_the_rest(self, tokenizer: ClipTokenizer) -> None:
        vocabulary = VocabMap.from_words(tokenizer, ["red sphere", "blue"])
        assert vocabulary.rows == 6
        ids = torch.tensor([[START_TOKEN, *tokenizer.encode("Blue zebra sphere"), END_TOKEN]])
        rows = map_ids(vocabulary.to_tensor(), ids)
        assert rows.dtype == torch.int64
        kept = [vocabulary.clip_ids[row] if row < 5 else None for row in rows[0].tolist()]
        blue, _, sphere = tokenizer.encode("blue zebra sphere")
        assert kept == [START_TOKEN, blue, None, sphere, END_TOKEN]

    def test_padding_is_kept(self, tokenizer: ClipTokenizer) -> None:
        assert VocabMap.from_words(tokenizer, [], padding=0).clip_ids == (0, START_TOKEN, END_TOKEN)

    def test_travels_as_a_tensor(self, tokenizer: ClipTokenizer) -> None:
        vocabulary = VocabMap.from_words(tokenizer, ["a green cone"])
        tensor = vocabulary.to_tensor()
        assert tensor.dtype == torch.int32
        assert VocabMap.from_tensor(tensor) == vocabulary

    def test_refuses_what_is_none(self) -> None:
        with pytest.raises(ShapeError, match="one-dimensional"):
            VocabMap.from_tensor(torch.zeros(2, 2, dtype=torch.int32))
        with pytest.raises(ShapeError, match="float32"):
            VocabMap.from_tensor(torch.tensor([1.0, 2.0]))
        with pytest.raises(ValueRangeError, match="rising order"):
            VocabMap((END_TOKEN, START_TOKEN))
        with pytest.raises(ValueRangeError, match="from_words"):
            VocabMap((1, 2, END_TOKEN))
