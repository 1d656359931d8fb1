"""Control inside the attentions, in ComfyUI's own UNet; a scenario for `comfyui_host.py`.

What ComfyUI's sampler makes with our control is compared with the same sampler on a UNet whose layers carry hooks
that follow the published description (`support/lllite_reference.py`).
"""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import lllite_reference
import look_reference
import prompt_edit_reference
import regions_reference

REFERENCE_SEED = 1
"""Of the noise on a reference, see `models.reference`."""
PLACES = {
    "input_blocks_1_1_transformer_blocks_0": (64, 8),
    "middle_block_1_transformer_blocks_0": (96, 16),
    "output_blocks_2_1_transformer_blocks_0": (64, 8),
    "output_blocks_3_1_transformer_blocks_0": (64, 8),
}
"""Every transformer block of the random demo of `test_comfyui.py`."""
FILES = {"lllite.safetensors": 1, "lllite2.safetensors": 2}
"""File -> seed of its weights."""
UNITS: dict[str, tuple[dict[str, Any], ...]] = {
    "one": ({"control_net": "lllite.safetensors"},),
    "positive half": ({"control_net": "lllite.safetensors", "negative_factor": 0.0},),
    "with a ControlNet": ({"control_net": "lllite.safetensors"}, {}),
    "two and a ControlNet": (
        {"control_net": "lllite.safetensors"}, {}, {"control_net": "lllite2.safetensors", "upside_down": True},
    ),
    "window": ({"control_net": "lllite.safetensors", "start_percent": 0.5},),
}  # fmt: skip
REGIONS = "left: a red sphere\nband (0.5): grey ground"
"""The texts of `region_masks`."""
NEAR_REGIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "regions": (),
    "regions and a ControlNet": ({},),
    "regions, a ControlNet and LLLite": ({}, {"control_net": "lllite.safetensors"}),
}
"""Units that follow region prompts."""
EDITS: dict[str, tuple[dict[str, Any], ...]] = {
    "edit": (),
    "edit and a ControlNet": ({},),
    "edit, a ControlNet and LLLite": ({}, {"control_net": "lllite.safetensors"}),
}
"""Units that follow a prompt edit."""
EDIT = "red -> green\n, ->\nground -> ground now\nsphere: 2.5"
EDITED = "a green sphere (on grey:1.3) ground now"
EDIT_PLACES: list[int | None] = [0, 1, 2, 3, 5, 6, 7, None, *range(8, 77)]
"""For each token of `EDITED` its place in the prompt "a red sphere, on grey ground", the start mark first."""
EXCHANGES: dict[str, tuple[dict[str, Any], ...]] = {
    "xs": ({"control_net": "xs.safetensors"},),
    "xs, positive half": ({"control_net": "xs.safetensors", "negative_factor": 0.0},),
    "xs, window": ({"control_net": "xs.safetensors", "start_percent": 0.5},),
    "xs, two and a ControlNet": (
        {"control_net": "xs.safetensors"}, {}, {"control_net": "xs_plain.safetensors", "upside_down": True},
    ),
    "xs and LLLite": ({"control_net": "lllite.safetensors"}, {"control_net": "xs_plain.safetensors"}),
}  # fmt: skip
"""Units with ControlNet-XS. One file has a timestep embedding of its own, the other has none."""
INPAINTING = ("inpaint_only", "inpaint_global_harmonious")
VIDEO = 3
"""Frames."""
REFERENCES = {
    "reference": {"mode": "attention"},
    "reference adain": {"mode": "adain"},
    "reference both": {"mode": "attention+adain", "style_fidelity": 0.5},
    "reference one half": {"mode": "attention+adain", "style_fidelity": 1.0},
    "reference and a ControlNet": {"mode": "attention+adain"},
}
"""Settings of Reference besides the defaults of `with_reference`."""
PARITY = ("one", "with a ControlNet", "two and a ControlNet")
"""Cases that hooks can follow: they act in every call, on all rows."""


def unit_of(node: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a unit for an apply node of any home."""
    unit = dict(settings)
    if "control_net" in unit:
        (unit["control_net"],) = node("CNCore_LoadControlNet", control_net=unit["control_net"])
    if "negative_factor" in unit:
        options = {
            "hint_fit": "crop", "hint_type": "not said", "positive_factor": 1.0, "per_picture": "",
            "average_over_picture": False, "negative_factor": unit.pop("negative_factor"),
        }  # fmt: skip
        (unit["options"],) = node("CNCore_ControlOptions", **options)
    return unit


def applied(home: Any, units: tuple[dict[str, Any], ...]) -> Any:
    """Both prompts of a home with these units."""
    conditioning = home.prompts
    for settings in units:
        conditioning = home.controlled(conditioning, **unit_of(home.node, settings))
    return conditioning


def region_masks() -> Tensor:
    """MASK (2, 64, 64): the left half, and a soft band that overlaps it."""
    masks = torch.zeros(2, 64, 64)
    masks[0, :, :32] = 1.0
    masks[1, :, 16:48] = torch.tensor([0.25, 0.75]).repeat_interleave(16)
    return masks


def with_regions(home: Any) -> Any:
    """Both prompts of a home with region prompts."""
    positive, negative = home.prompts
    made = home.node(
        "CNCore_RegionPrompts", positive=positive, negative=negative, clip=home.clip, regions=REGIONS, weight=1.0,
        softness=0.0, start_percent=0.0, end_percent=1.0, masks=region_masks(),
    )  # fmt: skip
    return made["result"][:2]


def near_regions(home: Any, name: str) -> Any:
    """Both prompts of a home with region prompts and what follows them."""
    conditioning = with_regions(home)
    for settings in NEAR_REGIONS[name]:
        conditioning = home.controlled(conditioning, **unit_of(home.node, settings))
    return conditioning


def with_edit(home: Any, name: str = "edit", **settings: Any) -> Any:
    """Both prompts of a home with a prompt edit and what follows it."""
    positive, negative = home.prompts
    given = {"strength": 1.0, "start_percent": 0.2, "end_percent": 1.0, "keep_places_until": 0.6, **settings}
    prompt = importlib.import_module("comfyui_host").PROMPT
    made = home.node(
        "CNCore_PromptEdit", positive=positive, negative=negative, clip=home.clip, prompt=prompt, edits=EDIT, **given
    )
    conditioning = made["result"][:2]
    for unit in EDITS[name]:
        conditioning = home.controlled(conditioning, **unit_of(home.node, unit))
    return conditioning


def hooked_edit(session: Any) -> Tensor:
    """What ComfyUI's UNet gives with hooks on its cross attentions, without guidance: all rows are the prompt's."""
    edited = session.node("CLIPTextEncode", clip=session.clip, text=EDITED)[0][0][0]
    unet = session.model.model.diffusion_model
    attentions = [module for name, module in unet.named_modules() if name.endswith(".attn2")]
    weights = [2.5 if place == 3 else 1.0 for place in range(77)]
    texts = session.prompts[0][0][0], edited
    with prompt_edit_reference.hooked(attentions, cross_layers, *texts, EDIT_PLACES, weights):
        return session.ksampler(session.prompts, cfg=1.0)


def with_ctrlora(home: Any) -> Any:
    """Both prompts of a home with a CtrLoRA, whose hint passes through the home's VAE, and a ControlNet."""
    (net,) = home.node("CNCore_LoadCtrLoRA", base="base.safetensors", lora="lora.safetensors", vae=home.vae)
    return home.controlled(home.controlled(home.prompts, control_net=net, strength=0.3))


def with_sparsectrl(home: Any) -> Any:
    """Both prompts of a home with a SparseCtrl, whose hint is that of the second of `VIDEO` frames."""
    (net,) = home.node("CNCore_LoadSparseCtrl", control_net="sparse.safetensors")
    (hint,) = home.node("CNCore_SparseFrames", image=reference_picture(), frames="1", length=VIDEO)
    positive, negative = home.prompts
    given = {"strength": 0.2, "start_percent": 0.0, "end_percent": 1.0, "mode": "balanced"}
    return home.node(
        "CNCore_ApplyControlNet", positive=positive, negative=negative, control_net=net, image=hint, **given
    )


def inpainting(home: Any, mode: str) -> Any:
    """Both prompts and the latent of Inpaint Control, with a square to repaint."""
    mask = torch.zeros(1, 64, 64)
    mask[:, 17:32, 24:40] = 1.0
    positive, negative = home.prompts
    return home.node(
        "CNCore_InpaintControl", positive=positive, negative=negative, vae=home.vae, image=reference_picture(),
        mask=mask, mode=mode, strength=0.5, start_percent=0.0, end_percent=1.0, masked_value=-1.0,
        control_net=home.net,
    )  # fmt: skip


def with_reference(home: Any, name: str) -> Any:
    """Both prompts of a home with a reference."""
    positive, negative = home.prompts
    if name.endswith("ControlNet"):
        positive, negative = home.controlled((positive, negative))
    settings = {"strength": 1.0, "style_fidelity": 0.0, "start_percent": 0.0, "end_percent": 1.0, **REFERENCES[name]}
    return home.node(
        "CNCore_ReferenceControl",
        positive=positive,
        negative=negative,
        vae=home.vae,
        image=reference_picture(),
        **settings,
    )


def exchange_in_sdxl(session: Any) -> None:
    """ControlNet-XS on ComfyUI's SDXL, whose UNet reads a label: through our patches, and by our UNet in its place."""
    full, narrow = importlib.import_module("comfyui_full"), importlib.import_module("comfyui_accelerate").SMALL["sdxl"]
    model, texts, plain = full.native_model(session, "sdxl", **narrow), full.conditioning("sdxl"), session.model
    (control,) = session.node("CNCore_LoadControlNet", control_net="xs_sdxl.safetensors")
    described = session.part("nodes.comfyui.model_config")
    base = described.base_config(model.model)
    unet = session.part("controlnet_core.models.unet").UNet(base).eval()
    unet.load_state_dict(described.base_weights(model.model, base))
    replaced = model.clone()
    replaced.set_model_unet_function_wrapper(
        our_prediction(session, unet, control.shared.net.resolve(unet), model.model)
    )
    cases = {
        "attention.xs sdxl": (model, session.natively_controlled(control, texts)),
        "attention.sdxl": (model, texts), "engine.xs sdxl": (replaced, texts),
    }  # fmt: skip
    for name, (session.model, conditioning) in cases.items():
        session.tensors[name] = session.ksampler(conditioning, steps=2)
    session.model = plain


def our_prediction(session: Any, unet: Any, net: Any, model: Any) -> Any:
    """What replaces a call of ComfyUI's model: our UNet with this net, which acts on all rows at a strength of 0.8."""
    bound, control = session.part("controlnet_core.control.bound_unit"), session.part("controlnet_core.models.control")
    denoise, prepare = session.part("controlnet_core.denoise"), session.part("controlnet_core.prepare")
    project = session.part("controlnet_core.models.projections").Projections
    schedule = session.part("nodes.comfyui.bind").HostSchedule(model.model_sampling, torch.device("cpu"))
    picture = importlib.import_module("comfyui_host").hint().movedim(-1, 1)
    plain = (bound.UnitInputs(slice(None), (0.8,) * (len(unet.encoder.blocks) + 1), None),)

    def predict(apply: Any, call: dict[str, Any]) -> Tensor:
        x, sigma, text, label = call["input"], call["timestep"], call["c"]["c_crossattn"], call["c"]["y"]
        rows, size = len(x), (x.shape[-2], x.shape[-1])
        context = control.BindContext(
            (picture,), ("",), text, label, schedule, (), (0,) * rows, rows, size, False, unet.config, per_row=True
        )
        own = bound.NetInputs(net, net.bind(context).inputs_at(float(sigma[0])), plain)
        stack = project(unet, schedule, text, label, per_row=True).at(float(sigma[0]))
        inputs = prepare.BatchInputs(None, (), stack, (own,), None, rows, None)
        noise = denoise.ControlledUNet(unet)(model.model_sampling.calculate_input(sigma, x), inputs)
        return model.model_sampling.calculate_denoised(sigma, noise, x)

    return predict


def reference_picture() -> Tensor:
    """IMAGE (1, 64, 64, 3), a gradient with a square."""
    ramp = torch.linspace(0, 1, 64)
    picture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.full((64, 64), 0.2)], -1)[None]
    picture[:, 20:40, 8:30] = torch.tensor([0.9, 0.1, 0.1])
    return picture


def hooked_reference(session: Any) -> Tensor:
    """What ComfyUI's UNet gives with hooks on its self attentions, without guidance: the first run before each call."""
    model = session.model.model
    unet, sampling = model.diffusion_model, model.model_sampling
    attentions = [module for name, module in unet.named_modules() if name.endswith(".attn1")]
    clean = model.process_latent_in(
        session.node("VAEEncode", pixels=reference_picture(), vae=session.vae)[0]["samples"]
    )
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(REFERENCE_SEED))

    def around(apply: Any, call: dict[str, Any]) -> Tensor:
        sigma, text = call["timestep"], call["c"]["c_crossattn"]

        def run_reference() -> None:
            x = sampling.calculate_input(sigma, clean + sigma.reshape(-1, 1, 1, 1) * noise)
            unet(x, sampling.timestep(sigma).float(), context=text)

        nothing = slice(0, 0)
        with look_reference.hooked(run_reference, attentions, cross_layers, [], 0.0, nothing):
            return apply(call["input"], call["timestep"], **call["c"])

    plain = session.model
    session.model = plain.clone()
    session.model.set_model_unet_function_wrapper(around)
    try:
        return session.ksampler(session.prompts, cfg=1.0)
    finally:
        session.model = plain


def cross_layers(attention: Any) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module, int]:
    """The layers of one of ComfyUI's cross attentions, and its heads."""
    return attention.to_q, attention.to_k, attention.to_v, attention.to_out, attention.heads


def hooked_regions(session: Any) -> Tensor:
    """What ComfyUI's UNet gives with hooks on its cross attentions, without guidance: all rows are the prompt's."""
    texts = [session.prompts[0][0][0]]
    for words in ("a red sphere", "grey ground"):
        texts.append(session.node("CLIPTextEncode", clip=session.clip, text=words)[0][0][0])
    unet = session.model.model.diffusion_model
    attentions = [module for name, module in unet.named_modules() if name.endswith(".attn2")]
    masks = nn.functional.avg_pool2d(region_masks(), 8)
    with regions_reference.hooked(attentions, cross_layers, texts, masks, (1.0, 0.5)):
        return session.ksampler(session.prompts, cfg=1.0)


def states() -> dict[str, dict[str, Tensor]]:
    """The weights of both files."""
    return {name: lllite_reference.random_file(PLACES, seed) for name, seed in FILES.items()}


def find_layer(unet: nn.Module) -> Any:
    """The layer of ComfyUI's UNet by its public name with underscores."""
    names = {name.replace(".", "_"): layer for name, layer in unet.named_modules()}
    return names.__getitem__


def attention_control(session: Any) -> None:
    """Every case by ComfyUI's sampler, and what hooks on the same UNet give."""
    module = importlib.import_module("comfyui_host")
    files = states()
    for name, units in UNITS.items():
        session.tensors[f"attention.{name}"] = session.ksampler(applied(session, units))
    for name in PARITY:
        nets = tuple(unit for unit in UNITS[name] if "control_net" not in unit)
        with ExitStack() as hooks:
            for unit in UNITS[name]:
                if "control_net" in unit:
                    picture = module.hint().flip(1) if unit.get("upside_down") else module.hint()
                    find = find_layer(session.model.model.diffusion_model)
                    hint = picture.movedim(-1, 1)
                    hooks.enter_context(lllite_reference.hooked(find, files[unit["control_net"]], hint, 0.8))
            session.tensors[f"hooks.{name}"] = session.ksampler(applied(session, nets))
    session.tensors["hooks.regions"] = hooked_regions(session)
    session.tensors["attention.regions, cfg 1"] = session.ksampler(with_regions(session), cfg=1.0)
    for name in NEAR_REGIONS:
        session.tensors[f"attention.{name}"] = session.ksampler(near_regions(session, name))
    session.tensors["hooks.edit"] = hooked_edit(session)
    places = {"start_percent": 0.0, "keep_places_until": 1.0}
    session.tensors["attention.edit, cfg 1"] = session.ksampler(with_edit(session, **places), cfg=1.0)
    for name in EDITS:
        session.tensors[f"attention.{name}"] = session.ksampler(with_edit(session, name))
    session.tensors["attention.sparsectrl"] = session.ksampler(with_sparsectrl(session), session.empty(VIDEO))
    for mode in INPAINTING:
        *conditioning, latent = inpainting(session, mode)
        session.tensors[f"attention.{mode}"] = session.ksampler(tuple(conditioning), latent)
        session.tensors[f"attention.{mode} before"] = latent["samples"]
    session.tensors["attention.ctrlora"] = session.ksampler(with_ctrlora(session))
    session.tensors["hooks.reference"] = hooked_reference(session)
    session.tensors["attention.reference, cfg 1"] = session.ksampler(with_reference(session, "reference"), cfg=1.0)
    for name in REFERENCES:
        session.tensors[f"attention.{name}"] = session.ksampler(with_reference(session, name))
    for name, units in EXCHANGES.items():
        session.tensors[f"attention.{name}"] = session.ksampler(applied(session, units))
    exchange_in_sdxl(session)
    session.tensors["attention.none"] = session.ksampler(session.prompts)
    model = session.model
    session.model = session.node("CNCore_Accelerate", model=model, weights="shared")["result"][0]
    session.tensors["attention.accelerated"] = session.ksampler(applied(session, UNITS["with a ControlNet"]))
    session.tensors["attention.xs accelerated"] = session.ksampler(applied(session, EXCHANGES["xs"]))
    session.tensors["attention.regions accelerated"] = session.ksampler(with_regions(session))
    session.tensors["attention.edit accelerated"] = session.ksampler(with_edit(session))
    session.tensors["attention.reference accelerated"] = session.ksampler(with_reference(session, "reference both"))
    session.model = module.Case(lora=True).model(session)
    session.tensors["attention.regions, LoRA"] = session.ksampler(with_regions(session))
    session.model = model
    session.facts["attention left"] = sorted(model.model_options.get("transformer_options", {}))
