"""Aspect ratio buckets, and the order in which examples are drawn."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.controlnet_core.training.buckets import bucket_sizes, choose_bucket
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import ControlNetTraining, prepare_training
from comfyui_controlnet_core.controlnet_core.training.disk_cache import DiskCache
from comfyui_controlnet_core.controlnet_core.training.draw import EpochDraw
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.examples import ExampleSet
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from comfyui_controlnet_core.controlnet_core.training.processes import Processes
from PIL import Image
from tiny_training import SIZE, make_training_folder, train

MULTIPLE = 8
SHAPES = ((60, 60), (40, 80), (80, 40), (64, 64), (50, 100), (90, 40), (120, 60), (33, 33), (70, 70), (30, 60))
"""(height, width) of pictures: squares, wide and tall ones."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The square examples of the other tests, and `mixed` with others."""
    folder = make_training_folder(tmp_path_factory.mktemp("buckets"))
    random = np.random.default_rng(0)
    lines = []
    for name in ("source", "target"):
        (folder / "mixed" / name).mkdir(parents=True)
        for number, shape in enumerate(SHAPES):
            Image.fromarray(random.integers(0, 255, (*shape, 3), np.uint8)).save(
                folder / "mixed" / name / f"{number}.png"
            )
    lines = [
        json.dumps({"source": f"source/{n}.png", "target": f"target/{n}.png", "prompt": f"a {n}"})
        for n in range(len(SHAPES))
    ]
    (folder / "mixed" / "prompt.json").write_text("\n".join(lines))
    return folder


def opened(
    folder: Path,
    name: str = "mixed",
    *,
    buckets: bool = True,
    state: Path | None = None,
    disk: DiskCache | None = None,
    processes: Processes | None = None,
) -> ControlNetTraining:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    data = open_examples(folder / name, SIZE, bucket_multiple=MULTIPLE if buckets else None)
    return prepare_training(
        base, data, Recipe(steps=4, batch=2, lr=1e-3), state_file=state, disk=disk, processes=processes or Processes()
    )


def bits(training: ControlNetTraining) -> torch.Tensor:
    loop = training.loop
    return torch.cat([p.detach().flatten() for p in (*loop.parameters().values(), *loop.average.values())])


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("side", "multiple"), [(512, 64), (768, 64), (1024, 32), (64, 8), (64, 64)])
def test_buckets_have_at_most_the_area_of_the_square(side: int, multiple: int) -> None:
    sizes = bucket_sizes(side, multiple)
    assert (side, side) in sizes and len(set(sizes)) == len(sizes)
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert 0.75 * side * side < height * width <= side * side
        assert max(height, width) <= 4 * min(height, width)


def test_the_bucket_with_the_nearest_proportions_is_chosen() -> None:
    sizes = bucket_sizes(512, 64)
    assert choose_bucket((1000, 1000), sizes) == (512, 512)
    assert choose_bucket((1080, 1920), sizes) == (384, 640)
    assert choose_bucket((1920, 1080), sizes) == (640, 384)
    assert choose_bucket((100, 1000), sizes) == (256, 1024), "wider than any bucket: the sides are cut off"
    # By trial: no other bucket is nearer, and at most an eighth of a side is cut off between 1:2.4 and 2.4:1.
    for width in range(417, 2401, 7):
        height, chosen = 1000, choose_bucket((1000, width), sizes)
        distances = {size: abs(math.log(size[1] / size[0] * height / width)) for size in sizes}
        assert distances[chosen] <= min(distances.values()) + 1e-9
        assert math.exp(-distances[chosen]) > 0.86


# ------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
def test_batches_never_mix_buckets_and_an_epoch_has_each_row_once(count: int) -> None:
    buckets = (range(12), range(100, 124), range(200, 203), (), range(300, 301))
    draw = EpochDraw(buckets, 5)
    total, epochs = 40, 60
    seen, number = Counter[int](), 0
    for epoch in range(epochs):
        while number < sum((epoch + 1) * len(rows) // count for rows in buckets):
            batch = draw(count, number * count)
            assert len(batch) == count and len({row // 100 for row in batch}) == 1
            seen.update(batch)
            number += 1
            for rows in buckets:  # never again before all others of the bucket had their turn
                times = [seen[row] for row in rows]
                assert not times or max(times) - min(times) <= 1
        for rows in buckets:
            left = (epoch + 1) * len(rows) % count
            assert sum(seen[row] for row in rows) == (epoch + 1) * len(rows) - left
    # Nothing is left over where batches fill the buckets, and in one bucket the epochs are those of all rows.
    assert number * count <= epochs * total
    if count == 1:
        assert set(seen.values()) == {epochs}


def test_the_order_depends_on_the_seed_and_the_place_only() -> None:
    rows, whole = range(50), EpochDraw((range(50),), 1)
    expected = [whole(5, drawn) for drawn in range(0, 150, 5)]
    again = EpochDraw((rows,), 1)
    assert [again(5, drawn) for drawn in (100, 45, 0)] == [expected[20], expected[9], expected[0]]
    epochs = [[row for batch in expected[at : at + 10] for row in batch] for at in (0, 10, 20)]
    assert all(sorted(epoch) == list(rows) for epoch in epochs)
    assert len({tuple(epoch) for epoch in (*epochs, list(rows))}) == 4
    assert EpochDraw((rows,), 2)(50, 0) != epochs[0]
    # With another batch size a single bucket goes on with the very next row.
    assert again(7, 10) == epochs[0][10:17]


# ---------------------------------------------------------------------------------------------- training


def test_pictures_and_hints_have_the_size_of_their_bucket(folder: Path) -> None:
    data = open_examples(folder / "mixed", SIZE, bucket_multiple=MULTIPLE)
    assert isinstance(data, ExampleSet)
    for row, (height, width) in enumerate(SHAPES):
        made = data.pictures([row])
        assert made.shape == data.hints([row]).shape == (1, 3, *data.size_of(row))
        assert abs(math.log(made.shape[-1] / made.shape[-2] * height / width)) < 0.13
        assert data.squares().pictures([row]).shape == (1, 3, SIZE, SIZE)
    draw, held_out = data.split(0)
    drawn = [draw(2, number * 2) for number in range(40)]
    assert all(len({data.size_of(row) for row in batch}) == 1 for batch in drawn)
    assert {row for batch in drawn for row in batch} == set(range(len(SHAPES))) - set(held_out)


def test_square_pictures_train_the_same_weights_with_and_without_buckets(folder: Path) -> None:
    plain, sorted_ = (opened(folder, "indexed", buckets=buckets) for buckets in (False, True))
    for training in (plain, sorted_):
        training.loop.run()
    assert torch.equal(bits(plain), bits(sorted_))
    assert plain.probe() == sorted_.probe()


def test_a_stopped_training_in_buckets_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, and with latents from the disk."""
    whole = opened(folder)
    sizes: list[torch.Size] = []
    hooked = whole.net.register_forward_pre_hook(lambda net, inputs: sizes.append(inputs[0].shape[2:]))
    whole.loop.run()
    hooked.remove()
    assert len(set(sizes)) >= 3
    for step in (1, 3):
        part = opened(folder, state=tmp_path / "s.state", disk=DiskCache(tmp_path / "cache", "base"))
        part.loop.resume()
        part.loop.run(cancelled=lambda step=step, loop=part.loop: loop.step >= step)
        assert part.loop.step == step
        part.flush()
    again = opened(folder, state=tmp_path / "s.state", disk=DiskCache(tmp_path / "cache", "base"))
    assert again.loop.resume() and again.loop.run()
    assert torch.equal(bits(whole), bits(again))
    # The probe takes squares of the same pictures, whose latents are others.
    assert again.probe() == whole.probe() and len(again.sample(1)) == 3


def test_processes_share_batches_of_one_size(folder: Path) -> None:
    def gradients(processes: Processes, drawn: int) -> torch.Tensor:
        training = opened(folder, processes=processes)
        training.loop.drawn = drawn
        training.loop.loss(torch.Generator().manual_seed(5)).backward()
        found = (p.grad for p in training.loop.parameters().values())
        return torch.cat([grad.flatten() for grad in found if grad is not None])

    for drawn in (0, 4):
        halves = torch.stack([gradients(Processes(2, index), drawn) for index in (0, 1)])
        torch.testing.assert_close(halves.mean(0), gradients(Processes(), drawn), rtol=1e-4, atol=1e-6)


def test_the_command_trains_in_buckets(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, data = tmp_path / "net.safetensors", ("--data", str(folder / "mixed"))
    assert train(folder, output, *data, "--buckets", "--steps", "1") == 0
    assert "10 examples of 64 pixels in 4 buckets (64x64: 4, " in capsys.readouterr().out
    assert train(folder, output, *data, "--steps", "2") == 2
    assert "buckets was True, is False" in capsys.readouterr().err
    assert train(folder, output, *data, "--buckets", "--size", "4", "--steps", "1") == 2
    assert "this base needs a multiple of" in capsys.readouterr().err
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(b"")
    with pytest.raises(ValueRangeError, match="train without buckets, or unpack them"):
        open_examples(tmp_path / "tars", SIZE, bucket_multiple=MULTIPLE)
