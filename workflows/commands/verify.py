"""`controlnet verify FILES...`: try real model files, and write a report that can be attached to an issue."""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ...controlnet_core.errors import writing
from ...nodes.folders import publish, remove_leftovers, temporary_file
from ..bundled import ASSETS
from ..destinations import check_folder
from ..paths import path_argument
from ..session import add_device_arguments
from ..terminal import printable
from ..versions import installed_version

if TYPE_CHECKING:
    from ...controlnet_core.checkpoints.verify import Check, FileReport

PROMPT = "a photo of an astronaut"
STEPS, SEED, SIZE = 8, 0, 256
"""A small picture: enough to see whether a model works, in minutes on a CPU."""
_PACKAGES = ("comfyui-controlnet-core", "torch", "safetensors", "numpy", "diffusers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=path_argument,
        help="model files or diffusers folders; give a checkpoint too, and its nets and LoRAs are tried on it",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="DIR", type=path_argument, default=Path("verify"),
        help="folder for the report and the pictures (default: ./verify)",
    )  # fmt: skip
    parser.add_argument("--no-picture", dest="picture", action="store_false", help="do not generate small pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Verify the files. Returns 0 when no check failed, else 3."""
    from ...controlnet_core.checkpoints.verify import verify_file
    from ...controlnet_core.runtime.device import choose_device

    check_folder("--output", args.output)
    device = choose_device(args.device)
    reports = []
    for path in args.files:
        reports.append(verify_file(path, device))
        if not args.json:
            print(printable("\n".join(_shown(reports[-1]))), flush=True)
    pictures = [_with_picture(report, reports, args) for report in reports] if args.picture else []
    text = "\n".join(
        ["# controlnet verify", "", *_versions(str(device)), ""]
        + [line for report in reports for line in report.lines()]
        + (["## pictures", "", *(f"- {check.name}: {check.state}, {check.text}" for check in pictures), ""])
    )
    saved = _publish(text.encode("utf-8", "backslashreplace"), args.output, "report", ".md")
    failed = [report for report in reports if not report.passed] or [c for c in pictures if c.state == "failed"]
    if args.json:
        files = [{**asdict(report), "path": report.path.name} for report in reports]
        facts = {"ok": not failed, "report": str(saved), "files": files, "pictures": [asdict(c) for c in pictures]}
        print(json.dumps(facts))
    else:
        print("".join(f"{c.state:<8} {c.name}: {c.text}\n" for c in pictures), end="")
        print(f"report:  {printable(str(saved))}")
    return 3 if failed else 0


def _shown(report: FileReport) -> Iterator[str]:
    yield f"{report.path.name}: {report.summary}"
    yield from (f"  {check.state:<8} {check.name}: {check.text}" for check in report.checks)


def _versions(device: str) -> Iterator[str]:
    yield from (f"- {name} {installed_version(name) or '(not installed)'}" for name in _PACKAGES)
    yield f"- Python {platform.python_version()}, {platform.system()} {platform.machine()}, device {device}"


def _with_picture(report: FileReport, reports: Sequence[FileReport], args: argparse.Namespace) -> Check:
    """Generate a picture with a checkpoint, or with a net on the checkpoint among the files that it fits."""
    from ...controlnet_core.checkpoints.detect import identify_file
    from ...controlnet_core.checkpoints.verify import Check, run_check

    name = f"picture: {report.path.name}"
    identity = identify_file(report.path)
    if not report.passed or (identity.kind != "checkpoint" and identity.folder != "controlnet"):
        return Check(name, "skipped", "only for checkpoints and nets that passed")
    base = report.path if identity.kind == "checkpoint" else _find_base(report.path, reports)
    if base is None:
        return Check(name, "skipped", "no checkpoint among the files fits: give one too")
    return run_check(name, lambda: _generate(base, None if base == report.path else report.path, args))


def _find_base(net: Path, reports: Sequence[FileReport]) -> Path | None:
    """The first verified checkpoint that a net was made for."""
    from ...controlnet_core.checkpoints.detect import identify_file
    from ...controlnet_core.checkpoints.fit import misfit

    checkpoints = (r.path for r in reports if r.passed and identify_file(r.path).kind == "checkpoint")
    return next((path for path in checkpoints if not misfit(net, path)), None)


def _generate(base: Path, net: Path | None, args: argparse.Namespace) -> str:
    """Generate and save one small picture through the Python API, which raises an error for NaN."""
    import io

    from .. import api

    pipe = api.load(base, device=args.device, dtype=args.dtype)
    example = ASSETS / "examples" / "astronaut.jpg"
    controls = [] if net is None else [api.control(net, api.preprocess("canny", example))]
    buffer = io.BytesIO()
    image = pipe(PROMPT, controls=controls, seed=SEED, steps=STEPS, size=SIZE)
    image.save(buffer, "PNG")
    stem = re.sub(r"[^\w.-]", "_", (net or base).stem)[:100]
    saved = _publish(buffer.getvalue(), args.output, stem, ".png")
    return f"{saved.name}, {SIZE} px, {STEPS} steps, seed {SEED}, {PROMPT!r}"


def _publish(content: bytes, folder: Path, stem: str, ending: str) -> Path:
    """Write a file under the first free number; no file is replaced."""
    temporary = temporary_file(folder)
    try:
        with writing(folder / f"{stem}{ending}"):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            temporary.write_bytes(content)
            return publish(temporary, (folder / f"{stem}_{number:05}{ending}" for number in count(1)))
    finally:
        temporary.unlink(missing_ok=True)
