"""Limits on input from files, in one table: how much of what, and why.

A file of a few bytes can ask for hours of work or for terabytes of memory: a config with a billion blocks, an
archive that unpacks to a thousand times its size. Each limit is far above what real files have, and is checked
before the work begins, so that an excessive file ends in an error message within a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DamagedFileError

if TYPE_CHECKING:
    from tarfile import TarFile, TarInfo


class LimitError(DamagedFileError):
    """A file asks for more than a limit allows; the message names the amount and the limit."""


@dataclass(frozen=True)
class Limit:
    """The largest amount that is accepted.

    number: the largest accepted value. unit: what is counted, in the plural. reason: why this number.
    """

    number: int
    unit: str
    reason: str

    def check(self, amount: float, subject: str) -> None:
        """Raise LimitError when `amount` is above the limit. subject: what has this amount, such as "its header"."""
        if amount > self.number:
            raise LimitError(f"{subject} has {amount:,} {self.unit}, expected at most {self.number:,}")


def check_member(member: TarInfo, tar: Path) -> None:
    """Raise LimitError for a file in a tar that says it is larger than the tar.

    A sparse file takes 10 kB there and any size in memory, as zeros.
    """
    if member.issparse() or member.size > tar.stat().st_size:
        raise LimitError(
            f"{tar / member.name} has {member.size:,} bytes, more than its tar: it was packed as a sparse file; pack "
            "the pictures without this option",
            tar / member.name,
        )


def check_end(archive: TarFile, tar: Path) -> None:
    """Raise DamagedFileError for a tar, all of whose members were listed, that is cut off or damaged behind them.

    tarfile takes a header that it cannot read as the end: the files from there on would be missing in silence.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    # A tar ends in blocks of zeros. Some programs leave them out.
    if archive.fileobj.read(512).strip(b"\0"):
        raise DamagedFileError(
            f"{tar} is damaged or incomplete at byte {archive.offset:,}: download or copy it again", tar
        )


# Model files.
HEADER_BYTES = Limit(
    32_000_000, "bytes", "SDXL's header has 0.3 MB, a LoRA's with all its training captions a few MB; JSON takes 20x"
)
JSON_BYTES = Limit(8_000_000, "bytes", "the index of a sharded model has 0.2 MB; a parsed JSON file takes 20x as much")
JSON_PARTS = Limit(300_000, "lists and tables", "SDXL's header has 7,500; Python parses a million in two seconds")
TENSORS = Limit(50_000, "values", "SDXL with its training state has about 10,000")
KEY_LENGTH = Limit(
    1_000, "characters", "names of weights have about 100; long names times many tensors fill the memory"
)
PICKLE_BYTES = Limit(32_000_000, "bytes", "the pickle beside SDXL's weights has 0.6 MB")
PICKLE_STEPS = Limit(
    400_000, "instructions", "SDXL's pickle has 75,000, with its training state 230,000; 3 s a million"
)
TUPLE_VALUES = Limit(
    1_000, "values", "a tensor's entry has 20; a nested tuple as a key takes time for each value that it repeats"
)
UNPACKED_RATIO = Limit(4, "times its size on disk when unpacked", "PyTorch stores weights unpacked; they pack to 90 %")
SHARED_RATIO = Limit(4, "times its size on disk as tensors", "tied weights are shared once; views can repeat endlessly")
MODEL_BLOCKS = Limit(256, "blocks", "SDXL's ControlNet has 89; building one takes a few milliseconds")
SMALL_NETS = Limit(1_024, "networks", "a ControlNet-LLLite for all blocks of SDXL has 280, four per transformer block")
CONFIG_NUMBER = Limit(10_000_000, "as a number", "the largest one in use is a vocabulary of 250,000 words")

# Pictures. The limits of pose files are in preprocessors/limits.py, since that package does not import this one.
PICTURE_PIXELS = Limit(
    2**26,
    "pixels",
    "8192 x 8192, also of all frames in memory together: as float32 RGB they take 0.8 GB, while a PNG of "
    "20 kB can hold 13000 x 13000 equal pixels",
)
ANIMATION_PIXELS = Limit(
    2**28,
    "pixels",
    "of all frames of a file that are read one after the other: 1024 frames of 512 x 512 take a few seconds",
)
FRAMES = Limit(
    10_000, "frames", "five minutes of video; the header of a tiny animated PNG can name four billion, each with a hint"
)
ARRAY_VALUES = Limit(2**28, "values", "four channels of the largest picture in a .npy file")

# Workflows.
WORKFLOW_BYTES = Limit(16_000_000, "bytes of JSON", "the largest workflows have about 3 MB; in memory JSON takes 30x")

# Settings.
YAML_BYTES = Limit(100_000, "bytes", "an extra_model_paths.yaml has 2 kB; PyYAML takes a second for 100 kB of keys")
