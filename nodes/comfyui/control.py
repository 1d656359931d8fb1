"""Our CONTROL_NET: a native control object that runs our net, of any kind.

Native apply nodes and samplers take it, alone or in chains with native ones in any order. Its residuals are
made as the net's outlets define them, all at once for the editor's UNet, one by one for ours (see `residuals`);
what does not depend on x (embedded hint, keys and values of the text, projected timesteps) is made once per run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...controlnet_core.checkpoints.control import load_control
from ...controlnet_core.checkpoints.fit import fits_text, text_widths
from ...controlnet_core.config import ControlNetConfig, UNetConfig
from ...controlnet_core.control.hint import mask_at
from ...controlnet_core.control.plan import words
from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.control.weights import BlockWeights
from ...controlnet_core.engine.run import DIRECT
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.control import Bound, ControlModel, Outlet, check_base
from ...controlnet_core.models.transfer import sent
from ..units import unit_of
from ..values import ControlSpec
from .bases import base_config, base_weights
from .carried import identity, sampling_of
from .layers import with_host_layers
from .memory import activations
from .residuals import Residuals, Stream, add_residuals, streams_are_taken
from .seat import FACTOR, HostSchedule, HostSeat

RECORDER = "controlnet_core_recorder"
"""Where the model's options carry a `control.report.Recorder`, if somebody wants to know what runs."""
END = object()
TAG = "controlnet_core_unit"
"""The attribute by which our objects know each other: a second copy of this pack may be loaded as well."""
UNION_ARGUMENT = "control_type"
"""Where the native node for ControlNet Union leaves the number of the type, in a list."""
LEVEL = "controlnet_core_level"
"""Where the options of a call of the model keep its noise level as a number, with the tensor that it was read from."""
SDXL_BLOCKS = 9


class PlacedNet:
    """A net on the editor's layers, with the patcher through which the editor moves and frees it."""

    def __init__(self, net: ControlModel) -> None:
        manage = comfy.model_management
        self.device = manage.get_torch_device()
        self.parameters = sum(p.numel() for p in net.parameters())
        stored = manage.unet_dtype(
            model_params=self.parameters,
            supported_dtypes=[torch.float16, torch.bfloat16, torch.float32],
            weight_dtype=next(net.parameters()).dtype,
        )
        self.dtype = manage.unet_manual_cast(stored, self.device) or stored
        self.net = with_host_layers(net.to(self.dtype).requires_grad_(False))
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.net, load_device=self.device, offload_device=manage.unet_offload_device()
        )


class SharedNet:
    """A net that is shared by all copies of a unit; one that needs a base is placed once it has one."""

    def __init__(self, net: ControlModel, name: str) -> None:
        self.name = name
        self.placed = None if net.needs_base else PlacedNet(net)
        self.net = net if self.placed is None else self.placed.net
        self.completed: WeakKeyDictionary[Any, PlacedNet] = WeakKeyDictionary()

    def on(self, model: Any, base: UNetConfig) -> PlacedNet:
        """The net to run on a BaseModel. One that had to be completed is on the device: the editor loads models
        before it says which one is sampled."""
        if self.placed is not None:
            return self.placed
        if model not in self.completed:
            placed = PlacedNet(self.net.complete(base, base_weights(model, base)))
            placed.net.to(placed.device)
            self.completed[model] = placed
        return self.completed[model]


def load(path: Path, model: Any = None) -> CoreControl:
    """CONTROL_NET of a file, completed with the base of a MODEL where it needs one and one is given.

    Raises CheckpointError, and UnfitError for a model that the net was not made for.
    """
    net, _ = load_control(path)
    if model is not None:
        base = find_base(net, path.name, model.model)
        if net.needs_base:
            comfy.model_management.load_models_gpu([model])  # with its LoRAs in force
            net = net.complete(base, base_weights(model.model, base))
    return CoreControl(SharedNet(net, path.name))


@dataclass
class Run:
    """What is made once per run, for one batch of conditionings: the net in its seat."""

    bound: dict[Any, Bound] = field(default_factory=dict)


class CoreControl(comfy.controlnet.ControlBase):
    """One unit of control in the editor.

    Hint, strength and window are set by `set_cond_hint`, as native nodes do; all else by `describe`, as our
    nodes do.
    """

    controlnet_core_unit = True

    def __init__(self, shared: SharedNet) -> None:
        super().__init__()
        self.shared = shared
        self.spec = ControlSpec(None, torch.zeros(0))
        self.name = shared.name
        self.sampling: Any = None
        self.base: UNetConfig | None = None
        self.placed: PlacedNet | None = None
        # Keyed by the editor's identity of a conditioning, which lives as long as a run: nothing outlives
        # a run that fails, for which there is no cleanup.
        self.runs: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()

    # ---- what apply nodes call

    def describe(self, spec: ControlSpec) -> CoreControl:
        """Set what native nodes do not know, and check all of it; returns itself, as `set_cond_hint` does."""
        self.spec = replace(spec, net=None, image=torch.zeros(0))
        self.name = spec.name or self.shared.name
        self.unit()
        return self

    def copy(self) -> CoreControl:
        """The same unit; weights are shared."""
        twin = CoreControl(self.shared)
        self.copy_to(twin)
        twin.spec, twin.name = self.spec, self.name
        return twin

    def scale_blocks(self, factors: Sequence[float], base: UNetConfig) -> None:
        """Multiply the block weights, one factor for each block of this base, the middle last."""
        own = self.unit().own_weights(base) or (1.0,) * len(factors)
        weights = BlockWeights(custom=tuple(w * f for w, f in zip(own, factors, strict=True)))
        self.spec = replace(self.spec, block_weights=weights)

    def unit(self) -> ControlUnit:
        """The engine's record of this unit. Raises ShapeError or ValueRangeError."""
        start, end = self.timestep_percent_range
        spec = replace(self.spec, strength=self.strength, start=start, end=end)
        types = self.extra_args.get(UNION_ARGUMENT) or ()
        kind = str(types[0]) if types else ""
        return unit_of(spec, self.shared.net, self.cond_hint_original, self.name, kind)

    # ---- what the sampler calls

    def get_models(self) -> list[Any]:
        """Patchers of the whole chain."""
        placed = self.shared.placed
        return [*super().get_models(), *(() if placed is None else (placed.patcher,))]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes for activations of the whole chain, and for a net that is completed only when the run begins.

        The editor does not say for what it asks: the latent is taken to be of the hint's size and number, in both
        halves of the guidance. In a chain the sum of two nets is made beside both.
        """
        elements = 0
        config = getattr(self.shared.net, "config", None)
        known = config if isinstance(config, ControlNetConfig) else ControlNetConfig()
        if self.cond_hint_original is not None:
            height, width = (max(1, side // FACTOR) for side in self.cond_hint_original.shape[-2:])
            pictures = self.cond_hint_original.shape[0]
            elements = activations(known, (height, width), 2 * pictures, pictures * (1 + len(self.spec.hints)), FACTOR)
        if self.shared.placed is None:
            elements += sum(placed.parameters for placed in self.shared.completed.values())
        own = elements * comfy.model_management.dtype_size(dtype)
        return int(own + super().inference_memory_requirements(dtype))

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Begin a run; called for each conditioning that holds this object.

        Raises UnfitError for a model that this net was not made for, ValueRangeError for a wrong number of
        block weights.
        """
        super().pre_run(model, percent_to_timestep_function)
        self.runs.clear()
        self.base = find_base(self.shared.net, self.name, model)
        self.unit().weights(self.base, FACTOR)
        self.placed = self.shared.on(model, self.base)
        self.sampling = model.model_sampling

    def cleanup(self) -> None:
        """End a run: nothing of it is kept."""
        super().cleanup()
        self.runs.clear()
        self.shared.completed.clear()
        self.placed = self.sampling = self.base = None

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
        level = level_of(t, transformer_options)
        if not self._in_window(level):
            return previous
        assert self.base is not None
        unit, pictures = self.unit(), x_noisy.shape[0] // batched_number
        factor = 1.0 if unit.curve is None else unit.curve(HostSchedule(self.sampling, t.device).position(sigma))
        weights = [factor * weight for weight in unit.weights(self.base, x_noisy.shape[-2])]
        factors = row_factors(unit, pictures, batched_number, transformer_options)
        rows = [row for row, value in enumerate(factors) if value != 0.0]
        if not rows or not any(weights):
            return previous
        bound = self._bound(unit, rows, pictures, x_noisy, cond, transformer_options)
        scale = None
        if set(factors) != {1.0}:
            scale = sent(torch.tensor([factors[row] for row in rows]), x_noisy.device, x_noisy.dtype)
        recorder, sampling = transformer_options.get(RECORDER), sampling_of(transformer_options)
        if sampling is not None:
            sampling.acted[self.name] += 1

        def own(may_run: bool) -> Iterator[Tensor | None]:
            raw = self._raw(bound, rows, x_noisy, sigma, level, transformer_options, may_run)
            residuals = self._weighed(raw, unit, weights, scale, rows, pictures, len(x_noisy))
            return self._recorded(residuals, unit, rows, x_noisy, recorder)

        if bound.entry == "skips" and streams_are_taken(transformer_options):
            return Stream(own, self, previous)
        return add_residuals(placed_in_lists(bound, list(own(True))), previous)

    def _recorded(
        self, residuals: Iterator[Tensor | None], unit: ControlUnit, rows: list[int], x: Tensor, recorder: Any
    ) -> Iterator[Tensor | None]:
        """The same residuals; a recorder hears of them, and of the time they take."""
        if recorder is None:
            yield from residuals
            return
        recorder.unit(self, self.name, words(unit))
        for block in itertools.count():
            with recorder.timing([self], x.device):
                residual: Any = next(residuals, END)
            if residual is END:
                return
            if recorder.observe and residual is not None:
                recorder.residual(self, block, residual if len(rows) == len(x) else residual[rows])
            yield residual

    def _in_window(self, sigma: float) -> bool:
        if self.timestep_range is None:
            return True
        first, last = self.timestep_range
        return last <= sigma <= first

    def _raw(
        self,
        bound: Bound,
        rows: list[int],
        x_noisy: Tensor,
        sigma: Tensor,
        level: float,
        options: dict[str, Any],
        may_run: bool,
    ) -> Iterator[tuple[Outlet, Tensor | None]]:
        """What the net says of each skip and the middle, and how it becomes the residual.

        With shortcuts it is the residual already, computed or continued; may_run: whether nets run in this evaluation.
        """
        assert self.placed is not None
        x = self.sampling.calculate_input(sigma, x_noisy).to(self.placed.dtype)
        recorder, sampling, known = options.get(RECORDER), sampling_of(options), identity(options)

        def run() -> Iterator[tuple[Outlet, Tensor | None]]:
            if sampling is not None:
                sampling.ran[self.name] += 1
            if recorder is not None:
                recorder.net_ran(self)
                recorder.cast("latent to the net", x_noisy.dtype, x.dtype)
            seen = x if len(rows) == len(x) else x[sent(torch.tensor(rows), x.device)]
            return zip(bound.outlets, bound.features(seen, level), strict=True)

        if sampling is None or not sampling.run.shortcuts.continues_nets or not known:
            yield from run()
            return
        key = (self, known, tuple(rows), tuple(x.shape), x.dtype, x.device)
        found = sampling.residuals(key, x, may_run, lambda: [placed(*said, len(rows)) for said in run()])
        yield from ((DIRECT, residual) for residual in found)

    def _weighed(
        self,
        raw: Iterator[tuple[Outlet, Tensor | None]],
        unit: ControlUnit,
        weights: Sequence[float],
        scale: Tensor | None,
        rows: list[int],
        pictures: int,
        total: int,
    ) -> Iterator[Tensor | None]:
        """One residual per skip and the middle's; None where nothing is added. total: all rows of x."""
        for (outlet, feature), weight in zip(raw, weights, strict=True):
            residual = None if weight == 0.0 else placed(outlet, feature, len(rows))
            if residual is None:
                yield None
                continue
            if weight != 1.0:
                residual = residual * weight
            if scale is not None:
                residual = residual * scale[:, None, None, None].to(residual)
            if unit.mask is not None:
                at = mask_at(unit.mask, (residual.shape[-2], residual.shape[-1]))
                at = at if len(at) == 1 else at[[row % pictures % len(at) for row in rows]]
                residual = residual * sent(at, residual.device, residual.dtype)
            if len(rows) != total:
                full = residual.new_zeros(total, *residual.shape[1:])
                residual = full.index_copy_(0, sent(torch.tensor(rows), residual.device), residual)
            yield residual

    def _bound(
        self,
        unit: ControlUnit,
        rows: list[int],
        pictures: int,
        x_noisy: Tensor,
        cond: dict[str, Any],
        options: dict[str, Any],
    ) -> Bound:
        """The net in its seat, once per run, size and batch of conditionings."""
        assert self.placed is not None
        assert self.base is not None
        dtype, device = self.placed.dtype, x_noisy.device
        context = cond.get("crossattn_controlnet", cond["c_crossattn"])
        uuids = options.get("uuids") or ()
        # A run's store; a fresh one where the editor does not say which conditioning this is.
        run = self.runs.setdefault(uuids[0], Run()) if uuids else Run()
        key = (identity(options), tuple(rows), tuple(x_noisy.shape), tuple(context.shape), dtype, device)
        found = run.bound.get(key)
        if found is None:
            check_width(self, context)
            context, label = (None if v is None else v.to(device, dtype) for v in (context, cond.get("y")))
            if len(rows) != x_noisy.shape[0]:
                context, label = (None if v is None else v[rows] for v in (context, label))
            assert context is not None
            schedule = HostSchedule(self.sampling, device)
            seat = HostSeat(unit, self.base, x_noisy, rows, pictures, context, label, schedule, dtype)
            found = run.bound[key] = self.placed.net.bind(seat)
        return found


def placed(outlet: Outlet, feature: Tensor | None, rows: int) -> Tensor | None:
    """The residual of a feature map, (rows, C, h, w) also where it is the same for all of them; None for nothing."""
    return None if feature is None else outlet(feature).expand(rows, -1, *feature.shape[-2:])


def placed_in_lists(bound: Bound, own: list[Any]) -> Residuals:
    """Residuals in the editor's lists: "output" belongs to the skips, first to last; "input" is added while its
    encoder runs and is taken from its end."""
    skips, middle = own[:-1], own[-1:]
    if bound.entry == "skips":
        return {"input": [], "middle": middle, "output": skips}
    # Lists of a chain are added from their starts, and the editor's own adapters for SDXL list a place more.
    more = [None] if len(skips) == SDXL_BLOCKS else []
    return {"input": [*more, *reversed(skips)], "middle": middle, "output": []}


def level_of(t: Tensor, options: dict[str, Any]) -> float:
    """The noise level of sigmas (rows,) as a number, read once for a call of the model: a GPU is waited for."""
    known = options.get(LEVEL)
    if known is None or known[0] is not t:
        known = options[LEVEL] = (t, float(t[0]))
    return known[1]


def row_factors(unit: ControlUnit, pictures: int, conditionings: int, options: dict[str, Any]) -> list[float]:
    """For each row the factor of its half of the guidance times that of its picture.

    Raises ShapeError when the factors per picture do not divide the batch.
    """
    items = unit.factors(pictures)
    halves = [unit.half(positive=half == 0) for half in options.get("cond_or_uncond", [0] * conditionings)]
    return [half * item for half in halves for item in items]


def find_base(net: ControlModel, name: str, model: Any) -> UNetConfig:
    """The shape of a BaseModel's UNet. Raises UnfitError when the net was not made for it."""
    base = base_config(model)
    if base is None:
        raise UnfitError(
            f"{name} controls Stable Diffusion's UNet; this model is a {type(model).__name__} of another "
            "architecture: load a ControlNet made for it with the native Load ControlNet Model"
        )
    check_base(net, name, base, "this model")
    return base


def check_width(control: CoreControl, context: Tensor) -> None:
    """Raise UnfitError when the prompt was encoded by the text encoder of another base."""
    net, has = control.shared.net, context.shape[-1]
    if not fits_text(net, has):
        needs = " or ".join(str(width) for width in text_widths(net))
        raise UnfitError(
            f"{control.name} is for bases of {needs} wide text, the prompt was encoded {has} wide: use the CLIP of the "
            "checkpoint that this ControlNet was made for"
        )
