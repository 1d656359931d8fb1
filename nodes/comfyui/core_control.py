"""Our CONTROL_NET: a native control object that runs our net, of any kind.

Native apply nodes and samplers take it, alone or in chains with native ones in any order. ComfyUI's UNet gets all
residuals in lists; under Accelerate each is computed when it is added (see `residuals`). What does not depend on x
(embedded hint, keys and values of the text, projected timesteps) is computed once per run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import comfy.controlnet
import comfy.model_management
import torch
from torch import Tensor

from ...controlnet_core.checkpoints.control import load_control
from ...controlnet_core.config import UNetConfig
from ...controlnet_core.control.bound_unit import NetInputs, Scales, UnitInputs, residual_scales
from ...controlnet_core.control.modes import block_heights
from ...controlnet_core.control.residuals import weigh_residual
from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.denoise import net_residuals
from ...controlnet_core.errors import UnfitError, ValueRangeError
from ...controlnet_core.models.control import BoundNet, ControlModel, check_base
from ...controlnet_core.models.controlnet_xs import ControlNetXS, Exchange
from ...controlnet_core.models.reference import Reference
from ...controlnet_core.models.to_device import to_device_async
from ...controlnet_core.recording import INSIDE
from ..units import check_text
from .advanced import AdvancedFactors, context_window
from .attention_patches import AttentionPatches
from .batch_rows import BatchRows, batch_rows, row_factors
from .bind import FACTOR, HostSchedule, bind_context
from .control_inputs import ControlInputs
from .exchange_patches import ExchangePatches
from .model_config import base_config, base_weights
from .placed_net import PlacedNet, SharedNet
from .recording import record_acting, record_residuals, record_run
from .reference_pass import record
from .residuals import LazyResiduals, Residuals, accelerate_is_on, add_residuals
from .shortcut_state import identity, sampling_of

TAG = "controlnet_core_unit"
"""An attribute that marks our objects. Not their class, because a second copy of this pack may be loaded as well."""
LEVEL = "controlnet_core_level"
"""Where the options of a call of the model keep its noise level as a number, with the tensor that it was read from."""
SDXL_BLOCKS = 9
KEPT_HINTS = 8
"""Bound nets that are kept in a run for hints that a pack sets. A pack may set a new hint at each call."""


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


class CoreControl(ControlInputs):
    """One unit of control in ComfyUI."""

    controlnet_core_unit = True
    # Set by `pre_run`, and None between runs.
    base: UNetConfig
    placed: PlacedNet
    begins: list[float]
    """The noise level at which each keyframe begins."""

    def __init__(self, shared: SharedNet) -> None:
        super().__init__(shared)
        self.sampling: Any = None
        self.model: Any = None
        # Keyed by ComfyUI's identity of a conditioning, which lives as long as a run: nothing outlives
        # a run that fails, for which there is no cleanup.
        self.runs: WeakKeyDictionary[Any, dict[Any, Prepared]] = WeakKeyDictionary()

    def get_models(self) -> list[Any]:
        """Patchers of the whole chain."""
        placed = self.shared.placed
        chain = comfy.controlnet.ControlBase.get_models(self)  # without `control_model_wrapped`, which this has not
        return [*chain, *(() if placed is None else (placed.patcher,))]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes for activations of the whole chain, and for a net that is completed only when the run begins.

        ComfyUI does not say for what it asks: the latent is taken to be of the hint's size and number, in both
        halves of the guidance. In a chain the sum of two nets is made beside both.
        """
        own = 0
        if self.cond_hint_original is not None:
            cell = 1 if self.shared.net.reads_latent else FACTOR
            height, width = (max(1, side // cell) for side in self.cond_hint_original.shape[-2:])
            images, hints = len(self.cond_hint_original), 1 + len(self.spec.more_hints)
            own = self.shared.activation_bytes((height, width), images, hints)
        if self.shared.placed is None:
            own += 4 * sum(placed.parameters for placed in self.shared.completed.values())
        own = own * comfy.model_management.dtype_size(dtype) // 4
        return int(own + super().inference_memory_requirements(dtype))

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Begin a run; called for each conditioning that holds this object.

        Raises UnfitError for a model that this net was not made for, ValueRangeError for a wrong number of
        block weights.
        """
        super().pre_run(model, percent_to_timestep_function)
        self.begin_advanced(percent_to_timestep_function)
        self.runs.clear()
        self.base = find_base(self.shared.net, self.name, model)
        unit = self.unit()
        for begun in range(1 + len(unit.keyframes)):
            unit.weights(self.base, FACTOR, begun)
        self.begins = [float(percent_to_timestep_function(frame.position)) for frame in unit.keyframes]
        self.placed = self.shared.on(model, self.base)
        self.sampling, self.model = model.model_sampling, model

    def cleanup(self) -> None:
        """End a run: nothing of it is kept."""
        super().cleanup()
        self.end_advanced()
        self.runs.clear()
        self.shared.completed.clear()
        self.placed = self.sampling = self.base = self.model = None  # type: ignore[assignment]

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict[str, Any], batched_number: int, transformer_options: dict[str, Any]
    ) -> Residuals | None:
        """Residuals of the chain for x_noisy (conditionings * B, 4, h, w), unscaled, at sigmas t.

        None if no unit of the chain acts.
        """
        options, previous = transformer_options, None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, options)
        level = level_of(t, options)
        if not self._in_window(level):
            return previous
        call = self._call(x_noisy, t[:1], level, cond, batched_number, options)
        if call is None:
            return previous
        sampling = sampling_of(options)
        if sampling is not None:
            sampling.acted[self.name] += 1

        if call.net.net.entry in INSIDE:
            self._patch(call, cond, options)
            return previous
        if isinstance(call.net.net, ControlNetXS):
            self._exchange(call, call.net.net, options)
            return previous

        def own(may_run: bool) -> Iterator[Tensor | None]:
            weighed = self._weighed(call, may_run, options)
            return record_residuals(weighed, options, self, call.unit, call.rows, call.x.device)

        if call.net.net.entry == "skips" and accelerate_is_on(options):
            return LazyResiduals(own, self, previous)
        return add_residuals(sort_into_lists(call.net.net, list(own(True))), previous)

    def _patch(self, call: Call, cond: dict[str, Any], options: dict[str, Any]) -> None:
        """Put what the net changes inside the UNet's blocks into the options of this call."""
        sampling = sampling_of(options)
        if sampling is not None:
            sampling.ran[self.name] += 1
        record_acting(options, self, call.unit)
        record_run(options, self, call.x.dtype, self.placed.dtype)
        net = call.net
        if isinstance(net.net, Reference):
            run = partial(self._run_model, net.inputs, call, cond)
            net = net._replace(inputs=record(net.net, self.base, run, options))
        AttentionPatches(net, call.rows, call.x, self.model.diffusion_model).attach(options)

    def _exchange(self, call: Call, model: ControlNetXS, options: dict[str, Any]) -> None:
        """Put a net that runs beside the UNet's blocks into the options of this call."""

        def make(exchange: Exchange) -> Iterator[Tensor | None]:
            net = call.net._replace(inputs=call.net.inputs._replace(exchange=exchange))
            weighed = self._weighed(call._replace(net=net), True, options)
            return record_residuals(weighed, options, self, call.unit, call.rows, call.x.device)

        def to_decoder(exchange: Exchange, number: int) -> Tensor | None:
            index = model.decoder_target(number)
            acts = call.net.acts_on(index)
            residual = model.decoder_residual(exchange, number) if acts else None
            return self._weigh(call, residual, index, self._sizes(call.x)[index])

        rows = slice(None) if len(call.rows) == len(call.x) else row_index(call.rows, call.x.device)
        ExchangePatches(make, to_decoder, rows, call.net.inputs.time).attach(options)

    def _run_model(self, x: Tensor, call: Call, cond: dict[str, Any], options: dict[str, Any]) -> None:
        """Run ComfyUI's UNet on x (rows that the unit acts on, C, h, w), as the UNet reads it, with their texts."""
        rows, model = row_index(call.rows, x.device), self.model
        dtype = model.get_dtype() if model.manual_cast_dtype is None else model.manual_cast_dtype
        text, label = (None if v is None else v.to(x.device, dtype)[rows] for v in (cond["c_crossattn"], cond.get("y")))
        t = model.model_sampling.timestep(call.sigma).float().expand(len(x))
        more = {} if label is None else {"y": label}
        model.diffusion_model(x.to(dtype), t, context=text, control=None, transformer_options=options, **more)

    def _in_window(self, sigma: float) -> bool:
        if self.timestep_range is None:
            return True
        first, last = self.timestep_range
        return last <= sigma <= first

    def _call(
        self, x_noisy: Tensor, sigma: Tensor, level: float, cond: dict[str, Any], conditionings: int,
        options: dict[str, Any],
    ) -> Call | None:  # fmt: skip
        """What this call needs; None if the unit adds nothing."""
        part = self.part_for(x_noisy)
        unit, window = self.unit(part), context_window(self.sub_idxs, options)
        order = batch_rows(len(x_noisy), conditionings, options, window)
        advanced = self.advanced_factors(level, order, options)
        curve = 1.0 if unit.curve is None else unit.curve(HostSchedule(self.sampling, sigma.device).position(sigma))
        begun = sum(level <= begin for begin in self.begins)
        weights = tuple(curve * weight for weight in unit.weights(self.base, x_noisy.shape[-2], begun))
        # A context window shows a part of the batch, so the number of factors need not divide it.
        items = (unit.items or (1.0,)) if order.windowed else unit.image_factors(1 + max(order.images))
        factors = row_factors(order, options, unit.half_factor, items)
        if advanced is not None:
            skips, entry = len(weights) - 1, self.placed.net.entry
            weights = tuple(w * advanced.block_weight(i, skips, entry) for i, w in enumerate(weights))
            factors = [a * b for a, b in zip(factors, advanced.rows, strict=True)]
        rows = tuple(row for row, value in enumerate(factors) if value != 0.0)
        if not rows or not any(weights):
            return None
        source = self.cond_hint_original if part is None else part
        if part is not None and len(part) == len(x_noisy):
            order = order._replace(images=tuple(range(len(x_noisy))))  # the pack made a hint for each row
        bound, by_keyframe = self._bound(
            unit, rows, [factors[row] for row in rows], order, x_noisy, cond, options, source
        )
        scales = by_keyframe[begun]
        if advanced is not None and advanced.has_masks:
            more = self._advanced_scales(advanced, rows, x_noisy, untouched=source is self.joined)
            scales = more if scales is None else tuple(a * b for a, b in zip(scales, more, strict=True))
        net = NetInputs(self.placed.net, bound.inputs_at(level), (UnitInputs(slice(None), weights, scales),))
        key = (self, identity(options), rows, tuple(x_noisy.shape), id(source))
        return Call(unit, net, rows, x_noisy, sigma, key)

    def _advanced_scales(
        self, advanced: AdvancedFactors, rows: tuple[int, ...], x: Tensor, untouched: bool
    ) -> tuple[Tensor, ...]:
        """Advanced-ControlNet's masks for each target. untouched: whether the hint is that of the whole image."""
        if not untouched and advanced.mask_of_keyframe:
            raise ValueRangeError(
                f"another pack cuts the hint of {self.name} into parts, and the mask of a timestep keyframe cannot "
                "follow it: give the mask to Apply Advanced ControlNet instead"
            )
        latent, sizes, entry = (x.shape[-2], x.shape[-1]), self._sizes(x), self.placed.net.entry
        masks = (advanced.mask(i, len(sizes) - 1, entry, latent, size, untouched) for i, size in enumerate(sizes))
        return tuple(to_device_async(mask[list(rows)], x.device, self.placed.dtype) for mask in masks)

    def _sizes(self, x: Tensor) -> list[tuple[int, int]]:
        """Height and width of each skip and of the middle, for x (rows, C, h, w)."""
        return list(zip(*(block_heights(self.base, side) for side in x.shape[-2:]), strict=True))

    def _weighed(self, call: Call, may_run: bool, options: dict[str, Any]) -> Iterator[Tensor | None]:
        """One residual for each skip and the middle, in all rows of x; None if nothing is added."""
        residuals = zip(self._residuals(call, may_run, options), self._sizes(call.x), strict=True)
        for index, (residual, size) in enumerate(residuals):
            yield self._weigh(call, residual, index, size)

    def _weigh(self, call: Call, residual: Tensor | None, index: int, size: tuple[int, int]) -> Tensor | None:
        """A residual of the net's rows for a target of this size, weighed, in all rows of x."""
        (unit,) = call.net.units
        if residual is None or not unit.acts_on(index):
            return None
        scale = None if unit.scales is None else unit.scales[index]
        residual = weigh_residual(residual.expand(len(call.rows), -1, *size), float(unit.weights[index]), scale)
        if len(call.rows) == len(call.x):
            return residual
        full = residual.new_zeros(len(call.x), *residual.shape[1:])
        return full.index_copy_(0, row_index(call.rows, residual.device), residual)

    def _residuals(self, call: Call, may_run: bool, options: dict[str, Any]) -> Iterator[Tensor | None]:
        """The net's residuals before their weights; computed, or continued where evaluations are skipped."""
        x = self.sampling.calculate_input(call.sigma, call.x).to(self.placed.dtype)
        sampling = sampling_of(options)

        def run() -> Iterator[Tensor | None]:
            if sampling is not None:
                sampling.ran[self.name] += 1
            record_run(options, self, call.x.dtype, x.dtype)
            seen = x if len(call.rows) == len(x) else x[row_index(call.rows, x.device)]
            return net_residuals(call.net, seen)

        runs = call.net.net.entry == "exchange"  # it reads the UNet's blocks in each evaluation
        if runs or sampling is None or not sampling.clock.skips_nets or not identity(options):
            return run()
        return sampling.residuals((*call.key, x.dtype, x.device), x, may_run, lambda: list(run()))

    def _bound(
        self, unit: ControlUnit, rows: tuple[int, ...], factors: Sequence[float], order: BatchRows, x: Tensor,
        cond: dict[str, Any], options: dict[str, Any], source: Any,
    ) -> tuple[BoundNet, tuple[Scales | None, ...]]:  # fmt: skip
        """The bound net, and its scales while 0, 1, 2, ... keyframes have begun.

        They are made once per run, hint, size and batch of conditionings. source: the tensor that the hint is from.
        """
        dtype, device = self.placed.dtype, x.device
        text = cond.get("crossattn_controlnet", cond["c_crossattn"])
        uuids = options.get("uuids") or ()
        # What is kept for a run; nothing is kept if ComfyUI does not say which conditioning this is.
        known = self.runs.setdefault(uuids[0], {}) if uuids else {}
        images = tuple(order.images[row] for row in rows)
        key = (identity(options), rows, images, tuple(factors), tuple(x.shape), tuple(text.shape), dtype, device)
        key = (id(source), *key)
        if key not in known:
            check_text(self.shared.net, self.name, text)
            text, label = (None if v is None else v.to(device, dtype) for v in (text, cond.get("y")))
            if len(rows) != x.shape[0]:
                text, label = (None if v is None else v[list(rows)] for v in (text, label))
            assert text is not None
            schedule = HostSchedule(self.sampling, device)
            net = self.placed.net
            extend = self.is_advanced or order.windowed
            to_model = self.model.process_latent_in
            context = bind_context(unit, net, self.base, x, images, text, label, schedule, dtype, extend, to_model)
            masks = [[m.to(device) for m in unit.masks(begun)] for begun in range(1 + len(unit.keyframes))]
            scales = tuple(residual_scales(context, factors, own, self.base) for own in masks)
            if len(known) >= KEPT_HINTS and source is not self.joined:
                known.pop(next(iter(known)))
            known[key] = Prepared(net.bind(context), scales, source)
        return known[key][:2]


class Prepared(NamedTuple):
    """A bound net and its scales by keyframe. source: the hint's tensor, kept so that no other one gets its id."""

    bound: BoundNet
    scales: tuple[Scales | None, ...]
    source: Any


class Call(NamedTuple):
    """One call for the residuals of a unit. rows: of x, those that the net sees. sigma: (1,)."""

    unit: ControlUnit
    net: NetInputs
    rows: tuple[int, ...]
    x: Tensor
    sigma: Tensor
    key: tuple[Any, ...]


def row_index(rows: Sequence[int], device: torch.device) -> Tensor:
    """Rows as an index tensor on a device."""
    return to_device_async(torch.tensor(rows), device)


def sort_into_lists(net: ControlModel, own: list[Any]) -> Residuals:
    """Residuals in ComfyUI's lists: "output" belongs to the skips, first to last; "input" is added while its
    encoder runs and is taken from its end."""
    skips, middle = own[:-1], own[-1:]
    if net.entry == "skips":
        return {"input": [], "middle": middle, "output": skips}
    # Lists of a chain are added from their starts, and ComfyUI's own adapters for SDXL list a place more.
    more = [None] if len(skips) == SDXL_BLOCKS else []
    return {"input": [*more, *reversed(skips)], "middle": middle, "output": []}


def level_of(t: Tensor, options: dict[str, Any]) -> float:
    """The noise level of sigmas (rows,) as a number, read once for a call of the model: a GPU is waited for."""
    known = options.get(LEVEL)
    if known is None or known[0] is not t:
        known = options[LEVEL] = (t, float(t[0]))
    return known[1]


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
