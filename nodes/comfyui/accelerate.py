"""Our engine on a native MODEL under any native sampler.

`accelerate_model` puts a wrapper around ComfyUI's UNet. Its fast path runs our UNet on ComfyUI's layers, with text and
timesteps projected once per run. A call that our UNet would not compute as ComfyUI does is left to ComfyUI.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor, nn

from ...controlnet_core.config import UNetConfig
from ...controlnet_core.control.bound_unit import NetInputs, UnitInputs
from ...controlnet_core.control.modes import block_heights
from ...controlnet_core.denoise import ControlledUNet
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.projections import Projections
from ...controlnet_core.models.unet import UNet, encoder_widths
from ...controlnet_core.prepare import BatchInputs
from ...controlnet_core.speed import most_packed_bytes, packed_bytes
from . import borrowed_unet
from .host_layers import attention_is_slow, with_host_arithmetic
from .model_config import base_config
from .residuals import (
    ACCELERATE_KEY,
    WRAPPER,
    LazyResiduals,
    Residuals,
    acting_key,
    computed_residuals,
    residuals_by_target,
)
from .shortcut_state import identity, sampling_of

KEY = ACCELERATE_KEY
CALLBACKS = comfy.patcher_extension.CallbacksMP
PART = "diffusion_model"
"""What ComfyUI calls the UNet inside of its model."""
TIMESTEPS: Any = SimpleNamespace(timestep=lambda t: t)
"""The noise schedule of a UNet that is given timesteps instead of noise levels."""


def accelerate_model(model: Any, weights: str, node: str | None = None) -> tuple[Any, str]:
    """A clone of a MODEL with the engine around its UNet, and what to expect of it.

    weights: "shared" borrows ComfyUI's layers, "packed" keeps a copy in the backend's layout. node: the ID of
    the node that shows what a run did.
    """
    config = base_config(model.model)
    if config is None:
        return model, "native: the model is not Stable Diffusion 1, 2 or XL, whose UNet this engine knows"
    engine = Engine(borrowed_unet.frame(config), weights, node)
    clone = model.clone()
    clone.remove_wrappers_with_key(WRAPPER, KEY)
    clone.add_wrapper_with_key(WRAPPER, KEY, engine)
    calls = {CALLBACKS.ON_PRE_RUN: engine.begin, CALLBACKS.ON_CLEANUP: engine.end, CALLBACKS.ON_DETACH: engine.forget}
    for kind, call in calls.items():
        clone.remove_callbacks_with_key(kind, KEY)
        clone.add_callback_with_key(kind, KEY, call)
    clone.remove_additional_models(KEY)
    if weights == "packed":
        clone.set_additional_models(KEY, [engine.counted(clone)])
    reason = obstacle_of_model(clone)
    return clone, f"native: {reason}" if reason else f"fast path with {weights} weights"


# ---- calls that are left to ComfyUI


@dataclass(frozen=True)
class Call:
    """One call of the UNet."""

    executor: Any
    patcher: Any
    x: Tensor
    levels: list[float]
    options: Mapping[str, Any]
    others: Mapping[str, Any]


def obstacle_of_model(patcher: Any) -> str:
    """Why no call of this model can run on the engine; empty if calls can."""
    return next((words for words, holds in ON_MODEL if holds(patcher)), "")


def obstacle_of_call(call: Call) -> str:
    """Why ComfyUI has to do this call; empty if the engine can."""
    if call.patcher is None:
        return "the model runs outside of a sampler"
    return next((words for words, holds in ON_CALL if holds(call)), "") or obstacle_of_model(call.patcher)


ON_MODEL: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("parts of the UNet were replaced (an object patch)", lambda p: any(k.startswith(PART) for k in p.object_patches)),
    ("another pack injects code into the model", lambda p: p.injections),
)
ON_CALL: tuple[tuple[str, Callable[[Call], Any]], ...] = (
    ("the UNet is being compiled", lambda _: torch.compiler.is_compiling()),
    ("the UNet runs on a second device", lambda c: c.executor.class_obj is not getattr(c.patcher.model, PART)),
    ("patches act on the UNet's blocks", lambda c: any((c.options.get("patches") or {}).values())),
    ("patches replace attention", lambda c: any((c.options.get("patches_replace") or {}).values())),
    ("the attention function is overridden", lambda c: c.options.get("optimized_attention_override")),
    ("another wrapper stands between this one and the UNet", lambda c: c.executor.wrappers[c.executor.idx + 1 :]),
    ("a hook changes weights by prompt", lambda c: c.patcher.current_hooks is not None),
    ("context windows cut the batch", lambda c: any(c.options.get(key) for key in ("context_window", "ad_params"))),
    ("the model gets inputs that are not Stable Diffusion's", lambda c: any(v is not None for v in c.others.values())),
    ("attention runs in float32, the model does not", lambda c: needs_wide_attention(c)),
    ("rows are at different noise levels", lambda c: len(set(c.levels)) != 1),
)


def needs_wide_attention(call: Call) -> bool:
    """Whether attention is to run in float32 though the rest does not (Stable Diffusion 2): ComfyUI's plain forms
    of it do so, those that it has from elsewhere do not."""
    described = call.patcher.model.model_config.unet_config
    return attention_is_slow() and described.get("attn_precision") is not None and call.x.dtype != torch.float32


def residual_misfit(control: Residuals | None, config: UNetConfig, x: Tensor) -> str:
    """Why residuals cannot be added to a UNet of this shape; empty if they can. Our own nets were checked before."""
    heights, widths = (block_heights(config, side)[:-1] for side in x.shape[-2:])
    skips = list(zip(encoder_widths(config), heights, widths, strict=True))
    targets = {"input": skips, "middle": skips[-1:], "output": skips[::-1]}
    for kind, residuals in computed_residuals(control).items():
        for residual, shape in zip(reversed(residuals), targets.get(kind, ()), strict=False):
            if residual is not None and (tuple(residual.shape[1:]) != shape or residual.shape[0] not in (1, len(x))):
                return f"a residual of shape {tuple(residual.shape)} meets a skip of shape {(len(x), *shape)}"
    return ""


# ---- the fast path


@dataclass
class Report:
    """What happened to the calls of a run."""

    weights: str
    fast: int = 0
    streamed: int = 0
    native: Counter[str] = field(default_factory=Counter)
    bind_seconds: float = 0.0
    copied_bytes: int = 0
    note: str = ""

    def text(self) -> str:
        """The report as text, a line for each path."""
        lines = []
        if self.fast:
            copied = f", {self.copied_bytes / 2**20:.0f} MiB copied" if self.copied_bytes else ", nothing copied"
            lines.append(f"fast path: {self.fast} calls, {self.weights} weights{copied}")
        if self.streamed:
            lines.append(f"control: {self.streamed} calls, each residual added when it is made, none kept")
        lines += [f"native path: {count} calls, since {reason}" for reason, count in self.native.items()]
        return "\n".join([*lines, *filter(None, [self.note])]) or "no calls"


class Engine:
    """The wrapper around a MODEL's UNet that runs it on our engine where that is possible.

    Between runs it keeps no layer of ComfyUI; only the packed copy, if packed weights were chosen.
    """

    def __init__(self, frame: borrowed_unet.Frame, weights: str, node: str | None) -> None:
        self.frame, self.weights, self.node = frame, weights, node
        self.report = Report(weights)
        self.patcher: Callable[[], Any] = lambda: None
        self.bound: borrowed_unet.BorrowedUNet | str | None = None  # or why there is none
        self.packs = False
        self.copy: tuple[Any, borrowed_unet.BorrowedUNet] | None = None
        # Keyed by ComfyUI's identity of a conditioning, which does not outlive a run.
        self.projections: WeakKeyDictionary[Any, dict[Any, Projections]] = WeakKeyDictionary()

    # ---- a run

    def begin(self, patcher: Any) -> None:
        """A run begins on this model."""
        self._drop()
        self.report, self.patcher = Report(self.weights), ref(patcher)

    def end(self, patcher: Any) -> None:
        """A run has ended, with or without an error: release the layers, and show the report on the node."""
        if self.copy is not None:
            self.report.copied_bytes = packed_bytes(self.copy[1])
        self._drop()
        self.patcher = lambda: None
        show_on_node(self.node, self.report.text())

    def forget(self, *_: Any) -> None:
        """ComfyUI unloads the model, or wants the memory of the copy."""
        self._drop()
        self.copy = None

    def _drop(self) -> None:
        self.bound, self.packs = None, False
        self.projections.clear()

    # ---- a call

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Residuals | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> Tensor:
        """x (rows, C, h, w), timesteps (rows,), context (rows, tokens, width) -> (rows, C, h, w)."""
        options = {} if transformer_options is None else transformer_options
        levels = timesteps.tolist()
        reason = obstacle_of_call(Call(executor, self.patcher(), x, levels, options, others))
        unet = reason or residual_misfit(control, self.frame.unet.config, x) or self._unet(executor.class_obj, x)
        if isinstance(unet, str) or context is None:
            reason = unet if isinstance(unet, str) else "there is no text"
            self.report.native[reason] += 1
            sampling = sampling_of(options)
            if sampling is not None:
                sampling.ran_whole(reason)
            return executor(x, timesteps, context, y, control, options, **others)
        self.report.fast += 1
        self.report.streamed += isinstance(control, LazyResiduals)
        stack = self._projections(unet, x, context, y, options).at(levels[0])
        sampling, known = sampling_of(options), identity(options)
        key = (known, tuple(x.shape), x.dtype, x.device, acting_key(control))
        if sampling is None or not known or not sampling.is_first(key):
            return predict(ControlledUNet(unet), stack, x, control, key)
        return predict(sampling.accelerated(unet), stack, x, control, key)

    def _unet(self, native: nn.Module, x: Tensor) -> UNet | str:
        """Our UNet on ComfyUI's layers, bound once per run; or why it cannot be."""
        if self.bound is None:
            began = perf_counter()
            self.bound = self._bind(native, x.dtype)
            self.report.bind_seconds = perf_counter() - began
        if isinstance(self.bound, str) or not self.packs:
            return self.bound
        key = (self.patcher().model.current_weight_patches_uuid, x.dtype, x.device)
        if self.copy is None or self.copy[0] != key:
            self.copy = None  # before there are two
            self.copy = (key, borrowed_unet.pack_copy(self.bound))
        return self.copy[1]

    def _bind(self, native: nn.Module, dtype: torch.dtype) -> borrowed_unet.BorrowedUNet | str:
        try:
            bound = borrowed_unet.bind(self.frame, native, dtype)
        except UnfitError as error:
            return str(error)
        if self.weights == "packed":
            reason = borrowed_unet.packing_blocker(bound)
            self.packs = not reason
            self.report.note = f"{reason}: shared weights were used" if reason else ""
        return bound if self.packs else with_host_arithmetic(bound)

    def _projections(
        self, unet: UNet, x: Tensor, context: Tensor, y: Tensor | None, options: Mapping[str, Any]
    ) -> Projections:
        """Keys and values of these rows' texts. ComfyUI lays rows out anew at each call, in any order."""
        uuids = options.get("uuids") or ()
        key = (identity(options), tuple(context.shape), x.shape[0], x.dtype, x.device)
        known = self.projections.setdefault(uuids[0], {}) if uuids else {}
        if key not in known:
            known[key] = Projections(unet, TIMESTEPS, context, y, per_row=True)
        return known[key]

    # ---- memory

    def counted(self, patcher: Any) -> Any:
        """The packed copy as ComfyUI's memory manager sees it: a model of that size, which it may drop."""
        size = most_packed_bytes(self.frame.unet, torch.float32)
        where = (patcher.load_device, patcher.offload_device, size)
        holder = place_holder(*where)
        # ComfyUI clones further models of a MODEL for its MultiGPU nodes.
        holder.cached_patcher_init = (place_holder, where)
        holder.add_callback_with_key(CALLBACKS.ON_DETACH, KEY, self.forget)
        return holder


def place_holder(load_device: Any, offload_device: Any, size: int, disable_dynamic: bool = False) -> Any:
    """A patcher of an empty module that ComfyUI counts as `size` bytes."""
    return comfy.model_patcher.ModelPatcher(nn.Module(), load_device, offload_device, size=size)


def show_on_node(node: str | None, text: str) -> None:
    """Show a text on a node, where a browser may be looking."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    if node is not None and instance is not None:
        instance.send_progress_text(text, node)


def predict(unet: ControlledUNet, stack: Any, x: Tensor, control: Residuals | None, key: object) -> Tensor:
    """The UNet's output with residuals where ComfyUI adds them. key: equal for evaluations that are neighbours."""
    targets = len(unet.unet.encoder.blocks) + 1
    inside = [*reversed(computed_residuals(control).get("input", ()))]
    lists = (
        ("encoder", lambda may_run: iter([*inside, *[None] * targets][:targets])),
        ("skips", lambda may_run: residuals_by_target(control, targets - 1, may_run)),
    )
    plain = (UnitInputs(slice(None), (1.0,) * targets, None),)
    nets: Any = tuple(NetInputs(GivenControl(entry), make, plain) for entry, make in lists)  # type: ignore[arg-type]
    unet.residuals = given_residuals
    return unet(x, BatchInputs(None, (), stack, nets, None, len(x), key)).contiguous()


class GivenControl(NamedTuple):
    """Stands for control whose residuals were made by ComfyUI or for it. entry: see `models.control`."""

    entry: str


def given_residuals(net: NetInputs, rows: Tensor, may_run: bool) -> Iterator[Tensor | None]:
    """The residuals for each target."""
    return net.inputs(may_run)
