"""Scenarios of the Accelerate node inside the real host; run by `comfyui_host.py`, held to by `test_accelerate.py`.

Each takes the session and writes facts and tensors. Tensors come in pairs NAME.native and NAME.fast.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

WEIGHTS = ("shared", "packed")
Change = Callable[[Any], Any]
"""MODEL -> MODEL, as another node changes one."""


class Accelerated:
    """The session's model with and without the engine inside."""

    def __init__(self, session: Any, weights: str = "shared", model: Any = None) -> None:
        self.session = session
        self.module = session.part("nodes.comfyui.accelerate")
        self.native = session.model if model is None else model
        shown = session.node("CNCore_Accelerate", model=self.native, weights=weights, unique_id=None)
        self.fast, self.expected = shown["result"]

    @property
    def engine(self) -> Any:
        """The wrapper in the model."""
        return self.fast.wrappers[self.module.WRAPPER][self.module.KEY][0]

    @property
    def report(self) -> Any:
        """What the last run did."""
        return self.engine.report

    @contextmanager
    def sampling(self, model: Any) -> Iterator[None]:
        """The session samples this model."""
        whole, self.session.model = self.session.model, model
        try:
            yield
        finally:
            self.session.model = whole

    def pair(
        self, name: str, conditioning: Any, latent: Any = None, change: Change | None = None, **settings: Any
    ) -> None:
        """Two tensors of one run: native, and with the engine; `change` is what another node does to the model."""
        for kind, model in (("native", self.native), ("fast", self.fast)):
            with self.sampling(change(model) if change else model):
                self.session.tensors[f"{name}.{kind}"] = self.session.ksampler(conditioning, latent, **settings)


def told(run: Accelerated) -> dict[str, Any]:
    """What the report says about the last run."""
    return {"fast": run.report.fast, "native": dict(run.report.native), "streamed": run.report.streamed}


def accelerated_runs(session: Any) -> None:
    """Both kinds of weights under native samplers, with every kind of conditioning that the host lays out."""
    positive, negative = session.prompts
    (longer,) = session.node("CLIPTextEncode", clip=session.clip, text="a red sphere " * 40)
    (both,) = session.node("ConditioningCombine", conditioning_1=longer, conditioning_2=positive)
    area = {"width": 32, "height": 48, "x": 16, "y": 8, "strength": 1.0}
    (there,) = session.node("ConditioningSetArea", conditioning=longer, **area)
    (placed,) = session.node("ConditioningCombine", conditioning_1=there, conditioning_2=positive)
    native_net = session.native_net()
    ours = session.controlled()
    pixels = importlib.import_module("comfyui_host").start_picture()
    (start,) = session.node("VAEEncode", pixels=pixels, vae=session.vae)
    cases: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "plain": ((positive, negative), None, {}),
        "batch": ((positive, negative), session.empty(3), {}),
        "cfg 1": ((positive, negative), None, {"cfg": 1.0}),
        "dpmpp_2m": ((positive, negative), None, {"sampler_name": "dpmpp_2m", "scheduler": "karras"}),
        "ancestral": ((positive, negative), None, {"sampler_name": "euler_ancestral"}),
        "heun": ((positive, negative), None, {"sampler_name": "heun"}),
        "long text": ((longer, negative), None, {}),
        "two texts": ((both, negative), None, {}),
        "area": ((placed, negative), session.empty(2), {}),
        "img2img": ((positive, negative), start, {"denoise": 0.6}),
        "our net": (ours, None, {}),
        "our net, both texts": (session.controlled(mode="control"), session.empty(2), {}),
        "native net": (session.natively_controlled(native_net), None, {}),
        "chain": (session.natively_controlled(native_net, ours, strength=0.5), None, {}),
        "chain, ours last": (session.controlled(session.natively_controlled(native_net), strength=0.5), None, {}),
        "two of ours": (session.controlled(ours, strength=0.5, upside_down=True), session.empty(2), {}),
    }
    facts: dict[str, Any] = {}
    for weights in WEIGHTS:
        run = Accelerated(session, weights)
        facts[f"{weights} expected"] = run.expected
        for name, (conditioning, latent, settings) in cases.items():
            run.pair(f"accelerate.{weights}.{name}", conditioning, latent, **settings)
            facts[f"{weights} {name}"] = told(run)
        facts[f"{weights} copied"] = run.report.copied_bytes
        facts[f"{weights} bind"] = run.report.bind_seconds
        facts[f"{weights} counted"] = [m.model_size() for m in run.fast.get_nested_additional_models()]
    session.facts["accelerate"] = facts


def accelerated_lora(session: Any) -> None:
    """A LoRA added, changed and removed, in front of the engine and behind it."""
    load = {"lora_name": "query.safetensors"}
    for weights in WEIGHTS:
        for place in ("behind", "in front"):
            run = Accelerated(session, weights)
            for step, strength in (("none", 0.0), ("added", 1.0), ("changed", -0.5), ("removed", 0.0)):

                def lora(model: Any, strength: float = strength) -> Any:
                    return session.node("LoraLoaderModelOnly", model=model, strength_model=strength, **load)[0]

                name = f"accelerate lora.{weights}.{place}.{step}"
                if place == "behind":
                    run.pair(name, session.prompts, change=lora if strength else None)
                else:
                    changed = Accelerated(session, weights, lora(session.model) if strength else None)
                    changed.pair(name, session.prompts)
                    run = changed
            session.facts.setdefault("accelerate lora", {})[f"{weights} {place}"] = dict(run.report.native)


def accelerated_casting(session: Any) -> None:
    """Weights that are stored in half and in 8 bits, and cast as they run."""
    args = importlib.import_module("comfy.cli_args").args
    facts: dict[str, Any] = {}
    for option in ("fp16_unet", "fp8_e4m3fn_unet"):
        setattr(args, option, True)
        try:
            model = session.node("CNCore_LoadCheckpoint", checkpoint="demo (built in)")[0]
        finally:
            setattr(args, option, False)
        for weights in WEIGHTS:
            run = Accelerated(session, weights, model)
            run.pair(f"accelerate cast.{option}.{weights}", session.prompts)
            stored = next(model.model.diffusion_model.parameters()).dtype
            facts[f"{option} {weights}"] = {"stored": str(stored), **told(run), "note": run.report.note}
    session.facts["accelerate cast"] = facts


SMALL: dict[str, dict[str, Any]] = {
    "sd15": {"widths": (64, 96), "res_blocks": 1, "transformer_depth": (1, 1), "num_heads": 4},
    "sd21": {"widths": (64, 96), "res_blocks": 1, "transformer_depth": (1, 0), "head_dim": 32},
    "sdxl": {"widths": (64, 96, 128), "transformer_depth": (0, 1, 2), "middle_depth": 2, "head_dim": 32},
}
"""Families in their own pattern, narrower."""


def accelerated_families(session: Any) -> None:
    """Every family whose UNet the engine knows, alone and with a net of ours; SDXL reads a label vector as well."""
    full, control = importlib.import_module("comfyui_full"), session.part("nodes.comfyui.core_control")
    nets, config = session.part("controlnet_core.models.controlnet"), session.part("controlnet_core.config")
    facts: dict[str, Any] = {}
    for family, changed in SMALL.items():
        model, texts = full.native_model(session, family, **changed), full.conditioning(family)
        torch.manual_seed(5)
        net = nets.ControlNet(
            config.ControlNetConfig(session.part("nodes.comfyui.model_config").base_config(model.model))
        )
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        controlled = session.natively_controlled(control.CoreControl(control.SharedNet(net, family)), texts)
        for weights in WEIGHTS:
            run = Accelerated(session, weights, model)
            for name, conditioning in (("plain", texts), ("our net", controlled)):
                run.pair(f"accelerate family.{family}.{weights}.{name}", conditioning, steps=2)
                facts[f"{family} {weights} {name}"] = told(run)
    session.facts["accelerate families"] = facts
    session.facts["accelerate bind"] = {family: seconds_to_bind(session, family) for family in SMALL}


def seconds_to_bind(session: Any, family: str) -> list[float]:
    """Processor time to bind a UNet of full size, five times. Shapes are all that binding looks at."""
    module, unet = session.part("nodes.comfyui.borrowed_unet"), session.part("controlnet_core.config")
    native = importlib.import_module("comfyui_full").native_model(session, family, device="meta")
    frame = module.frame(getattr(unet, family.upper()).unet)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        module.bind(frame, native.model.diffusion_model, torch.float32)
        seconds.append(time.process_time() - began)
    return seconds


# ---- what goes to the host


def accelerated_fallbacks(session: Any) -> None:
    """Everything that the engine would not do as the host does: the host's own result, and the reason."""
    facts: dict[str, Any] = {}
    for name, change in CHANGES.items():
        run = Accelerated(session)
        run.pair(f"fallback.{name}", session.prompts, change=change)
        facts[name] = told(run)
    for name, spoil in SPOILS.items():
        run = Accelerated(session)
        with spoil(run):
            run.pair(f"fallback.{name}", session.prompts)
        facts[name] = told(run)
    run = Accelerated(session)
    run.pair("fallback.our net", session.controlled(), change=CHANGES["block patch"])
    facts["our net"] = told(run)
    facts["weight hook"] = weight_hook(session)
    session.facts["fallbacks"] = facts
    session.facts["refusals"] = refusals(session)


def clone_with(change: Change) -> Change:
    """A node that clones a MODEL and does something to the clone."""

    def changed(model: Any) -> Any:
        clone = model.clone()
        change(clone)
        return clone

    return changed


def function_wrapper(change: Callable[[dict[str, Any]], Any]) -> Change:
    """A node that changes what the model is called with."""

    def wrapper(run: Any, given: dict[str, Any]) -> Any:
        change(given)
        return run(given["input"], given["timestep"], **given["c"])

    return clone_with(lambda m: m.set_model_unet_function_wrapper(wrapper))


def option(name: str, value: Any) -> Change:
    """A node that sets one of the options that travel to the UNet."""
    return clone_with(lambda m: m.model_options["transformer_options"].update({name: value}))


def double_output(model: Any) -> None:
    """FreeU's kind of patch."""
    model.set_model_output_block_patch(lambda h, skip, options: (h * 1.1, skip))


def no_attention(model: Any) -> None:
    """The kind of patch that image prompts use."""
    model.set_model_attn2_replace(lambda q, k, v, extra: q * 0.5, "middle", 0)


def halve(function: Any, *args: Any, **kwargs: Any) -> Any:
    """An attention function of another pack."""
    return function(*args, **kwargs) * 0.5


def outer_wrapper(model: Any) -> None:
    """A wrapper behind ours."""
    kind = importlib.import_module("comfy.patcher_extension").WrappersMP.DIFFUSION_MODEL
    model.add_wrapper_with_key(kind, "another", lambda run, *args, **kwargs: run(*args, **kwargs) * 0.9)


def another_head(model: Any) -> None:
    """A part of the UNet replaced."""
    head = model.model.diffusion_model.out
    model.add_object_patch("diffusion_model.out", torch.nn.Sequential(*head, torch.nn.Hardtanh(-0.5, 0.5)))


def injection(model: Any) -> None:
    """Code that is put into the model for a run, as motion modules are."""
    made = importlib.import_module("comfy.patcher_extension").PatcherInjection
    unet = model.model.diffusion_model
    scale = lambda factor: unet.out[2].register_forward_hook(lambda m, i, o: o * factor)  # noqa: E731
    handles: list[Any] = []
    inject, eject = (lambda _: handles.append(scale(0.9))), (lambda _: handles.pop().remove())
    model.set_injections("another", [made(inject=inject, eject=eject)])


def two_levels(given: dict[str, Any]) -> None:
    """Rows at different noise levels, as some video samplers have them."""
    given["timestep"] = given["timestep"] * torch.linspace(1.0, 0.9, len(given["timestep"]))


def wrong_residual(given: dict[str, Any]) -> None:
    """A residual of another size, which the host leaves out with a warning."""
    given["c"]["control"] = {"output": [torch.ones(1, 3, 5, 5)], "middle": [], "input": []}


CHANGES: dict[str, Change] = {
    "block patch": clone_with(double_output),
    "attention patch": clone_with(no_attention),
    "wrapper": clone_with(outer_wrapper),
    "object patch": clone_with(another_head),
    "injection": clone_with(injection),
    "context window": option("context_window", object()),
    "noise levels": function_wrapper(two_levels),
    "residual": function_wrapper(wrong_residual),
    "other inputs": function_wrapper(lambda given: given["c"].update(strange=torch.ones(1))),
}


@contextmanager
def replaced_forward(run: Accelerated) -> Iterator[None]:
    """Another pack replaces the forward of a block."""
    block = run.native.model.diffusion_model.middle_block
    original = block.forward
    block.forward = lambda *args, **kwargs: original(*args, **kwargs) * 0.9
    try:
        yield
    finally:
        del block.forward


@contextmanager
def hooked_block(run: Accelerated) -> Iterator[None]:
    """Another pack hooks a block."""
    block = run.native.model.diffusion_model.middle_block[0]
    handle = block.register_forward_hook(lambda module, given, output: output * 0.9)
    try:
        yield
    finally:
        handle.remove()


SPOILS = {"replaced forward": replaced_forward, "hooked block": hooked_block}


def weight_hook(session: Any) -> dict[str, Any]:
    """A LoRA on the positive prompt only."""
    hooks, folders = (importlib.import_module(name) for name in ("comfy.hooks", "folder_paths"))
    path = folders.get_full_path("loras", "query.safetensors")
    group = hooks.create_hook_lora(importlib.import_module("comfy.utils").load_torch_file(path), 1.0, 1.0)
    positive, negative = session.prompts
    run = Accelerated(session)
    run.pair("fallback.weight hook", (hooks.set_hooks_for_conditioning(positive, group), negative))
    return told(run)


def refusals(session: Any) -> dict[str, Any]:
    """Conditions that cannot be brought about here, asked one by one; and models of other kinds."""
    run = Accelerated(session)
    module, binding = run.module, session.part("nodes.comfyui.borrowed_unet")
    unet, x = run.native.model.diffusion_model, torch.zeros(2, 4, 8, 8)
    call = module.Call(SimpleNamespace(class_obj=unet, idx=0, wrappers=[None]), run.fast, x, [1.0, 1.0], {}, {})
    described = run.native.model.model_config.unet_config
    wide = SimpleNamespace(model_config=SimpleNamespace(unet_config={**described, "attn_precision": torch.float32}))
    wide.diffusion_model = unet
    sd2 = SimpleNamespace(model=wide, current_hooks=None, object_patches={}, injections={})
    compiled = torch.compile(lambda: module.ON_CALL[0][1](None), backend="eager")
    given = {"x": x, "timesteps": torch.ones(2), "context": session.prompts[0][0][0].expand(2, -1, -1)}
    outside = unet.forward(**given, transformer_options={"wrappers": {module.WRAPPER: {module.KEY: [run.engine]}}})
    fewer = binding.frame(replace(run.engine.frame.unet.config, num_heads=2))
    attention = importlib.import_module("comfy.ldm.modules.attention")
    half = replace(call, patcher=sd2, x=x.half())
    slow, said = attention.optimized_attention, module.obstacle_of_call(half)
    attention.optimized_attention = attention.attention_pytorch  # as on a GPU
    fused = module.obstacle_of_call(half)
    attention.optimized_attention = slow
    flux = SimpleNamespace(model=SimpleNamespace(model_config=SimpleNamespace(unet_config={"depth": 19})))
    return {
        "nothing": module.obstacle_of_call(call),
        "half": said,
        "half, fused": fused,
        "override": module.obstacle_of_call(replace(call, options={"optimized_attention_override": halve})),
        "device": module.obstacle_of_call(replace(call, executor=SimpleNamespace(class_obj=None))),
        "compiling": [module.ON_CALL[0][1](None), compiled()],
        "outside": [run.engine.report.text(), torch.equal(outside, unet.forward(**given, transformer_options={}))],
        "heads": session.error(lambda: binding.bind(fewer, unet, torch.float32)),
        "shape": session.error(lambda: binding.bind(binding.frame(module.UNetConfig()), unet, torch.float32)),
        "flux": module.accelerate_model(flux, "shared")[1],
        "edges": [binding.packing_blocker(layer) for layer in over_the_edges()],
    }


def over_the_edges() -> Iterator[torch.nn.Module]:
    """A convolution as it is, and ones that other packs have made to wrap around the picture."""
    yield torch.nn.Conv2d(4, 4, 3, padding=1)
    yield torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    replaced, hooked = torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 4, 3)
    replaced._conv_forward = lambda x, weight, bias: x  # type: ignore[method-assign]
    hooked.register_forward_pre_hook(lambda module, given: None)
    yield from (replaced, hooked)


# ---- what is held


def peaks(session: Any) -> None:
    """Most bytes that the first call of a chain holds, beside what the host was told before it."""
    live = session.part("controlnet_core.runtime.tensor_memory").TensorMemory
    facts: dict[str, Any] = {}
    picture = torch.rand(1, 384, 384, 3)
    chains = {
        "one": session.controlled(),
        "two": session.controlled(session.controlled(), upside_down=True),
        "large": session.controlled(image=picture),
    }
    for name, (positive, negative) in chains.items():
        control = positive[0][1]["control"]
        counted = control.inference_memory_requirements(torch.float32)
        text = torch.cat([negative[0][0], positive[0][0]])
        sampling = session.model.model.model_sampling
        height, width = (side // 8 for side in control.cond_hint_original.shape[-2:])
        x, sigma = torch.randn(2, 4, height, width), sampling.sigmas[600].expand(2)
        control.pre_run(session.model.model, sampling.percent_to_sigma)
        with live() as seen:
            control.get_control(x, sigma, {"c_crossattn": text}, 2, {"cond_or_uncond": [1, 0]})
        control.cleanup()
        facts[name] = {"counted": counted, "peak": seen.peak}
    session.facts["peaks"] = facts


def accelerated_memory(session: Any) -> None:
    """Nothing is copied in shared mode, and nothing of a run outlives it, however it ends."""
    run = Accelerated(session)
    engine, unet = run.engine, run.native.model.diffusion_model
    facts: dict[str, Any] = {"during": []}

    def look(given: dict[str, Any]) -> None:
        if engine.bound is not None:
            ours = {p.data_ptr() for p in engine.bound.parameters()}
            theirs = {p.data_ptr() for p in unet.parameters()}
            facts["during"].append([ours == theirs, sum(len(v) for v in engine.projections.values())])

    def fail(given: dict[str, Any]) -> None:
        if engine.report.fast == 2:
            raise RuntimeError("on purpose")

    def interrupt(given: dict[str, Any]) -> None:
        if engine.report.fast == 2:
            importlib.import_module("comfy.model_management").interrupt_current_processing()

    with run.sampling(function_wrapper(look)(run.fast)):
        before = session.ksampler(session.prompts)
    facts["a run"] = held(run)
    for name, change in (("a failure", fail), ("an interruption", interrupt)):
        with run.sampling(function_wrapper(change)(run.fast)):
            facts[f"error of {name}"] = session.error(lambda: session.own_sample(session.prompts))
        facts[name] = held(run)
    with run.sampling(run.fast):
        facts["next run is equal"] = torch.equal(before, session.ksampler(session.prompts))
    session.facts["accelerate memory"] = {**facts, "unloading": unloading(session)}


def held(run: Accelerated) -> list[int]:
    """What the engine still holds: layers, texts; and how many projections live in the process."""
    gc.collect()
    kind = run.module.Projections
    living = sum(isinstance(found, kind) for found in gc.get_objects())
    return [int(run.engine.bound is not None), len(run.engine.projections), living]


def unloading(session: Any) -> list[bool]:
    """A packed copy stays between runs, and goes when the host unloads models."""
    run = Accelerated(session, "packed")
    with run.sampling(run.fast):
        session.ksampler(session.prompts)
    kept = run.engine.copy is not None
    importlib.import_module("comfy.model_management").unload_all_models()
    return [kept, run.engine.copy is None]
