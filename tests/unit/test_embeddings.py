"""Textual inversion: the forms of its files, where a prompt may name one, and what the text encoder makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.embeddings import read_embedding
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.errors import (
    CheckpointError,
    MissingFileError,
    ShapeError,
    UnfitError,
    ValueRangeError,
)
from comfyui_controlnet_core.controlnet_core.models.prompt import PLACEHOLDER, tokenize_prompt
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel, TextEncoder
from comfyui_controlnet_core.controlnet_core.models.tokenizer import END_TOKEN, START_TOKEN, ClipTokenizer, VocabMap
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from torch import Tensor

WIDTH = 32
TOKENIZER = ClipTokenizer.load()


def vectors(count: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


WORDS = {"one": vectors(1), "three": vectors(3, seed=3), "many": vectors(60, seed=60)}


def find(name: str) -> Tensor:
    if name not in WORDS:
        raise MissingFileError(name)
    return WORDS[name]


def shown(prompt: str) -> list[list[tuple[int | str, float]]]:
    """Tokens between the marks, learned ones as "v", with their weights, by section."""
    rows = []
    for section in tokenize_prompt(TOKENIZER, prompt, find=find):
        at = dict(section.vectors)
        end = section.ids.index(END_TOKEN)
        assert section.ids[0] == START_TOKEN and all(section.ids[i] == PLACEHOLDER for i in at)
        rows.append([("v" if i in at else section.ids[i], section.weights[i]) for i in range(1, end)])
    return rows


def ids(text: str, weight: float = 1.0) -> list[tuple[int | str, float]]:
    return [(token, weight) for token in TOKENIZER.encode(text)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("embedding:one", [("v", 1.0)]),
        ("a embedding:three b", [*ids("a"), *[("v", 1.0)] * 3, *ids("b")]),
        ("embedding:one, b", [("v", 1.0), *ids(", b")]),
        ("(embedding:three:1.2)", [("v", 1.2)] * 3),
        ("(a embedding:one)", [*ids("a", 1.1), ("v", 1.1)]),
        ("embedding:one embedding:three", [("v", 1.0)] * 4),
        ("a\nembedding:one\nb", [*ids("a"), ("v", 1.0), *ids("b")]),
        ("(embedding:one:0.5) (embedding:one:2)", [("v", 0.5), ("v", 2.0)]),
        ("disembedding:one", ids("disembedding:one")),
    ],
)
def test_words_that_stand_for_vectors(prompt: str, expected: list[tuple[int | str, float]]) -> None:
    assert shown(prompt) == [expected]


def test_few_vectors_are_not_torn_and_many_are() -> None:
    text = "cat " * 73
    assert [len(row) for row in shown(f"{text} embedding:three")] == [73, 3]
    assert [len(row) for row in shown(f"{text} embedding:many")] == [75, 58]


def test_a_name_is_needed_and_without_a_finder_it_is_text() -> None:
    for prompt in ("embedding:", "a embedding: one", "(embedding:,:1.2)"):
        with pytest.raises(ValueRangeError, match="without a name"):
            tokenize_prompt(TOKENIZER, prompt, find=find)
    with pytest.raises(MissingFileError, match="two"):
        tokenize_prompt(TOKENIZER, "embedding:two", find=find)
    (section,) = tokenize_prompt(TOKENIZER, "embedding:one")
    assert list(section.ids[1:5]) == TOKENIZER.encode("embedding:one") and not section.vectors


# ------------------------------------------------------------------------------------- the text encoder


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    vocabulary = VocabMap.from_words(TOKENIZER, ["a red sphere and a blue box"])
    config = replace(DEMO.text, width=WIDTH, heads=2, layers=2, vocab_size=vocabulary.rows)
    torch.manual_seed(0)
    return TextEncoder(ClipTextModel(config), TOKENIZER, config, vocabulary)


def test_the_vectors_of_a_known_word_mean_that_word(encoder: TextEncoder) -> None:
    assert encoder.vocab_map is not None
    (token,) = TOKENIZER.encode("red")
    row = encoder.model.token_embedding.weight[encoder.vocab_map.tolist().index(token)].detach()[None]
    for template in ("a {} sphere", "(a {}:1.3) box", "a red sphere and a blue box " * 12 + " {} box"):
        learned = encoder.encode_pooled(template.format("embedding:x"), lambda width, name: row)
        plain = encoder.encode_pooled(template.format("red"))
        torch.testing.assert_close(learned[0], plain[0])
        torch.testing.assert_close(learned[1], plain[1])


def test_each_vector_has_its_position_and_the_weights_stay(encoder: TextEncoder) -> None:
    before = encoder.model.token_embedding.weight.clone()
    first = encoder.encode_pooled("a embedding:x", lambda width, name: vectors(2, width))[0]
    other = encoder.encode_pooled("a embedding:x", lambda width, name: vectors(2, width).flip(0))[0]
    assert torch.equal(first[:, :2], other[:, :2])  # causal: what is before the word does not see it
    assert not torch.allclose(first[:, 2:], other[:, 2:])
    assert torch.equal(before, encoder.model.token_embedding.weight)


def test_a_vector_of_another_width_is_an_error(encoder: TextEncoder) -> None:
    with pytest.raises(ShapeError, match=r"shape \(48,\), the text encoder needs \(32,\)"):
        encoder.encode_pooled("embedding:x", lambda width, name: vectors(1, 48))


# ------------------------------------------------------------------------------------------------ files


def test_every_form_gives_the_same_vectors(tmp_path: Path) -> None:
    word = vectors(2)
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": word}}, tmp_path / "a.pt")
    torch.save({"<word>": word}, tmp_path / "b.bin")
    write_safetensors(tmp_path / "c.safetensors", {"emb_params": word})
    write_safetensors(tmp_path / "d.safetensors", {"clip_l": word, "clip_g": vectors(2, 48)})
    write_safetensors(tmp_path / "e.safetensors", {"<word>": word})
    for name in ("a.pt", "b.bin", "c.safetensors", "d.safetensors", "e.safetensors"):
        assert torch.equal(read_embedding(tmp_path / name).of_width(WIDTH), word), name
        assert inspect_file(tmp_path / name).loadable
    torch.save({"<word>": word[0]}, tmp_path / "b.bin")
    assert torch.equal(read_embedding(tmp_path / "b.bin").of_width(WIDTH), word[:1])
    assert torch.equal(read_embedding(tmp_path / "d.safetensors").of_width(48), vectors(2, 48))


def test_a_file_for_another_base_says_so(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"emb_params": vectors(4, 768)})
    said = r"textual inversion for Stable Diffusion 1\.x .*4 vectors.* 768 wide, .* is 1024 wide"
    with pytest.raises(UnfitError, match=said):
        read_embedding(tmp_path / "a.safetensors").of_width(1024)


def test_two_words_in_one_file_are_not_guessed_between(tmp_path: Path) -> None:
    parts = {"string_to_param": {"a": vectors(1), "b": vectors(1)}}
    torch.save(parts, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="2 words of one width"):
        read_embedding(tmp_path / "a.pt").of_width(WIDTH)


def test_names_are_found_with_or_without_ending_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    write_safetensors(folder / "good.safetensors", {"emb_params": vectors(1)})
    write_safetensors(folder / "sub" / "deep.safetensors", {"emb_params": vectors(2)})
    host = StandaloneHost(models_dirs=[tmp_path], device="cpu", dtype="fp32")
    for name in ("good", "good.safetensors"):
        assert torch.equal(host.embedding(WIDTH, name), vectors(1))
    for name in ("deep", "sub/deep", "sub/deep.safetensors"):
        assert torch.equal(host.embedding(WIDTH, name), vectors(2))
    with pytest.raises(MissingFileError, match=f"no embeddings file 'goood.pt'.*'good.safetensors'.*{folder}"):
        host.embedding(WIDTH, "goood.pt")
