"""Texts of strangers (titles, names, keys) on a terminal: shown, never obeyed."""

from __future__ import annotations

import re

# Control characters but tab and line break, halves of characters, and marks that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with whatever could steer a terminal written as an escape, such as \x1b."""
    return _STEERING.sub(lambda match: ascii(match[0])[1:-1], text)
