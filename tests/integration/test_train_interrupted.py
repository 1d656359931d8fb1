"""`controlnet train` when something goes wrong: stops, kills, a full disk, damaged files, two runs at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.errors import NonFiniteError
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import ControlNetTraining, prepare_training
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.loop import Loop, Recipe
from comfyui_controlnet_core.controlnet_core.training.work_folder import WorkFolder
from comfyui_controlnet_core.workflows import cli
from file_limit import file_limit
from tiny_training import QUICK, SIZE, make_training_folder, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def one_step(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training of one step, to be copied."""
    made = tmp_path_factory.mktemp("one_step")
    assert train(folder, made / "net.safetensors", "--steps", "1") == 0
    return made


# ---------------------------------------------------------------------------------------- stopped and continued


@pytest.mark.parametrize(
    ("steps", "stops"), [(6, (1, 4)), pytest.param(12, range(1, 12), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_a_training_stopped_at_any_step_ends_with_the_same_bits(
    steps: int, stops: Sequence[int], folder: Path, tmp_path: Path
) -> None:
    """6 or 12 steps on 9 examples: batches before and after a stop meet new and known examples in every mixture."""

    def prepared(state: Path | None) -> ControlNetTraining:
        base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
        data = open_examples(folder / "indexed", SIZE)
        return prepare_training(base, data, Recipe(steps=steps, batch=3, lr=1e-3), state_file=state)

    def bits(training: ControlNetTraining) -> torch.Tensor:
        state = {**training.loop.parameters(), **{f"average.{k}": v for k, v in training.loop.average.items()}}
        return torch.cat([p.detach().flatten() for p in state.values()])

    whole = prepared(None)
    assert whole.loop.run()
    for stop in stops:
        state = tmp_path / f"{stop}.state"
        first = prepared(state)
        assert not first.loop.run(cancelled=lambda loop=first.loop, stop=stop: loop.step == stop)
        second = prepared(state)
        assert second.loop.resume() and second.loop.step == stop
        assert second.loop.run()
        assert torch.equal(bits(second), bits(whole)), f"stopped at step {stop}"


def test_sigterm_ends_a_training_as_ctrl_c_does(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, ended = tmp_path / "net.safetensors", threading.Event()

    def terminate() -> None:
        # The log is first written after some steps, so the training is under way.
        while not (tmp_path / "net_training" / "log.jsonl").exists():
            if ended.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=terminate, daemon=True)
    sender.start()
    try:
        code = train(folder, output, "--steps", "100000")
    finally:
        ended.set()
        sender.join()
    assert code == 143
    assert "state saved: the same command continues from there" in capsys.readouterr().err
    assert (tmp_path / "net_training" / "training.state").exists() and not output.exists()


def test_harmless_settings_may_change_and_are_named(
    folder: Path, one_step: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    output = tmp_path / "net.safetensors"
    more = ("--steps", "2", "--lr", "1e-4", "--batch", "1", "--ema", "0.5", "--accumulate", "2")
    assert train(folder, output, *more) == 0
    out = capsys.readouterr().out
    assert (
        "continues from step 1 with other settings: steps was 1, is 2, batch was 2, is 1, lr was 0.001, is 0.0001"
        in out
    )
    assert json.loads((tmp_path / "net_training" / "settings.json").read_text())["lr"] == 1e-4


# ------------------------------------------------------------------------------------------- not finite


def test_a_state_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """The loss is NaN at step 3, and a state is due at each step; step 2 stays, and a lower rate goes on from it."""
    module = torch.nn.Linear(2, 2)
    loop = Loop({"m": module}, lambda g: module.weight.sum(), Recipe(steps=9), tmp_path / "s.state")
    loop.loss = lambda g: module.weight.sum() * (torch.nan if loop.step >= 2 else 1.0)
    with pytest.raises(NonFiniteError, match="the state of step 2 is kept: lower the learning rate"):
        loop.run(save_every=1)
    again = Loop({"m": module}, lambda g: module.weight.sum(), Recipe(steps=4, lr=1e-6), tmp_path / "s.state")
    assert again.resume() and again.step == 2
    assert again.run() and all(bool(p.isfinite().all()) for p in again.parameters().values())


def test_a_gradient_that_is_not_finite_is_found_too(tmp_path: Path) -> None:
    """sqrt at 0: the loss is 0, its gradient infinite."""
    module = torch.nn.Linear(2, 2)
    loop = Loop({"m": module}, lambda g: (module.weight - module.weight.detach()).sqrt().sum(), Recipe(steps=5))
    loop.state_file = tmp_path / "s.state"
    with pytest.raises(NonFiniteError, match="no state was saved yet"):
        loop.run(save_every=1)
    assert not loop.state_file.exists()


# ---------------------------------------------------------------------------------------------- files


def test_two_trainings_do_not_share_a_work_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.safetensors"
    with WorkFolder(tmp_path / "net_training").locked():
        assert train(folder, output, "--steps", "1") == 2
        assert "net_training is used by another training" in capsys.readouterr().err
        assert not (tmp_path / "net_training" / "training.state").exists() and not output.exists()
    assert train(folder, output, "--steps", "1") == 0


def test_leftovers_of_killed_runs_are_removed(folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "net_training"
    (work / "samples").mkdir(parents=True)
    (work / "cache").mkdir()
    leftovers = [
        work / ".training.state.1.tmp",
        work / ".settings.json.22.tmp",
        work / "samples" / ".step_000100.png.333.tmp",
        work / "cache" / ".0123_0_00000.safetensors.5.tmp",
        tmp_path / ".net.safetensors.4444.tmp",
    ]
    kept = [tmp_path / ".other.safetensors.1.tmp", work / ".my.tmp"]  # of another file, and of somebody else
    for path in (*leftovers, *kept):
        path.write_bytes(b"half")
    (work / "training.lock").touch()  # without a process that holds it
    (work / "log.jsonl").write_text('{"kind": "report", "step": 1}\n{"kind": "rep')
    assert train(folder, tmp_path / "net.safetensors", "--steps", "1", "--probe-every", "1") == 0
    assert not [path for path in leftovers if path.exists()]
    assert all(path.exists() for path in kept)
    kinds = [json.loads(line)["kind"] for line in (work / "log.jsonl").read_text().splitlines()]
    assert kinds == ["report", "report", "probe"]


def pickled(path: Path) -> None:
    torch.save({"step": 3}, path)


def of_another_net(path: Path) -> None:
    Loop({"net": torch.nn.Linear(2, 2)}, lambda g: torch.zeros(()), Recipe(steps=1), path).save()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(os.urandom(500)),
    "pickle": pickled,
    "another net": of_another_net,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_one_clear_line(
    damage: str, folder: Path, one_step: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path / "net_training" / "training.state")
    capsys.readouterr()
    assert train(folder, tmp_path / "net.safetensors", "--steps", "2") == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "training.state is damaged, or is not the state of this training" in error
    assert error.endswith("put a copy back, or delete it to train from the start") and "weights_only" not in error


def test_damaged_settings_are_one_clear_line(
    folder: Path, one_step: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "net_training" / "settings.json"
    for content in ("", "{", "[1]", "\xff", "[" * 100_000):
        settings.write_text(content, "latin-1")
        assert train(folder, tmp_path / "net.safetensors", "--steps", "2") == 3, content[:3]
        assert "settings.json is damaged" in capsys.readouterr().err
    settings.unlink()  # as the message says
    assert train(folder, tmp_path / "net.safetensors", "--steps", "2") == 0


@pytest.mark.parametrize("limit", [0, 20_000])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    limit: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even the settings fit, or only the state does not."""
    with file_limit(limit):
        code = train(folder, tmp_path / "net.safetensors", "--steps", "1")
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 3 and "could not be written" in error and "make room" in error
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".state", ".safetensors")]
    assert train(folder, tmp_path / "net.safetensors", "--steps", "1") == 0


# ---------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize("option", ["--base", "--start"])
@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_an_input_is_never_replaced(
    option: str, more: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, link = tmp_path / "copy.safetensors", tmp_path / "link.safetensors"
    copy.write_bytes((folder / "base.safetensors").read_bytes())
    link.symlink_to(copy)
    before = copy.read_bytes()
    assert train(folder, link, option, str(copy), *more) == 2
    assert f"would replace {option}" in capsys.readouterr().err and copy.read_bytes() == before


def test_the_unlocked_base_is_not_written_over_its_original(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "net_base.safetensors"
    base.write_bytes((folder / "base.safetensors").read_bytes())
    assert train(folder, tmp_path / "net.safetensors", "--base", str(base), "--unlock") == 2
    assert "would replace --base" in capsys.readouterr().err


FOREIGN = {"settings.json": '{"editor": 1}', "sizes.json": '{"a": 2}', "log.jsonl": "mine", "training.state": "mine"}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_work_folder_with_files_of_others_is_refused(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(FOREIGN[name])
    assert train(folder, tmp_path / "net.safetensors", "--work", str(tmp_path), "--steps", "1") == 2
    assert f"holds files that no training wrote ({name})" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: FOREIGN[name]}


def test_a_work_folder_of_an_earlier_version_is_continued(folder: Path, one_step: Path, tmp_path: Path) -> None:
    """Trainings did not always leave a lock behind."""
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    (tmp_path / "net_training" / "training.lock").unlink()
    assert train(folder, tmp_path / "net.safetensors", "--steps", "2") == 0


def test_the_home_folder_is_found_behind_an_equals_sign(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").symlink_to(folder / "indexed")
    (tmp_path / "base.safetensors").symlink_to(folder / "base.safetensors")
    words = ["--data=~/data", "--base=~/base.safetensors", "--output=~/net.safetensors", "--work=~/work"]
    assert cli.main(["train", *words, *QUICK, "--steps", "1"]) == 0
    assert (tmp_path / "net.safetensors").is_file() and (tmp_path / "work" / "training.state").is_file()


@pytest.mark.parametrize("option", ["--data", "--base", "--start", "--output", "--work"])
def test_the_home_folder_of_an_unknown_user(
    option: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, tmp_path / "net.safetensors", f"{option}=~nosuchuser/x.safetensors") == 2
    assert "~nosuchuser" in capsys.readouterr().err


def test_a_file_that_no_training_wrote_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.safetensors"
    output.write_bytes(b"somebody's")
    assert train(folder, output, "--steps", "1") == 2
    assert "exists, and no training wrote it" in capsys.readouterr().err and output.read_bytes() == b"somebody's"
    assert train(folder, output, "--steps", "1", "--overwrite") == 0
    assert load_controlnet(output)[1].kind == "controlnet"


# ---------------------------------------------------------------------------------------------- examples


def test_bad_examples_are_listed_and_left_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    for name in ("source", "target"):
        (data / name).mkdir(parents=True)
        for file in (folder / "paired" / name).iterdir():
            (data / name / file.name).write_bytes(file.read_bytes())
    (data / "target" / "2.png").write_bytes(b"")
    (data / "source" / "5.png").write_bytes(b"no picture")
    options = ("--data", str(data), "--steps", "1")
    assert train(folder, tmp_path / "net.safetensors", *options) == 3
    error = capsys.readouterr().err
    assert "2 of 9 examples cannot be used" in error.splitlines()[-1]
    assert [line.startswith("cannot be used: ") for line in error.splitlines()[:2]] == [True, True]
    assert train(folder, tmp_path / "net.safetensors", *options, "--skip-bad") == 0
    shown = capsys.readouterr()
    assert "7 examples of 64 pixels" in shown.out
    assert [name in shown.err for name in ("2.png", "5.png", "left out: ")] == [True, True, True]
