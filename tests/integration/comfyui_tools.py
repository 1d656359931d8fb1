"""Tiles, sweeps and keyframes in ComfyUI; a scenario for `comfyui_host.py`. A `home` is any host that runs nodes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAMPLED = {"seed": 7, "steps": 2, "cfg": 4.0, "sampler": "euler", "scheduler": "normal", "denoise": 0.7}
REFERENCE = {"mode": "adain", "strength": 1.0, "style_fidelity": 0.5, "start_percent": 0.0, "end_percent": 1.0}
SWEPT = {
    "x": "strength", "x_values": "0.4, 0.8", "y": "mode", "y_values": "balanced, prompt",
    "unit": 1, "kind": "canny", "tolerance": 2.0, "max_cells": 4,
}  # fmt: skip
LINE = {"points": [[0.0, 1.0], [1.0, 0.0]], "interpolation": "linear"}


def half(side: str) -> Tensor:
    """MASK (1, 64, 64): white on one side."""
    mask = torch.zeros(1, 64, 64)
    mask[{"left": (..., slice(24)), "top": (slice(None), slice(24))}[side]] = 1.0
    return mask


def keyframes(home: Any) -> Any:
    """A mask from the start, and another one with block weights from the middle on."""
    settings = {"full": 0.5, "half": 1.0, "quarter": 1.0, "eighth": 1.0, "middle": 0.25}
    (weights,) = home.node("CNCore_BlockWeights", **settings)
    (first,) = home.node("CNCore_ScheduleKeyframe", position=0.0, mask=half("left"))
    second = {"position": 0.5, "mask": half("top"), "block_weights": weights, "schedule": first}
    return home.node("CNCore_ScheduleKeyframe", **second)[0]


def windows(home: Any) -> Any:
    """Both prompts with two units that stand for the keyframes."""
    settings = {"full": 0.5, "half": 1.0, "quarter": 1.0, "eighth": 1.0, "middle": 0.25}
    (weights,) = home.node("CNCore_BlockWeights", **settings)
    first = home.controlled(home.prompts, mask=half("left"), end_percent=0.499)
    return home.controlled(first, mask=half("top"), block_weights=weights, start_percent=0.5)


def controlled(home: Any, picture: Tensor) -> Any:
    """Both prompts with keyframes and a mask, a reference, an area and a mask of a prompt."""
    positive, negative = home.controlled(home.prompts, mask=half("top"), schedule=keyframes(home))
    given = {"vae": home.vae, "image": picture, "mask": half("left"), **REFERENCE}
    positive, negative = home.node("CNCore_ReferenceControl", positive=positive, negative=negative, **given)
    area = {"width": 40, "height": 64, "x": 56, "y": 0, "strength": 1.5}
    (there,) = home.node("ConditioningSetArea", conditioning=home.prompts[0], **area)
    masked = {"mask": half("left"), "strength": 0.5, "set_cond_area": "default"}
    (under,) = home.node("ConditioningSetMask", conditioning=home.prompts[1], **masked)
    for more in (there, under):
        (positive,) = home.node("ConditioningCombine", conditioning_1=positive, conditioning_2=more)
    return positive, negative


def tiled(home: Any, halves: Any, picture: Tensor, tile: int = 64, **settings: Any) -> Tensor:
    """An image of 128 x 64 pixels, in tiles."""
    size = {"scale_by": 2.0, "width": 128, "height": 64, "tile_size": tile, "overlap": 16}
    given = {"model": home.model, "positive": halves[0], "negative": halves[1], "vae": home.vae, "image": picture}
    return home.node("CNCore_TiledUpscale", **{**given, **size, **SAMPLED, **settings})[0]


def without_tiles(home: Any, halves: Any, picture: Tensor) -> Tensor:
    """The same image by the nodes that one tile stands for."""
    scale = {"upscale_method": "lanczos", "width": 128, "height": 64, "crop": "disabled"}
    (large,) = home.node("ImageScale", image=picture, **scale)
    (latent,) = home.node("VAEEncode", pixels=large, vae=home.vae)
    given = {"model": home.model, "positive": halves[0], "negative": halves[1], "latent": latent}
    return home.node("VAEDecode", samples=home.node("CNCore_Sample", **given, **SAMPLED)[0], vae=home.vae)[0]


def swept(home: Any, hint: Tensor) -> tuple[Any, ...]:
    """Grid, table and images of a sweep."""
    unit = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mode": "balanced"}
    (stack,) = home.node("CNCore_ControlUnit", control_net=home.net, image=hint, **unit)
    positive, negative = home.prompts
    given = {"model": home.model, "positive": positive, "negative": negative, "stack": stack, "vae": home.vae}
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return home.node("CNCore_ControlSweep", **given, latent=latent, **SWEPT, **{**SAMPLED, "denoise": 1.0})["result"]


def tools(session: Any) -> None:
    """Each tool, and what it stands for in the same process."""
    program = importlib.import_module("comfyui_host")
    picture, facts, keep = program.start_picture(), {}, session.tensors
    halves = controlled(session, picture)
    facts["one tile is bit-equal"] = torch.equal(
        tiled(session, halves, picture, 128), without_tiles(session, halves, picture)
    )
    bars: list[Any] = []
    utils = importlib.import_module("comfy.utils")
    utils.set_progress_bar_global_hook(lambda value, total, *rest, **named: bars.append([value, total]))
    keep["tools.tiled"] = tiled(session, halves, picture)
    utils.set_progress_bar_global_hook(None)
    facts["bar"] = [entry for i, entry in enumerate(bars) if i == 0 or entry != bars[i - 1]]
    native = session.natively_controlled(session.native_net())
    ours = session.natively_controlled(session.net)
    keep["tools.native"], keep["tools.ours"] = (tiled(session, given, picture) for given in (native, ours))
    facts["cut by a pack"] = cut_by_a_pack(session)
    facts["upscale model"] = enlarged_first(session, picture)

    keep["tools.grid"], facts["table"], keep["tools.images"] = swept(session, program.hint())
    cell = session.controlled(strength=0.8, mode="prompt")
    keep["tools.cell"] = session.picture(session.own_sample(cell, **{**SAMPLED, "denoise": 1.0}))

    timed, apart = session.controlled(schedule=keyframes(session)), windows(session)
    facts["keyframes are windows"] = torch.equal(session.own_sample(timed), session.own_sample(apart))
    facts["also by KSampler"] = torch.equal(session.ksampler(timed), session.ksampler(apart))
    keep["tools.keyframes"] = session.ksampler(timed)
    keep["tools.plain"] = session.ksampler(session.controlled())
    facts.update(curves(session))
    try:
        session.natively_scheduled = session.node(
            "CNCore_ApplyControlNet", positive=session.prompts[0], negative=session.prompts[1], mode="balanced",
            control_net=session.native_net(), **program.unit_settings(schedule=keyframes(session)),
        )  # fmt: skip
    except Exception as error:
        facts["native net"] = str(error)
    session.facts["tools"] = facts


def cut_by_a_pack(session: Any) -> list[bool]:
    """Whether packs that cut the hint, as Ultimate SD Upscale does, get the tile that our own cut gives.

    For a net with keyframes and a mask, and for a Union with two hints.
    """
    program = importlib.import_module("comfyui_host")
    timed = {"schedule": keyframes(session), "mask": half("top")}
    (union,) = session.node("CNCore_LoadControlNet", control_net="union.safetensors")
    options = {"hint_fit": "crop", "positive_factor": 1.0, "negative_factor": 1.0, "per_picture": ""}
    (kind,) = session.node("CNCore_ControlOptions", hint_type="depth", average_over_picture=False, **options)
    (more,) = session.node("CNCore_MoreHints", image=program.hint().flip(2), hint_type="openpose")
    cases = (timed, {"control_net": union, "options": kind, "more_hints": more})
    return [equally_cut(session, session.controlled(**case)) for case in cases]


def equally_cut(session: Any, halves: Any) -> bool:
    """Whether both ways to cut the unit on these prompts give the same latent, which differs from the whole unit's."""
    part = session.part("controlnet_core.control.picture_part").PicturePart((64, 64), 0, 16, 64, 48)
    unit = halves[0][0][1]["control"]
    theirs, ours = unit.copy(), unit.crop_to(part)
    theirs.cond_hint_original = part.cut(theirs.cond_hint_original)
    made = []
    for control in (theirs, ours, unit):
        prompts = [
            [[text, {**options, "control": control, "control_apply_to_uncond": False}] for text, options in prompt]
            for prompt in session.prompts
        ]
        made.append(session.own_sample(prompts, {"samples": torch.zeros(1, 4, 8, 6)}))
    return torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def enlarged_first(session: Any, picture: Tensor) -> bool | str:
    """Whether an upscale model gives what ComfyUI's own node with it and then the tiles give."""
    try:
        compact = importlib.import_module("spandrel.architectures.Compact.__arch.SRVGG").SRVGGNetCompact
    except ImportError as error:
        return str(error)
    file = Path(session.nodes.__file__).parent / "comfy_extras" / "nodes_upscale_model.py"
    session.load(file)
    torch.manual_seed(0)
    network = (
        importlib.import_module("spandrel")
        .ModelLoader()
        .load_from_state_dict(compact(num_feat=8, num_conv=1, upscale=2).state_dict())
    )
    folders = importlib.import_module("folder_paths")
    path = session.pack.parents[1] / "models" / "upscale_models" / "compact.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.model.state_dict(), path)
    folders.filename_list_cache.clear()
    (model,) = session.node("UpscaleModelLoader", model_name="compact.pth")
    (large,) = session.node("ImageUpscaleWithModel", upscale_model=model, image=picture)
    size = {"width": 0, "height": 0}
    first = tiled(session, session.prompts, large, **size, scale_by=1.0)
    return torch.equal(tiled(session, session.prompts, picture, **size, upscale_model=model), first)


def curves(session: Any) -> dict[str, Any]:
    """ComfyUI's CURVE, where the release has one, beside ours on the same points."""
    points = session.part("controlnet_core.control.points")
    try:
        theirs: Any = importlib.import_module("comfy_api.input").CurveInput
    except (ImportError, AttributeError):
        return {"curve": "none"}
    worst = 0.0
    for seed in range(50):
        torch.manual_seed(seed)
        # Points one above the other have no value of their own, in which ComfyUI's browser and Python differ.
        x, y = torch.randperm(11)[: 2 + seed % 7].double() / 10, torch.rand(2 + seed % 7).double()
        given = torch.stack([x, y], dim=1).tolist()
        for interpolation in ("linear", "monotone_cubic"):
            raw = {"points": given, "interpolation": interpolation}
            theirs_at, ours_at = theirs.from_raw(raw).interp, points.read_points(theirs.from_raw(raw))
            worst = max(worst, *(abs(theirs_at(i / 97) - ours_at(i / 97)) for i in range(98)))
    schedules = [
        session.node("CNCore_StrengthSchedule", keyframes="0: 1, 1: 0", easing="linear", **more)[0]
        for more in ({}, {"curve": theirs.from_raw(LINE)}, {"curve": LINE})
    ]
    made = [session.own_sample(session.controlled(schedule=schedule)) for schedule in schedules]
    equal = all(torch.equal(made[0], other) for other in made[1:])
    return {"curve": worst, "curve is a schedule": equal}
