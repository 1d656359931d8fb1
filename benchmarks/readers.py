"""Are the readers of another checkout as fast? Loads a full-size checkpoint, and validates 100 workflows.

    python benchmarks/readers.py BEFORE AFTER --rounds 7 --json FILE

BEFORE and AFTER are checkouts. They take turns in processes of their own. Each process warms up, then repeats each task
and reports the least time; the table has the median over the processes, and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PACKAGE = "comfyui_controlnet_core"
WORKFLOWS = 100
REPEATS = 3


def main() -> None:
    """Measure two checkouts in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT", help="the one before, and the one after")
    parser.add_argument("--rounds", type=int, default=7, help="processes for each checkout (default: 7)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker, args.checkouts[0])))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, after = (link(folder / str(n), path.resolve()) for n, path in enumerate(args.checkouts))
        subprocess.run([sys.executable, "-c", MAKE, str(folder / "sd15")], env=environment(after), check=True)
        times: dict[str, dict[str, list[float]]] = {}
        for number in range(args.rounds):
            for home in (before, after) if number % 2 else (after, before):
                command = [sys.executable, __file__, str(args.checkouts[0]), ".", "--worker", str(folder / "sd15")]
                done = subprocess.run(command, env=environment(home), check=True, capture_output=True, text=True)
                for task, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                    times.setdefault(task, {}).setdefault("before" if home == before else "after", []).append(seconds)
    facts = {}
    print("| task | before | after | ratio |\n| --- | --- | --- | --- |")
    for task, found in times.items():
        old, new = (statistics.median(found[side]) for side in ("before", "after"))
        facts[task] = {"before": old, "after": new, "ratio": new / old, "all": found}
        print(f"| {task} | {old:.3f} s | {new:.3f} s | {new / old:.3f} |")
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


def link(folder: Path, checkout: Path) -> Path:
    """A folder in which a checkout has the name of the package."""
    folder.mkdir()
    (folder / PACKAGE).symlink_to(checkout)
    return folder


def environment(home: Path) -> dict[str, str]:
    """The variables of a process that imports the package from `home`."""
    return {**os.environ, "PYTHONPATH": str(home)}


MAKE = """
import sys
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import SD15
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
torch.set_default_dtype(torch.float16)
parts = UNet(SD15.unet), AutoencoderKL(SD15.vae), ClipTextModel(SD15.text)
save_checkpoint(sys.argv[1] + ".own", SD15, *parts, layout="ldm")
# Without this package's metadata, of which the two checkouts may have different versions.
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1] + ".own")
save_file(tensors, sys.argv[1] + ".safetensors")
torch.save({"state_dict": tensors}, sys.argv[1] + ".ckpt")
"""
"""Writes Stable Diffusion 1.5's shapes with random weights, as safetensors and as a pickle, 2.1 GB each."""


def measure(checkpoint: Path, checkout: Path) -> dict[str, float]:
    """Seconds of each task in this process. checkout: whose bundled workflows are validated, for both sides."""
    from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
    from comfyui_controlnet_core.workflows import cli

    bundled = sorted((checkout / "workflows").glob("*.json"))
    files = [str(bundled[n % len(bundled)]) for n in range(WORKFLOWS)]

    def validate() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if any(cli.main(["validate", file]) for file in files):
                raise SystemExit("a bundled workflow is not valid")

    return {
        "load SD1.5, safetensors": least(lambda: load_checkpoint(checkpoint.with_suffix(".safetensors"))),
        "load SD1.5, pickle": least(lambda: load_checkpoint(checkpoint.with_suffix(".ckpt"))),
        f"validate {WORKFLOWS} workflows": least(validate),
    }


def least(task: Callable[[], object]) -> float:
    """The least time of a few calls, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        task()
        times.append(time.perf_counter() - began)
    return min(times[1:])


if __name__ == "__main__":
    main()
