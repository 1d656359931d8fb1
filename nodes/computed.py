"""What `Node.check_files` gets for an input that only a run knows. Here, because it is needed without torch."""

from __future__ import annotations

from typing import Any

COMPUTED: Any = object()
