"""Units of control on ComfyUI's CONDITIONING."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...controlnet_core.config import SD15
from ...controlnet_core.control.effect import idle_notes
from ...controlnet_core.control.picture_part import PicturePart
from ...controlnet_core.control.unit import ControlUnit, Curve
from ...controlnet_core.diffusion.schedule import NoiseSchedule
from ...controlnet_core.errors import ValueRangeError
from ..units import check_text, hint_of
from ..values import Conditioning, Controlled, ControlSpec, Halves
from . import core_control, native_controlnet
from .model_config import base_config
from .model_patch_control import ModelPatchControl

LEFT_OUT = "cncore_left_out"
"""Key in the options of a conditioning: the names of units of strength 0. Other code does not know it."""


def apply_control(positive: Conditioning, negative: Conditioning, specs: Sequence[ControlSpec]) -> Halves:
    """Both halves with these units added. A unit of strength 0 adds only its name, for the report at the end."""
    for spec in specs:
        if spec.strength != 0.0:
            positive, negative = _apply(positive, negative, spec)
        else:
            positive, negative = (_left_out(half, spec) for half in (positive, negative))
    return positive, negative


def _left_out(conditioning: Conditioning, spec: ControlSpec) -> Conditioning:
    name = spec.name or getattr(spec.control_net, "name", "") or "a control net"
    return [[text, {**options, LEFT_OUT: (*options.get(LEFT_OUT, ()), name)}] for text, options in conditioning]


def _apply(positive: Conditioning, negative: Conditioning, spec: ControlSpec) -> Halves:
    """One unit on both halves. Entries with the same chain before it share one object, so that the sampler
    evaluates both halves in one batch."""
    hint = hint_of(spec.image)
    made: dict[Any, Any] = {}

    def controlled_entry(text: Tensor, options: dict[str, Any]) -> list[Any]:
        before = options.get("control")
        if before not in made:
            made[before] = make_control(spec, hint, text).set_previous_controlnet(before)
        return [text, {**options, "control": made[before], "control_apply_to_uncond": False}]

    return [controlled_entry(*entry) for entry in positive], [controlled_entry(*entry) for entry in negative]


def make_control(spec: ControlSpec, hint: Tensor, text: Tensor) -> Any:
    """The control object of a spec: ours for our nets and for model patches, a native one for native ones.

    Raises UnfitError for a net of another base than the text's, ValueRangeError for what it cannot do.
    """
    window = (spec.start_percent, spec.end_percent)
    if getattr(spec.control_net, core_control.TAG, False):
        made = spec.control_net.copy().set_cond_hint(hint, spec.strength, window)
        check_text(made.shared.net, made.name, text)
        return made.describe(spec)
    if isinstance(spec.control_net, ModelPatchControl):
        return spec.control_net.copy().set_cond_hint(hint, spec.strength, window).describe(spec)
    if not native_controlnet.is_control(spec.control_net):
        raise ValueRangeError(f"the control net is a {type(spec.control_net).__name__}: link a ControlNet loader")
    return native_controlnet.make(spec, hint)


def controlled(model: Any, conditioning: Conditioning) -> Controlled:
    """Our units on a conditioning, each once, first applied first, with the model's noise levels.

    Raises ValueRangeError for native ones, whose blocks nobody can list.
    """
    chains = [list(chain(options.get("control"))) for _, options in conditioning]
    units: dict[Any, ControlUnit] = {}
    for link in (link for links in chains for link in reversed(links)):
        if not getattr(link, core_control.TAG, False):
            raise ValueRangeError(
                f"{type(link).__name__} was loaded by ComfyUI, and its blocks are not known: the plan shows nets "
                "loaded with Load ControlNet (ControlNet Core)"
            )
        units.setdefault(link, link.unit())
    base = base_config(model.model)
    config = SD15 if base is None else replace(SD15, unet=base)
    return Controlled(tuple(units.values()), noise_schedule(model), config)


def idle_control(model: Any, conditioning: Conditioning, sigmas: Sequence[float]) -> list[str]:
    """A message for each of our units that had no effect in a run, see `idle_notes`; native ones are not looked at."""
    names = dict.fromkeys(name for _, options in conditioning for name in options.get(LEFT_OUT, ()))
    left_out = [f"{name} had no effect: its strength is 0" for name in names]
    base = base_config(model.model)
    links = dict.fromkeys(link for _, options in conditioning for link in chain(options.get("control")))
    units = [link.unit() for link in links if getattr(link, core_control.TAG, False)]
    # Flow models have no table of noise levels, in which a window has its place.
    if not units or base is None or not hasattr(model.get_model_object("model_sampling"), "log_sigmas"):
        return left_out
    return left_out + idle_notes(units, sigmas, noise_schedule(model), base)


def reweigh(model: Any, conditioning: Conditioning, unit: int, factors: Sequence[float]) -> Conditioning:
    """The same conditioning with copies of its control objects, the block weights of one multiplied.

    Entries that shared a chain share its copy. unit: its number in `controlled`.
    """
    base = controlled(model, conditioning).config.unet
    chosen = _links(conditioning)[unit]

    def scaled(link: Any) -> Any:
        made = link.copy()
        if link is chosen:
            made.scale_blocks(factors, base)
        return made

    return replace_controls([conditioning], scaled)[0]


def with_curve(model: Any, positive: Conditioning, negative: Conditioning, unit: int, curve: Curve) -> Halves:
    """Both halves with the strength of one unit multiplied by a curve. unit: its number in `controlled`."""
    controlled(model, positive)  # refuses control objects that are not ours
    chosen = _links(positive)[unit]

    def on_it(link: Any) -> Any:
        made = link.copy()
        if link is chosen:
            own = link.curve
            made.curve = curve if own is None else lambda position: own(position) * curve(position)
        return made

    halves = replace_controls([positive, negative], on_it)
    return halves[0], halves[1]


def _links(conditioning: Conditioning) -> list[Any]:
    """All control objects, each once, first applied first."""
    return list(dict.fromkeys(link for _, o in conditioning for link in [*chain(o.get("control"))][::-1]))


def crop_control(positive: Conditioning, negative: Conditioning, part: PicturePart) -> Halves:
    """Both halves with copies of their control objects for a part of the picture.

    Raises ValueRangeError for masks of other packs that cannot be cut.
    """

    def cropped(link: Any) -> Any:
        if getattr(link, core_control.TAG, False):
            return link.crop_to(part)
        made = link.copy()
        # As packs that sample in tiles do it; native objects resize the hint to the latent when they are called.
        if isinstance(link.cond_hint_original, Tensor):
            made.cond_hint_original, made.cond_hint = part.hint(link.cond_hint_original), None
        made.extra_concat_orig = [part.hint(more) for more in link.extra_concat_orig]
        return made

    halves = replace_controls([positive, negative], cropped)
    return halves[0], halves[1]


def replace_controls(halves: Sequence[Conditioning], change: Callable[[Any], Any]) -> list[Conditioning]:
    """Conditionings whose control objects are those that `change` makes of them: new ones, or None to leave one out.

    Entries that share a chain share the new one, so that the sampler still evaluates them in one batch.
    """
    made: dict[Any, Any] = {None: None}
    for link in (link for half in halves for _, o in half for link in [*chain(o.get("control"))][::-1]):
        if link not in made:
            before, new = made[link.previous_controlnet], change(link)
            made[link] = before if new is None else new.set_previous_controlnet(before)

    def replaced(options: dict[str, Any]) -> dict[str, Any]:
        # A key without a control object would be taken for one.
        control = made[options.get("control")]
        others = {key: value for key, value in options.items() if key != "control"}
        return others if control is None else {**others, "control": control}

    return [[[text, replaced(options)] for text, options in half] for half in halves]


def chain(link: Any) -> Iterator[Any]:
    """A control object and those before it, last one first."""
    while link is not None:
        yield link
        link = link.previous_controlnet


def noise_schedule(model: Any) -> NoiseSchedule:
    """The noise levels of a MODEL. Raises ValueRangeError for flow models, which have no timesteps to list."""
    levels = model.get_model_object("model_sampling")
    if not hasattr(levels, "log_sigmas"):
        raise ValueRangeError("this model has no table of noise levels (a flow model): the plan is for SD1, SD2, SDXL")
    return NoiseSchedule(levels.sigmas.detach().float().cpu(), levels.log_sigmas.detach().float().cpu())
