"""What a person sees while a workflow runs: one line per node, a bar for steps; all on stderr."""

from __future__ import annotations

import sys
from typing import Any

from .execution import NodeEvent
from .terminal import printable


class Reporter:
    """Listens to the execution (`on_node`) and to the host (`on_step`)."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Any = None
        self._label = ""
        self._warned: set[str] = set()

    def on_node(self, event: NodeEvent) -> None:
        """A line when a node is done or was taken from the cache."""
        width = len(str(event.total))
        self._label = printable(f"{event.index + 1:>{width}}/{event.total} {_title(event)}")  # the bar shows it too
        if event.state == "start":
            return
        self.close()
        took = "unchanged" if event.state == "cached" else f"{event.seconds:.2f} s"
        self.line(f"{self._label}  {took}")

    def on_step(self, done: int, total: int, preview: Any = None) -> None:
        """The bar of the node that runs; on a terminal only, as tqdm decides."""
        if self.quiet or total <= 1:
            return
        if self._bar is None or self._bar.total != total:
            from tqdm import tqdm

            self.close()
            self._bar = tqdm(total=total, desc=self._label, leave=False, disable=None, file=sys.stderr)
        self._bar.update(done - self._bar.n)

    def line(self, text: str) -> None:
        """A line of its own, unless quiet."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning once, also if quiet: with --seeds the same one would come for each seed."""
        if text not in self._warned:
            self._warned.add(text)
            print(f"warning: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _title(event: NodeEvent) -> str:
    node = event.node
    return node.class_type if node.title in ("", node.class_type) else f"{node.title} ({node.class_type})"
