"""Let writing fail as on a full disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_limit(count: int) -> Iterator[None]:
    """Let this process write at most `count` bytes into a file; a longer write fails with "File too large".

    On POSIX only. A small disk would need the rights to mount one.
    """
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
