"""Shortcuts on a native MODEL, under any native sampler.

`with_options` puts three wrappers on a clone of the MODEL: one begins the state of a sampling (`shortcut_state`), one
counts its evaluations, and one skips the negative half. Our nets and Accelerate read the state and skip their work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import comfy.patcher_extension
from torch import Tensor

from ...controlnet_core.run_options import DEFAULTS, EXACT, RunOptions, Shortcuts
from ...controlnet_core.speed import EvaluationClock
from . import apply
from .accelerate import show_on_node
from .core_control import TAG
from .residuals import accelerate_is_on
from .shortcut_state import KEY, Sampling, describe_skipped, sampling_of

WRAPPERS = comfy.patcher_extension.WrappersMP
PREDICT = getattr(WRAPPERS, "PREDICT_NOISE", None)
"""Around an evaluation. Older releases have no wrapper there, but one around the loop of the sampler."""
KINDS = (WRAPPERS.OUTER_SAMPLE, PREDICT or WRAPPERS.SAMPLER_SAMPLE, WRAPPERS.CALC_COND_BATCH)
HALVES = 2
log = logging.getLogger(__name__)


def with_options(model: Any, options: RunOptions, node: str | None) -> Any:
    """A clone of a MODEL that is sampled with these options in place of others.

    node: the ID of the node that shows what a run did.
    """
    shortcuts = options.shortcuts
    clone = model.clone()
    for kind in KINDS:
        clone.remove_wrappers_with_key(kind, KEY)
    if shortcuts != EXACT:
        clone.add_wrapper_with_key(WRAPPERS.OUTER_SAMPLE, KEY, partial(wrap_sampling, shortcuts=shortcuts, node=node))
        clone.add_wrapper_with_key(KINDS[1], KEY, count_evaluation if PREDICT else count_in_loop)
        clone.add_wrapper_with_key(WRAPPERS.CALC_COND_BATCH, KEY, limit_guidance)
    return clone


def options_of(model: Any) -> RunOptions:
    """The options that a MODEL is sampled with."""
    around = model.get_wrappers(WRAPPERS.OUTER_SAMPLE, KEY)
    return next((RunOptions(wrapper.keywords["shortcuts"]) for wrapper in around), DEFAULTS)


# ---- wrappers; the first argument is what ComfyUI would call in their place


def wrap_sampling(execute: Any, *args: Any, shortcuts: Shortcuts, node: str | None, **kwargs: Any) -> Any:
    """Around a sampling: give it a state, warn before it of what cannot be skipped, report after it what was."""
    guider = execute.class_obj
    options = guider.model_options.setdefault("transformer_options", {})  # of this sampling alone
    levels = guider.model_patcher.get_model_object("model_sampling")
    sampling = options[KEY] = Sampling(EvaluationClock(shortcuts, levels.percent_to_sigma))
    for obstacle in obstacles(shortcuts, guider, options):
        log.warning("Shortcuts: %s", obstacle)
    try:
        return execute(*args, **kwargs)
    finally:
        options.pop(KEY, None)
        text = "\n".join(
            [*describe_skipped(sampling), *obstacles(shortcuts, guider, options), *late_obstacles(sampling)]
        )
        for line in late_obstacles(sampling):
            log.warning("Shortcuts: %s", line)
        log.info(text)
        show_on_node(node, text)


def count_evaluation(
    execute: Any, x: Tensor, timestep: Tensor, model_options: Mapping[str, Any], seed: Any = None
) -> Any:
    """Around an evaluation: count it."""
    sampling = sampling_of(model_options.get("transformer_options"))
    if sampling is not None:
        sampling.evaluation(float(timestep.flatten()[0]))
    return execute(x, timestep, model_options, seed)


def count_in_loop(execute: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the loop of a sampler: give it a guider that counts the evaluations."""
    return execute(CountedGuider(guider), *args, **kwargs)


class CountedGuider:
    """Stands in for the guider: returns the same predictions and counts them."""

    def __init__(self, guider: Any) -> None:
        self.guider = guider

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Mapping[str, Any], seed: Any = None) -> Any:
        """The guided prediction."""
        return count_evaluation(self.guider, x, timestep, model_options, seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guider, name)


def limit_guidance(execute: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any) -> Any:
    """Around the conditionings of an evaluation: outside of the interval, use the positive half as the negative one, so
    that guidance changes nothing."""
    sampling = sampling_of(model_options.get("transformer_options"))
    if sampling is None or not sampling.shortcuts.limits_guidance or len(conds) != HALVES or not all(conds):
        return execute(model, conds, x, timestep, model_options)
    if sampling.guides(float(timestep.flatten()[0])):
        return execute(model, conds, x, timestep, model_options)
    positive, _ = execute(model, [conds[0], None], x, timestep, model_options)
    return [positive, positive.clone()]


# ---- messages


def obstacles(shortcuts: Shortcuts, guider: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """Messages about what cannot be skipped in a sampling, and what would help."""
    levels = {"deep_every": shortcuts.deep_every, "encoder_every": shortcuts.encoder_every}
    wanted = [f"{name} {every}" for name, every in levels.items() if every > 1]
    if wanted and not accelerate_is_on(options):
        yield f"{wanted[0]} does nothing: put Accelerate (ControlNet Core) on the same model"
    links = {link for link in linked(guider) if not getattr(link, TAG, False)}
    if links and (shortcuts.continues_nets or wanted):
        names = ", ".join(sorted({type(link).__name__ for link in links}))
        yield f"{names} runs in every evaluation: load it with Load ControlNet (ControlNet Core) if it is one for SD"
    if guider.model_options.get("context_handler") is not None:
        yield "context windows are on, under which everything is computed"


def late_obstacles(sampling: Sampling) -> Iterator[str]:
    """Messages about what was found out only while the sampling ran."""
    shortcuts = sampling.shortcuts
    if shortcuts.limits_guidance and not sampling.halves:
        yield "guidance was not limited: there was no negative half (cfg 1), or this guider has more than two"
    for reason, calls in sampling.whole.items():
        yield f"the whole UNet ran in {calls} calls, since {reason}"
    if (shortcuts.reuse_every > 1 or shortcuts.reuse_tolerance > 0.0) and not sampling.acted:
        yield "no ControlNet of this pack acted, so none was left out"


def linked(guider: Any) -> Iterator[Any]:
    """All control objects on a sampling's conditionings."""
    for conditioning in guider.conds.values():
        for options in conditioning:
            yield from apply.chain(options.get("control"))
