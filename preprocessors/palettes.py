"""Palettes: the colours that stand for classes in the hints of segmentation ControlNets.

ADE20K has 150 classes in the order of the MIT Scene Parsing benchmark. Two of them, road (6) and skyscraper (48), have
the same colour; it is read back as road. COCO has the 133 classes of its panoptic task, 80 things and then 53 kinds of
stuff. The v1.1 network reads both palettes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .errors import ParameterError, PictureError
from .image_ops import like, to_numpy, unit_range

if TYPE_CHECKING:
    from .image_ops import Array

PALETTES = ("ade20k", "coco")

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

_COCO = """
dc143c person; 770b20 bicycle; 00008e car; 0000e6 motorcycle; 6a00e4 airplane; 003c64 bus; 005064 train;
000046 truck; 0000c0 boat; faaa1e traffic light; 64aa1e fire hydrant; dcdc00 stop sign; af74af parking meter;
fa001e bench; a52a2a bird; ff4dff cat; 00e2fc dog; b6b6ff horse; 005200 sheep; 78a69d cow; 6e4c00 elephant;
ae39ff bear; c76400 zebra; 480076 giraffe; ffb3f0 backpack; 007d5c umbrella; d10097 handbag; bcd0b6 tie;
00dcb0 suitcase; ff63a4 frisbee; 5c0049 skis; 8581ff snowboard; 4eb4ff sports ball; 00e400 kite;
aefff3 baseball bat; 2d59ff baseball glove; 868667 skateboard; 9194ae surfboard; ffd0ba tennis racket;
c5e2ff bottle; ab8601 wine glass; 6d3f36 cup; cf8aff fork; 97005f knife; 09503d spoon; 546933 bowl;
4a4169 banana; a6c466 apple; d0c3d2 sandwich; ff6d41 orange; 008f95 broccoli; b300c2 carrot; d1636a hot dog;
057900 pizza; e3ffcd donut; 93bad0 cake; 994501 chair; 035fa1 couch; a3ff00 potted plant; 7700aa bed;
00b6c7 dining table; 00a578 toilet; b78258 tv; 5f2000 laptop; 827287 mouse; 6e8185 remote; a64a76 keyboard;
db8eb9 cell phone; 4fd272 microwave; b25a3e oven; 41460f toaster; 7fa773 sink; 3b696a refrigerator;
8e6c2d book; c4ac00 clock; 5f3650 vase; 804cff scissors; c93901 teddy bear; f6007a hair drier;
bfa2d0 toothbrush; ffff80 banner; 93d3cb blanket; 966464 bridge; a8abac cardboard; 9270c6 counter;
d2aa64 curtain; 5c8859 door-stuff; da58b8 floor-wood; f18100 flower; d911ff fruit; 7c4ab5 gravel;
464646 house; ffe4ff light; 9ad000 mirror-stuff; c1005c net; 4c5b71 pillow; ffb4c3 platform;
6a9ab0 playingfield; e6968c railroad; 3c8fff river; 804080 road; 5c5237 roof; fed47c sand; 494dae sea;
ffa062 shelf; ffffff snow; 68546d stairs; a9a483 tent; e1c7ff towel; 89364a wall-brick; 879edf wall-stone;
07f6e7 wall-tile; 6bffc8 wall-wood; 3a2995 water-other; b7798e window-blind; ff4961 window-other;
6b8e23 tree-merged; be9999 fence-merged; 928b8d ceiling-merged; 4682b4 sky-other-merged;
86c79c cabinet-merged; d1e28c table-merged; 60246c floor-other-merged; 606060 pavement-merged;
40aa40 mountain-merged; 98fb98 grass-merged; d0e5e4 dirt-merged; cebaab paper-merged;
98a140 food-other-merged; 747000 building-other-merged; 00728f rock-merged; 66669c wall-other-merged;
fa8dff rug-merged
"""


@dataclass(frozen=True)
class Palette:
    """The classes of one data set: names, and colours (N,3) uint8, read-only."""

    name: str
    classes: tuple[str, ...]
    colours: np.ndarray

    def numbers(self, names: str) -> list[int]:
        """Names such as "sky, tree, road", or numbers, separated by commas -> class numbers.

        Raises ParameterError with similar names for an unknown word.
        """
        # Reversed, so that the first of two classes with one name wins; full names go before shortened ones.
        known = {name.removesuffix("-merged"): index for index, name in reversed(list(enumerate(self.classes)))}
        known |= {name: index for index, name in reversed(list(enumerate(self.classes)))}
        words = [word for part in names.split(",") if (word := part.strip().lower())]
        if not words:
            raise ParameterError("no class was named: give one or more, such as 'sky, tree, road'")
        return [self._number(word, known) for word in words]

    def _number(self, word: str, known: Mapping[str, int]) -> int:
        if word in known:
            return known[word]
        if word.isascii() and word.isdigit() and len(word) < 5 and int(word) < len(self.classes):
            return int(word)
        near = ", ".join(get_close_matches(word, known)) or ", ".join(self.classes[:5]) + ", ..."
        raise ParameterError(f"{word!r} is not a class of {self.name}; near it are: {near}")


@cache
def palette(name: str) -> Palette:
    """The palette called "ade20k" or "coco"; ParameterError for any other name."""
    if name not in PALETTES:
        raise ParameterError(f"palette={name!r}: choose one of {', '.join(PALETTES)}")
    table = {"ade20k": _ADE20K, "coco": _COCO}[name]
    rows = [row.split(maxsplit=1) for row in table.replace("\n", " ").split(";")]
    colours = np.array([list(bytes.fromhex(code)) for code, _ in rows], np.uint8)
    colours.flags.writeable = False
    return Palette(name, tuple(label.strip() for _, label in rows), colours)


def labels_to_hint(labels: Array, name: str = "ade20k") -> Array:
    """Class numbers (...,H,W) -> colours (...,H,W,3) float32. Numbers of no class, such as -1 and 255, become black."""
    numbers = to_numpy(labels)
    if numbers.ndim < 2 or numbers.dtype.kind not in "iub":
        raise PictureError(
            f"labels have shape {tuple(numbers.shape)} and type {numbers.dtype}, expected integers (H,W) or (B,H,W)"
        )
    colours = palette(name).colours
    table = np.vstack((colours, np.zeros((1, 3), np.uint8))).astype(np.float32) / np.float32(255.0)
    known = (numbers >= 0) & (numbers < len(colours))
    return like(table[np.where(known, numbers, len(colours))], labels)


def hint_to_labels(hint: Array, name: str = "ade20k", *, tolerance: float = 2.0) -> Array:
    """Colours (...,H,W,3), 0..1 -> class numbers (...,H,W) int64; -1 where no colour is within `tolerance` bytes."""
    pixels = np.rint(unit_range(to_numpy(hint)) * 255.0).astype(np.int32)
    if pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise PictureError(f"the hint has shape {tuple(pixels.shape)}, expected (H,W,3) or (B,H,W,3)")
    numbers, distance = nearest_classes(pixels.reshape(-1, 3), palette(name).colours)
    return like(np.where(distance <= tolerance, numbers, -1).reshape(pixels.shape[:-1]), hint)


def nearest_classes(pixels: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,3) bytes -> the number of the nearest of `colours` (N,3), and its Euclidean distance, both (P,)."""
    # A painted map has few colours: each is compared once instead of once per pixel.
    packed = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    seen, where = np.unique(packed, return_inverse=True)
    values = np.stack([seen >> 16, (seen >> 8) & 255, seen & 255], axis=1).astype(np.float32)
    targets = colours.astype(np.float32)
    numbers = np.empty(len(values), np.int64)
    for start in range(0, len(values), 8192):
        part = values[start : start + 8192]
        # |v - c|^2 without |v|^2, which is the same for all colours. It is exact in float32 for bytes.
        numbers[start : start + 8192] = ((targets**2).sum(axis=1) - 2.0 * part @ targets.T).argmin(axis=1)
    distance = np.sqrt(((values - targets[numbers]) ** 2).sum(axis=1))
    return numbers[where.ravel()], distance[where.ravel()]


def panoptic_to_labels(segments: Array, classes: Mapping[int, int]) -> Array:
    """Segment numbers (...,H,W) and the class of each -> class numbers (...,H,W). Other segments become -1.

    All instances of a class become one class, since the networks were trained on semantic maps.
    """
    numbers = to_numpy(segments)
    labels = np.full(numbers.shape, -1, np.int64)
    for segment, label in classes.items():
        labels[numbers == segment] = label
    return like(labels, segments)
