"""Show the progress of a workflow on stderr: a line for each node, and a bar for the steps of a sampler."""

from __future__ import annotations

import sys
from typing import Any

from .execution import NodeEvent
from .terminal import printable


class Reporter:
    """Receives the events of the execution (`on_node`) and of the host (`on_step`)."""

    def __init__(self, *, quiet: bool = False, each_node: bool = True) -> None:
        """quiet: print warnings only. each_node: print a line for each node."""
        self.quiet, self.each_node = quiet, each_node
        self._bar: Any = None
        self._label = ""
        self._warned: set[str] = set()

    def on_node(self, event: NodeEvent) -> None:
        """Print a line when a node is done or comes from the cache."""
        node, width = event.node, len(str(event.total))
        title = node.class_type if node.title in ("", node.class_type) else f"{node.title} ({node.class_type})"
        # The bar of the node shows the same label.
        self._label = printable(f"{event.index + 1:>{width}}/{event.total} {title}")
        if event.state != "start":
            self.close()
        if event.state != "start" and self.each_node:
            self.line(f"{self._label}  {'unchanged' if event.state == 'cached' else f'{event.seconds:.2f} s'}")

    def on_step(self, done: int, total: int, preview: Any = None) -> None:
        """Advance the bar of the running node. tqdm shows it on a terminal only."""
        if self.quiet or total <= 1:
            return
        if self._bar is None or self._bar.total != total:
            from tqdm import tqdm

            self.close()
            self._bar = tqdm(total=total, desc=self._label, leave=False, disable=None, file=sys.stderr)
        self._bar.update(done - self._bar.n)

    def line(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning once, also if quiet: with --seeds the same one would come for each seed."""
        if text not in self._warned:
            self._warned.add(text)
            print(f"warning: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
