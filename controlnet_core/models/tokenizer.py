"""CLIP's byte-pair tokenizer, and the reduced vocabulary of small text encoders.

Sources: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
section 2.4 (lower-cased byte pair encoding, 49152 entries and two marks); Sennrich et al. 2016, "Neural
Machine Translation of Rare Words with Subword Units", algorithm 1. The merge table is data of the CLIP
release (assets/NOTICE.md).

The `tokenizers` library does the work, in linear time. It is set up as in transformers' `CLIPTokenizer` as of
version 5 (its "fast" tokenizer before that), so the ids are the same. Other tokenizers differ in rare texts:
- The "slow" `CLIPTokenizer` of transformers 4, which ComfyUI uses beside an older transformers, also drops
  control and invisible characters (the joiners inside family and flag emoji too), puts spaces around each CJK
  ideograph, and has a special lower case for a final sigma.
- OpenAI's own tokenizer first repairs broken unicode (ftfy) and resolves html entities.
English prompts and single emoji have the same ids in all of them.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MissingFileError, ShapeError, ValueRangeError

START_TOKEN = 49406
END_TOKEN = 49407
VOCAB_SIZE = 49408
VOCAB_FILE = Path(__file__).parent.parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"

_MARKS = ("<|startoftext|>", "<|endoftext|>")
_MERGES = VOCAB_SIZE - len(_MARKS) - 2 * 256
_WORD_END = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
"""English suffixes, runs of letters, single digits, and runs of anything else. White space only separates."""


class ClipTokenizer:
    """Text to CLIP ids and back.

    merges: the 48894 pairs of the merge table, most frequent first. Raises ValueRangeError for another number.
    """

    start = START_TOKEN
    end = END_TOKEN

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        if len(merges) != _MERGES:
            raise ValueRangeError(
                f"the merge table has {len(merges)} pairs, CLIP's has {_MERGES}: use the table of the CLIP release"
            )
        # Imported here, because most nodes and commands never read a prompt.
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        # An id is a place in this list. It begins with a printable character for each byte, not in the order of the
        # bytes: those that stand for themselves come first.
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = [*alphabet, *(char + _WORD_END for char in alphabet), *(a + b for a, b in merges), *_MARKS]
        ids = {piece: i for i, piece in enumerate(pieces)}
        self._tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(merges), end_of_word_suffix=_WORD_END))
        self._tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_special_tokens(list(_MARKS))

    @classmethod
    def load(cls, path: str | Path = VOCAB_FILE) -> ClipTokenizer:
        """Read `bpe_simple_vocab_16e6.txt.gz`; without a path, the one that comes with the package.

        Raises MissingFileError if there is no such file, ValueRangeError if it is not the CLIP table.
        """
        # Reading it takes a tenth of a second, and every text encoder uses the same one.
        return _load_shipped() if path == VOCAB_FILE else cls._read(Path(path))

    @classmethod
    def _read(cls, path: Path) -> ClipTokenizer:
        if not path.is_file():
            raise MissingFileError(f"no CLIP vocabulary at {path}: reinstall the package, or give its path", path)
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                # The first line names the version. After the pairs that CLIP uses there are more.
                pairs = [tuple(line.split()) for line in islice(file, 1, _MERGES + 1)]
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise ValueRangeError(f"{path} is not the CLIP vocabulary ({error}): reinstall the package") from error
        return cls([(pair[0], pair[1]) for pair in pairs if len(pair) == 2])

    def encode(self, text: str) -> list[int]:
        """Encode a text of any length, without adding start and end marks. Marks written in the text count as marks."""
        # Half a surrogate pair, which the library cannot take, becomes a question mark.
        return self._tokenizer.encode(text.encode("utf-8", errors="replace").decode()).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into readable text: lower case, one space after each word. Marks are shown as they are written.

        Raises ValueRangeError for an id outside 0 to 49407.
        """
        ids = list(ids)
        for token in ids:
            if not 0 <= token < VOCAB_SIZE:
                raise ValueRangeError(f"token id {token} is not a CLIP id: expected 0 to {VOCAB_SIZE - 1}")
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        for piece in _MARKS:
            text = text.replace(piece, piece + _WORD_END)
        return text.replace(_WORD_END, " ").strip()


@cache
def _load_shipped() -> ClipTokenizer:
    """The tokenizer of the table that comes with the package."""
    return ClipTokenizer._read(VOCAB_FILE)


@dataclass(frozen=True)
class VocabMap:
    """The part of CLIP's vocabulary for which a small text encoder has embeddings.

    clip_ids: sorted; an id's index is its row in the embedding table. All other ids share the row after them.
    Raises ValueRangeError for ids that are not sorted, out of range, or without the two marks.
    """

    clip_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        ids = self.clip_ids
        if list(ids) != sorted(set(ids)) or not ids or ids[0] < 0 or ids[-1] >= VOCAB_SIZE:
            raise ValueRangeError(
                f"a vocabulary map lists CLIP ids 0 to {VOCAB_SIZE - 1} in rising order, each once; "
                f"got {len(ids)} ids that begin with {ids[:4]}"
            )
        if START_TOKEN not in ids or END_TOKEN not in ids:
            raise ValueRangeError(
                f"a vocabulary map needs the start and end marks {START_TOKEN} and {END_TOKEN}: "
                "build it with from_words"
            )

    @classmethod
    def from_words(cls, tokenizer: ClipTokenizer, words: Iterable[str], *, padding: int = END_TOKEN) -> VocabMap:
        """Make the map of the ids that these words (or whole captions) need, with the marks and the padding."""
        ids = {START_TOKEN, END_TOKEN, padding}
        for word in words:
            ids.update(tokenizer.encode(word))
        return cls(tuple(sorted(ids)))

    @classmethod
    def from_tensor(cls, clip_ids: Tensor) -> VocabMap:
        """Read integers (n,), as written by `to_tensor`. Raises ShapeError or ValueRangeError for anything else."""
        if clip_ids.ndim != 1 or clip_ids.is_floating_point():
            raise ShapeError(
                f"a vocabulary map is a one-dimensional tensor of integers, got {clip_ids.dtype} of shape "
                f"{tuple(clip_ids.shape)}"
            )
        return cls(tuple(clip_ids.tolist()))

    def to_tensor(self) -> Tensor:
        """The CLIP ids that have a row of their own, in the order of the rows: int32 (n,)."""
        return torch.tensor(self.clip_ids, dtype=torch.int32, device="cpu")

    @property
    def rows(self) -> int:
        """Size of the embedding table, including the row of unknown ids."""
        return len(self.clip_ids) + 1


def map_ids(clip_ids: Tensor, ids: Tensor) -> Tensor:
    """Find the rows of `ids` in the sorted table `clip_ids` (n,); n for ids that are not in it."""
    ids = ids.to(clip_ids.dtype)
    # Ids above the last one would be found behind the table; any row will do, since they are not equal to it.
    rows = torch.searchsorted(clip_ids, ids).clamp(max=clip_ids.numel() - 1)
    return torch.where(clip_ids[rows] == ids, rows, clip_ids.numel())
