"""`controlnet doctor`: versions, device, folders, built-in files, and a self-check of a second."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..bundled import bundled_names
from ..session import add_device_arguments, add_folder_arguments, host_arguments

_NAME_WIDTH = 24
_PACKAGES = (
    ("comfyui-controlnet-core", True),
    ("torch", True),
    ("numpy", True),
    ("safetensors", True),
    ("pillow", True),
    ("pyyaml", True),
    ("opencv-python", True),
    ("einops", True),
    ("scipy", True),
    ("matplotlib", True),
    ("tokenizers", True),
    ("torchsde", True),
    ("tqdm", True),
    ("transformers", False),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty when all is well."""

    name: str
    text: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
    add_folder_arguments(parser)
    add_device_arguments(parser)
    parser.add_argument(
        "--preprocessors",
        action="store_true",
        help="try every learned preprocessor: is its file there, does it load, is its hint plausible",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 when everything that a run needs is there, else 1."""
    findings = []
    for item in _findings(args):
        findings.append(item)
        if not args.json:  # at once: with large nets a line may take a minute
            mark, advice = ("!", f": {item.remedy}") if item.remedy else (" ", "")
            print(f"{mark} {item.name:<{_NAME_WIDTH}} {item.text}{advice}", flush=True)
    well = not any(finding.remedy for finding in findings)
    if args.json:
        print(json.dumps({"ok": well, "findings": [asdict(finding) for finding in findings]}))
    return 0 if well else 1


def _findings(args: argparse.Namespace) -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    yield from (_package(name, needed) for name, needed in _PACKAGES)
    options = host_arguments(args)
    yield _device(options["device"])
    yield from _folders(options)
    yield from _assets()
    yield _noise()
    yield _self_check(options["device"])
    if args.preprocessors:
        yield from _preprocessors(args)


def _preprocessors(args: argparse.Namespace) -> Iterator[Finding]:
    """One line for each learned preprocessor, and one that counts them; an absent file is no fault."""
    from ...controlnet_core.picture_files import read_picture
    from ...preprocessors.learned.files import SUBFOLDERS
    from ...preprocessors.learned.selftest import check_all
    from .preprocess import open_library

    folder = Path(__file__).parents[2] / "controlnet_core" / "assets" / "examples"
    remedies = {
        "refused": "get the file again if it is damaged",
        "implausible": "look at the hint, the file may be another one",
    }
    library = open_library(args)
    states: Counter[str] = Counter()
    for found in check_all(read_picture(folder / "astronaut.jpg").pixels, library):
        states[found.state] += 1
        yield Finding(found.name, f"{found.state}, {found.text}", remedies.get(found.state, ""))
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    places = ", ".join(str(place) for place in library.folders) or "no folder, give one by --models"
    yield Finding(
        "preprocessors", f"{counts}; looked in {places}, and below in {', '.join(SUBFOLDERS[1:4])} and others"
    )


def _package(name: str, needed: bool) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        if name == "opencv-python":  # any build of it gives the module cv2
            return _package("opencv-python-headless", needed)
        remedy = f"install it with `pip install {name}`" if needed else ""
        return Finding(name, "not installed" if needed else "not installed, only learned preprocessors need it", remedy)


def _device(name: str) -> Finding:
    import torch

    from ...controlnet_core.engine.memory import free_bytes

    free = free_bytes(torch.device(name))
    room = "" if free is None else f", {free / 2**30:.0f} GB free"
    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        return Finding("device", f"{name}, {properties.name}, {properties.total_memory / 2**30:.0f} GB{room}")
    return Finding("device", f"{name}, {torch.get_num_threads()} threads{room}")


def _folders(options: dict[str, Any]) -> Iterator[Finding]:
    for kind in ("input_dir", "output_dir"):
        folder: Path = options[kind]
        there = "" if folder.is_dir() else " (not there yet)"
        yield Finding(kind.removesuffix("_dir"), f"{folder.absolute()}{there}")
    roots = options["models_dirs"]
    for root in roots:
        count = sum(1 for path in root.rglob("*") if path.suffix in (".safetensors", ".ckpt", ".pth", ".pt", ".bin"))
        yield Finding("models", f"{root.absolute()}, {count} files")
    for kind, folders in options["model_folders"].items():
        for folder in folders:
            yield Finding("models", f"{kind}: {folder}{'' if folder.is_dir() else ' (not there)'}")
    if not roots and not options["model_folders"]:
        yield Finding("models", "none given, the built-in demo models are there anyway")


def _assets() -> Iterator[Finding]:
    from ... import controlnet_core

    folder = Path(controlnet_core.__file__).parent / "assets"
    models = sorted(path.name for path in folder.rglob("*.safetensors"))
    remedy = "" if models else "install the package again, its wheel holds them"
    yield Finding("demo models", ", ".join(models) or "none", remedy)
    names = bundled_names()
    yield Finding("workflows", ", ".join(names) or "none", "" if names else "install the package again")


def _noise() -> Finding:
    from ...controlnet_core.diffusion.noise import COMPARED_WITH, FOLLOWS
    from ...controlnet_core.pipeline import SampleSettings

    return Finding("noise", f"{FOLLOWS[SampleSettings().ancestral]}; compared with {', '.join(COMPARED_WITH)}")


def _self_check(device: str) -> Finding:
    """The paper's first identity on a small net: a fresh ControlNet leaves the UNet as it is."""
    import torch

    from ...controlnet_core.config import DEMO
    from ...controlnet_core.models.controlnet import ControlNet
    from ...controlnet_core.models.unet import UNet

    began = time.perf_counter()
    torch.manual_seed(0)
    unet = UNet(DEMO.unet).to(device).eval()
    net = ControlNet.from_unet(unet).to(device).eval()
    x = torch.randn(1, 4, 16, 16, device=device)
    text = torch.randn(1, 77, DEMO.unet.context_dim, device=device)
    t = torch.tensor([500.0], device=device)
    with torch.no_grad():
        plain = unet(x, t, text)
        residuals = net(x, t, text, torch.rand(1, 3, 128, 128, device=device))
        controlled = unet(x, t, text, residuals=residuals)
    same = torch.equal(plain, controlled) and bool(torch.isfinite(plain).all())
    text_said = f"a fresh ControlNet leaves the UNet bit-equal ({time.perf_counter() - began:.1f} s)"
    return Finding("self-check", text_said if same else "failed", "" if same else "report it with this output")
