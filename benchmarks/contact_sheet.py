"""Draw the hints of all preprocessors without weights, for one photo, on one sheet.

    python benchmarks/contact_sheet.py [OUT] [PHOTO]

Preprocessors that read a map get one that `preprocessors/examples.py` makes from the photo.
"""

from __future__ import annotations

import sys
from pathlib import Path

import comfyui_controlnet_core
import cv2
import numpy as np
from comfyui_controlnet_core.preprocessors import process
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.entry import Entry
from comfyui_controlnet_core.preprocessors.examples import example
from comfyui_controlnet_core.preprocessors.pose import render, template_pose

SIDE, COLUMNS, LABEL = 176, 7, 18
EXAMPLES = Path(comfyui_controlnet_core.__file__).parent / "controlnet_core" / "assets" / "examples"


def main(out: Path, photo: Path) -> None:
    """Write the sheet to `out`."""
    picture = cv2.imdecode(np.frombuffer(photo.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    cells = [("photo", picture)]
    cells += [(entry.name, _hint(entry, picture)) for entry in ENTRIES if not entry.weights]
    cells.append(("pose (template)", _bytes(render([template_pose("waving", 512, 512)])[0])))
    cells += [("", np.zeros_like(picture))] * (-len(cells) % COLUMNS)
    tiles = [_tile(name, cell) for name, cell in cells]
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    cv2.imwrite(str(out), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])


def _hint(entry: Entry, photo: np.ndarray) -> np.ndarray:
    image, options = example(entry, photo)
    return _bytes(process(entry, image, **options)[0])


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
