"""Packed weights on the disk: the same bits, for the same file only, and damage is found."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header, read_tensors, write_safetensors
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu import kept, kept_files, mapped_file, opaque, winograd
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.kept import KeptWeights
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.pack import can_pack, pack
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.work_buffer import WorkBuffer
from comfyui_controlnet_core.workflows import cli
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or bool(opaque.unsupported()), reason="packed weights are not kept here"
)
SIZE = (1, 128, 16, 16)


@pytest.fixture(autouse=True)
def small_and_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LEAST_BYTES", 1)
    monkeypatch.setattr(mapped_file, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(winograd, "LEAST_WORK", dict.fromkeys((torch.float32, torch.bfloat16), 0.0))
    monkeypatch.setattr(winograd, "has_matrix_unit", lambda: False)


class Net(nn.Module):
    """A layer of each form: tiles, a blocked convolution, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.tiles, self.point = nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 8, 1)
        self.linear = nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 128, H, 16) -> (B, 8, H, 24)."""
        return self.linear(self.point(self.tiles(x)))


def write_model(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    write_safetensors(file, Net().state_dict())


def mapped_model(file: Path) -> Net:
    net = Net()
    net.load_state_dict(read_tensors(read_header(file)), assign=True)
    return net.eval()


def output(file: Path, folder: Path, dtype: torch.dtype, changed: bool = False) -> tuple[Tensor, list[str], int]:
    """The output of a packed net with kept weights, the notes, and how many packed tensors were made."""
    torch.manual_seed(0)
    x = torch.randn(SIZE).to(dtype, memory_format=torch.channels_last)
    store = KeptWeights(folder)
    with torch.inference_mode():
        net = mapped_model(file)
        if changed:
            net.linear.weight[0] += 1.0
        made = pack(net, dtype, WorkBuffer(), store)(x)
    count = len(store._fresh)
    store.write()
    return made, store.notes, count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_kept_is_used_and_gives_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    if not can_pack(torch.device("cpu"), dtype):
        pytest.skip(f"this processor has no packed layers in {dtype}")
    file, folder = tmp_path / "m.safetensors", tmp_path / "kept"
    write_model(file, 1)
    first, notes, made = output(file, folder, dtype)
    assert made == 16 + 1 + 1 and "packed weights kept for the next start" in notes[0]
    second, notes, made = output(file, folder, dtype)
    assert made == 0 and not notes and torch.equal(first, second)
    assert not list(folder.glob(".*")) and len(list(folder.iterdir())) == 1


def test_another_content_or_place_is_another_weight(tmp_path: Path) -> None:
    file, folder = tmp_path / "m.safetensors", tmp_path / "kept"
    write_model(file, 1)
    first, _, _ = output(file, folder, torch.float32)
    before = file.stat()
    write_model(file, 2)  # as large as before, and dated back
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second, _, made = output(file, folder, torch.float32)
    assert made == 18 and not torch.equal(first, second)
    write_model(file, 1)
    assert torch.equal(output(file, folder, torch.float32)[0], first)


def test_a_write_in_place_is_seen(tmp_path: Path) -> None:
    file, folder = tmp_path / "m.safetensors", tmp_path / "kept"
    write_model(file, 1)
    output(file, folder, torch.float32)
    with file.open("r+b") as opened:
        opened.seek(-16, os.SEEK_END)
        opened.write(b"\0" * 16)
    assert output(file, folder, torch.float32)[2] == 18


def test_weights_that_were_changed_in_memory_are_not_looked_up(tmp_path: Path) -> None:
    file, folder = tmp_path / "m.safetensors", tmp_path / "kept"
    write_model(file, 1)
    plain, _, _ = output(file, folder, torch.float32)
    changed, notes, made = output(file, folder, torch.float32, changed=True)
    assert not torch.equal(plain, changed) and made == 0 and not notes
    assert torch.equal(output(file, folder, torch.float32)[0], plain)


def test_a_file_that_changed_just_now_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_file, "SETTLED_SECONDS", 60.0)
    write_model(tmp_path / "m.safetensors", 1)
    assert output(tmp_path / "m.safetensors", tmp_path / "kept", torch.float32)[2] == 0


@pytest.mark.parametrize("place", ["magic", "table", "content", "end"])
def test_damaged_files_are_made_again(place: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "m.safetensors", tmp_path / "kept"
    write_model(file, 1)
    first, _, _ = output(file, folder, torch.float32)
    (packed,) = folder.iterdir()
    content = bytearray(packed.read_bytes())
    where = {"magic": 0, "table": 60, "content": len(content) - 100, "end": None}[place]
    if where is None:
        del content[-200:]
    else:
        content[where] ^= 1
    packed.write_bytes(content)
    second, notes, made = output(file, folder, torch.float32)
    assert torch.equal(first, second) and made > 0
    assert packed.name in notes[0] and "are made again" in notes[0] and len(notes) == 2
    assert output(file, folder, torch.float32)[1:] == ([], 0)


def test_files_of_another_machine_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = tmp_path / "m.safetensors", tmp_path / "kept"
    write_model(file, 1)
    monkeypatch.setattr(kept, "here", lambda: "0" * 64)
    output(file, folder, torch.float32)
    monkeypatch.undo()
    monkeypatch.setattr(kept, "LEAST_BYTES", 1)
    monkeypatch.setattr(mapped_file, "SETTLED_SECONDS", 0.0)
    assert output(file, folder, torch.float32)[2] > 0
    infos = list(kept_files.list_kept_files(folder))
    assert sorted(bool(info.problem) for info in infos) == [False, True]


def test_a_full_disk_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "m.safetensors", 1)
    monkeypatch.setattr(kept, "ROOM", 1e12)
    _, notes, _ = output(tmp_path / "m.safetensors", tmp_path / "kept", torch.float32)
    assert "do not fit" in notes[0] and not list((tmp_path / "kept").iterdir())


def test_the_command_lists_and_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_model(tmp_path / "m.safetensors", 1)
    output(tmp_path / "m.safetensors", kept_files.kept_folder(), torch.float32)
    assert cli.main(["cache", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (row,) = facts["files"]
    assert row["sources"] == ["m.safetensors"] and row["bytes"] == facts["bytes"] > 1_000_000 and not row["problem"]
    assert cli.main(["cache"]) == 0 and "m.safetensors" in capsys.readouterr().out
    assert cli.main(["cache", "--clear"]) == 0 and "removed 1 files" in capsys.readouterr().out
    assert not list(kept_files.kept_folder().iterdir())
