"""Latents and texts on disk: encoded once, the same bits, and encoded again when what they were made of changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import Checkpoint, load_checkpoint
from comfyui_controlnet_core.controlnet_core.training import disk_cache
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import ControlNetTraining, prepare_training
from comfyui_controlnet_core.controlnet_core.training.disk_cache import DiskCache, encoders_digest
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from PIL import Image
from tiny_training import COUNT, SIZE, make_training_folder, train

CAPTIONS = ("a red ball", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("cache"))


def base_of(folder: Path) -> Checkpoint:
    return load_checkpoint(folder / "base.safetensors", dtype=torch.float32)


def opened(
    folder: Path, disk: DiskCache | None, base: Checkpoint | None = None, size: int = SIZE
) -> ControlNetTraining:
    data = open_examples(folder / "indexed", size)
    return prepare_training(base or base_of(folder), data, Recipe(steps=3, batch=3, lr=1e-3), disk=disk)


def encoded(training: ControlNetTraining, rows: Sequence[int] = range(COUNT)) -> list[torch.Tensor]:
    with torch.no_grad():
        return [training.latents(list(rows)), training.condition(CAPTIONS, (SIZE, SIZE))[0]]


def broken(base: Checkpoint) -> Checkpoint:
    """The base with encoders that give NaN: what is finite then was not encoded."""
    for module in (base.vae, base.text_model):
        assert module is not None
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)
    return base


def test_the_next_start_encodes_nothing_and_trains_the_same_bits(folder: Path, tmp_path: Path) -> None:
    plain = opened(folder, None)
    plain.loop.run()
    identity = encoders_digest(base_of(folder))
    first = opened(folder, DiskCache(tmp_path, identity))
    first.loop.run()
    expected = encoded(first)
    first.flush()
    disk = DiskCache(tmp_path, identity)
    assert len(disk) >= COUNT + len(CAPTIONS)
    again = opened(folder, disk, broken(base_of(folder)))
    assert all(torch.equal(a, b) for a, b in zip(encoded(again), expected, strict=True))
    again.loop.run()
    for training in (first, again):
        own = training.loop.parameters()
        assert all(torch.equal(p, own[name]) for name, p in plain.loop.parameters().items())


def test_what_changed_is_encoded_again(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    base = base_of(folder)
    first = opened(tmp_path / "data", DiskCache(tmp_path / "cache", encoders_digest(base)))
    latents = first.latents(list(range(COUNT)))
    first.flush()
    picture = tmp_path / "data" / "indexed" / "target" / "2.png"
    Image.new("RGB", (SIZE, SIZE), (250, 0, 0)).save(picture)
    again = opened(tmp_path / "data", DiskCache(tmp_path / "cache", encoders_digest(base)))
    now = again.latents(list(range(COUNT)))
    changed = [row for row in range(COUNT) if not torch.equal(now[row], latents[row])]
    assert changed == [2] and torch.equal(now[2], opened(tmp_path / "data", None).latents([2])[0])
    again.flush()
    # The same bytes at another time count as changed; another size of the pictures and another base do too.
    before = len(DiskCache(tmp_path / "cache", encoders_digest(base)))
    os.utime(picture, (1, 1))
    touched = opened(tmp_path / "data", DiskCache(tmp_path / "cache", encoders_digest(base)))
    assert torch.equal(touched.latents([2, 3]), now[2:4])
    assert touched.disk is not None and len(touched.disk) == before + 1
    smaller = opened(tmp_path / "data", touched.disk, size=32)
    assert smaller.latents([3]).shape[-1] == now.shape[-1] // 2
    assert base.vae is not None
    next(base.vae.parameters()).data.mul_(1.5)
    assert len(DiskCache(tmp_path / "cache", encoders_digest(base))) == 0


def test_shards_are_written_when_they_are_full_and_a_damaged_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "SHARD_BYTES", 100)
    disk, tensors = DiskCache(tmp_path, "base"), torch.randn(7, 4, 5).half()  # 40 bytes each
    for number, tensor in enumerate(tensors):
        disk.put(str(number), tensor)
    assert len(list(tmp_path.iterdir())) == 2, "three in each, the last is not written yet"
    # Another process of the same training writes beside them.
    other = DiskCache(tmp_path, "base", process=1)
    other.put("theirs", tensors[0])
    for cache in (disk, other):
        cache.flush()
    found = DiskCache(tmp_path, "base")
    assert len(found) == 8
    for number, tensor in enumerate(tensors):
        kept = found.get(str(number))
        assert kept is not None and torch.equal(kept, tensor)
    damaged = sorted(tmp_path.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert len(DiskCache(tmp_path, "base")) == 5 and not damaged.exists()


def test_the_command_keeps_latents_and_texts(folder: Path, tmp_path: Path) -> None:
    for steps in ("1", "2"):
        assert train(folder, tmp_path / "net.safetensors", "--steps", steps, "--cache") == 0
    shards = list((tmp_path / "net_training" / "cache").iterdir())
    assert shards and all(path.suffix == ".safetensors" for path in shards)
