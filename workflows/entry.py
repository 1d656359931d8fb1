"""The door of the command `controlnet`: it imports nothing, so that Ctrl-C is answered from the first moment."""

from __future__ import annotations

import sys


def main() -> int:
    """As `cli.main`; an interruption before that has taken over, or behind its end, is one line and code 130 too."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        print("error: interrupted; what was saved before stays", file=sys.stderr)
        return 130
