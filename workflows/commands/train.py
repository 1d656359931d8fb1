"""`controlnet train`: train a ControlNet on a folder of examples."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...controlnet_core.errors import Interrupted, MissingFileError, ValueRangeError
from ..destinations import check_file

if TYPE_CHECKING:
    from ...controlnet_core.training.control import ControlTraining, Options, Probe
    from ...controlnet_core.training.loop import Recipe, Report
    from ...controlnet_core.training.workspace import Workspace

LAYOUTS = {"cldm": "ldm", "diffusers": "diffusers", "core": "core"}
DTYPES = ("fp16", "bf16", "fp32")
DEMO = "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    parser.add_argument("--data", type=Path, required=True, help="folder: prompt.json, or source/ and target/")
    parser.add_argument("--base", required=True, help="checkpoint file or folder to train on, or demo")
    parser.add_argument("--output", type=Path, required=True, help="the ControlNet to write, a .safetensors file")
    parser.add_argument("--start", type=Path, help="a ControlNet to go on from, instead of a copy of the base")
    parser.add_argument("--work", type=Path, help="folder for state, log and samples (default: beside the output)")
    numbers = parser.add_argument_group("recipe (defaults: the paper's)")
    numbers.add_argument("--steps", type=int, help="steps of the optimiser (10000)")
    numbers.add_argument("--batch", type=int, help="pictures per batch (4)")
    numbers.add_argument("--accumulate", type=int, help="batches per step (1)")
    numbers.add_argument("--lr", type=float, help="learning rate of AdamW (1e-5; 2e-6 with --unlock)")
    numbers.add_argument("--ema", type=float, help="decay of the averaged weights, which are what is written (0.999)")
    numbers.add_argument("--seed", type=int, help="of weights, batches and noise (0)")
    numbers.add_argument("--size", type=int, help="side of the pictures (the base's own)")
    numbers.add_argument("--empty", type=float, default=0.5, help="share of empty prompts (0.5)")
    numbers.add_argument("--unlock", action="store_true", help="train the base's decoder too (sd_locked=False)")
    numbers.add_argument("--only-mid", action="store_true", help="control the middle block alone (only_mid_control)")
    numbers.add_argument("--quick", action="store_true", help="not the paper's: for small models and short runs")
    numbers.add_argument("--bf16", action="store_true", help="compute in bfloat16, weights in float32")
    look = parser.add_argument_group("run")
    look.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    look.add_argument("--minutes", type=float, help="stop after so long; the same command goes on from there")
    look.add_argument("--probe-every", type=int, default=100, help="steps between probes of control (100)")
    look.add_argument("--sample-every", type=int, default=500, help="steps between sample pictures; 0 for none (500)")
    look.add_argument("--sample-steps", type=int, default=20, help="sampling steps of a sample picture (20)")
    look.add_argument("--save-every", type=int, default=200, help="steps between saved states (200)")
    look.add_argument("--layout", choices=tuple(LAYOUTS), default="cldm", help="of the file that is written (cldm)")
    look.add_argument("--dtype", choices=DTYPES, default="fp16", help="of the file that is written (fp16)")
    look.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    """Train, or go on with a training that was stopped; ends with the net in its file.

    Raises Interrupted, with the state saved, when the user stops it.
    """
    from ...controlnet_core.training.workspace import Workspace

    began = time.monotonic()
    check_file("--output", args.output)
    work = Workspace(args.work or args.output.with_name(f"{args.output.stem}_training"))
    training = prepare(args, work)
    loop = training.loop
    if loop.resume():
        _say(args, f"going on from step {loop.step}")
    watch = Watch(args, work, training)
    with _stop_on_interrupt() as stopped, watch.bar:
        complete = loop.run(
            watch.on_report,
            every=10,
            save_every=args.save_every,
            until=None if args.minutes is None else began + 60.0 * args.minutes,
            on_step=watch.on_step,
            cancelled=lambda: bool(stopped),
        )
    if stopped:
        raise Interrupted(f"stopped at step {loop.step}, the state is saved: the same command goes on from there")
    if not complete:
        _say(args, f"stopped at step {loop.step} of {loop.recipe.steps}; the same command goes on from there")
        return 0
    _finish(args, training, watch, work)
    return 0


def prepare(args: argparse.Namespace, work: Workspace) -> ControlTraining:
    """Models, examples and settings of a command line. Raises the errors of `control_training`."""
    import torch

    from ...controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
    from ...controlnet_core.engine.runtime import Runtime
    from ...controlnet_core.training import control
    from ...controlnet_core.training.examples import open_examples
    from ...controlnet_core.training.workspace import settings_of

    if args.output.suffix != ".safetensors":
        raise ValueRangeError(f"--output {args.output}: expected a .safetensors file")
    recipe, options = choose(args)
    base = _base(args.base)
    checkpoint = load_checkpoint(base, dtype=torch.float32)
    size = args.size or control.NATIVE_SIZES.get(checkpoint.config.name, 512)
    data = open_examples(args.data, size)
    start = None if args.start is None else load_controlnet(args.start, dtype=torch.float32)[0]
    device = Runtime.choose(args.device, "fp32").device
    training = control.control_training(
        checkpoint, data, recipe, options, state_file=work.state_file, start=start, device=device
    )
    work.claim(settings_of(args.data, base, args.start, data, recipe, options))
    held = "" if len(data) >= control.ALL_TRAINED else ", none of them held out for the probe"
    _say(args, f"{len(data)} examples of {size} pixels{held}; {checkpoint.identity.summary}; on {device}")
    return training


def choose(args: argparse.Namespace) -> tuple[Recipe, Options]:
    """Recipe and options of a command line."""
    from ...controlnet_core.training import control

    given = {name: getattr(args, name) for name in ("steps", "batch", "accumulate", "lr", "ema", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("steps", "batch", "accumulate"):
        if given.get(name, 1) < 1:
            raise ValueRangeError(f"--{name} is {given[name]}: expected 1 or more")
    options = control.Options(args.empty, not args.unlock, args.only_mid, args.quick)
    recipe = control.trained_recipe(control.QUICK if args.quick else control.PAPER, options)
    return replace(recipe, bf16=args.bf16, **given), options


def _base(name: str) -> Path:
    from ...nodes.builtin import checkpoints
    from ...nodes.standalone.host import ASSETS

    if name == DEMO:
        return next(iter(checkpoints(ASSETS).values()))
    path = Path(name).expanduser()
    if not path.exists():
        raise MissingFileError(f"there is no checkpoint {name}: give a file, a diffusers folder, or {DEMO}", path)
    return path


class Watch:
    """What is told and kept while a training runs."""

    def __init__(self, args: argparse.Namespace, work: Workspace, training: ControlTraining) -> None:
        from tqdm import tqdm

        self.args, self.work, self.training = args, work, training
        loop = training.loop
        self.history: list[Probe] = work.history(loop.step)
        self.bar: Any = tqdm(total=loop.recipe.steps, initial=loop.step, desc="train", unit="step", dynamic_ncols=True)

    def on_report(self, report: Report) -> None:
        """Loss and rate, on the bar and in the log."""
        self.bar.set_postfix_str(f"loss {report.loss:.4f}")
        self.bar.update(report.step - self.bar.n)
        self.work.note(report)

    def on_step(self, step: int) -> None:
        """Probes and samples when it is time for them."""
        last = step == self.training.loop.recipe.steps
        if step % self.args.probe_every == 0 or last:
            self._probe()
        if self.args.sample_every and (step % self.args.sample_every == 0 or last):
            self._sample(step)

    def _probe(self) -> None:
        from ...controlnet_core.training.control import first_control

        before = first_control(self.history)
        probe = self.training.probe()
        self.history.append(probe)
        self.work.note(probe)
        self._say(f"step {probe.step}: {describe(probe)}")
        found = first_control(self.history)
        if found is not None and before is None:
            self._say(f"control has appeared at step {found.step}")

    def _sample(self, step: int) -> None:
        from ...controlnet_core.pipeline import SampleSettings

        settings = SampleSettings(steps=self.args.sample_steps, cfg=5.0)
        path = self.work.keep_samples(step, self.training.sample(settings=settings))
        self._say(f"step {step}: pictures in {path}")

    def _say(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)


def describe(probe: Probe) -> str:
    """A probe in words."""
    return (
        f"the right hint lowers the loss by {probe.control:.1%} ({probe.certainty:.1f} standard errors; "
        f"{probe.right:.4f} against {probe.wrong:.4f} with other hints)"
    )


def _finish(args: argparse.Namespace, training: ControlTraining, watch: Watch, work: Workspace) -> None:
    from ...controlnet_core.engine.runtime import DTYPES as TYPES
    from ...controlnet_core.training.control import first_control
    from ...controlnet_core.training.workspace import export

    files = export(training, args.output, layout=LAYOUTS[args.layout], dtype=TYPES[args.dtype])  # type: ignore[arg-type]
    found = first_control(watch.history)
    last = watch.history[-1] if watch.history else None
    if args.json:
        facts = {
            "files": [str(path) for path in files],
            "steps": training.loop.step,
            "control": None if last is None else last.control,
            "control_since": None if found is None else found.step,
            "work": str(work.folder),
        }
        print(json.dumps(facts))
        return
    for path in files:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if found is None:
        print("control has not appeared yet: train for longer (a larger --steps goes on from here)")
    else:
        print(f"control since step {found.step}")


@contextmanager
def _stop_on_interrupt() -> Iterator[list[int]]:
    """Ctrl-C ends the run behind the step that is being made."""
    pressed: list[int] = []
    try:
        previous = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    except ValueError:  # not in the main thread, where no signals arrive
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text, flush=True)
