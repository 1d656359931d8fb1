"""The training loop: optimiser, averaged weights, and a state file that survives a kill.

The loop knows nothing about diffusion. It calls a function that draws a batch and returns its loss. One state file
holds everything that a continuation needs, so a run that was stopped ends with the same bits as an unbroken one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..checkpoints.io import read_header, read_tensors, write_safetensors
from ..errors import DamagedFileError, NonFiniteError, ValueRangeError, reading
from .optimizers import SMALLEST_SCALE, clip_gradients, make_optimizer, restore_scaler, scaler_state
from .processes import ALONE, Processes

LossFunction: TypeAlias = Callable[[torch.Generator], Tensor]
"""Draws a batch with the generator and returns its loss, a scalar."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training.

    lr: learning rate of AdamW; it rises linearly during `warmup` steps, then falls to `lr_end * lr` along a cosine.
    accumulate: batches whose gradients make one step. clip: largest norm of the gradient. ema: decay of the averaged
    weights. bf16: compute the losses in bfloat16 where autocast does, with the weights in float32. fp16: in float16,
    with the loss scaled so that small gradients are not rounded to 0 (Micikevicius et al. 2018, "Mixed Precision
    Training", section 3.2); the scale is halved when a gradient overflows, and that step changes nothing. optimizer:
    see `make_optimizer`. ema_on_cpu: keep the averaged weights in the memory of the host, and copy the weights there in
    each step: less memory of a GPU, more time.
    """

    steps: int
    batch: int = 4
    lr: float = 1e-5
    lr_end: float = 1.0
    warmup: int = 0
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    accumulate: int = 1
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    bf16: bool = False
    fp16: bool = False
    optimizer: str = "adamw"
    ema_on_cpu: bool = False

    def __post_init__(self) -> None:
        if self.bf16 and self.fp16:
            raise ValueRangeError("bf16 and fp16 are both given: choose one of them")
        ranges = {"steps": 1e9, "batch": 1e6, "accumulate": 1e6, "lr": 1e3, "ema": 1, "seed": 2**63 - 1}
        for name, high in ranges.items():
            low, value = int(name in ("steps", "batch", "accumulate")), getattr(self, name)
            if not low <= value <= high:
                raise ValueRangeError(f"{name} is {value}: choose a number from {low} to {high:g}")

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.lr_end + (1.0 - self.lr_end) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))


@dataclass(frozen=True)
class Report:
    """Progress after a step. loss: mean since the last report. rate: steps per second.

    pictures: pictures per second, of all processes. waiting: fraction of the time that goes into reading and encoding
    data, see `Loop.loading`.
    """

    step: int
    total: int
    loss: float
    rate: float
    lr: float
    pictures: float = 0.0
    waiting: float = 0.0


@dataclass
class Loop:
    """Trains those parameters of `modules` that require a gradient."""

    modules: Mapping[str, nn.Module]
    loss: LossFunction
    recipe: Recipe
    state_file: Path | None = None
    processes: Processes = ALONE
    step: int = 0
    drawn: int = 0
    """Examples drawn so far, which `loss` counts where its data is read in an order."""
    waited: float = field(init=False, default=0.0)
    """Seconds inside `loading` since the last report."""
    saved_step: int | None = field(init=False, default=None)
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    average: dict[str, Tensor] = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        parameters = list(self.parameters().values())
        self.optimizer = make_optimizer(recipe.optimizer, parameters, recipe.lr, recipe.betas, recipe.weight_decay)
        self.scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=recipe.fp16)
        # Without averaging they would only repeat the weights, in as much memory again.
        averaged = self.parameters() if recipe.ema else {}
        place = torch.device("cpu") if recipe.ema_on_cpu else None
        self.average = {name: p.detach().to(place or p.device, copy=True) for name, p in averaged.items()}
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, `module.parameter`."""
        return {
            f"{name}.{key}": p
            for name, module in self.modules.items()
            for key, p in module.named_parameters()
            if p.requires_grad
        }

    def run(
        self,
        on_report: Callable[[Report], None] = lambda report: None,
        *,
        every: int = 100,
        save_every: int = 100,
        until: float | None = None,
        on_step: Callable[[int], None] = lambda step: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step of the recipe; return True when that is done.

        on_report: called every `every` steps. save_every: steps between saved states. until: stop at this time of
        time.monotonic(). on_step: called with the step after each step. cancelled: stop when it returns True. The
        state is saved when the run stops. Raises NonFiniteError when the loss or a gradient is not a finite number;
        such a state is never saved. Raises CheckpointError when the state cannot be written.
        """
        losses: list[Tensor] = []
        since = time.monotonic()
        while self.step < self.recipe.steps:
            losses.append(self._step())
            is_last = self.step == self.recipe.steps
            if is_last or self.step % every == 0:
                on_report(self._report(losses, time.monotonic() - since))
                losses, since, self.waited = [], time.monotonic(), 0.0
            is_due = self.step % save_every == 0
            if is_due:
                # Checked first: a state with NaN would replace the last good one.
                self._mean_loss(losses)
            on_step(self.step)
            if is_due:
                # After `on_step`: a run that is killed between the two does this step again, with its samples.
                self.save()
            # All processes stop at the same step, or the others would wait for one that is gone.
            if self.processes.any(cancelled() or (until is not None and time.monotonic() > until)):
                break
        self._mean_loss(losses)
        if self.saved_step != self.step:
            self.save()
        return self.step >= self.recipe.steps

    def _report(self, losses: list[Tensor], seconds: float) -> Report:
        loss, rate = self._mean_loss(losses), len(losses) / seconds
        pictures = rate * self.recipe.batch * self.recipe.accumulate
        lr = self.recipe.lr_at(self.step)
        return Report(self.step, self.recipe.steps, loss, rate, lr, pictures, self.waited / seconds)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Context in which `loss` reads and encodes its data, for `Report.waiting`."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def _mean_loss(self, losses: list[Tensor]) -> float:
        """Mean of the losses since the last report, 0 for none. Raises NonFiniteError."""
        loss = float(self.processes.mean(torch.stack(losses).mean())) if losses else 0.0
        # A loss scale that only falls: no step has changed anything for long.
        if math.isfinite(loss) and not (self.recipe.fp16 and self.scaler.get_scale() < SMALLEST_SCALE):
            return loss
        state = "no state was saved yet" if self.saved_step is None else f"the state of step {self.saved_step} is kept"
        raise NonFiniteError(
            f"the loss or its gradient is not a finite number between steps {self.step - len(losses) + 1} and "
            f"{self.step}; {state}: lower the learning rate (now {self.recipe.lr:.1e}) and run again"
        )

    def _step(self) -> Tensor:
        """One step of the optimiser; returns its loss, NaN where the gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.step)
        losses = []
        for _ in range(self.recipe.accumulate):
            loss = self._loss() / self.recipe.accumulate
            self.scaler.scale(loss).backward()
            # The number is read only for a report: reading it now would make the CPU wait for the GPU.
            losses.append(loss.detach())
        parameters = self.parameters()
        self.processes.average([p.grad for p in parameters.values() if p.grad is not None])
        # After the mean over the processes, so that all of them see an overflow of one and skip the step together.
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(list(parameters.values()), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:
            self._update_average(parameters)
        loss = torch.stack(losses).sum()
        # 0 times infinity is NaN: a gradient that is not finite shows in the loss, and a finite one changes nothing.
        # With a loss scale it is expected now and then, and the step was skipped.
        return loss if self.recipe.fp16 else loss + 0.0 * norm

    @torch.no_grad()
    def _update_average(self, parameters: Mapping[str, nn.Parameter]) -> None:
        # The decay grows from 0, so that the first steps do not stay in the average.
        decay = min(self.recipe.ema, self.step / (self.step + 10.0))
        if self.recipe.ema_on_cpu:
            # One after the other, so that the host holds a copy of one weight, not of all.
            for name, p in parameters.items():
                self.average[name].lerp_(p.detach().cpu(), 1.0 - decay)
            return
        # One call for all parameters: separate calls would cost a kernel launch each.
        averages = [self.average[name] for name in parameters]
        lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
        lerp(averages, [p.detach() for p in parameters.values()], 1.0 - decay)

    def _loss(self) -> Tensor:
        device = next(iter(self.parameters().values())).device.type
        dtype = torch.float16 if self.recipe.fp16 else torch.bfloat16
        with torch.autocast(device, dtype, enabled=self.recipe.bf16 or self.recipe.fp16):
            return self.loss(self.generator).float()

    def use_average(self) -> None:
        """Put the averaged weights into the modules, for sampling and for the final file."""
        parameters = self.parameters()
        with torch.no_grad():
            for name, average in self.average.items():
                parameters[name].copy_(average)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the modules have the averaged weights; the weights themselves without averaging."""
        if not self.average:
            yield
            return
        # A copy is kept, because training continues with the plain weights.
        now = {name: parameter.detach().clone() for name, parameter in self.parameters().items()}
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters().items():
                    parameter.copy_(now[name])

    def save(self) -> None:
        """Replace the state file, if there is one to write; a kill during the write leaves the old one."""
        if self.state_file is None:
            return
        if self.processes.is_first:  # all have the same state
            self._write(self.state_file)
        self.saved_step = self.step

    def _write(self, path: Path) -> None:
        # safetensors instead of pickle: reading a damaged or foreign file can run no code.
        tensors = {"generator": self.generator.get_state()}
        for name, p in self.parameters().items():
            tensors[f"parameter.{name}"] = p
            if self.average:
                tensors[f"average.{name}"] = self.average[name]
            # (bitsandbytes counts its steps in a plain number)
            state = self.optimizer.state[p].items()
            tensors |= {f"optimizer.{key}.{name}": torch.as_tensor(value) for key, value in state}
        if self.recipe.fp16:
            tensors["scaler"] = scaler_state(self.scaler)
        write_safetensors(path, tensors, {"step": str(self.step), "drawn": str(self.drawn)})

    def resume(self) -> bool:
        """Load the state file; return whether there was one.

        Raises DamagedFileError when it cannot be read, or is not a state of this training.
        """
        if self.state_file is None or not self.state_file.exists():
            return False
        try:
            with reading(self.state_file):
                header = read_header(self.state_file)
                self._restore(read_tensors(header))
                self.step = self.saved_step = int(header.metadata["step"])
                self.drawn = int(header.metadata.get("drawn", 0))  # not in states of earlier versions
        except DamagedFileError as error:
            reason = getattr(error.__cause__, "strerror", None) or type(error.__cause__).__name__
            raise DamagedFileError(
                f"{self.state_file} is damaged, or is not the state of this training ({reason}): put a copy back, "
                "or delete it to train from the start",
                self.state_file,
            ) from error
        return True

    @torch.no_grad()
    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises KeyError for a tensor that is missing, ValueError for one of another shape."""
        # A state that was trained without averages begins them at its weights.
        kept = "average" if any(name.startswith("average.") for name in tensors) else "parameter"
        for name, p in self.parameters().items():
            pairs: list[tuple[Tensor, str]] = [(p, f"parameter.{name}")]
            if self.average:
                pairs.append((self.average[name], f"{kept}.{name}"))
            for target, source in pairs:
                if tensors[source].shape != target.shape:
                    raise ValueError(f"{source} has the shape {tuple(tensors[source].shape)}")
                target.copy_(tensors[source])
        self._restore_optimizer(tensors)
        if "scaler" in tensors and self.recipe.fp16:
            restore_scaler(self.scaler, tensors["scaler"])
        self.generator.set_state(tensors["generator"].clone())

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = self.parameters()
        for key, entry in tensors.items():
            if not key.startswith("optimizer."):
                continue
            # There are no entries for a parameter that never had a gradient.
            _, kind, name = key.split(".", 2)
            p = parameters[name]
            if kind != "step":
                # A copy keeps nothing of the mapped file, which the next save replaces.
                self.optimizer.state[p][kind] = entry.to(p.device, copy=True)
            elif self.recipe.optimizer == "adamw":
                # A fused AdamW counts steps on the device.
                device = p.device if self.optimizer.defaults["fused"] else "cpu"
                self.optimizer.state[p][kind] = entry.to(device, copy=True)
            else:
                self.optimizer.state[p][kind] = int(entry)
