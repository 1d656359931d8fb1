"""Palettes: the colours by which the segmentation ControlNets know their classes.

ADE20K has 150 classes in the order of the MIT Scene Parsing benchmark. Two of them, road (6) and
skyscraper (48), share one colour; a colour is read back as the first.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .errors import ParameterError, PictureError
from .image_ops import like, to_numpy

if TYPE_CHECKING:
    from .image_ops import Array

_ADE20K = """
787878 wall; b47878 building; 06e6e6 sky; 503232 floor; 04c803 tree; 787850 ceiling; 8c8c8c road; cc05ff bed;
e6e6e6 windowpane; 04fa07 grass; e005ff cabinet; ebff07 sidewalk; 96053d person; 787846 earth; 08ff33 door;
ff0652 table; 8fff8c mountain; ccff04 plant; ff3307 curtain; cc4603 chair; 0066c8 car; 3de6fa water;
ff0633 painting; 0b66ff sofa; ff0747 shelf; ff09e0 house; 0907e6 sea; dcdcdc mirror; ff095c rug;
7009ff field; 08ffd6 armchair; 07ffe0 seat; ffb806 fence; 0aff47 desk; ff290a rock; 07ffff wardrobe;
e0ff08 lamp; 6608ff bathtub; ff3d06 railing; ffc207 cushion; ff7a08 base; 00ff14 box; ff0829 column;
ff0599 signboard; 0633ff chest of drawers; eb0cff counter; a09614 sand; 00a3ff sink; 8c8c8c skyscraper;
fa0a0f fireplace; 14ff00 refrigerator; 1fff00 grandstand; ff1f00 path; ffe000 stairs; 99ff00 runway;
0000ff case; ff4700 pool table; 00ebff pillow; 00adff screen door; 1f00ff stairway; 0bc8c8 river;
ff5200 bridge; 00fff5 bookcase; 003dff blind; 00ff70 coffee table; 00ff85 toilet; ff0000 flower; ffa300 book;
ff6600 hill; c2ff00 bench; 008fff countertop; 33ff00 stove; 0052ff palm; 00ff29 kitchen island;
00ffad computer; 0a00ff swivel chair; adff00 boat; 00ff99 bar; ff5c00 arcade machine; ff00ff hovel;
ff00f5 bus; ff0066 towel; ffad00 light; ff0014 truck; ffb8b8 tower; 001fff chandelier; 00ff3d awning;
0047ff streetlight; ff00cc booth; 00ffc2 television receiver; 00ff52 airplane; 000aff dirt track;
0070ff apparel; 3300ff pole; 00c2ff land; 007aff bannister; 00ffa3 escalator; ff9900 ottoman; 00ff0a bottle;
ff7000 buffet; 8fff00 poster; 5200ff stage; a3ff00 van; ffeb00 ship; 08b8aa fountain; 8500ff conveyer belt;
00ff5c canopy; b800ff washer; ff001f plaything; 00b8ff swimming pool; 00d6ff stool; ff0070 barrel;
5cff00 basket; 00e0ff waterfall; 70e0ff tent; 46b8a0 bag; a300ff minibike; 9900ff cradle; 47ff00 oven;
ff00a3 ball; ffcc00 food; ff008f step; 00ffeb tank; 85ff00 trade name; ff00eb microwave; f500ff pot;
ff007a animal; fff500 bicycle; 0abed4 lake; d6ff00 dishwasher; 00ccff screen; 1400ff blanket;
ffff00 sculpture; 0099ff hood; 0029ff sconce; 00ffcc vase; 2900ff traffic light; 29ff00 tray; ad00ff ashcan;
00f5ff fan; 4700ff pier; 7a00ff crt screen; 00ffb8 plate; 005cff monitor; b8ff00 bulletin board;
0085ff shower; ffd600 radiator; 19c2c2 glass; 66ff00 clock; 5c00ff flag
"""


@cache
def ade20k() -> tuple[tuple[str, ...], np.ndarray]:
    """The 150 names, and their colours (150,3) uint8, read-only."""
    rows = [row.split(maxsplit=1) for row in _ADE20K.replace("\n", " ").split(";")]
    colours = np.array([list(bytes.fromhex(code)) for code, _ in rows], np.uint8)
    colours.flags.writeable = False
    return tuple(name.strip() for _, name in rows), colours


def labels_to_hint(labels: Array) -> Array:
    """ADE20K class numbers (...,H,W), 0..149 -> colours (...,H,W,3) float32; others (-1, 255) are black."""
    numbers = to_numpy(labels)
    if numbers.ndim < 2 or numbers.dtype.kind not in "iub":
        raise PictureError(
            f"labels of shape {tuple(numbers.shape)} and type {numbers.dtype} came; expected whole "
            "numbers (H,W) or (B,H,W)"
        )
    _, colours = ade20k()
    table = np.vstack((colours, np.zeros((1, 3), np.uint8))).astype(np.float32) / np.float32(255.0)
    known = (numbers >= 0) & (numbers < len(colours))
    return like(table[np.where(known, numbers, len(colours))], labels)


def colours_of(palette: str) -> np.ndarray:
    """The colours (N,3) uint8 of a palette by its name."""
    if palette != "ade20k":
        raise ParameterError(f"palette={palette!r}: choose ade20k")
    return ade20k()[1]


def class_numbers(names: str) -> list[int]:
    """Names such as "sky, tree, road", or numbers, separated by commas -> ADE20K class numbers."""
    known, _ = ade20k()
    numbers = []
    for word in (part.strip().lower() for part in names.split(",")):
        if word.isdigit() and int(word) < len(known):
            numbers.append(int(word))
        elif word in known:
            numbers.append(known.index(word))
        elif word:
            from difflib import get_close_matches

            near = ", ".join(get_close_matches(word, known)) or "wall, building, sky, floor, tree, ..."
            raise ParameterError(f"{word!r} is not a class of ADE20K; near it are: {near}")
    if not numbers:
        raise ParameterError("no class was named: give one or more, such as 'sky, tree, road'")
    return numbers
