"""The entry point of the command `controlnet`. It imports nothing at first, so that Ctrl-C works from the start."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `cli.main`. Ctrl-C before it takes over, or after its end, also ends in one line and exit code 130."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        print("error: interrupted; what was saved before stays", file=sys.stderr)
        return 130
