"""Options of `controlnet train` that decide how it runs: readers, the place of the averages, the compiler."""

from __future__ import annotations

import json
import tarfile
import threading
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.errors import DamagedFileError, MissingPackageError
from comfyui_controlnet_core.controlnet_core.training import compiled, examples
from comfyui_controlnet_core.controlnet_core.training.compiled import check_compiler
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import ControlNetTraining, prepare_training
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.loop import Loop, Recipe
from comfyui_controlnet_core.controlnet_core.training.read_ahead import BATCHES, ReadAhead
from comfyui_controlnet_core.workflows import cli
from comfyui_controlnet_core.workflows.training_run import choose_recipe
from tiny_training import COUNT, SIZE, make_training_folder, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("options"))


def opened(folder: Path, workers: int, keep_bytes: int = 0, **numbers: float) -> ControlNetTraining:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    data = open_examples(folder / "indexed", SIZE)
    recipe = Recipe(steps=3, batch=2, lr=1e-3, **numbers)  # type: ignore[arg-type]
    return prepare_training(base, data, recipe, workers=workers, keep_bytes=keep_bytes)


def bits(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in (*loop.parameters().values(), *loop.average.values())])


# --------------------------------------------------------------------------------------------- reading ahead


def test_workers_read_the_same_pictures_and_train_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[str] = []
    read = examples.read_pixels

    def counted(path: Path) -> object:
        readers.append(threading.current_thread().name)
        return read(path)

    plain, parallel = opened(folder, 0), opened(folder, 2)
    plain.loop.run()
    monkeypatch.setattr(examples, "read_pixels", counted)
    parallel.loop.run()
    parallel.close()
    assert torch.equal(bits(plain.loop), bits(parallel.loop))
    assert readers and all(name.startswith("examples") for name in readers), "none is read twice"


def test_a_picture_whose_latent_is_kept_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = opened(folder, 1, keep_bytes=2**20)
    training.latents(list(range(COUNT)))
    names: list[str] = []
    read = examples.read_pixels

    def counted(path: Path) -> object:
        names.append(path.parent.name)
        return read(path)

    monkeypatch.setattr(examples, "read_pixels", counted)
    training.loop.run()
    training.close()
    assert set(names) == {"source"}


def test_shards_are_read_ahead_in_order_and_errors_wait_for_their_turn(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number in range(COUNT):
            for name, ending in (("source", "conditioning_image.png"), ("target", "png")):
                tar.add(folder / "indexed" / name / f"{number}.png", f"{number}.{ending}")
    data, again = (open_examples(tmp_path, SIZE) for _ in range(2))
    draw, _ = data.split(0)
    again.split(0)
    reader = ReadAhead(data, draw, 2, slice(None), 3)
    for drawn in range(0, 20, 2):
        reader.expect(drawn, lambda row: True)
        rows = draw(2, drawn)
        assert torch.equal(reader.hints(rows), again.hints(rows))
        assert all(torch.equal(reader.picture(row), again.pictures([row])) for row in rows)
    reader.close()

    class Damaged:
        def pictures(self, rows: list[int]) -> torch.Tensor:
            raise DamagedFileError(f"row {rows[0]}")

        def hints(self, rows: list[int]) -> torch.Tensor:
            if rows[0] == 3:
                raise DamagedFileError("row 3")
            return torch.full((1, 3, 8, 8), rows[0])

    late = ReadAhead(Damaged(), draw, 1, slice(None), 1)  # type: ignore[arg-type]
    for row in range(1 + BATCHES):
        late.expect(row, lambda row: False)
        assert float(late.hints([row])[0, 0, 0, 0]) == row
    late.expect(3, lambda row: False)
    with pytest.raises(DamagedFileError, match="row 3"):
        late.hints([3])
    late.close()


# --------------------------------------------------------------------------------------------------- averages


def test_averages_on_the_cpu_are_the_same(folder: Path) -> None:
    device, cpu = opened(folder, 0), opened(folder, 0, ema_on_cpu=True)
    for training in (device, cpu):
        training.loop.run()
    assert torch.equal(bits(device.loop), bits(cpu.loop))
    name, weight = next(iter(cpu.loop.parameters().items()))
    assert cpu.loop.average[name].data_ptr() != weight.data_ptr()


def test_the_words_of_ema(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, settings = tmp_path / "net.safetensors", tmp_path / "net_training" / "settings.json"
    cases = (("cpu", (0.999, True)), ("0.5 cpu", (0.5, True)), ("device", (0.999, False)), ("off", (0.0, False)))
    for words, expected in cases:
        line = ["train", "--data", "x", "--base", "x", "--output", "x.safetensors", "--ema", *words.split()]
        recipe, _ = choose_recipe(cli.build_parser("train").parse_args(line))
        assert (recipe.ema, recipe.ema_on_cpu) == expected
    for steps, (words, expected) in enumerate(cases[1:3], start=1):
        assert train(folder, output, "--steps", str(steps), "--ema", *words.split()) == 0
        found = json.loads(settings.read_text())
        assert (found["ema"], found["ema_on_cpu"]) == expected
    assert "ema_on_cpu was True, is False" in capsys.readouterr().out
    for words in ("off 0.5", "cpu device", "0.5 0.6"):
        assert train(folder, output, "--steps", "9", "--ema", *words.split()) == 2
        assert f"--ema {words}: give a decay such as 0.999" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- compiler


def test_a_missing_compiler_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> object:
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found in cxx: g++")

    with pytest.raises(MissingPackageError, match=r"InvalidCxxCompiler: No working .*leave --compile out"):
        check_compiler(torch.device("cpu"), fail)  # type: ignore[arg-type]
    monkeypatch.setattr(compiled.torch, "compile", fail)
    assert train(folder, tmp_path / "net.safetensors", "--steps", "1", "--compile") == 3
    assert "install a C++ compiler" in capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.slow
def test_a_compiled_training_learns_the_same(folder: Path) -> None:
    """With the compiler of this machine, where it has one."""
    try:
        check_compiler(torch.device("cpu"))
    except MissingPackageError as error:
        pytest.skip(str(error))
    base, data = load_checkpoint(folder / "base.safetensors"), open_examples(folder / "indexed", SIZE)
    fast = prepare_training(base, data, Recipe(steps=3, batch=2, lr=1e-5), compiled=True)
    plain = prepare_training(load_checkpoint(folder / "base.safetensors"), data, Recipe(steps=3, batch=2, lr=1e-5))
    for training in (fast, plain):
        training.loop.run()
    torch.testing.assert_close(bits(fast.loop), bits(plain.loop), rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------- nothing to do


def test_a_finished_training_says_that_there_is_nothing_to_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, settings = tmp_path / "net.safetensors", tmp_path / "net_training" / "settings.json"
    assert train(folder, output, "--steps", "2") == 0
    before, written = settings.read_bytes(), output.stat().st_mtime_ns
    capsys.readouterr()
    for words in (("--steps", "2"), ("--steps", "1", "--lr", "1e-5")):
        assert train(folder, output, *words) == 0
        out = capsys.readouterr().out
        assert out.strip().split("\n")[-1] == "nothing to do: 2 steps are done"
        assert "other settings" not in out and "wrote" not in out
    assert settings.read_bytes() == before and output.stat().st_mtime_ns == written
    assert train(folder, output, "--steps", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    # A net that is gone is written again from the state, and so is one that is to be replaced.
    output.unlink()
    for more in ((), ("--overwrite", "--dtype", "fp32")):
        assert train(folder, output, "--steps", "2", *more) == 0
        assert "wrote" in capsys.readouterr().out and output.exists()
