"""Prompts: weights in parentheses, and sections of 77 tokens.

The rules are ComfyUI's, so that a prompt means the same in both hosts:
- `(words)` multiplies the weight by 1.1, also when nested. `(words:1.3)` sets it, whatever encloses it.
- `\\(` and `\\)` are plain parentheses. Unbalanced parentheses are plain text.
- A section is a start mark, up to 75 tokens, an end mark and padding. Text of one weight with fewer than 8 tokens
  stays together: it begins a new section if it does not fit. Longer text fills the section and continues in the next.
- `embedding:name` at the beginning of a word stands for the vectors of a textual inversion (Gal et al. 2022), one
  token each. Commas after the name are text.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from ..errors import ValueRangeError
from .tokenizer import END_TOKEN, START_TOKEN, ClipTokenizer

SECTION = 77
SPLIT_FROM = 8
NESTING_WEIGHT = 1.1
LARGEST = 3.4e38
"""The largest weight: about the largest float32."""
DEEPEST = 4000
"""Most nested parentheses. Each level is a pass over the text, so that more would take too long."""

EMBEDDING = "embedding:"
_LEARNED_WORD = re.compile(rf"(?:^|(?<=[ \n])){EMBEDDING}")
PLACEHOLDER = 0
"""Id at the positions of learned vectors. Its row in the embedding table is not used."""

FindEmbedding: TypeAlias = Callable[[str], Tensor]
"""Name of a textual inversion -> its vectors (n, width). Raises MissingFileError or UnfitError."""
Token: TypeAlias = "int | Tensor"
"""A CLIP id, or a learned vector (width,) in place of a row of the embedding table."""

# Unicode noncharacters, in place of escaped parentheses while a prompt is parsed. No text contains them.
_ESCAPED = {"\\(": "\ufdd0", "\\)": "\ufdd1"}


@dataclass(frozen=True)
class Segment:
    """Text of one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Section:
    """CLIP ids of one pass through the text encoder, with the weight of each position.

    vectors: (position, vector (width,)) of textual inversions, which replace the embedding of the id there.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    vectors: tuple[tuple[int, Tensor], ...] = field(default=(), compare=False)

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return any(weight != 1.0 for weight in self.weights)


def parse_weights(prompt: str) -> list[Segment]:
    """Split a prompt into segments of one weight each, in order.

    Raises ValueRangeError for a weight that float32 cannot hold, and for more than `DEEPEST` nested parentheses.
    """
    depth = max(itertools.accumulate({"(": 1, ")": -1}.get(char, 0) for char in prompt), default=0)
    if depth > DEEPEST:
        raise ValueRangeError(f"the prompt nests parentheses {depth} deep, {DEEPEST} are the most: remove some")
    for written, mark in _ESCAPED.items():
        prompt = prompt.replace(written, mark)
    segments: list[Segment] = []
    # A stack instead of recursion: Python's recursion limit is lower than DEEPEST.
    pending = [Segment(prompt)]
    while pending:
        segment = pending.pop()
        parts = list(_top_level(segment.text))
        if parts == [segment.text] and not _is_group(segment.text):
            segments.append(_checked(Segment(_unescape(segment.text), segment.weight)))
        else:
            pending.extend(_open(part, segment.weight) for part in reversed(parts))
    return segments


def _checked(segment: Segment) -> Segment:
    if abs(segment.weight) <= LARGEST:
        return segment
    shown = segment.text if len(segment.text) <= 40 else f"{segment.text[:37]}..."
    raise ValueRangeError(f"the weight of {shown!r} in the prompt is {segment.weight:g}: remove parentheses")


def _top_level(text: str) -> Iterator[str]:
    """Cut a text into its outermost groups, parentheses included, and the text between them."""
    # A surplus closing parenthesis makes the depth negative. What follows is plain text until as many are opened, as in
    # ComfyUI.
    depth = start = 0
    for position, char in enumerate(text):
        if char == "(":
            if depth == 0 and position > start:
                yield text[start:position]
                start = position
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                yield text[start : position + 1]
                start = position + 1
    if start < len(text):
        yield text[start:]


def _is_group(text: str) -> bool:
    return len(text) >= 2 and text[0] == "(" and text[-1] == ")"


def _open(part: str, weight: float) -> Segment:
    """Remove a group's parentheses and read its weight. A last `:` without a finite number after it is text."""
    if not _is_group(part):
        return Segment(part, weight)
    inner = part[1:-1]
    text, colon, number = inner.rpartition(":")
    if colon and text:
        try:
            given = float(number)
        except ValueError:
            given = math.nan
        if math.isfinite(given):
            return Segment(text, given)
    return Segment(inner, weight * NESTING_WEIGHT)


def _unescape(text: str) -> str:
    for written, mark in _ESCAPED.items():
        text = text.replace(mark, written[1])
    return text


def tokenize_prompt(
    tokenizer: ClipTokenizer,
    prompt: str,
    *,
    max_length: int = SECTION,
    padding: int = END_TOKEN,
    find: FindEmbedding | None = None,
) -> tuple[Section, ...]:
    """Turn a prompt of any length into sections of `max_length` CLIP ids with weights; at least one, for "" too.

    padding: the id that fills a section after the end mark. find: looks up the vectors of `embedding:name`; without it
    those words are plain text. Raises what `find` raises, and ValueRangeError for `embedding:` without a name.
    """
    groups = [
        (tokens, segment.weight)
        for segment in parse_weights(prompt)
        for tokens in _groups(tokenizer, segment.text, find)
    ]
    return tuple(_close(row, max_length, padding) for row in _fill(groups, max_length - 2))


def _groups(tokenizer: ClipTokenizer, text: str, find: FindEmbedding | None) -> Iterator[Sequence[Token]]:
    """Yield the tokens of a text of one weight: plain text and textual inversions in turn."""
    if find is None:
        yield tokenizer.encode(text)
        return
    first, *others = _LEARNED_WORD.split(text)
    yield tokenizer.encode(first)
    for other in others:
        name, rest = _name(other)
        yield list(find(name))
        yield tokenizer.encode(rest)


def embedding_names(prompt: str) -> tuple[str, ...]:
    """Names of the textual inversions in a prompt. Raises ValueRangeError for `embedding:` without a name."""
    texts = (segment.text for segment in parse_weights(prompt))
    return tuple(_name(other)[0] for text in texts for other in _LEARNED_WORD.split(text)[1:])


def _name(text: str) -> tuple[str, str]:
    """Split "name, more text" into the name of a textual inversion and the text after it, commas included."""
    word, *_ = text.split(maxsplit=1) or [""]
    name = word.rstrip(",")
    if not name or text[0].isspace():
        raise ValueRangeError(f"the prompt has {EMBEDDING!r} without a name: write {EMBEDDING}name, without a space")
    return name, text[len(name) :]


def _fill(groups: Sequence[tuple[Sequence[Token], float]], room: int) -> list[list[tuple[Token, float]]]:
    """Distribute groups of tokens, each with its weight, over rows of at most `room` tokens."""
    rows: list[list[tuple[Token, float]]] = [[]]
    for members, weight in groups:
        tokens, taken = [(token, weight) for token in members], 0
        while len(tokens) - taken > (free := room - len(rows[-1])):
            if len(tokens) >= SPLIT_FROM:  # a shorter group moves to the next row as a whole
                rows[-1] += tokens[taken : taken + free]
                taken += free
            rows.append([])
        rows[-1] += tokens[taken:]
    return rows


def _close(row: Sequence[tuple[Token, float]], max_length: int, padding: int) -> Section:
    """Add the marks and the padding, all at weight 1."""
    inner = (PLACEHOLDER if isinstance(token, Tensor) else token for token, _ in row)
    ids = (START_TOKEN, *inner, END_TOKEN)
    filled = max_length - len(ids)
    weights = (1.0, *(weight for _, weight in row), 1.0)
    vectors = tuple((at, token) for at, (token, _) in enumerate(row, start=1) if isinstance(token, Tensor))
    return Section(ids + (padding,) * filled, weights + (1.0,) * filled, vectors)
