"""`controlnet doctor`: check versions, device, folders and built-in files, and run a self-check of a second."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...nodes.folders import MODEL_ENDINGS, walk_files
from ..bundled import ASSETS, bundled_names
from ..session import add_device_arguments, add_folder_arguments, host_arguments
from ..versions import installed_version

_NAME_WIDTH = 24
_NEEDED = (
    "comfyui-controlnet-core", "torch", "numpy", "safetensors", "pillow", "pyyaml", "opencv-python", "einops", "scipy",
    "matplotlib", "tokenizers", "torchsde", "tqdm",
)  # fmt: skip
_OPTIONAL = ("transformers",)
_REMEDIES = {
    "refused": "get the file again if it is damaged",
    "implausible": "look at the hint, the file may be another one",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. remedy: what to do, empty if nothing is wrong."""

    name: str
    text: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    add_folder_arguments(parser)
    add_device_arguments(parser)
    parser.add_argument(
        "--preprocessors", action="store_true",
        help="try every learned preprocessor: does its file exist, does it load, is its hint plausible",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the findings. Returns 0 if everything that a run needs is there, else 1."""
    findings = []
    for item in _findings(args):
        findings.append(item)
        # Print each line at once: with large networks the next one may take a minute.
        if not args.json:
            mark, advice = ("!", f": {item.remedy}") if item.remedy else (" ", "")
            print(f"{mark} {item.name:<{_NAME_WIDTH}} {item.text}{advice}", flush=True)
    is_well = not any(finding.remedy for finding in findings)
    if args.json:
        print(json.dumps({"ok": is_well, "findings": [asdict(finding) for finding in findings]}))
    return 0 if is_well else 1


def _findings(args: argparse.Namespace) -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    yield from (_package(name) for name in (*_NEEDED, *_OPTIONAL))
    options = host_arguments(args)
    yield _device(options["device"])
    yield from _folders(options)
    yield from _assets()
    yield _noise()
    yield _self_check(options["device"])
    if args.preprocessors:
        yield from _preprocessors(args)


def _preprocessors(args: argparse.Namespace) -> Iterator[Finding]:
    """Yield a line for each learned preprocessor, and one that counts them. A missing file is no fault."""
    from ...controlnet_core.picture_files import read_picture
    from ...preprocessors.learned.files import SUBFOLDERS
    from ...preprocessors.learned.selftest import check_all
    from .preprocess import open_library

    library = open_library(args)
    states: Counter[str] = Counter()
    for found in check_all(read_picture(ASSETS / "examples" / "astronaut.jpg").pixels, library):
        states[found.state] += 1
        yield Finding(found.name, f"{found.state}, {found.text}", _REMEDIES.get(found.state, ""))
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    places = ", ".join(str(place) for place in library.folders) or "no folder, give one with --models"
    below = ", ".join(SUBFOLDERS[1:4])
    yield Finding("preprocessors", f"{counts}; searched {places}, and their subfolders {below} and others")


def _package(name: str) -> Finding:
    # Every build of OpenCV offers the same module.
    found = installed_version(name, f"{name}-headless")
    if found:
        return Finding(name, found)
    if name in _OPTIONAL:
        return Finding(name, "not installed, only learned preprocessors need it")
    return Finding(name, "not installed", f"install it with `pip install {name}`")


def _device(name: str) -> Finding:
    import torch

    from ...controlnet_core.runtime.memory import free_bytes

    free = free_bytes(torch.device(name))
    room = "" if free is None else f", {free / 2**30:.0f} GB free"
    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        return Finding("device", f"{name}, {properties.name}, {properties.total_memory / 2**30:.0f} GB{room}")
    return Finding("device", f"{name}, {torch.get_num_threads()} threads{room}")


def _folders(options: dict[str, Any]) -> Iterator[Finding]:
    for kind in ("input", "output"):
        folder: Path = options[f"{kind}_dir"]
        yield Finding(kind, f"{folder.absolute()}{'' if folder.is_dir() else ' (not there yet)'}")
    for root in options["models_dirs"]:
        count = sum(path.suffix.lower() in MODEL_ENDINGS for path in walk_files(root))
        yield Finding("models", f"{root.absolute()}, {count} files")
    for kind, folders in options["model_folders"].items():
        for folder in folders:
            yield Finding("models", f"{kind}: {folder}{'' if folder.is_dir() else ' (not there)'}")
    if not options["models_dirs"] and not options["model_folders"]:
        yield Finding("models", "no folder; the built-in demo models are always there")


def _assets() -> Iterator[Finding]:
    models = sorted(path.name for path in walk_files(ASSETS) if path.suffix == ".safetensors")
    for name, found in (("demo models", models), ("workflows", bundled_names())):
        remedy = "" if found else "install the package again, they are part of it"
        yield Finding(name, ", ".join(found) or "none", remedy)


def _noise() -> Finding:
    from ...controlnet_core.diffusion.noise import COMPARED_WITH, FOLLOWS
    from ...controlnet_core.sample import SampleSettings

    return Finding("noise", f"{FOLLOWS[SampleSettings().ancestral]}; compared with {', '.join(COMPARED_WITH)}")


def _self_check(device: str) -> Finding:
    """Check the paper's first identity on a small net: a new ControlNet does not change the UNet's output."""
    import torch

    from ...controlnet_core.config import DEMO
    from ...controlnet_core.models.controlnet import ControlNet
    from ...controlnet_core.models.unet import UNet

    began = time.perf_counter()
    torch.manual_seed(0)
    unet = UNet(DEMO.unet).to(device).eval()
    net = ControlNet.from_unet(unet).to(device).eval()
    # Random input is enough: the zero convolutions of a new net give 0 for any feature (section 3.1 of the paper).
    x = torch.randn(1, 4, 16, 16, device=device)
    text = torch.randn(1, 77, DEMO.unet.context_dim, device=device)
    t = torch.tensor([500.0], device=device)
    with torch.no_grad():
        plain = unet(x, t, text)
        residuals = net(x, t, text, torch.rand(1, 3, 128, 128, device=device))
        controlled = unet(x, t, text, residuals=residuals)
    same = torch.equal(plain, controlled) and bool(torch.isfinite(plain).all())
    if not same:
        return Finding("self-check", "failed", "report it with this output")
    return Finding("self-check", f"a new ControlNet leaves the UNet bit-equal ({time.perf_counter() - began:.1f} s)")
