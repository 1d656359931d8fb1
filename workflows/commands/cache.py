"""`controlnet cache`: list the packed weights that `--keep-packed` wrote, or remove them."""

from __future__ import annotations

import argparse
import json

from ..terminal import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cache`."""
    parser.add_argument("--clear", action="store_true", help="remove all of them; they are made again when needed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the files with their sizes. Returns 0."""
    from ...controlnet_core import speed  # with torch: whether a file fits depends on it

    folder = speed.kept_folder()
    files = list(speed.list_kept_files(folder))
    total = sum(file.size for file in files)
    removed = list(speed.remove_kept_files(folder)) if args.clear else []
    if args.json:
        rows = [
            {"file": file.path.name, "bytes": file.size, "sources": list(file.sources), "problem": file.problem}
            for file in files
        ]
        facts = {"ok": True, "folder": str(folder), "bytes": total, "files": rows, "removed": len(removed)}
        print(json.dumps(facts))
        return 0
    if args.clear:
        print(f"removed {len(removed)} files, {total / 1e6:,.0f} MB, from {folder}")
        return 0
    for file in files:
        use = f"  (not used: {file.problem})" if file.problem else ""
        print(printable(f"{file.size / 1e6:10,.0f} MB  {file.path.name}  {', '.join(file.sources)}{use}"))
    print(f"{total / 1e6:10,.0f} MB in {len(files)} files in {folder}")
    return 0
