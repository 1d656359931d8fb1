"""Edits of a prompt by words, and which token of the edited prompt takes the place of which.

One edit a line:

    red -> blue             word swap
    ball: 1.5               weight of a word
    red -> dark blue: 1.5   both
    a ball -> a ball, snow  words that are added keep the others' places
    on grey ground ->       words that are removed

Places are tokens of CLIP in sections of 77 (`models.prompt`), which do not depend on the text encoder.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ValueRangeError
from .prompt import EMBEDDING, SECTION, tokenize_prompt
from .tokenizer import END_TOKEN, ClipTokenizer

MOST_EDITS = 64
MOST_TOKENS = 77 * 32
"""Tokens of a prompt: 32 sections of 77. The time of an alignment grows with their square."""
MOST_WEIGHT = 10.0
LINE = re.compile(r"(?P<old>.*?)(?P<arrow>->(?P<new>.*?))?(?::(?P<weight>[^:]*))?", re.DOTALL)


@dataclass(frozen=True)
class Edit:
    """One line. old: words of the prompt. new: what takes their place; None for a weight alone, then `old` are words of
    the edited prompt."""

    old: str
    new: str | None = None
    weight: float = 1.0

    @property
    def words(self) -> str:
        """The words of the edited prompt that have the weight."""
        return self.old if self.new is None else self.new


class Alignment(NamedTuple):
    """Which token of the edited prompt P* takes the place of which token of the prompt P (see `models.prompt_edit`).

    moved: R, (tokens of P, tokens of P*). added: the diagonal of D, (tokens of P*,). Both contain the weights of the
    words. weights: (tokens of P*,), alone. same_words: whether both prompts have the same tokens.
    """

    moved: Tensor
    added: Tensor
    weights: Tensor
    same_words: bool

    @property
    def changes_nothing(self) -> bool:
        """Whether the edited prompt is the prompt, and all weights are 1."""
        return self.same_words and bool((self.weights == 1.0).all())


class _Section(NamedTuple):
    """Places of one section in a text: its start mark, words, end mark and padding."""

    start: int
    words: range
    end: int
    padding: range


def read_edits(text: str) -> tuple[Edit, ...]:
    """Edits from lines. Raises ValueRangeError that names the line."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) > MOST_EDITS:
        raise ValueRangeError(f"there are {len(lines):,} edits, at most {MOST_EDITS} are supported: join some")
    edits = tuple(_read_line(line, number) for number, line in lines)
    # Words may be swapped and weighed in two lines, since a weight alone means words of the edited prompt.
    counts = Counter((edit.old.lower(), edit.new is None) for edit in edits)
    if (twice := next((words for (words, _), count in counts.items() if count > 1), None)) is not None:
        raise ValueRangeError(f"the edits have two lines for {twice!r}: write one, such as 'red -> blue: 1.5'")
    return edits


def _read_line(line: str, number: int) -> Edit:
    where = f"line {number} of the edits ({line.strip()[:60]!r})"
    found = LINE.fullmatch(line)
    old = found["old"].strip() if found else ""
    if found is None or not old:
        raise ValueRangeError(f"{where} names no words of the prompt: write 'red -> blue' or 'ball: 1.5'")
    if found["arrow"] is None and found["weight"] is None:
        raise ValueRangeError(f"{where} says no change: write 'red -> blue' to swap words, 'ball: 1.5' to weigh one")
    if "->" in (found["new"] or ""):
        raise ValueRangeError(f"{where} has several arrows: write a line for each edit, such as 'red -> blue'")
    weight = 1.0
    if found["weight"] is not None:
        try:
            weight = float(found["weight"])
        except ValueError:
            weight = math.nan
        if not abs(weight) <= MOST_WEIGHT:
            given = found["weight"].strip()
            raise ValueRangeError(f"{where}: its weight is {given!r}, expected -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return Edit(old, None if found["new"] is None else found["new"].strip(), weight)


def edited_prompt(prompt: str, edits: Sequence[Edit]) -> str:
    """The prompt with its words swapped, wherever they occur. Raises ValueRangeError for words that do not occur."""
    for edit in edits:
        if edit.new is not None and not re.search(_pattern(edit.old), prompt, re.IGNORECASE):
            raise ValueRangeError(f"the prompt has no words {edit.old!r} to edit: it is {prompt[:200]!r}")
    swaps = {edit.old.lower(): edit.new for edit in edits if edit.new is not None}
    if not swaps:
        return prompt
    # In one pass, so that "red -> blue" and "blue -> red" swap both; longer words first.
    pattern = "|".join(_pattern(old) for old in sorted(swaps, key=len, reverse=True))
    return re.sub(pattern, lambda found: swaps.get(found[0].lower(), found[0]), prompt, flags=re.IGNORECASE)


def _pattern(words: str) -> str:
    # Whole words, unless the text begins or ends with a sign, such as ", blue".
    first, last = ("\\b" if sign.isalnum() else "" for sign in (words[:1], words[-1:]))
    return first + re.escape(words) + last


def align(prompt: str, edits: Sequence[Edit]) -> tuple[str, Alignment]:
    """The edited prompt, and which of its tokens takes the place of which.

    Raises ValueRangeError for words that do not occur, for textual inversions, and for very long prompts.
    """
    edited = edited_prompt(prompt, edits)
    tokenizer = ClipTokenizer.load()
    before, after = (_sections(tokenizer, text) for text in (prompt, edited))
    moved = torch.zeros(len(before) * SECTION, len(after) * SECTION)
    added = torch.zeros(len(after) * SECTION)
    old, new = (_words(tokenizer, text, places) for text, places in ((prompt, before), (edited, after)))
    _align_words(moved, added, old, new)
    for number in range(max(len(before), len(after))):
        _align_marks(moved, before[min(number, len(before) - 1)], after[min(number, len(after) - 1)])
    # The marks of the last section went to those of all further ones: they share its map.
    moved /= moved.sum(dim=1, keepdim=True).clamp(min=1.0)
    weights = torch.ones(len(added))
    for edit in edits:
        if edit.new is None or edit.weight != 1.0:
            weights[_places_of(tokenizer, edit, new)] = edit.weight
    return edited, Alignment(moved * weights, added * weights, weights, old == new)


def _sections(tokenizer: ClipTokenizer, prompt: str) -> list[_Section]:
    if EMBEDDING in prompt:
        raise ValueRangeError(f"the prompt has {EMBEDDING!r}, whose number of tokens is not known here: remove it")
    found = []
    for number, section in enumerate(tokenize_prompt(tokenizer, prompt)):
        first, end = number * SECTION, number * SECTION + section.ids.index(END_TOKEN)
        found.append(_Section(first, range(first + 1, end), end, range(end + 1, first + SECTION)))
    if len(found) * SECTION > MOST_TOKENS:
        raise ValueRangeError(
            f"the prompt has {len(found)} sections of 77 tokens, at most 32 can be edited: shorten it"
        )
    return found


def _words(tokenizer: ClipTokenizer, prompt: str, sections: Sequence[_Section]) -> list[tuple[int, int]]:
    """The words of a prompt as (place, CLIP id), without marks and padding."""
    ids = [i for section in tokenize_prompt(tokenizer, prompt) for i in section.ids]
    return [(place, ids[place]) for section in sections for place in section.words]


def _align_words(moved: Tensor, added: Tensor, old: Sequence[tuple[int, int]], new: Sequence[tuple[int, int]]) -> None:
    match = SequenceMatcher(None, [i for _, i in old], [i for _, i in new], autojunk=False)
    for kind, a, b, c, d in match.get_opcodes():
        sources, targets = [place for place, _ in old[a:b]], [place for place, _ in new[c:d]]
        if kind == "insert":
            added[targets] = 1.0
        elif len(sources) == len(targets):
            moved[sources, targets] = 1.0
        elif targets:
            # The authors' rule for words of different lengths: each new token takes an equal part.
            moved[torch.tensor(sources)[:, None], torch.tensor(targets)] = 1.0 / len(targets)


def _align_marks(moved: Tensor, old: _Section, new: _Section) -> None:
    """Start and end marks keep their places. Padding is matched in order; surplus padding goes to the last one."""
    moved[old.start, new.start] = moved[old.end, new.end] = 1.0
    last = new.padding[-1] if new.padding else new.end
    for number, place in enumerate(old.padding):
        moved[place, new.padding[number] if number < len(new.padding) else last] = 1.0


def _places_of(tokenizer: ClipTokenizer, edit: Edit, words: Sequence[tuple[int, int]]) -> list[int]:
    places = list(_occurrences(tokenizer.encode(edit.words), words))
    if not places:
        raise ValueRangeError(f"the edited prompt has no words {edit.words!r} to weigh: name words that it has")
    return places


def _occurrences(ids: Sequence[int], words: Sequence[tuple[int, int]]) -> Iterator[int]:
    count = len(ids)
    for first in range(len(words) - count + 1 if count else 0):
        part = words[first : first + count]
        if all(i == own for i, (_, own) in zip(ids, part, strict=True)):
            yield from (place for place, _ in part)
