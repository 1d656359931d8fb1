"""CLIP's byte-pair tokenizer, and the reduced vocabulary of small text encoders.

Sources: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
section 2.4 (lower-cased byte pair encoding, 49152 entries and two marks); Sennrich et al. 2016, "Neural
Machine Translation of Rare Words with Subword Units", algorithm 1. The merge table is data of the CLIP
release (assets/NOTICE.md).

The ids are those of transformers' `CLIPTokenizer` as of version 5 (its "fast" tokenizer before that): NFC,
white space to one space, lower case, nothing else. What others do differently, and when it shows:
- the "slow" `CLIPTokenizer` of transformers 4, which a ComfyUI beside an older transformers uses, also drops
  control and invisible characters (the joiners inside family and flag emoji too), puts spaces around each CJK
  ideograph and knows the final sigma;
- OpenAI's own tokenizer first repairs broken unicode (ftfy) and resolves html entities.
English prompts and single emoji give the same ids in all of them.
"""

from __future__ import annotations

import gzip
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MissingFileError, ShapeError, ValueRangeError

START_TOKEN = 49406
END_TOKEN = 49407
VOCAB_SIZE = 49408
START_TEXT = "<|startoftext|>"
END_TEXT = "<|endoftext|>"
VOCAB_FILE = Path(__file__).parent.parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"

_MERGES = VOCAB_SIZE - 2 - 2 * 256
_WORD_END = "</w>"
_SPECIAL = {START_TEXT: START_TOKEN, END_TEXT: END_TOKEN}
_SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# Unicode's White_Space. Python's str.isspace() also counts the separators U+001C to U+001F.
_SPACES = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def byte_symbols() -> tuple[str, ...]:
    """One printable character for each byte value 0 to 255, as byte-level BPE writes them.

    Bytes that are printable in Latin-1 stand for themselves, the others get the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256))


def split_words(text: str) -> Iterator[str]:
    """Split normalised text into runs of letters, single digits, English suffixes and runs of the rest.

    Same as the pattern `'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+`, which Python's
    `re` cannot express. White space only separates.
    """
    kinds = [_kind(char) for char in text]
    position = 0
    while position < len(text):
        suffix = next((s for s in _SUFFIXES if text.startswith(s, position)), None)
        end = position + 1
        if suffix is not None:
            end = position + len(suffix)
        elif kinds[position] in "LO":
            while end < len(text) and kinds[end] == kinds[position]:
                end += 1
        if kinds[position] != "S":
            yield text[position:end]
        position = end


def _kind(char: str) -> str:
    """S white space, L letter, N number, O other."""
    if char in _SPACES:
        return "S"
    category = unicodedata.category(char)[0]
    return category if category in "LN" else "O"


def _normalise(text: str) -> str:
    """NFC and lower case. Character by character: a final sigma has no special form here."""
    return "".join(char.lower() for char in unicodedata.normalize("NFC", text))


class ClipTokenizer:
    """Text to CLIP ids and back.

    `merges` are the 48894 pairs of the merge table, most frequent first. The instance remembers the ids of
    the words it has seen.
    """

    start = START_TOKEN
    end = END_TOKEN

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        if len(merges) != _MERGES:
            raise ValueRangeError(
                f"the merge table has {len(merges)} pairs, CLIP's has {_MERGES}: "
                "use the table of the CLIP release"
            )
        self._bytes = byte_symbols()
        # The vocabulary lists the bytes in another order than their values: printable ones first.
        alphabet = sorted(self._bytes)
        pieces = alphabet + [symbol + _WORD_END for symbol in alphabet] + [a + b for a, b in merges]
        self._ids = {piece: i for i, piece in enumerate(pieces)} | _SPECIAL
        self._pieces = [*pieces, *_SPECIAL]
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._seen: dict[str, tuple[int, ...]] = {}

    @classmethod
    def load(cls, path: str | Path = VOCAB_FILE) -> ClipTokenizer:
        """Read `bpe_simple_vocab_16e6.txt.gz`; without a path, the one that comes with the package.

        That one is read once: it takes a tenth of a second, and every text encoder has the same.
        Raises MissingFileError when there is no such file, ValueRangeError when it is not the CLIP table.
        """
        return _shipped() if path == VOCAB_FILE else cls._read(Path(path))

    @classmethod
    def _read(cls, path: Path) -> ClipTokenizer:
        if not path.is_file():
            raise MissingFileError(
                f"no CLIP vocabulary at {path}: reinstall the package, or give its path", path
            )
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                # The first line names the version; behind the pairs that CLIP uses there are more.
                lines = list(islice(file, 1, _MERGES + 1))
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise ValueRangeError(
                f"{path} is not the CLIP vocabulary ({error}): reinstall the package"
            ) from error
        pairs = [tuple(line.split()) for line in lines]
        return cls([(pair[0], pair[1]) for pair in pairs if len(pair) == 2])

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length, without start and end marks. The marks written out count as marks."""
        ids: list[int] = []
        for piece in _split_marks(text):
            if piece in _SPECIAL:
                ids.append(_SPECIAL[piece])
            else:
                for word in split_words(_normalise(piece)):
                    ids.extend(self._word(word))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text of ids: lower case, one space behind each word. Marks are shown as they are written.

        Raises ValueRangeError for an id outside 0 to 49407.
        """
        values = {symbol: byte for byte, symbol in enumerate(self._bytes)}
        text = bytearray()
        for token in ids:
            if not 0 <= token < VOCAB_SIZE:
                raise ValueRangeError(f"token id {token} is not a CLIP id: expected 0 to {VOCAB_SIZE - 1}")
            piece = self._pieces[token]
            ends = token in _SPECIAL.values() or piece.endswith(_WORD_END)
            stem = piece if token in _SPECIAL.values() else piece.removesuffix(_WORD_END)
            text += bytes(values[symbol] for symbol in stem) + (b" " if ends else b"")
        return text.decode("utf-8", errors="replace").strip()

    def _word(self, word: str) -> tuple[int, ...]:
        if word not in self._seen:
            symbols = [self._bytes[byte] for byte in word.encode("utf-8", errors="replace")]
            symbols[-1] += _WORD_END
            self._seen[word] = tuple(self._ids[piece] for piece in self._merge(symbols))
        return self._seen[word]

    def _merge(self, symbols: list[str]) -> list[str]:
        """Join neighbours, the pair of the lowest rank first, until no pair is in the table."""
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, _MERGES))
            if best not in self._ranks:
                break
            symbols = _join(symbols, best)
        return symbols


@cache
def _shipped() -> ClipTokenizer:
    """The tokenizer of the table that comes with the package."""
    return ClipTokenizer._read(VOCAB_FILE)


def _join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Replace each occurrence of the pair, from the left, by one symbol."""
    joined: list[str] = []
    position = 0
    while position < len(symbols):
        width = 2 if tuple(symbols[position : position + 2]) == pair else 1
        joined.append("".join(symbols[position : position + width]))
        position += width
    return joined


def _split_marks(text: str) -> Iterator[str]:
    """Cut the start and end marks out of a text."""
    while text:
        found = [(text.find(mark), mark) for mark in _SPECIAL if mark in text]
        if not found:
            yield text
            return
        position, mark = min(found)
        if position:
            yield text[:position]
        yield mark
        text = text[position + len(mark) :]


@dataclass(frozen=True)
class VocabMap:
    """The part of CLIP's vocabulary that a small text encoder has embeddings for.

    `clip_ids` is sorted; an id's place in it is its row in the embedding table. All other ids share one row
    behind them, `unknown`.
    """

    clip_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        ids = self.clip_ids
        if list(ids) != sorted(set(ids)) or not ids or ids[0] < 0 or ids[-1] >= VOCAB_SIZE:
            raise ValueRangeError(
                f"a vocabulary map lists CLIP ids 0 to {VOCAB_SIZE - 1} in rising order, each once; "
                f"got {len(ids)} ids beginning with {ids[:4]}"
            )
        if START_TOKEN not in ids or END_TOKEN not in ids:
            raise ValueRangeError(
                f"a vocabulary map needs the start and end marks {START_TOKEN} and {END_TOKEN}: "
                "build it with from_words"
            )

    @classmethod
    def from_words(
        cls, tokenizer: ClipTokenizer, words: Iterable[str], *, padding: int = END_TOKEN
    ) -> VocabMap:
        """Keep the ids that the words (or whole captions) need, the marks and the padding."""
        ids = {START_TOKEN, END_TOKEN, padding}
        for word in words:
            ids.update(tokenizer.encode(word))
        return cls(tuple(sorted(ids)))

    @classmethod
    def from_tensor(cls, clip_ids: Tensor) -> VocabMap:
        """Read what `to_tensor` wrote: integers (n,). Raises ShapeError or ValueRangeError otherwise."""
        if clip_ids.ndim != 1 or clip_ids.is_floating_point():
            raise ShapeError(
                f"a vocabulary map is a one-dimensional tensor of integers, got {clip_ids.dtype} of shape "
                f"{tuple(clip_ids.shape)}"
            )
        return cls(tuple(clip_ids.tolist()))

    def to_tensor(self) -> Tensor:
        """int32 (n,): the CLIP ids that have a row of their own, in the order of the rows."""
        return torch.tensor(self.clip_ids, dtype=torch.int32, device="cpu")

    @property
    def unknown(self) -> int:
        """Row shared by all ids that are not kept."""
        return len(self.clip_ids)

    @property
    def rows(self) -> int:
        """Size of the embedding table, the unknown's row included."""
        return len(self.clip_ids) + 1

    def map(self, ids: Tensor) -> Tensor:
        """CLIP ids of any shape -> rows, int64 of the same shape."""
        return map_ids(self.to_tensor().to(ids.device), ids)


def map_ids(clip_ids: Tensor, ids: Tensor) -> Tensor:
    """Rows of `ids` in the sorted table `clip_ids` (n,); n for those that are not in it."""
    ids = ids.to(clip_ids.dtype)
    rows = torch.searchsorted(clip_ids, ids).clamp(max=clip_ids.numel() - 1)
    return torch.where(clip_ids[rows] == ids, rows, clip_ids.numel())
