"""Training with several processes: the same batches, the same weights, one state file for any number of them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import ControlNetTraining, prepare_training
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from comfyui_controlnet_core.controlnet_core.training.processes import Processes
from tiny_training import QUICK, SIZE, make_training_folder

STEPS = 20
KILLED_STEPS = 60
"""Many enough that five runs, killed within half a second each, do not reach the end."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("train"))


def opened(folder: Path, processes: Processes, batch: int = 4) -> ControlNetTraining:
    base = load_checkpoint(folder / "base.safetensors", dtype=torch.float32)
    data = open_examples(folder / "indexed", SIZE)
    return prepare_training(base, data, Recipe(steps=2, batch=batch, lr=1e-3), processes=processes)


def gradients(training: ControlNetTraining) -> torch.Tensor:
    training.loop.loss(torch.Generator().manual_seed(5)).backward()
    found = (p.grad for p in training.loop.parameters().values())
    return torch.cat([grad.flatten() for grad in found if grad is not None])


def test_the_parts_of_a_batch_make_the_whole_batch(folder: Path) -> None:
    """The mean of the processes' gradients is that of one process: captions, timesteps and noise are shared out."""
    whole = gradients(opened(folder, Processes()))
    halves = [gradients(opened(folder, Processes(2, index))) for index in (0, 1)]
    assert not torch.allclose(halves[0], halves[1])
    torch.testing.assert_close(torch.stack(halves).mean(0), whole, rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_shared_is_refused(folder: Path) -> None:
    with pytest.raises(ValueRangeError, match="a batch of 3 cannot be shared by 2 processes: choose a multiple of 2"):
        opened(folder, Processes(2, 0), batch=3)


def command(folder: Path, output: Path, processes: int, *more: str) -> list[str]:
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    train = ["-m", "comfyui_controlnet_core", "train", "--data", str(folder / "indexed")]
    base = ["--base", str(folder / "base.safetensors"), "--output", str(output), *QUICK, "--probe-every", "1000"]
    # The paper's learning rate: AdamW moves a weight by it however small the gradient is, which a sum in another order
    # may turn around.
    recipe = ["--lr", "1e-5", "--steps", str(STEPS), "--dtype", "fp32"]
    return [sys.executable, *launch, *train, *base, *recipe, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(path: Path) -> torch.Tensor:
    net, _ = load_controlnet(path, dtype=torch.float32)
    return torch.cat([p.flatten() for p in net.parameters()])


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    output = tmp_path_factory.mktemp("alone") / "net.safetensors"
    subprocess.run(command(folder, output, 1), env=environment(), check=True, capture_output=True, timeout=600)
    return weights(output)


@pytest.mark.slow
def test_two_processes_train_the_net_that_one_trains(folder: Path, alone: torch.Tensor, tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    done = subprocess.run(command(folder, output, 2), env=environment(), check=True, capture_output=True, timeout=600)
    assert done.stdout.decode().count("wrote") == 1  # the first process alone speaks and writes
    torch.testing.assert_close(weights(output), alone, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_a_state(folder: Path, alone: torch.Tensor, tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    for processes, more in ((2, ("--minutes", "0")), (1, ("--minutes", "0")), (2, ())):
        run = command(folder, output, processes, *more)
        subprocess.run(run, env=environment(), check=True, capture_output=True, timeout=600)
    torch.testing.assert_close(weights(output), alone, rtol=0, atol=1e-6)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["one", "all"])
def test_killed_trainings_end_with_the_bits_of_an_unbroken_one(folder: Path, tmp_path: Path, victim: str) -> None:
    """SIGKILL of one process, or of all, at five random moments each."""
    steps = ("--steps", str(KILLED_STEPS))
    whole = tmp_path / "whole.safetensors"
    subprocess.run(command(folder, whole, 2, *steps), env=environment(), check=True, capture_output=True, timeout=600)
    moments = random.Random(victim)
    output = tmp_path / "net.safetensors"
    state = tmp_path / "net_training" / "training.state"
    killed: list[int] = []
    for _ in range(5):
        run = command(folder, output, 2, *steps, "--save-every", "1")
        process = subprocess.Popen(run, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        if process.poll() is None:
            killed.append(int(read_header(state).metadata["step"]))
            workers = children(process.pid)
            for pid in [*workers, process.pid] if victim == "all" else workers[:1]:
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=600)
    print(f"killed {victim} with the state of step {', '.join(map(str, killed))}")  # shown with -s
    assert len(killed) == 5 and max(killed) < KILLED_STEPS, "a training was over before it was killed"
    subprocess.run(command(folder, output, 2, *steps), env=environment(), check=True, capture_output=True, timeout=600)
    assert torch.equal(weights(output), weights(whole))
