"""Training data beside folders of pairs: tables as Hugging Face writes them, and tar shards of a WebDataset."""

from __future__ import annotations

import csv
import io
import json
import resource
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import DamagedFileError, MissingFileError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.example_forms import Columns
from comfyui_controlnet_core.controlnet_core.training.tar_examples import WINDOW, TarExamples, mix
from PIL import Image
from sparse_tar import sparse_member

SIZE = 8


def png(value: int, width: int = SIZE) -> bytes:
    """A gray picture."""
    out = io.BytesIO()
    Image.fromarray(np.full((SIZE, width, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


# ------------------------------------------------------------------------------------------------- tables

NAMES = {
    "diffusers": ("image", "conditioning_image", "text"),
    "datasets": ("file_name", "conditioning_image_file_name", "text"),
    "own": ("target", "source", "prompt"),
}


@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("names", NAMES)
def test_tables_of_image_folders_are_read(form: str, names: str, tmp_path: Path) -> None:
    captions = ['a "red" ball, on sand', "ein Würfel\nauf Gras" if form == "metadata.csv" else "ein Würfel"]
    rows = []
    for number, caption in enumerate(captions):
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / f"{number}.png").write_bytes(png(100 + number))
        (tmp_path / "deep" / f"{number}.png").write_bytes(png(200 + number))
        rows.append(dict(zip(NAMES[names], (f"{number}.png", f"deep/{number}.png", caption), strict=True)))
    with (tmp_path / form).open("w", encoding="utf-8", newline="") as file:
        if form == "metadata.csv":
            writer = csv.DictWriter(file, NAMES[names])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write("\n".join(json.dumps({**row, "width": 8}) for row in rows))
    data = open_examples(tmp_path, SIZE, columns=Columns(*NAMES["own"]) if names == "own" else None)
    assert data.captions(range(2)) == captions
    assert torch.allclose(data.hints([1]), torch.full((1, 3, SIZE, SIZE), 201 / 255))
    assert torch.allclose(data.pictures([0]), torch.full((1, 3, SIZE, SIZE), 100 / 255 * 2 - 1))


@pytest.mark.parametrize(
    ("form", "content", "said"),
    [
        ("metadata.jsonl", '{"image": "a.png", "text": "x"}', r"line 1: .*conditioning_image, image and text \(KeyE"),
        ("metadata.csv", "image,conditioning_image,caption\na.png,b.png,x", r"row 1: expected .*KeyError\('text'\)"),
        ("metadata.csv", "image,conditioning_image,text\na.png", r"row 1: expected an object"),
        ("metadata.csv", 'image,conditioning_image,text\n"../a.png",b.png,x', "leaves the folder"),
        ("metadata.csv", "image,conditioning_image,text\na.png,b.png,red, on grass", "line 2: has 4 values for 3"),
        ("metadata.csv", "image,image,text\na.png,b.png,x", "several columns 'image'"),
        ("metadata.jsonl", '{"image": "a.png", "conditioning_image": "b.png", "text": 5}', "5 is no text"),
        ("metadata.csv", "image,conditioning_image,text\na.png,b.png," + "x" * 200_000, "comma-separated values"),
    ],
)
def test_tables_that_cannot_be_used_are_named(form: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / form).write_text(content)
    with pytest.raises((ValueRangeError, DamagedFileError), match=said):
        open_examples(tmp_path, SIZE)


# -------------------------------------------------------------------------------------------------- shards


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def example(number: int) -> list[tuple[str, bytes]]:
    return [
        (f"{number:05d}.png", png(number % 256)),
        (f"{number:05d}.conditioning_image.png", png(255 - number % 256)),
        (f"{number:05d}.txt", f"number {number}".encode()),
    ]


def write_shards(folder: Path, counts: tuple[int, ...] = (7, 12, 1, 20)) -> int:
    """Shards with this many examples, numbered through; returns how many there are."""
    number = 0
    for shard, count in enumerate(counts):
        members = [member for n in range(number, number + count) for member in example(n)]
        write_shard(folder / f"{shard:04d}.tar", members)
        number += count
    return number


def numbers(data: Any, rows: Iterable[int]) -> list[int]:
    return [int(caption.split()[1]) for caption in data.captions(list(rows))]


def opened(folder: Path, seed: int = 3, **options: Any) -> tuple[TarExamples, tuple[int, ...]]:
    data = open_examples(folder, SIZE, **options)
    assert isinstance(data, TarExamples)
    return data, data.split(seed)[1]


def test_an_epoch_has_each_example_once_and_none_that_is_held_out(tmp_path: Path) -> None:
    count = write_shards(tmp_path)
    data, held_out = opened(tmp_path)
    assert len(data) == count and held_out == (-2, -1)
    held = numbers(data, held_out)
    per_epoch = count - len(held)
    first, second = (numbers(data, range(e * per_epoch, (e + 1) * per_epoch)) for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(set(range(count)) - set(held))
    assert first != second and first != sorted(first)
    other, _ = opened(tmp_path, seed=4)
    assert numbers(other, range(per_epoch)) != first


def test_a_stream_goes_on_anywhere_with_the_same_examples(tmp_path: Path) -> None:
    """In the middle of an epoch, at its end, and far behind it: the rows alone decide."""
    per_epoch = write_shards(tmp_path) - 2
    whole, _ = opened(tmp_path)
    expected = numbers(whole, range(3 * per_epoch))
    for begin in (1, 17, per_epoch - 1, per_epoch, 2 * per_epoch + 5):
        again, _ = opened(tmp_path)
        assert numbers(again, range(begin, begin + 6)) == expected[begin : begin + 6]
    assert numbers(whole, [4]) == [expected[4]]  # the window reaches back


def test_pictures_hints_and_captions_of_a_row_belong_together(tmp_path: Path) -> None:
    write_shards(tmp_path)
    data, held_out = opened(tmp_path)
    rows = [*held_out, 0, 5, 37, 38, 39]
    for row, number in zip(rows, numbers(data, rows), strict=True):
        assert torch.allclose(data.pictures([row]), torch.tensor(number / 255 * 2 - 1))
        assert torch.allclose(data.hints([row]), torch.tensor((255 - number) / 255))


def test_captions_are_optional_and_may_be_in_json(tmp_path: Path) -> None:
    members = [("a.jpg.png", b""), ("x/a.PNG", png(1)), ("x/a.source.webp.png", b""), ("x/a.source.png", png(2))]
    more = [("x/a.json", b'{"prompt": "number 1", "width": 8}'), ("x/b.png", png(3)), ("x/b.source.png", png(4))]
    hidden = [("x/._b.png", b"\0\5"), (".trash", b"")]
    write_shard(tmp_path / "a.tar", [*members[1:2], *members[3:], *more, *hidden])
    data, held_out = opened(tmp_path, columns=Columns("target", "source", "prompt"))
    assert held_out == (-2, -1) and data.captions(held_out) == ["number 1", ""]
    assert sorted(data.captions(range(2))) == ["", "number 1"]  # with so few, the probe's are trained too


def test_hints_may_be_in_tars_of_their_own(tmp_path: Path) -> None:
    """As `controlnet preprocess target/ --output source/` writes them, also in parts and in another order."""
    (tmp_path / "target").mkdir()
    (tmp_path / "source").mkdir()
    count = write_shards(tmp_path / "target", (9, 4))
    for shard in (0, 1):
        path = tmp_path / "target" / f"{shard:04d}.tar"
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar if "conditioning" not in m.name]
        write_shard(path, members)
    hints = [(f"{n:05d}.png", png(255 - n)) for n in range(count)]
    write_shard(tmp_path / "source" / "0000.tar", reversed(hints[:9]))
    write_shard(tmp_path / "source" / "0001-1of2.tar", hints[9:11])
    sizes = tmp_path / "sizes.json"
    with pytest.raises(DamagedFileError, match=r"2 examples cannot .*0001\.tar: /00011 has no hint in source"):
        open_examples(tmp_path, SIZE, known_sizes=sizes)
    write_shard(tmp_path / "source" / "0001-2of2.tar", hints[11:])
    data, held_out = opened(tmp_path, known_sizes=sizes)
    assert len(data) == count
    rows = [*held_out, *range(count - 2)]
    assert sorted(numbers(data, rows)) == list(range(count))
    for row, number in zip(rows, numbers(data, rows), strict=True):
        assert torch.allclose(data.hints([row]), torch.tensor((255 - number) / 255))


def test_incomplete_examples_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    write_shards(tmp_path, (10,))
    write_shard(tmp_path / "bad.tar", [*example(10), *example(11)[:1], *example(12)[1:], *example(13)])
    counts = tmp_path / "work" / "sizes.json"
    for _ in range(2):  # the faults are not forgotten
        faults: list[str] = []
        with pytest.raises(
            DamagedFileError, match=r"2 examples cannot be used, first: .*bad\.tar: /?00011 has no \.cond"
        ):
            open_examples(tmp_path, SIZE, on_fault=faults.append, known_sizes=counts)
        assert len(faults) == 2 and "00012 has no .jpg or .png (the picture)" in faults[1]
    data, _ = opened(tmp_path, skip_bad=True, known_sizes=counts)
    assert len(data) == 12 and not {11, 12} & set(numbers(data, range(10)))


def test_shards_that_did_not_change_are_not_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    open_examples(tmp_path, SIZE, known_sizes=tmp_path / "sizes.json")
    monkeypatch.setattr(tarfile, "open", None)
    assert len(open_examples(tmp_path, SIZE, known_sizes=tmp_path / "sizes.json")) == 40


@pytest.mark.parametrize("keep", [0, 700, -30_000])
def test_a_shard_that_was_cut_short_is_named(keep: int, tmp_path: Path) -> None:
    write_shards(tmp_path)
    path = tmp_path / "0001.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFileError, match=r"0001\.tar"):
        open_examples(tmp_path, SIZE)


def test_shards_without_examples_say_so(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("readme.md", b"nothing")])
    with pytest.raises((MissingFileError, DamagedFileError), match=r"readme has no \.jpg|hold no examples"):
        open_examples(tmp_path, SIZE)


def test_a_hint_of_other_proportions_is_found_when_it_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("a.png", png(1)), ("a.conditioning_image.png", png(2, SIZE + 2)), *example(1)])
    data, held_out = opened(tmp_path)
    data.pictures(held_out)
    with pytest.raises(DamagedFileError, match=r"the hint a\.cond.* is 10x8, its picture 8x8 .*a\.tar/a\.png"):
        data.hints(held_out)


def test_damaged_pictures_in_a_shard_are_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("a.png", png(1)[:40]), ("a.conditioning_image.png", png(2)), *example(1)])
    data, held_out = opened(tmp_path)
    with pytest.raises(DamagedFileError, match=r"a\.tar/a\.png cannot be read as a picture"):
        data.pictures(held_out)


def test_a_sparse_picture_in_a_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(sparse_member("1.jpg", 2**40) + bytes(1024))
    with pytest.raises(DamagedFileError, match=r"0\.tar.1\.jpg has 1,099,511,627,776 bytes, more than its tar"):
        open_examples(tmp_path, 16)


def test_the_buffer_mixes_and_loses_nothing() -> None:
    from random import Random

    mixed = list(mix(range(1000), Random(1), 100))
    assert sorted(mixed) == list(range(1000))
    # an item cannot come out more than the buffer's size before its turn, and most move far
    assert all(item < at + 100 for at, item in enumerate(mixed))
    assert np.mean([abs(item - at) > 10 for at, item in enumerate(mixed)]) > 0.8


@pytest.mark.slow
def test_a_hundred_thousand_examples_take_no_more_memory_than_ten_thousand(tmp_path: Path) -> None:
    """Streamed through the reader: memory flat within 2 %, no example twice in an epoch, exact in the middle."""
    picture, hint = png(1), png(2)
    count, per_shard = 100_000, 10_000
    for shard in range(count // per_shard):
        write_shard(
            tmp_path / f"{shard}.tar",
            (
                member
                for n in range(shard * per_shard, (shard + 1) * per_shard)
                for member in (
                    (f"{n}.png", picture), (f"{n}.conditioning_image.png", hint), (f"{n}.txt", f"number {n}".encode())
                )
            ),
        )  # fmt: skip
    data, held_out = opened(tmp_path)
    epoch = count - len(held_out)
    seen = np.zeros(count, bool)
    peak = 0
    for begin in range(0, epoch, 64):
        rows = list(range(begin, min(begin + 64, epoch)))
        found = numbers(data, rows)
        assert not seen[found].any()
        seen[found] = True
        data.pictures(rows[:1]), data.hints(rows[:1])
        if begin == 200 * 64:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if begin == 1000 * 64:
            middle = found
    assert seen.sum() == epoch
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= 1.02 * peak
    assert len(data._window) <= WINDOW
    again, _ = opened(tmp_path)
    assert numbers(again, range(1000 * 64, 1001 * 64)) == middle
