"""Runs a training for the command `controlnet train`: checks its files, reports progress, and writes the net."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..controlnet_core.checkpoints.io import read_header
from ..controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from ..controlnet_core.errors import CheckpointError, Interrupted, MissingFileError, ValueRangeError
from ..controlnet_core.runtime.device import DTYPES, Runtime
from ..controlnet_core.sample import SampleSettings
from ..controlnet_core.training import controlnet_training
from ..controlnet_core.training.controlnet_training import ControlNetTraining, TrainingOptions
from ..controlnet_core.training.disk_cache import DiskCache, encoders_digest
from ..controlnet_core.training.example_folder import open_examples
from ..controlnet_core.training.example_forms import Columns
from ..controlnet_core.training.examples import Examples, ExampleSet, read_pixels
from ..controlnet_core.training.export import RECIPE_KEY, check_layout, export, export_files
from ..controlnet_core.training.loop import Recipe, Report
from ..controlnet_core.training.memory import estimate_training
from ..controlnet_core.training.probe import ALL_TRAINED, Probe, first_control
from ..controlnet_core.training.processes import ALONE, Processes, find_processes
from ..controlnet_core.training.trackers import Tracker, open_tracker
from ..controlnet_core.training.work_folder import WorkFolder, settings_of
from ..nodes.builtin import checkpoints
from ..nodes.nets import LAYOUTS
from ..nodes.standalone.host import ASSETS
from .destinations import check_file, check_folder
from .paths import user_path
from .stop_signals import stop_signals
from .training_report import write_report

DEMO = "demo"
CONTROL_LORA, USUAL_RANK = "control-lora", 128
SHOWN_BUCKETS, MOST_WORKERS = 8, 64


def train(args: argparse.Namespace) -> int:
    """Train as the command line says; see `commands.train.run`."""
    began = time.monotonic()
    # Before the models are loaded: hours of work must not end at a file that cannot be written.
    _check_output(args)
    work = WorkFolder(args.work or args.output.with_name(f"{args.output.stem}_training"))
    check_folder("--work", work.folder)
    work.check_own()
    processes, device = find_processes(cpu=args.device == "cpu")
    args.silent = args.json or not processes.is_first
    # Opened early: hours of loading must not end at a package that is missing.
    tracker = open_tracker(args.tracker, work.folder, processes) if args.tracker and processes.is_first else None
    training, settings = prepare(args, work, processes, device)
    loop = training.loop
    with work.locked(*export_files(args.output, args.unlock)) if processes.is_first else nullcontext():
        if not _begin(args, work, training, settings):
            return 0
        watch = Watch(args, work, training, tracker)
        if tracker is not None:
            tracker.start(args.output.stem, settings)
        # The run ends after the current step, not within it.
        stopped: list[int] = []
        with stop_signals(stopped.append), watch.bar:
            complete = loop.run(
                watch.on_report,
                every=10,
                save_every=args.save_every,
                until=None if args.minutes is None else began + 60.0 * args.minutes,
                on_step=watch.on_step,
                cancelled=lambda: bool(stopped),
            )
        training.close()
        if not processes.is_first:
            return 0
        if tracker is not None:
            tracker.finish()
        if complete and not stopped:  # first the net, which matters more
            _finish(args, training, watch, work)
        report = write_report(work, args.output.name, settings, loop.step, loop.recipe.steps)
        if stopped:
            error = Interrupted(f"stopped at step {loop.step}, state saved: the same command continues from there")
            error.exit_code = 128 + stopped[0]  # as shells count signals: 130 for Ctrl-C, 143 for SIGTERM
            raise error
        if complete:
            _print(args, f"report: {report}")
        else:
            _print(args, f"stopped at step {loop.step} of {loop.recipe.steps}; the same command continues from there")
    return 0


def _begin(args: argparse.Namespace, work: WorkFolder, training: ControlNetTraining, settings: dict[str, Any]) -> bool:
    """Continue from the state in the work folder, if it has one. Return False, after saying so, if nothing is left."""
    loop, is_first = training.loop, training.loop.processes.is_first
    # Only now: another training may have written the folder's settings and state while the models were loaded.
    changed = work.compare(settings) if is_first else []
    has_state = loop.resume()
    files = export_files(args.output, args.unlock)
    is_done = has_state and loop.step >= loop.recipe.steps and all(file.exists() for file in files)
    if is_done and not args.overwrite:
        training.close()
        _print(args, f"nothing to do: {loop.step} steps are done")
        if is_first and args.json:
            _print_facts(files, loop.step, work.read_probes(loop.step), work)
        return False
    if is_first:
        work.write_settings(settings)
    if has_state:
        changes = f" with other settings: {', '.join(changed)}" if changed else ""
        _print(args, f"continues from step {loop.step}{changes}")
    return True


def prepare(
    args: argparse.Namespace, work: WorkFolder, processes: Processes = ALONE, device: torch.device | None = None
) -> tuple[ControlNetTraining, dict[str, Any]]:
    """The training of a command line, and its settings. Raises the errors of `prepare_training`.

    device: of this process; None for the one that the command line asks for.
    """
    recipe, options = choose_recipe(args)
    base = _find_base(args.base)
    # A second load, whose mapped weights are let go: where all latents are cached, the encoders then take no memory.
    identity = encoders_digest(load_checkpoint(base)) if args.cache else ""
    disk = DiskCache(work.cache_folder, identity, processes.index) if args.cache else None
    checkpoint = load_checkpoint(base, dtype=torch.float32)
    native = controlnet_training.NATIVE_SIZES.get(checkpoint.config.name, 512)
    size = native if args.size is None else args.size
    what = "left out" if args.skip_bad else "cannot be used"
    _print(args, f"checking the pictures in {args.data}")
    with processes.first_in_turn():  # the others find that the pictures were checked
        data = open_examples(
            args.data,
            size,
            columns=Columns(args.image_column, args.hint_column, args.text_column),
            skip_bad=args.skip_bad,
            on_fault=lambda fault: print(f"{what}: {fault}", file=sys.stderr),
            known_sizes=work.sizes_file,
            bucket_multiple=controlnet_training.size_multiple(checkpoint.config) if args.buckets else None,
        )
    start = None if args.start is None else load_controlnet(args.start, dtype=torch.float32)[0]
    device = device or Runtime.choose(args.device, "fp32").device
    controlnet_training.check_training(checkpoint, data, options, start)
    # Before anything of its size is allocated.
    memory = estimate_training(checkpoint, data, recipe, options, device=device, processes=processes)
    _print(args, memory.words())
    memory.check()
    training = controlnet_training.prepare_training(
        checkpoint,
        data,
        recipe,
        options,
        state_file=work.state_file,
        start=start,
        device=device,
        processes=processes,
        disk=disk,
        workers=args.workers,
        compiled=args.compile,
    )
    about = f"{size} pixels{_bucket_words(data)}"
    if len(data) < ALL_TRAINED:
        about += ", none of them held out for the probe"
    _print(args, f"{len(data)} examples of {about}; {checkpoint.identity.summary}; on {device}")
    return training, settings_of(args.data, base, args.start, data, recipe, options)


def _bucket_words(data: Examples) -> str:
    """How many examples each bucket has, the largest first; "" without buckets."""
    if not isinstance(data, ExampleSet) or data.buckets is None:
        return ""
    counts = Counter(data.buckets).most_common()
    shown = ", ".join(f"{width}x{height}: {count}" for (height, width), count in counts[:SHOWN_BUCKETS])
    return f" in {len(counts)} buckets ({shown}{', ...' if len(counts) > SHOWN_BUCKETS else ''})"


def choose_recipe(args: argparse.Namespace) -> tuple[Recipe, TrainingOptions]:
    """Recipe and options of a command line."""
    given = {name: getattr(args, name) for name in ("steps", "batch", "accumulate", "lr", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("probe_every", "save_every", "sample_steps"):
        if getattr(args, name) < 1:
            raise ValueRangeError(f"--{name.replace('_', '-')} is {getattr(args, name)}: expected 1 or more")
    if not 0 <= args.workers <= MOST_WORKERS:
        raise ValueRangeError(f"--workers is {args.workers}: expected 0 to {MOST_WORKERS}")
    if args.rank is not None and args.kind != CONTROL_LORA:
        raise ValueRangeError(f"--rank is of a Control-LoRA: add --kind {CONTROL_LORA}, or leave it out")
    if args.rank is not None and args.rank < 1:
        raise ValueRangeError(f"--rank is {args.rank}: expected 1 or more")
    rank = (args.rank or USUAL_RANK) if args.kind == CONTROL_LORA else 0
    check_layout(LAYOUTS[args.layout], rank)
    options = TrainingOptions(
        args.empty,
        not args.unlock,
        args.only_mid,
        args.quick,
        gradient_checkpointing=args.gradient_checkpointing,
        rank=rank,
        min_snr=args.min_snr,
        noise_offset=args.noise_offset,
    )
    recipe = controlnet_training.QUICK if args.quick else controlnet_training.PAPER
    given |= _choose_averages(args.ema or [])
    given |= {"bf16": args.bf16, "fp16": args.fp16, "optimizer": args.optimizer}
    return replace(controlnet_training.usual_rate(recipe, options), **given), options


def _choose_averages(words: Sequence[float | str]) -> dict[str, Any]:
    """The fields of `Recipe` that the words of --ema give."""
    numbers = [word for word in words if isinstance(word, float)]
    places = [word for word in words if isinstance(word, str)]
    if len(numbers) > 1 or len(places) > 1 or (numbers and "off" in places):
        raise ValueRangeError(
            f"--ema {' '.join(map(str, words))}: give a decay such as 0.999, and cpu or device; or off alone"
        )
    if "off" in places:
        return {"ema": 0.0}
    return {"ema_on_cpu": "cpu" in places, **({"ema": numbers[0]} if numbers else {})}


def _find_base(name: str) -> Path:
    if name == DEMO:
        return next(iter(checkpoints(ASSETS).values()))
    path = user_path(name)
    if not path.exists():
        raise MissingFileError(f"there is no checkpoint {name}: give a file, a diffusers folder, or {DEMO}", path)
    return path


def _check_output(args: argparse.Namespace) -> None:
    """Raise ValueRangeError for an output that cannot be written, or that would replace a file of somebody else."""
    if args.output.suffix != ".safetensors":
        raise ValueRangeError(f"--output {args.output}: expected a .safetensors file")
    inputs = {"--base": _find_base(args.base), "--start": args.start}
    for file in export_files(args.output, args.unlock):
        check_file("--output", file)
        for option, path in inputs.items():
            if path is not None and file.exists() and path.exists() and _is_within(file, path):
                raise ValueRangeError(f"--output {file} would replace {option} {path}: choose another --output")
        # A training that continues with more steps replaces its own file.
        if file.exists() and not args.overwrite and not _is_ours(file):
            raise ValueRangeError(
                f"--output {file} exists, and no training wrote it: choose another name, or add --overwrite"
            )


def _is_within(file: Path, path: Path) -> bool:
    """Whether `file` is `path`, also by a link, or a file in the folder `path`."""
    return file.samefile(path) or path.resolve() in file.resolve().parents


def _is_ours(file: Path) -> bool:
    """Whether a training wrote this file. The files of the demo model, which have a recipe too, do not count."""
    try:
        return read_header(file).metadata.get(RECIPE_KEY, "").startswith(Recipe.__name__)
    except CheckpointError:
        return False


class Watch:
    """Shows progress, and keeps log, probes and samples while a training runs."""

    def __init__(
        self, args: argparse.Namespace, work: WorkFolder, training: ControlNetTraining, tracker: Tracker | None = None
    ) -> None:
        self.args, self.work, self.training, self.tracker = args, work, training, tracker
        loop = training.loop
        # With the probes of the runs before: control may have appeared in one of them.
        self.history: list[Probe] = work.read_probes(loop.step)
        first = loop.processes.is_first
        self.bar: Any = tqdm(
            total=loop.recipe.steps, initial=loop.step, desc="train", unit="step", dynamic_ncols=True, disable=not first
        )

    def on_report(self, report: Report) -> None:
        """Show loss and rate on the bar, and append them to the log."""
        if not self.training.loop.processes.is_first:
            return
        self.bar.set_postfix_str(
            f"loss {report.loss:.4f}, {report.pictures:.2f} pictures/s, {report.waiting:.0%} waiting for data"
        )
        self.bar.update(report.step - self.bar.n)
        self.work.write_log(report)
        self._track(report.step, loss=report.loss, lr=report.lr, pictures=report.pictures, waiting=report.waiting)

    def on_step(self, step: int) -> None:
        """Make a probe and samples when they are due. The other processes wait at their next step."""
        if not self.training.loop.processes.is_first:
            return
        last = step == self.training.loop.recipe.steps
        if step % self.args.probe_every == 0 or last:
            self._probe()
        if self.args.sample_every and (step % self.args.sample_every == 0 or last):
            settings = SampleSettings(steps=self.args.sample_steps, cfg=5.0)
            path = self.work.save_samples(step, self.training.sample(settings=settings))
            if self.tracker is not None:
                self.tracker.picture(step, read_pixels(path))
            self._write(f"step {step}: samples in {path}")

    def _probe(self) -> None:
        before = first_control(self.history)
        probe = self.training.probe()
        self.history.append(probe)
        self.work.write_log(probe)
        self._track(probe.step, control=probe.control, right=probe.right, wrong=probe.wrong)
        self._write(
            f"step {probe.step}: the right hint lowers the loss by {probe.control:.1%} ({probe.certainty:.1f} standard "
            f"errors; {probe.right:.4f} against {probe.wrong:.4f} with other hints)"
        )
        found = first_control(self.history)
        if found is not None and before is None:
            self._write(f"control has appeared at step {found.step}")

    def _track(self, step: int, **numbers: float) -> None:
        if self.tracker is not None:
            self.tracker.log(step, numbers)

    def _write(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)  # above the bar, which a plain print would break


def _finish(args: argparse.Namespace, training: ControlNetTraining, watch: Watch, work: WorkFolder) -> None:
    files = export(training, args.output, layout=LAYOUTS[args.layout], dtype=DTYPES[args.dtype])
    found = first_control(watch.history)
    if args.json:
        _print_facts(files, training.loop.step, watch.history, work)
        return
    for path in files:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if found is None and watch.history and watch.history[-1].appeared:
        print("the last probe found control, which the next has to confirm (a larger --steps continues from here)")
    elif found is None:
        print("control has not appeared yet: train for longer (a larger --steps continues from here)")
    else:
        print(f"control since step {found.step}")


def _print_facts(files: Sequence[Path], steps: int, history: Sequence[Probe], work: WorkFolder) -> None:
    found = first_control(history)
    facts = {
        "files": [str(path) for path in files],
        "steps": steps,
        "control": history[-1].control if history else None,
        "control_since": None if found is None else found.step,
        "work": str(work.folder),
    }
    print(json.dumps(facts))


def _print(args: argparse.Namespace, text: str) -> None:
    if not args.silent:
        print(text, flush=True)
