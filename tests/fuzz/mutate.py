"""Hypothesis strategies that damage bytes, JSON and text, near the structure of valid originals."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    0.5,
    -0.0,
    255,
    256,
    4097,
    2**31,
    2**32,
    2**53,
    -(2**63),
    2**64,
    10**9,
    10**400,
    1e-320,
    1e308,
)
TEXTS = (
    "", " ", "1", "-1", "true", "nan", "1e999", "a" * 300, "a" * 6000, " " * 6000, "(" * 5000, "\ud800", "\0",
    "é\u0301",
    "../../etc/passwd", "/etc/passwd", "C:\\windows\\x", "~root/x", "~", "a/../../b", "CON", "%date:yyyy%", "%1.x%",
    "{a|b}", "{" * 3000, "/* a */", "image", "KSampler", "x.safetensors", "x.png [output]", "\u2028", "\u202e",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [{}], [None], ["1", 0], ["1", -1], [0] * 600, {"": {}},
    float("nan"), float("inf"), float("-inf"), {"a": {"a": {"a": [1]}}}, ["a", "b", "c"],
)  # fmt: skip
"""What stands where something else is expected."""
_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0x22, 0x5B, 0x7B, 0x20)
_SIZES = (1, 1, 2, 4, 8, 33, 300)
_COUNTS = (1, 1, 1, 2, 2, 4, 8)


@st.composite
def mutated(draw: Any, originals: st.SearchStrategy[bytes], others: Sequence[bytes] = ()) -> bytes:
    """Bytes with some changed, cut out, repeated or inserted, most of them near the beginning.

    others: what pieces are taken from.
    """
    data = bytearray(draw(originals))
    for _ in range(draw(st.sampled_from(_COUNTS))):
        share = draw(st.integers(0, 999)) / 1000
        at = int(len(data) * (share**3 if draw(st.booleans()) else share))
        size = draw(st.sampled_from(_SIZES))
        match draw(st.integers(0, 9)):
            case 0:
                data[at : at + 1] = bytes([draw(st.sampled_from(_BYTES))])
            case 1:
                data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << draw(st.integers(0, 7))])
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at:at] = draw(st.binary(max_size=8))
            case 5:
                width = draw(st.sampled_from((2, 4, 8)))
                number = draw(st.sampled_from((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
                order = draw(st.sampled_from(("little", "big")))
                data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, order)
            case 6:
                del data[at:]
            case 7:
                data[at : at + size] = bytes(size)
            case 8 if others:
                other = draw(st.sampled_from(others))
                begin = int(len(other) * draw(st.integers(0, 999)) / 1000)
                data[at:at] = other[begin : begin + 8 * size]
            case _:
                piece = data[at : at + size]
                del data[at : at + size]
                to = int(len(data) * draw(st.integers(0, 999)) / 1000)
                data[to:to] = piece
    return bytes(data)


@st.composite
def mutated_tree(draw: Any, originals: st.SearchStrategy[Any], more: Sequence[Any] = ()) -> Any:
    """JSON data with some values replaced, removed, repeated, moved or wrapped. more: further replacements."""
    tree = [copy.deepcopy(draw(originals))]
    values = (*VALUES, *more)
    for _ in range(draw(st.sampled_from(_COUNTS))):
        places = list(_places(tree))
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.integers(0, 7)):
            case 0 | 1 | 2:
                parent[key] = copy.deepcopy(draw(st.sampled_from(values)))
            case 3 if parent is not tree:
                del parent[key]
            case 4:
                other, name = places[draw(st.integers(0, len(places) - 1))]
                parent[key] = copy.deepcopy(other[name])
            case 5 if isinstance(parent, dict):
                parent[draw(st.sampled_from((*TEXTS, *(k for p, k in places[:40] if isinstance(k, str)))))] = parent[
                    key
                ]
            case 6 if isinstance(parent, list) and parent is not tree:
                parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(parent[key]))
            case _:
                parent[key] = draw(st.sampled_from((lambda v: [v], lambda v: {"a": v}, lambda v: [v, v], str)))(
                    parent[key]
                )
    return tree[0]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """All (container, key or index) of a tree, without recursion."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        container = pending.pop()
        for key in list(container) if isinstance(container, dict) else range(len(container)):
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                pending.append(container[key])
    return found


@st.composite
def json_bytes(draw: Any, trees: st.SearchStrategy[Any]) -> bytes:
    """JSON data as a file: mostly as it is, sometimes in another encoding, cut short, nested or with a key twice."""
    text = json.dumps(draw(trees))
    match draw(st.integers(0, 19)):
        case 0:
            return b"\xef\xbb\xbf" + text.encode()
        case 1:
            return text.encode("utf-16")
        case 2:
            return draw(mutated(st.just(text.encode())))
        case 3:
            at = draw(st.integers(0, len(text)))
            bracket = draw(st.sampled_from("[{"))
            return (text[:at] + bracket * draw(st.sampled_from((10, 1000, 100_000))) + text[at:]).encode()
        case 4:
            return (text + draw(st.sampled_from(("\n", "\0", "}", "]", text))))[: 2**20].encode()
        case 5:
            return text.replace('": ', '": ' + draw(st.sampled_from(("", "1" * 5000, '"', "-"))), 1).encode()
    return text.encode()


def either(first: st.SearchStrategy[Any], second: st.SearchStrategy[Any], share: int) -> st.SearchStrategy[Any]:
    """`second` in one of `share` cases."""
    return st.integers(0, share - 1).flatmap(lambda n: first if n else second)


def texts(alphabet: Sequence[str], size: int) -> st.SearchStrategy[str]:
    """Texts of pieces of an alphabet."""
    return st.lists(st.sampled_from(alphabet), max_size=size).map("".join)
