"""Scenario of the Shortcuts node inside the real host; run by `comfyui_host.py`, held to by `test_comfyui.py`."""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

STEPS = 10


@dataclass(frozen=True)
class Short:
    """A run with shortcuts that both homes make.

    fields: what the node says beside its defaults. units: as in `comfyui_host.Case`, with the "file" of another net.
    weights: of Accelerate, where the editor needs it.
    """

    fields: Mapping[str, Any]
    units: tuple[Mapping[str, Any], ...] = ({},)
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    weights: str = ""

    def conditioning(self, home: Any) -> Any:
        """Both prompts of a home with the units."""
        halves = home.prompts
        for unit in self.units:
            given = {key: value for key, value in unit.items() if key != "file"}
            if "file" in unit:
                (given["control_net"],) = home.node("CNCore_LoadControlNet", control_net=unit["file"])
            halves = home.controlled(halves, **given)
        return halves

    def latent(self, home: Any) -> dict[str, Any]:
        """What a home starts from."""
        side = importlib.import_module("comfyui_host").SIDE // 8
        return {"samples": torch.zeros(self.batch, 4, side, side)}


TWO = ({}, {"strength": 0.5, "upside_down": True})
ADAPTER = ({"file": "adapter.safetensors"}, {"strength": 0.5})
WINDOWS = ({"end_percent": 0.7}, {"start_percent": 0.3, "mode": "control", "upside_down": True})
APART = ({**WINDOWS[0], "file": "difference.safetensors"}, WINDOWS[1])
"""Two nets: without the editor two units of one net run as one, and begin anew together."""
RUNS: dict[str, Short] = {
    "nets": Short({"reuse_every": 2}),
    "nets, every third": Short({"reuse_every": 3}, TWO, batch=2),
    "nets, by tolerance": Short({"reuse_tolerance": 0.7}),
    "nets, in windows": Short({"reuse_every": 2}, APART),
    "nets, heun": Short({"reuse_every": 2}, settings={"sampler": "heun"}),
    "nets, an adapter among them": Short({"reuse_every": 2}, ADAPTER),
    "nets, under the engine": Short({"reuse_every": 2}, TWO, weights="shared"),
    "lower levels": Short({"deep_every": 2}, weights="shared"),
    "lower levels, carefully": Short({"deep_every": 3, "careful": True}, weights="shared"),
    "lower levels, packed": Short({"deep_every": 2}, weights="packed"),
    "lower levels, no net": Short({"deep_every": 3}, (), weights="shared"),
    "lower levels, nets seldom": Short({"deep_every": 2, "reuse_every": 4}, TWO, batch=2, weights="shared"),
    "lower levels, in windows": Short({"deep_every": 2}, WINDOWS, weights="shared"),
    "lower levels, an adapter": Short({"deep_every": 2}, ADAPTER, weights="shared"),
    "encoder": Short({"encoder_every": 2}, TWO, weights="shared"),
    "encoder, in windows": Short({"encoder_every": 3}, WINDOWS, weights="packed"),
    "guidance": Short({"guidance_start": 0.2, "guidance_end": 0.7}),
    "all": Short({"deep_every": 2, "reuse_tolerance": 0.1, "guidance_end": 0.6}, TWO, weights="shared"),
}
"""Names of runs, and what they leave out."""


class Shortened:
    """The session's model behind the node."""

    def __init__(self, session: Any, weights: str = "", **fields: Any) -> None:
        self.session, self.whole, self.exact = session, session.model, session.model
        if weights:
            engine = {"weights": weights, "unique_id": None}
            self.exact, _ = session.node("CNCore_Accelerate", model=session.model, **engine)["result"]
        cls = session.nodes.NODE_CLASS_MAPPINGS["CNCore_Shortcuts"]
        declared = {**cls.INPUT_TYPES()["required"], **cls.INPUT_TYPES()["optional"]}
        defaults = {name: entry[1]["default"] for name, entry in declared.items() if "default" in entry[1]}
        given = {"model": self.exact, "unique_id": None, **defaults, **fields}
        self.model, self.words = session.node("CNCore_Shortcuts", **given)["result"]

    @contextmanager
    def sampling(self, model: Any) -> Iterator[None]:
        """The session samples this model."""
        self.session.model = model
        try:
            yield
        finally:
            self.session.model = self.whole

    def sample(self, conditioning: Any, latent: Any = None, model: Any = None, **settings: Any) -> torch.Tensor:
        """The latent that the native sampler makes."""
        names = {"sampler": "sampler_name"}
        given = {"steps": STEPS, **{names.get(key, key): value for key, value in settings.items()}}
        with self.sampling(self.model if model is None else model):
            return self.session.ksampler(conditioning, latent, **given)


@contextmanager
def said() -> Iterator[list[str]]:
    """What is logged meanwhile about shortcuts, from warnings up."""
    heard = importlib.import_module("comfyui_host").Warnings()
    logging.getLogger().addHandler(heard)
    try:
        yield heard.messages
    finally:
        logging.getLogger().removeHandler(heard)


@contextmanager
def calls_of(module: Any) -> Iterator[list[int]]:
    """Counts how often a module runs meanwhile."""
    calls: list[int] = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def one_by_one() -> Iterator[None]:
    """The host takes its device to be full, and runs the conditionings one after the other."""
    management = importlib.import_module("comfy.model_management")
    whole = management.get_free_memory

    def none(device: Any = None, torch_free_too: bool = False) -> Any:
        return whole(device, True) if torch_free_too else 0  # both are asked for by its attention, for its tiles

    management.get_free_memory = none
    try:
        yield
    finally:
        management.get_free_memory = whole


def shortcuts(session: Any) -> None:
    """Every run by the native sampler, some by ours; counted, split, looked at twice, failing."""
    facts: dict[str, Any] = {}
    net = session.net.shared.placed.net.middle
    for name, case in RUNS.items():
        run = Shortened(session, case.weights, **case.fields)
        conditioning, latent = case.conditioning(session), case.latent(session)
        with said() as warnings, calls_of(net) as calls:
            session.tensors[f"short.{name}"] = run.sample(conditioning, latent, **case.settings)
        session.tensors[f"short.{name}.exact"] = run.sample(conditioning, latent, run.exact, **case.settings)
        facts[name] = {"nets": len(calls), "warnings": warnings, "words": run.words}
    session.facts["shortcuts"] = facts
    session.facts["shortcuts off"] = off(session)
    session.facts["shortcuts split"] = split(session)
    session.facts["shortcuts loud"] = loud(session)
    session.facts["shortcuts held"] = held(session)


def off(session: Any) -> list[bool]:
    """With all fields at their defaults nothing is another bit, also where an earlier node said more."""
    equal = []
    conditioning = session.controlled()
    for weights in ("", "shared"):
        run = Shortened(session, weights)
        exact = run.sample(conditioning, model=run.exact)
        equal.append(torch.equal(run.sample(conditioning), exact))
        first = Shortened(session, weights, deep_every=2, reuse_every=3, guidance_end=0.5)
        with first.sampling(first.model):
            second = Shortened(session)
            equal.append(torch.equal(second.sample(conditioning), exact))
        equal.append(not torch.equal(first.sample(conditioning), exact))
    return equal


def look_twice(model: Any) -> Any:
    """A node that asks for the positive half once more at another latent, as self-attention guidance does."""
    samplers = importlib.import_module("comfy.samplers")

    def again(args: Mapping[str, Any]) -> torch.Tensor:
        given = (args["model"], [args["cond"]], 1.3 * args["input"], args["sigma"], args["model_options"])
        samplers.calc_cond_batch(*given)
        return args["denoised"]

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(again)
    return clone


def split(session: Any) -> dict[str, float]:
    """Halves one after the other, alone and with a second look, against both at once: the largest difference."""
    conditioning, found = session.controlled(), {}
    for name, fields in (("nets", {"reuse_every": 2}), ("deep", {"deep_every": 2}), ("encoder", {"encoder_every": 2})):
        run = Shortened(session, "shared", **fields)
        together = run.sample(conditioning)
        with one_by_one():
            alone, twice = run.sample(conditioning), run.sample(conditioning, model=look_twice(run.model))
        ours = look_twice(run.model)
        with run.sampling(ours):
            sampled = session.own_sample(conditioning, steps=STEPS)
        for way, other in (("alone", alone), ("twice", twice), ("our sampler, twice", sampled)):
            found[f"{name} {way}"] = float((other - together).abs().max() / together.abs().max())
    return {**found, "area": split_area(session)}


def split_area(session: Any) -> float:
    """Exact runs of a prompt in an area, halves one after the other: the engine and our net against the host's own.

    The host gives the negative prompt that it makes for the area the identity of the positive one.
    """
    run, (positive, negative) = Shortened(session, "shared"), session.prompts
    area = {"width": 32, "height": 48, "x": 16, "y": 8, "strength": 1.0}
    (there,) = session.node("ConditioningSetArea", conditioning=positive, **area)
    with one_by_one():
        fast = run.sample(session.controlled((there, negative)))
        native = run.sample(session.natively_controlled(session.native_net(), (there, negative)), model=run.whole)
    return float((fast - native).abs().max() / native.abs().max())


def loud(session: Any) -> dict[str, list[str]]:
    """What is logged where a shortcut cannot act."""
    native = session.natively_controlled(session.native_net())
    cases = {
        "no engine": (Shortened(session, deep_every=2), session.controlled(), {}),
        "native net": (Shortened(session, reuse_every=2), native, {}),
        "no net": (Shortened(session, reuse_every=2), session.prompts, {}),
        "cfg 1": (Shortened(session, guidance_end=0.5), session.controlled(), {"cfg": 1.0}),
        "patched": (patched(session), session.controlled(), {}),
    }
    found = {}
    for name, (run, conditioning, settings) in cases.items():
        with said() as warnings:
            short = run.sample(conditioning, **settings)
        found[name] = warnings
        session.tensors[f"loud.{name}"] = short
        session.tensors[f"loud.{name}.exact"] = run.sample(conditioning, model=run.exact, **settings)
    return {**found, "three prompts": three_prompts(session), "plan": plan(session)}


def three_prompts(session: Any) -> list[str]:
    """The guider for InstructPix2Pix, which has no negative half to leave out; what is logged, and its class."""
    extra, samplers = (importlib.import_module(n) for n in ("comfy_extras.nodes_custom_sampler", "comfy.samplers"))
    run, (positive, negative) = Shortened(session, guidance_end=0.5), session.prompts
    sigmas = samplers.calculate_sigmas(session.model.get_model_object("model_sampling"), "normal", 4)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = []
    with said() as warnings:
        for model in (run.model, run.exact):
            guider = extra.Guider_DualCFG(model)
            guider.set_conds(positive, negative, negative)
            guider.set_cfg(4.0, 1.5)
            euler = samplers.sampler_object("euler")
            made.append(guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0))
    return [*warnings, f"equal: {torch.equal(*made)}"]


def plan(session: Any) -> list[str]:
    """What the plan and the report say of a model with shortcuts."""
    given = {"steps": 4, "sampler": "euler", "scheduler": "normal", "denoise": 1.0, "latent": session.empty()}
    run, (positive, negative) = Shortened(session, reuse_every=2), session.controlled()
    shown = session.node("CNCore_ControlPlan", model=run.model, positive=positive, **given)
    halves = {"positive": positive, "negative": negative, "seed": 0, "cfg": 4.0}
    report = session.node("CNCore_ControlReport", model=run.model, **halves, **{**given, "steps": 6})
    return [*shown["result"][0].splitlines(), *report["result"][1].splitlines()]


def patched(session: Any) -> Shortened:
    """The lower levels are to be left out, and another pack patches the UNet's blocks, which the engine leaves."""
    change = importlib.import_module("comfyui_accelerate").CHANGES["block patch"]
    run = Shortened(session, "shared", deep_every=2)
    run.model, run.exact = change(run.model), change(run.exact)
    return run


def held(session: Any) -> dict[str, Any]:
    """How much of a sampling lives in the process after it, however it ends; and what the next one makes."""
    run = Shortened(session, "shared", deep_every=2, reuse_every=3)
    conditioning = session.controlled()
    kinds = tuple(
        getattr(session.part(module), name)
        for module, name in (
            ("nodes.comfyui.shortcut_state", "Sampling"),
            ("controlnet_core.speed.net_reuse", "ReusedResiduals"),
            ("controlnet_core.speed.forecast", "Forecast"),
        )
    )

    def living() -> int:
        gc.collect()
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    facts: dict[str, Any] = {"before": living()}
    inside: list[int] = []
    calls: list[int] = []

    def wrapper(end: str) -> Any:
        def call(execute: Any, given: dict[str, Any]) -> Any:
            calls.append(1)
            if len(calls) == 4:
                inside.append(living())
                if end == "a failure":
                    raise RuntimeError("on purpose")
                if end == "an interruption":
                    importlib.import_module("comfy.model_management").interrupt_current_processing()
            return execute(given["input"], given["timestep"], **given["c"])

        clone = run.model.clone()
        clone.set_model_unet_function_wrapper(call)
        return clone

    first = run.sample(conditioning)
    for end in ("a run", "a failure", "an interruption"):
        calls.clear()
        with run.sampling(wrapper(end)):
            facts[f"error of {end}"] = session.error(lambda: session.own_sample(conditioning, steps=STEPS))
        facts[end] = living()
    facts["during"] = min(inside)
    facts["options"] = [
        "controlnet_core_shortcuts" in model.model_options.get("transformer_options", {})
        for model in (run.model, run.exact)
    ]
    facts["next run is equal"] = torch.equal(first, run.sample(conditioning))
    return facts
