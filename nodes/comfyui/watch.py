"""Reports of all samplings in a ComfyUI that this process runs, whichever node samples.

A MODEL carries ComfyUI's own wrappers, and its copies inherit them. So the nodes that load one get a subclass, in the
table of nodes of this process, which adds two wrappers to what they load. The pictures stay the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import comfy.patcher_extension
from torch import Tensor

from ...controlnet_core.control.report import Recorder, RunReport
from .apply import chain
from .core_control import TAG
from .recording import KEY

Receive = Callable[[RunReport], None]
WRAPPERS = comfy.patcher_extension.WrappersMP


def watch_loaders(classes: dict[str, type], receive: Receive) -> None:
    """Replace the nodes that load a MODEL by such that load one whose samplings are reported."""
    for name, cls in list(classes.items()):
        if _loads_model(cls):
            classes[name] = _watched(cls, receive)


def _loads_model(cls: Any) -> bool:
    """Whether a node returns a MODEL and reads none. INPUT_TYPES may be slow: it is called only if one is returned."""
    try:
        if "MODEL" not in tuple(getattr(cls, "RETURN_TYPES", None) or ()):
            return False
        declared = cls.INPUT_TYPES()
    except Exception:
        # A class of another pack whose lists cannot be made here fails in a run with its own message.
        return False
    groups = (declared.get(group) or {} for group in ("required", "optional"))
    return not any(tuple(entry)[:1] == ("MODEL",) for group in groups for entry in group.values())


def _watched(cls: Any, receive: Receive) -> type:
    """The same node, whose models report their samplings."""
    # V3 nodes have a class method of a fixed name, V1 nodes a method of any name.
    is_v3 = hasattr(cls, "define_schema")
    name = "execute" if is_v3 else cls.FUNCTION
    bound = getattr(cls, name)
    # Not by `super`: ComfyUI runs V3 nodes on a copy of the class, which is no subclass of it.
    original = getattr(bound, "__func__", bound)

    @wraps(original)
    def load(own: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = original(own, *args, **kwargs)
        for model in _models(loaded):
            watch(model, receive)
        return loaded

    return type(cls.__name__, (cls,), {name: classmethod(load) if is_v3 else load, "__module__": cls.__module__})


def _models(loaded: Any) -> Iterator[Any]:
    """The models among the outputs of a node, in any of the forms in which nodes return them."""
    outputs = loaded.get("result") if isinstance(loaded, Mapping) else getattr(loaded, "args", loaded)
    return (item for item in outputs or () if hasattr(item, "add_wrapper_with_key"))


def watch(model: Any, receive: Receive) -> None:
    """Report each sampling with a MODEL, and with copies that are made of it from now on."""

    def sample(
        executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Any = None,
        callback: Any = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        guider = executor.class_obj
        options = guider.model_options.setdefault("transformer_options", {})
        # The node Control Report makes a report of its own.
        if KEY in options:
            return executor(noise, latent, sampler, sigmas, mask, callback, *args, **kwargs)
        # ComfyUI has made a copy of the options for this sampling, so the recorder ends with it.
        recorder = options[KEY] = Recorder(_title(sampler, args, kwargs), observe=True)
        recorder.notes += _left_out(guider)
        add = comfy.patcher_extension.add_wrapper_with_key
        add(WRAPPERS.CALC_COND_BATCH, KEY, _counted(recorder), guider.model_options, is_model_options=True)

        def step(index: int, *state: Any) -> None:
            # Adaptive samplers take more steps than there are sigmas.
            recorder.step(float(sigmas[min(int(index), len(sigmas) - 1)]))
            if callback is not None:
                callback(index, *state)

        result = executor(noise, latent, sampler, sigmas, mask, step, *args, **kwargs)
        receive(recorder.report())
        return result

    model.add_wrapper_with_key(WRAPPERS.OUTER_SAMPLE, KEY, sample)


def _counted(recorder: Recorder) -> Callable[..., Any]:
    """A wrapper that counts the evaluations of the model."""

    def evaluate(executor: Any, *args: Any, **kwargs: Any) -> Any:
        recorder.evaluation()
        return executor(*args, **kwargs)

    return evaluate


def _title(sampler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What the report is called: sampler and seed. args: what follows the callback, the second one is the seed."""
    own = getattr(sampler, "sampler", None)
    function = getattr(sampler, "sampler_function", None)
    name = getattr(own, "name", "") or getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
    seed = kwargs.get("seed", args[1] if len(args) > 1 else None)
    return name if seed is None else f"{name}, seed {seed}"


def _left_out(guider: Any) -> list[str]:
    """A note for the control of a sampling that is not ours, of which nothing is measured."""
    entries = (entry for half in guider.conds.values() for entry in half or ())
    links = (link for entry in entries for link in chain(entry.get("control")))
    count = len({id(link) for link in links if not getattr(link, TAG, False)})
    if not count:
        return []
    nets = "a ControlNet" if count == 1 else f"{count} ControlNets"
    return [f"{nets} of ComfyUI's own loaders ran, and what it adds is not measured: load it with our loader for that"]
