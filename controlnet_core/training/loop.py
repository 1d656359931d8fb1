"""The training loop: optimiser, averaged weights, checkpoints that survive a kill.

A loop knows nothing of diffusion; it is given a function that draws a batch and returns its loss.
All that a continuation needs is in one state file, replaced atomically: after a kill `resume`
carries on with the same numbers as an unbroken run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError

LossFunction: TypeAlias = Callable[[torch.Generator], Tensor]
"""Draws a batch with the generator and returns its loss."""


@dataclass(frozen=True)
class Recipe:
    """Numbers of a training.

    lr falls to `lr_end * lr` along a cosine after `warmup` steps; `accumulate` batches make one
    step; `ema` is the decay of the averaged weights, which grows from 0 so that the first steps
    do not stay in the average. `bf16` computes the losses in bfloat16 where that is safe, with the
    weights in float32.
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

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, 0-based."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.lr_end + (1.0 - self.lr_end) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))


@dataclass(frozen=True)
class Report:
    """What the loop tells after a step: loss averaged since the last report, steps per second."""

    step: int
    total: int
    loss: float
    rate: float
    lr: float


@dataclass
class Loop:
    """Trains the parameters of `modules` that want a gradient."""

    modules: Mapping[str, nn.Module]
    loss: LossFunction
    recipe: Recipe
    state_file: Path | None = None
    step: int = 0
    optimizer: torch.optim.Optimizer = field(init=False)
    average: dict[str, Tensor] = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.optimizer = torch.optim.AdamW(
            self.parameters().values(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters().items()}
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, named `module.parameter`."""
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
        """Train to the recipe's last step, or to the clock `until` (time.monotonic()); True when complete.

        on_step(step) is called behind every step. When `cancelled` says so the state is saved and the run ends.

        Raises NonFiniteError, with the last good state on disk, when the loss is no number.
        """
        losses: list[Tensor] = []
        since = time.monotonic()
        while self.step < self.recipe.steps:
            losses.append(self._step())
            if self.step % every == 0 or self.step == self.recipe.steps:
                loss = float(torch.stack(losses).mean())
                if not math.isfinite(loss):
                    raise NonFiniteError(
                        f"the loss is {loss} at step {self.step}: lower the learning rate (now "
                        f"{self.recipe.lr_at(self.step):.1e}) and resume from the last saved state"
                    )
                rate = len(losses) / (time.monotonic() - since)
                on_report(Report(self.step, self.recipe.steps, loss, rate, self.recipe.lr_at(self.step)))
                losses, since = [], time.monotonic()
            if self.step % save_every == 0:
                self.save()
            on_step(self.step)
            if cancelled() or (until is not None and time.monotonic() > until):
                break
        self.save()
        return self.step >= self.recipe.steps

    def _step(self) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.step)
        losses = []
        for _ in range(self.recipe.accumulate):
            loss = self._loss() / self.recipe.accumulate
            loss.backward()
            losses.append(loss.detach())  # not looked at before it is reported: a GPU would be waited for
        parameters = self.parameters()
        nn.utils.clip_grad_norm_(parameters.values(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.recipe.ema, self.step / (self.step + 10.0))
        with torch.no_grad():
            averages = [self.average[name] for name in parameters]
            torch._foreach_lerp_(averages, [p.detach() for p in parameters.values()], 1.0 - decay)
        return torch.stack(losses).sum()

    def _loss(self) -> Tensor:
        device = next(iter(self.parameters().values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.recipe.bf16):
            return self.loss(self.generator).float()

    def use_average(self) -> None:
        """Put the averaged weights into the modules, for sampling and shipping."""
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(self.average[name])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the modules for as long as the block lasts."""
        now = {name: parameter.detach().clone() for name, parameter in self.parameters().items()}
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters().items():
                    parameter.copy_(now[name])

    def save(self) -> None:
        """Replace the state file; a kill while writing leaves the old one."""
        if self.state_file is None:
            return
        state: dict[str, Any] = {
            "step": self.step,
            "parameters": {name: p.detach() for name, p in self.parameters().items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_file)

    def resume(self) -> bool:
        """Load the state file where there is one; True if it was."""
        if self.state_file is None or not self.state_file.exists():
            return False
        state = torch.load(self.state_file, weights_only=True, map_location="cpu")
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(state["parameters"][name])
                self.average[name].copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]
        return True
