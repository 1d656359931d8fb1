"""Our CONTROL_NET: a native control object that runs our net.

Native apply nodes and samplers take it, alone or in chains with native ones in any order. Its residuals are
made as `ControlNet.forward` defines them; what does not depend on x (embedded hint, keys and values of the
text, projected timesteps) is made once per run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...controlnet_core.checkpoints.load import load_controlnet
from ...controlnet_core.control.hint import check_hint_channels, fit_hint, mask_at
from ...controlnet_core.control.modes import block_heights
from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.engine.projections import Projections
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.controlnet import ControlNet
from ..values import BlockWeights
from .layers import with_host_layers
from .residuals import Residuals, add_residuals

TAG = "controlnet_core_unit"
"""The attribute by which our objects know each other: a second copy of this pack may be loaded as well."""
FACTOR = 8
"""Pixels per latent cell."""


class SharedNet:
    """A net with its patcher, through which the editor moves and frees it; shared by all copies of a unit."""

    def __init__(self, net: ControlNet, name: str) -> None:
        manage = comfy.model_management
        self.name = name
        device = manage.get_torch_device()
        stored = manage.unet_dtype(
            model_params=sum(p.numel() for p in net.parameters()),
            supported_dtypes=[torch.float16, torch.bfloat16, torch.float32],
            weight_dtype=next(net.parameters()).dtype,
        )
        self.dtype = manage.unet_manual_cast(stored, device) or stored
        self.net = with_host_layers(net.to(self.dtype))
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.net, load_device=device, offload_device=manage.unet_offload_device()
        )


def load(path: Path) -> CoreControl:
    """CONTROL_NET of a file. Raises CheckpointError."""
    net, _ = load_controlnet(path)
    return CoreControl(SharedNet(net, path.name))


@dataclass
class Run:
    """What is made once per run, for one batch of conditionings."""

    hints: dict[Any, Tensor] = field(default_factory=dict)
    projections: dict[Any, Projections] = field(default_factory=dict)


class HostSchedule:
    """The model's timesteps in float32, whatever kind of noise levels it has."""

    def __init__(self, sampling: Any) -> None:
        self.sampling = sampling

    def timestep(self, sigma: Tensor) -> Tensor:
        """Sigmas -> timesteps, float32, of the same shape."""
        return self.sampling.timestep(sigma).float()


class CoreControl(comfy.controlnet.ControlBase):
    """One unit of control in the editor.

    Hint, strength and window are set by `set_cond_hint`, as native nodes do; mode, mask and block weights by
    `describe`, as our nodes do.
    """

    controlnet_core_unit = True

    def __init__(self, shared: SharedNet) -> None:
        super().__init__()
        self.shared = shared
        self.mode, self.name = "balanced", shared.name
        self.mask: Tensor | None = None
        self.block_weights: BlockWeights | None = None
        self.sampling: Any = None
        # Keyed by the editor's identity of a conditioning, which lives as long as a run: nothing outlives
        # a run that fails, for which there is no cleanup.
        self.runs: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()

    # ---- what apply nodes call

    def describe(self, mode: str, mask: Tensor | None, weights: BlockWeights | None, name: str) -> CoreControl:
        """Set what native nodes do not know, and check all of it; returns itself, as `set_cond_hint` does."""
        self.mode, self.mask, self.block_weights, self.name = mode, mask, weights, name or self.shared.name
        self.unit()
        return self

    def copy(self) -> CoreControl:
        """The same unit; weights are shared."""
        twin = CoreControl(self.shared)
        self.copy_to(twin)
        twin.describe_from(self)
        return twin

    def describe_from(self, other: CoreControl) -> None:
        """Take over mode, mask, block weights and name."""
        self.mode, self.mask, self.name = other.mode, other.mask, other.name
        self.block_weights = other.block_weights

    def unit(self) -> ControlUnit:
        """The engine's record of this unit. Raises ShapeError or ValueRangeError."""
        weights = self.block_weights
        return ControlUnit(
            net=self.shared.net,
            hint=self.cond_hint_original,
            strength=self.strength,
            start=self.timestep_percent_range[0],
            end=self.timestep_percent_range[1],
            mask=None if self.mask is None else self.mask.float().reshape(-1, *self.mask.shape[-2:]),
            block_weights=None if weights is None else weights.resolve(self.shared.net.config.unet),
            mode=self.mode,
            name=self.name,
        )

    # ---- what the sampler calls

    def get_models(self) -> list[Any]:
        """Patchers of the whole chain."""
        return [*super().get_models(), self.shared.patcher]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes for activations of the whole chain: the residuals of both halves, held until they are added,
        and twice as much for the blocks at work."""
        elements = 0
        if self.cond_hint_original is not None:
            config = self.shared.net.config.unet
            height, width = (max(1, side // FACTOR) for side in self.cond_hint_original.shape[-2:])
            sizes = zip(block_heights(config, height), block_heights(config, width), strict=True)
            elements = sum(config.widths[-1] * h * w for h, w in sizes)
        own = 3 * 2 * elements * comfy.model_management.dtype_size(dtype)
        return int(own + super().inference_memory_requirements(dtype))

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Begin a run; called for each conditioning that holds this object.

        Raises UnfitError for a model that this net was not made for.
        """
        super().pre_run(model, percent_to_timestep_function)
        self.runs.clear()
        check_base(self, model)
        self.sampling = model.model_sampling

    def cleanup(self) -> None:
        """End a run: nothing of it is kept."""
        super().cleanup()
        self.runs.clear()
        self.sampling = None

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict[str, Any], batched_number: int, transformer_options: dict[str, Any]
    ) -> Residuals | None:
        """Residuals of the chain for x_noisy (conditionings * B, 4, h, w), unscaled, at sigmas t.

        None where no unit of the chain acts.
        """
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(
                x_noisy, t, cond, batched_number, transformer_options
            )
        sigma = t[:1]
        if not self._in_window(float(sigma)):
            return previous
        unit = self.unit()
        weights = unit.weights(self.shared.net.config.unet, x_noisy.shape[-2])
        pictures = x_noisy.shape[0] // batched_number
        rows = acting_rows(unit, pictures, batched_number, transformer_options)
        if not rows or not any(weights):
            return previous
        with torch.no_grad():
            own = list(self._residuals(unit, weights, rows, pictures, x_noisy, sigma, cond, transformer_options))
        return add_residuals({"input": [], "middle": own[-1:], "output": own[:-1]}, previous)

    def _in_window(self, sigma: float) -> bool:
        if self.timestep_range is None:
            return True
        first, last = self.timestep_range
        return last <= sigma <= first

    def _residuals(
        self,
        unit: ControlUnit,
        weights: Sequence[float],
        rows: list[int],
        pictures: int,
        x_noisy: Tensor,
        sigma: Tensor,
        cond: dict[str, Any],
        options: dict[str, Any],
    ) -> Iterator[Tensor | None]:
        """One residual per skip and the middle's; None where the weight is 0."""
        net, dtype, device = self.shared.net, self.shared.dtype, x_noisy.device
        total = x_noisy.shape[0]
        everywhere = len(rows) == total
        index = torch.tensor(rows, device=device)
        x = self.sampling.calculate_input(sigma, x_noisy).to(dtype)
        run = self._run(options)
        stack = self._projections(run, rows, everywhere, cond, options, dtype, device).at(float(sigma))
        hint, mask = spread(self._hint(unit, x_noisy, dtype), rows, pictures), unit.mask
        features = net.features(x if everywhere else x[index], hint, stack.encoder, stack.middle)
        for zero, feature, weight in zip(net.zeros, features, weights, strict=True):
            if weight == 0.0:
                yield None
                continue
            residual = zero(feature)
            if weight != 1.0:
                residual.mul_(weight)
            if mask is not None:
                at = mask_at(mask, (residual.shape[-2], residual.shape[-1])).to(residual)
                residual.mul_(spread(at, rows, pictures))
            if not everywhere:
                full = residual.new_zeros(total, *residual.shape[1:])
                residual = full.index_copy_(0, index, residual)
            yield residual

    def _run(self, options: dict[str, Any]) -> Run:
        """The run's store; a fresh one where the editor does not say which conditioning this is."""
        uuids = options.get("uuids")
        return self.runs.setdefault(uuids[0], Run()) if uuids else Run()

    def _projections(
        self,
        run: Run,
        rows: list[int],
        everywhere: bool,
        cond: dict[str, Any],
        options: dict[str, Any],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Projections:
        """Keys and values of the text, and projected timesteps."""
        context = cond.get("crossattn_controlnet", cond["c_crossattn"])
        key = (*(u.int for u in options.get("uuids") or ()), tuple(rows), tuple(context.shape), dtype, device)
        found = run.projections.get(key)
        if found is None:
            check_width(self, context)
            label = cond.get("y")
            context, label = (None if v is None else v.to(device, dtype) for v in (context, label))
            if not everywhere:
                context, label = (None if v is None else v[rows] for v in (context, label))
            schedule: Any = HostSchedule(self.sampling)
            assert context is not None
            found = run.projections[key] = Projections(self.shared.net, schedule, context, label)
        return found

    def _hint(self, unit: ControlUnit, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedded hint (b, C, h, w), once per run and size, whichever half asks first."""
        size = (x.shape[-2], x.shape[-1])
        key = (size, dtype, x.device)
        for run in self.runs.values():
            if key in run.hints:
                return run.hints[key]
        net = self.shared.net
        hint = check_hint_channels(unit.hint, net.config.hint_channels)
        hint = fit_hint(hint, size[0] * FACTOR, size[1] * FACTOR).to(x.device, dtype)
        embedded = net.embed_hint(hint, size)
        for run in self.runs.values():
            run.hints[key] = embedded
        return embedded


def acting_rows(unit: ControlUnit, pictures: int, conditionings: int, options: dict[str, Any]) -> list[int]:
    """Rows of the batch that the unit acts on: all, or those of the positive prompt."""
    halves = options.get("cond_or_uncond", [0] * conditionings)
    rows = range(pictures * conditionings)
    return [row for row in rows if not unit.conditional_only or halves[row // pictures] == 0]


def spread(x: Tensor, rows: list[int], pictures: int) -> Tensor:
    """(b, ...) -> one for each row: hints are dealt out to the pictures of a batch in turn, as natively."""
    if x.shape[0] == 1:
        return x
    return x[[row % pictures % x.shape[0] for row in rows]]


def check_base(control: CoreControl, model: Any) -> None:
    """Raise UnfitError when the model is not of the shape that the net was made for."""
    described = model.model_config.unet_config
    ours = control.shared.net.config.unet
    if "model_channels" not in described:
        raise UnfitError(
            f"{control.name} controls Stable Diffusion's UNet; this model is a {type(model).__name__} of another "
            "architecture: load a ControlNet made for it with the native Load ControlNet Model"
        )
    theirs = tuple(int(described["model_channels"] * mult) for mult in described["channel_mult"])
    if (theirs, described.get("context_dim")) != (ours.widths, ours.context_dim):
        raise UnfitError(
            f"{control.name} was made for a base of widths {ours.widths} with {ours.context_dim} wide text; this model "
            f"has widths {theirs} and {described.get('context_dim')}: load a ControlNet made for this model, or the "
            "base that this one was made for"
        )


def check_width(control: CoreControl, context: Tensor) -> None:
    """Raise UnfitError when the prompt was encoded by the text encoder of another base."""
    needs, has = control.shared.net.config.unet.context_dim, context.shape[-1]
    if needs != has:
        raise UnfitError(
            f"{control.name} reads {needs} wide text, the prompt was encoded {has} wide: use the CLIP of the "
            "checkpoint that this ControlNet was made for"
        )
