"""All weight-free preprocessors on one photo, as one picture: python benchmarks/contact_sheet.py [OUT] [PHOTO].

What needs another input gets one made from the photo: a blurred copy serves as depth map, a rectangle as mask,
and the photo beside a shifted copy as stereo pair.
"""

from __future__ import annotations

import sys
from pathlib import Path

import comfyui_controlnet_core
import cv2
import numpy as np
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.pose import render, template_pose

SIDE, COLUMNS, LABEL = 176, 7, 18
EXAMPLES = Path(comfyui_controlnet_core.__file__).parent / "controlnet_core" / "assets" / "examples"


def main(out: Path, photo: Path) -> None:
    """Write the sheet."""
    picture = cv2.imdecode(np.frombuffer(photo.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    cells = [("photo", picture)]
    cells += [(entry.name, _hint(entry.name, picture)) for entry in ENTRIES if not entry.weights]
    cells.append(("pose (template)", _bytes(render([template_pose("waving", 512, 512)])[0])))
    cells += [("", np.zeros_like(picture))] * (-len(cells) % COLUMNS)
    tiles = [_tile(name, cell) for name, cell in cells]
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    cv2.imwrite(str(out), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])


def _hint(name: str, picture: np.ndarray) -> np.ndarray:
    from comfyui_controlnet_core.preprocessors import process

    height, width = picture.shape[:2]
    options: dict[str, object] = {}
    if name in ("depth_map", "normal_depth"):
        picture = cv2.GaussianBlur(picture, (0, 0), width / 40)
    if name == "depth_stereo":
        picture = np.concatenate([picture, np.roll(picture, -12, axis=1)], axis=1)
    if name == "inpaint":
        options["mask"] = np.zeros((height, width), np.float32)
        options["mask"][height // 4 : height // 2, width // 3 : -width // 4] = 1.0
    if name == "tile":
        options["factor"] = 16
    return _bytes(process(name, picture[None], **options)[0])


def _bytes(hint: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(hint, 0.0, 1.0) * 255).astype(np.uint8)


def _tile(name: str, picture: np.ndarray) -> np.ndarray:
    tile = np.full((SIDE + LABEL, SIDE, 3), 32, np.uint8)
    tile[:SIDE] = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    cv2.putText(tile, name, (4, SIDE + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (230, 230, 230), 1, cv2.LINE_AA)
    return tile


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        Path(arguments[0] if arguments else "preprocessors.jpg"),
        Path(arguments[1]) if arguments[1:] else EXAMPLES / "coffee.jpg",
    )
