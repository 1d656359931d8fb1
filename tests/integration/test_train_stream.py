"""A stream of 100,000 generated examples: constant memory, each example once in an epoch, and exact continuations."""

from __future__ import annotations

import io
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.tar_examples import BUFFER
from PIL import Image

SHARDS, PER_SHARD, BATCH, SIZE = 20, 5_000, 32, 8
COUNT = SHARDS * PER_SHARD
FLAT = 0.02
"""Largest growth of the memory, as a fraction of that after the first tenth."""


def png(number: int) -> bytes:
    """A picture of one colour, which is the number."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number & 255, number >> 8 & 255, number >> 16)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def make_shards(folder: Path) -> None:
    hint = png(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                files = {"png": png(number), "conditioning_image.png": hint, "txt": str(number).encode()}
                for ending, content in files.items():
                    info = tarfile.TarInfo(f"{number:06d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


class Stream:
    """Reads batches as a training does, from an example of the epoch on."""

    def __init__(self, folder: Path, drawn: int = 0) -> None:
        self.data = open_examples(folder, SIZE)
        self.draw, self.held = self.data.split(0)
        self.drawn = drawn

    def batch(self, size: int = BATCH) -> list[int]:
        """The numbers of the next examples, from their pictures."""
        rows = self.draw(size, self.drawn)
        self.drawn += size
        pictures, hints = self.data.pictures(rows), self.data.hints(rows)
        colours = ((pictures[:, :, 0, 0] + 1.0) * 127.5).round().long()
        numbers = (colours * torch.tensor([1, 256, 65536])).sum(1).tolist()
        assert not bool(hints.any())
        assert self.data.captions(rows) == [str(number) for number in numbers], "pictures with their own captions"
        return numbers


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_a_stream_of_100_000_examples(tmp_path: Path) -> None:
    make_shards(tmp_path)
    stream = Stream(tmp_path)
    held = len(stream.held)
    epoch = COUNT - held
    assert epoch % BATCH == 0
    # Allocated before the first measurement, so that it does not count as growth.
    order, times_seen = np.zeros(epoch, np.int64), np.zeros(COUNT, np.int64)
    memory: list[int] = []
    began = time.monotonic()
    for at in range(0, epoch, BATCH):
        numbers = stream.batch()
        order[at : at + BATCH] = numbers
        times_seen[numbers] += 1
        if at // BUFFER != (at + BATCH) // BUFFER:  # from here on the buffer is full
            memory.append(resident())
    rate = epoch / (time.monotonic() - began)
    assert (times_seen[held:] == 1).all() and not times_seen[:held].any(), "each once, those held out never"
    assert not (np.diff(order) == 1).sum() > epoch / 1000, "mixed"
    growth = max(memory) / memory[0] - 1.0
    print(f"{epoch} examples, {rate:.0f} per second; {memory[0] / 1e6:.0f} MB, grew by at most {growth:.2%}")
    assert growth <= FLAT, [round(bytes_ / 1e6, 1) for bytes_ in memory]

    again = stream.batch()
    assert again != order[:BATCH].tolist(), "the next epoch has another order"
    for place in (BATCH, epoch // 2, epoch - 5 * BATCH - 7):
        continued = Stream(tmp_path, place)
        found = [number for _ in range(5) for number in continued.batch()]
        assert found == order[place : place + 5 * BATCH].tolist()
    crossing = Stream(tmp_path, epoch - 8).batch()
    assert crossing == [*order[-8:].tolist(), *again[: BATCH - 8]], "a batch across the end of the epoch"
