"""Print texts of strangers (titles, names, keys) so that they cannot control the terminal."""

from __future__ import annotations

import re

# Control characters except tab and line break, lone surrogates, and marks that change the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return the text with every character that could control a terminal as an escape, such as \x1b."""
    return _STEERING.sub(lambda match: ascii(match[0])[1:-1], text)
