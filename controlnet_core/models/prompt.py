"""Prompts: weights in parentheses, and chunks of 77 tokens.

The grammar and the way a long prompt is cut are ComfyUI's, so that a prompt means the same in both homes:
- `(words)` multiplies the weight by 1.1, nested ones again; `(words:1.3)` sets it, whatever is around;
- `\\(` and `\\)` are plain parentheses; unbalanced ones are plain text;
- a chunk is a start mark, up to 75 tokens, an end mark and padding. Text of one weight that is shorter than
  8 tokens is not torn: it begins a new chunk when it does not fit. Longer text fills the chunk and goes on in
  the next one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .tokenizer import END_TOKEN, START_TOKEN, ClipTokenizer

CHUNK = 77
TORN_FROM = 8
NESTING_WEIGHT = 1.1

# Unicode noncharacters: they stand for escaped parentheses while the prompt is read.
_ESCAPED = {"\\(": "\ufdd0", "\\)": "\ufdd1"}


@dataclass(frozen=True)
class Segment:
    """Text of one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Chunk:
    """CLIP ids of one pass through the text encoder, with the weight of each position."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return any(weight != 1.0 for weight in self.weights)


def parse_weights(prompt: str) -> list[Segment]:
    """Read the weights of a prompt: its text in order, in pieces of one weight each."""
    for written, mark in _ESCAPED.items():
        prompt = prompt.replace(written, mark)
    segments: list[Segment] = []
    pending = [Segment(prompt)]
    while pending:
        segment = pending.pop()
        parts = list(_top_level(segment.text))
        if parts == [segment.text] and not _is_group(segment.text):
            segments.append(Segment(_unescape(segment.text), segment.weight))
        else:
            pending.extend(_open(part, segment.weight) for part in reversed(parts))
    return segments


def _top_level(text: str) -> Iterator[str]:
    """Cut a text into its outermost groups, parentheses included, and what lies between them.

    A closing parenthesis too many lowers the depth below zero: what follows is plain text until as many
    have been opened again.
    """
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
    """Take off a group's parentheses and read its weight; a last `:` without a finite number is text."""
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
    tokenizer: ClipTokenizer, prompt: str, *, max_length: int = CHUNK, padding: int = END_TOKEN
) -> tuple[Chunk, ...]:
    """CLIP ids and weights of a prompt of any length: one chunk of `max_length` or more; one for "" too."""
    # The one place where a segment becomes ids: a word that names learned embedding vectors is resolved here.
    groups = [(tokenizer.encode(segment.text), segment.weight) for segment in parse_weights(prompt)]
    return tuple(_close(row, max_length, padding) for row in _fill(groups, max_length - 2))


def empty_chunk(*, max_length: int = CHUNK, padding: int = END_TOKEN) -> Chunk:
    """The chunk of an empty prompt, from which weights are counted."""
    return _close([], max_length, padding)


def _fill(groups: Sequence[tuple[list[int], float]], room: int) -> list[list[tuple[int, float]]]:
    """Distribute groups of tokens over rows of at most `room` tokens."""
    rows: list[list[tuple[int, float]]] = [[]]
    for ids, weight in groups:
        tokens = [(token, weight) for token in ids]
        torn = len(tokens) >= TORN_FROM
        while len(tokens) > room - len(rows[-1]):
            taken = room - len(rows[-1]) if torn else 0
            rows[-1].extend(tokens[:taken])
            tokens = tokens[taken:]
            rows.append([])
        rows[-1].extend(tokens)
    return rows


def _close(row: Sequence[tuple[int, float]], max_length: int, padding: int) -> Chunk:
    """Add the marks and the padding, all at weight 1."""
    ids = (START_TOKEN, *(token for token, _ in row), END_TOKEN)
    filled = max_length - len(ids)
    weights = (1.0, *(weight for _, weight in row), 1.0)
    return Chunk(ids + (padding,) * filled, weights + (1.0,) * filled)
