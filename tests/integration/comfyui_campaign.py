"""Compare `controlnet run --comfyui` with ComfyUI's server on a folder of workflows: the pictures must be equal.

    COMFYUI_DIR=... [COMFYUI_PACKS=...] python tests/integration/comfyui_campaign.py FOLDER WORK [--only NAME ...]

The files that the workflows name are random small ones of Stable Diffusion 1.5's layout (`random_models.py`), so
workflows for other models fail, and are listed. Sizes are divided by four and steps set to 2, the same for both sides.
WORK is kept: it has a base folder of ComfyUI, the pictures, and `report.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KINDS = {
    "ckpt_name": "checkpoints", "vae_name": "vae", "lora_name": "loras", "control_net_name": "controlnet",
    "model_name": "upscale_models", "image": "input", "cnet": "controlnet",
}  # fmt: skip
"""Inputs that name a file, and the kind of its folder."""
SIDES = ("width", "height", "x", "y", "target_width", "target_height")
MAX_STEPS = 2


def settings(graph: Any) -> Iterator[str]:
    """--set arguments that make a workflow small."""
    for node in graph.nodes.values():
        for name, value in node.inputs.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if name in SIDES and value > 1:
                yield f"{node.id}.{name}={max(int(value) // 32 * 8, 64 if 'w' in name or 'h' in name else 0)}"
            elif name == "megapixels":
                yield f"{node.id}.{name}=0.02"
            # The windows of advanced samplers are given in steps, so theirs stay.
            elif name == "steps" and value > MAX_STEPS and "start_at_step" not in node.inputs:
                yield f"{node.id}.{name}={MAX_STEPS}"


def provide(graph: Any, stock: Any, base: Path) -> None:
    """Offer every file that a workflow names."""
    for node in graph.nodes.values():
        for name, value in node.inputs.items():
            kind = KINDS.get(name.rstrip("0123456789_"))
            if kind and isinstance(value, str) and value and ".." not in value:
                stock.put(kind, value.replace("\\", "/").lstrip("/"), base)
            for found in re.findall(r"embedding:([^\s,:()]+)", value) if isinstance(value, str) else ():
                stock.put("embeddings", found if "." in found else f"{found}.safetensors", base)


def inside(folder: str, work: Path, files: list[Path]) -> list[dict[str, Any]]:
    """Run all files in this process: a row for each, with the pictures and the prompts that they carry."""
    sys.path.insert(0, str(HERE))
    importlib.import_module("comfyui_host").without_torchvision()
    sys.path.insert(0, folder)
    base = work / "base"
    importlib.import_module("comfy.cli_args").args.base_directory = str(base)
    cli = importlib.import_module("comfyui_controlnet_core.workflows.cli")
    formats = importlib.import_module("comfyui_controlnet_core.workflows.formats")
    headless = importlib.import_module("comfyui_controlnet_core.nodes.comfyui.headless")
    stock = importlib.import_module("random_models").Stock(work / "stock")
    output = work / "cli"
    comfy = headless.start(headless.Setup(Path(folder), base / "input", output, "cpu", "fp32"))
    rows = []
    for file in files:
        out, err = io.StringIO(), io.StringIO()
        row: dict[str, Any] = {"file": str(file)}
        began = time.perf_counter()
        try:
            graph = formats.to_graph(formats.read_document(file), comfy.classes)
            provide(graph, stock, base)
            sets = [word for setting in settings(graph) for word in ("--set", setting)]
            words = ["run", str(file), "--comfyui", folder, "--input", str(base / "input"), "--output", str(output)]
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                row["code"] = cli.main([*words, "--json", "--device", "cpu", "--dtype", "fp32", "--quiet", *sets])
            row["images"] = json.loads(out.getvalue())["images"] if row["code"] == 0 else []
        except Exception as error:
            row |= {"code": type(error).__name__, "images": []}
            err.write(str(error))
        row |= {"seconds": round(time.perf_counter() - began, 1), "said": err.getvalue()[-2000:]}
        rows.append(row)
        print(file.name, row["code"], len(row["images"]), row["seconds"], row["said"][-200:], flush=True)
    return rows


def compare(work: Path, rows: list[dict[str, Any]], server: str) -> None:
    """Send the prompt of each picture to the server, and note in the rows whether its pictures are the same."""
    inside_tests = importlib.import_module("test_comfyui_inside")
    png = importlib.import_module("comfyui_controlnet_core.workflows.png")
    numpy = importlib.import_module("numpy")
    image = importlib.import_module("PIL.Image")
    for row in (row for row in rows if row["images"]):
        paths = [Path(name) for name in row["images"]]
        prompt = json.loads(png.read_text(paths[0].read_bytes())["prompt"])
        theirs = inside_tests.pictures_of_server(server, work / "base", prompt)
        ours = [numpy.asarray(image.open(path)) for path in paths]
        row["theirs"] = len(theirs)
        # Both sides list several outputs in an order of their own.
        pairs = zip(*(sorted(side, key=lambda picture: picture.tobytes()) for side in (ours, theirs)), strict=False)
        row["equal"] = len(ours) == len(theirs) and all(numpy.array_equal(one, other) for one, other in pairs)
        row["spread"] = [round(float(picture.std()), 1) for picture in ours]
        print(Path(row["file"]).name, "equal" if row["equal"] else "DIFFERS", row["spread"], flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    args = parser.parse_args()
    names = sorted(path for path in args.folder.iterdir() if path.suffix in (".json", ".png"))
    files = [path for path in names if not args.only or path.stem in args.only]
    sys.path.insert(0, str(HERE))
    tests = importlib.import_module("test_comfyui_inside")
    base = tests.make_base(args.work / "base")
    rows = inside(os.environ["COMFYUI_DIR"], args.work, files)
    with tests.serving(base) as server:
        compare(args.work, rows, server)
    (args.work / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
    equal = sum(bool(row.get("equal")) for row in rows)
    print(f"{equal} of {len(rows)} equal, {sum(row['code'] == 0 for row in rows)} ran")
    # ComfyUI's worker never ends.
    sys.stdout.flush()
    os._exit(0 if equal == len(rows) else 1)


if __name__ == "__main__":
    main()
