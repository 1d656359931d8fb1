"""Scenarios of other packs for `comfyui_host.py`: our CONTROL_NET and ComfyUI's own under the same calls.

`CASES` is the list of what packs do with a CONTROL_NET. A new pack is a function and a row. Each function is run twice,
with our net and with ComfyUI's own, which has the same weights; the residuals must be equal.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZE = 16
"""Height and width of the latents here, in cells. Tiles are half as large."""
SIGMA = 3.0


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(count: int = 1, seed: int = 4) -> Tensor:
    """A hint (count, 3, 8 SIZE, 8 SIZE) that differs in each place and image."""
    return torch.rand(count, 3, 8 * SIZE, 8 * SIZE, generator=torch.Generator().manual_seed(seed))


@dataclass
class Calls:
    """One CONTROL_NET under the calls of a pack."""

    session: Any
    net: Any
    ours: bool
    found: list[Tensor] = field(default_factory=list)
    uuids: list[uuid.UUID] = field(default_factory=lambda: [uuid.uuid4(), uuid.uuid4()])

    def apply(self, hint: Tensor, strength: float = 0.8, window: tuple[float, float] = (0.0, 1.0)) -> Any:
        """The control object that an apply node makes."""
        return self.net.copy().set_cond_hint(hint, strength, window)

    def start(self, control: Any) -> Any:
        """Begin a run."""
        model = self.session.model.model
        control.pre_run(model, model.model_sampling.percent_to_sigma)
        return control

    def residuals(self, control: Any, x: Tensor, images: int = 1, **options: Any) -> dict[str, list[Any]]:
        """Evaluate and keep the residuals. x: (2 * images, 4, h, w) or a multiple of it for tiles."""
        text = torch.cat([half[0][0] for half in self.session.prompts]).repeat_interleave(images, 0)
        text = text.repeat(len(x) // len(text), 1, 1)
        given = {"cond_or_uncond": [0, 1], "uuids": self.uuids, "sigmas": torch.full((images,), SIGMA), **options}
        found = control.get_control(x, torch.full((len(x),), SIGMA), {"c_crossattn": text}, 2, given)
        lists = {key: [None if r is None else r.clone() for r in found[key]] for key in ("input", "middle", "output")}
        self.found += [r for key in sorted(lists) for r in lists[key] if r is not None]
        return lists


def tiles(images: int = 1) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and latent of each quarter."""
    x = random(2 * images, 4, SIZE, SIZE, seed=5) * SIGMA
    half = SIZE // 2
    for top in (0, half):
        for left in (0, half):
            yield slice(top, top + half), slice(left, left + half), x[:, :, top : top + half, left : left + half]


def pixels(part: slice) -> slice:
    return slice(8 * part.start, 8 * part.stop)


# ---- what packs do


def hint_set_for_each_tile(calls: Calls) -> None:
    control = calls.start(calls.apply(picture()))
    for rows, columns, x in tiles():
        control.cond_hint = picture()[:, :, pixels(rows), pixels(columns)].repeat(2, 1, 1, 1)
        calls.residuals(control, x)


def hint_set_by_kind(calls: Calls) -> None:
    """Only for instances of ComfyUI's class, at the dtype of its model."""
    control = calls.start(calls.apply(picture()))
    assert isinstance(control, calls.session.comfy.controlnet.ControlNet)
    rows, columns, x = next(tiles())
    control.cond_hint = picture()[:, :, pixels(rows), pixels(columns)].to(control.control_model.dtype)
    assert control.load_device == getattr(control, "device", control.load_device)
    calls.residuals(control, x)


def hint_set_for_tiles_in_one_batch(calls: Calls) -> None:
    """Two images and all four tiles at once: the rows of a tile follow each other."""
    control = calls.start(calls.apply(picture(2)))
    whole = picture(2).repeat(2, 1, 1, 1)
    parts = [(whole[:, :, pixels(rows), pixels(columns)], x) for rows, columns, x in tiles(2)]
    control.cond_hint = torch.cat([hint for hint, _ in parts])
    calls.residuals(control, torch.cat([x for _, x in parts]), images=2)


def hint_set_and_taken_back(calls: Calls) -> None:
    control = calls.start(calls.apply(picture()))
    rows, columns, x = next(tiles())
    control.cond_hint = picture(seed=8)[:, :, pixels(rows), pixels(columns)]
    calls.residuals(control, x)
    control.cond_hint = None
    calls.residuals(control, x)


def original_hint_cropped_on_a_copy(calls: Calls) -> None:
    first = calls.apply(picture())
    second = calls.apply(picture(seed=6), strength=0.5).set_previous_controlnet(first)
    for rows, columns, x in tiles():
        head = copied = second.copy()
        before = second.previous_controlnet
        while copied is not None:
            copied.cond_hint_original = copied.cond_hint_original[:, :, pixels(rows), pixels(columns)]
            copied.set_previous_controlnet(None if before is None else before.copy())
            copied, before = copied.previous_controlnet, None if before is None else before.previous_controlnet
        calls.residuals(calls.start(head), x)


def original_hint_replaced_in_a_run(calls: Calls) -> None:
    control = calls.start(calls.apply(picture()))
    _, _, x = next(tiles())
    for seed in (4, 9):
        control.cond_hint_original = picture(seed=seed)
        control.cond_hint = None
        calls.residuals(control, x)


def strength_and_window_set_later(calls: Calls) -> None:
    control = calls.apply(picture())
    control.strength, control.timestep_percent_range = 1.7, (0.0, 0.9)
    calls.start(control)
    x = next(tiles())[2]
    calls.residuals(control, x)
    control.strength = 0.3
    calls.residuals(control, x)
    control.timestep_percent_range = (0.0, 0.05)
    calls.start(control)
    text = torch.cat([half[0][0] for half in calls.session.prompts])
    given = (x, torch.full((2,), SIGMA), {"c_crossattn": text}, 2, {"cond_or_uncond": [0, 1]})
    assert control.get_control(*given) is None


def copied(calls: Calls) -> None:
    control = calls.apply(picture(), 1.3, (0.0, 0.8))
    control.set_extra_arg("control_type", [])
    twin = control.copy()
    assert twin is not control and twin.extra_args == control.extra_args
    assert (twin.strength, twin.timestep_percent_range) == (1.3, (0.0, 0.8))
    assert twin.cond_hint_original is control.cond_hint_original and twin.previous_controlnet is None
    calls.residuals(calls.start(twin), next(tiles())[2])


def cloned_for_another_device(calls: Calls) -> None:
    control = calls.apply(picture())
    if hasattr(calls.session.comfy.controlnet.ControlBase, "deepclone_multigpu"):
        device = torch.device("cpu", 1)
        clone = control.deepclone_multigpu(device, autoregister=True)
        assert control.get_instance_for_device(device) is clone
        assert control.get_instance_for_device(torch.device("cpu", 2)) is control
        models = [patcher.model for patcher in control.get_models()]
        assert len({id(model) for model in models}) == len(models) == 2
        assert clone.get_models()[0].load_device == device
        control = clone
    calls.residuals(calls.start(control), next(tiles())[2])


def context_window(calls: Calls) -> None:
    """Images 2 and 1 of four, as AnimateDiff-Evolved says it. ComfyUI's own net is given their hints."""
    control = calls.apply(picture(4))
    x = random(4, 4, SIZE, SIZE, seed=5) * SIGMA
    if calls.ours:
        calls.start(control)
        control.sub_idxs, control.full_latent_length, control.context_length = [2, 1], 4, 2
    else:
        control.cond_hint_original = picture(4)[[2, 1]]
        calls.start(control)
    calls.residuals(control, x, images=2)


def context_window_of_comfyui(calls: Calls) -> None:
    """The same window as ComfyUI's own nodes say it. Its own net takes the first hints, which is wrong."""
    from comfy.context_windows import IndexListContextWindow

    try:
        window = IndexListContextWindow([2, 1], dim=0, total_frames=4)
    except TypeError:  # before 0.3.7x the window does not know the number of frames
        window = IndexListContextWindow([2, 1], dim=0)
    control = calls.apply(picture(4) if calls.ours else picture(4)[[2, 1]])
    options = {"context_window": window} if calls.ours else {}
    calls.residuals(calls.start(control), random(4, 4, SIZE, SIZE, seed=5) * SIGMA, images=2, **options)


@dataclass
class Weights:
    """Block weights as Advanced-ControlNet keeps them."""

    weight_type: str = "universal"
    base_multiplier: float = 0.825
    weight_mask: Any = None
    uncond_multiplier: float = 0.5
    extras: dict[str, float] = field(default_factory=dict)


@dataclass
class LatentKeyframes:
    """Latent keyframes as Advanced-ControlNet keeps them."""

    keyframes: list[Any]


@dataclass
class LatentKeyframe:
    batch_index: int
    strength: float


def mask_weights_and_latent_keyframes(calls: Calls) -> None:
    """What Advanced-ControlNet sets. ComfyUI's own net has none of it: its residuals are multiplied here."""
    control = calls.apply(picture())
    x = random(6, 4, SIZE, SIZE, seed=5) * SIGMA
    mask = torch.rand(1, 40, 56, generator=torch.Generator().manual_seed(3))
    if calls.ours:
        control.disarm()
        control.weights_override = Weights()
        control.latent_keyframe_override = LatentKeyframes([LatentKeyframe(0, 0.7), LatentKeyframe(-1, 1.2)])
        control.verify_all_weights()
        assert control.set_cond_hint_mask(mask) is control
        calls.residuals(calls.start(control), x, images=3)
        return
    lists = calls.residuals(calls.start(control), x, images=3)
    calls.found.clear()
    rows = torch.tensor([0.7, 0.0, 1.2]).repeat(2) * torch.tensor([1.0, 0.5]).repeat_interleave(3)
    large = torch.nn.functional.interpolate(mask[None], size=(8 * SIZE, 8 * SIZE), mode="bilinear")
    for key in ("middle", "output"):
        for index, residual in enumerate(lists[key]):
            weight = 1.0 if key == "middle" else 0.825 ** (len(lists[key]) - index)
            small = torch.nn.functional.interpolate(large, size=residual.shape[-2:], mode="bilinear")
            calls.found.append(residual * rows[:, None, None, None] * small * weight)


# ---- units of our own nodes, under the same calls


MASK = torch.rand(1, 8 * SIZE, 8 * SIZE, generator=torch.Generator().manual_seed(3))
POSITIVE_HALF = {"hint_fit": "crop", "hint_type": "not said", "positive_factor": 1.0, "negative_factor": 0.0}


def unit(calls: Calls, rows: slice, columns: slice, net: Any = None, **more: Any) -> Any:
    """The control object of our apply node, with a mask, for a part of the image."""
    area = (slice(None), pixels(rows), pixels(columns))
    given = {"image": picture().movedim(1, -1)[area], "mask": MASK[area], "strength": 0.8, **more}
    if net is not None:
        given["control_net"] = net
    return calls.start(calls.session.controlled(**given)[0][0][1]["control"])


WHOLE = slice(0, SIZE)


def mask_in_tiles(calls: Calls, native: bool = False) -> None:
    """The mask follows the tiles, as if the unit had been made from the parts."""
    net = calls.session.native_net() if native else None
    whole = unit(calls, WHOLE, WHOLE, net)
    for rows, columns, x in tiles():
        if not calls.ours:
            calls.residuals(unit(calls, rows, columns, net), x)
            continue
        whole.cond_hint = whole.cond_hint_original[:, :, pixels(rows), pixels(columns)].repeat(2, 1, 1, 1)
        calls.residuals(whole, x)


def mask_on_a_cropped_copy(calls: Calls, native: bool = False) -> None:
    net = calls.session.native_net() if native else None
    whole = unit(calls, WHOLE, WHOLE, net)
    for rows, columns, x in tiles():
        part = unit(calls, rows, columns, net)
        if calls.ours:
            part = whole.copy()
            part.cond_hint_original = part.cond_hint_original[:, :, pixels(rows), pixels(columns)]
            calls.start(part)
        calls.residuals(part, x)


def one_half_in_a_batch_of_tiles(calls: Calls) -> None:
    """The unit acts on the positive half only, and the rows of a tile follow each other."""
    options = calls.session.node("CNCore_ControlOptions", **POSITIVE_HALF, per_picture="", average_over_picture=False)
    parts = list(tiles())
    whole = unit(calls, WHOLE, WHOLE, options=options[0])
    if calls.ours:
        hint = whole.cond_hint_original
        cut = [hint[:, :, pixels(rows), pixels(columns)].repeat(2, 1, 1, 1) for rows, columns, _ in parts]
        whole.cond_hint = torch.cat(cut)
        calls.residuals(whole, torch.cat([x for _, _, x in parts]))
        return
    found = [calls.residuals(unit(calls, rows, columns, options=options[0]), x) for rows, columns, x in parts]
    calls.found = [
        torch.cat(tile) for key in ("middle", "output") for tile in zip(*(f[key] for f in found), strict=True)
    ]


CASES: dict[str, tuple[str, Callable[[Calls], None]]] = {
    "hint set for each tile": ("Tiled Diffusion", hint_set_for_each_tile),
    "hint set by kind": ("TiledKSampler", hint_set_by_kind),
    "tiles in one batch": ("Tiled Diffusion", hint_set_for_tiles_in_one_batch),
    "hint set and taken back": ("Tiled Diffusion", hint_set_and_taken_back),
    "hint cropped on a copy": ("Ultimate SD Upscale", original_hint_cropped_on_a_copy),
    "hint replaced in a run": ("AnimateDiff-Evolved", original_hint_replaced_in_a_run),
    "strength and window set later": ("prompt-control", strength_and_window_set_later),
    "copied": ("ComfyUI", copied),
    "cloned for another device": ("ComfyUI (MultiGPU CFG Split)", cloned_for_another_device),
    "context window": ("AnimateDiff-Evolved", context_window),
    "context window of ComfyUI": ("ComfyUI (Context Windows)", context_window_of_comfyui),
    "mask in tiles": ("Tiled Diffusion", mask_in_tiles),
    "mask in tiles, ComfyUI's own net": ("Tiled Diffusion", partial(mask_in_tiles, native=True)),
    "mask on a cropped copy": ("Ultimate SD Upscale", mask_on_a_cropped_copy),
    "mask on a cropped copy, ComfyUI's own net": (
        "Ultimate SD Upscale",
        partial(mask_on_a_cropped_copy, native=True),
    ),
    "one half in a batch of tiles": ("Tiled Diffusion", one_half_in_a_batch_of_tiles),
    "mask, weights, keyframes": ("Advanced-ControlNet", mask_weights_and_latent_keyframes),
}


def calls_of_packs(session: Any) -> None:
    """Every case with our net and with ComfyUI's own: the largest difference, relative to the largest residual."""
    facts: dict[str, Any] = {}
    for name, (_, case) in CASES.items():
        both = [Calls(session, net, ours) for net, ours in ((session.net, True), (session.native_net(), False))]
        error = "".join(session.error(partial(case, calls)) for calls in both)
        facts[name] = error or difference(*(calls.found for calls in both))
    session.facts["calls"] = facts


def calls_that_raise(session: Any) -> None:
    """What our unit cannot honour: it raises, and does not ignore it."""
    calls = Calls(session, session.net, ours=True)
    rows, columns, x = next(tiles())
    options = {**POSITIVE_HALF, "hint_fit": "pad", "per_picture": "", "average_over_picture": False}
    padded = unit(calls, WHOLE, WHOLE, options=session.node("CNCore_ControlOptions", **options)[0])
    padded.cond_hint = padded.cond_hint_original[:, :, pixels(rows), pixels(columns)]
    replaced = unit(calls, WHOLE, WHOLE)
    replaced.cond_hint_original = picture()
    framed = calls.apply(picture())
    framed.set_timestep_keyframes(Keyframes([Keyframe(mask_hint_orig=MASK)]))
    calls.start(framed)
    framed.cond_hint = picture()[:, :, pixels(rows), pixels(columns)]
    cases = {"hint fit": padded, "hint without its mask": replaced, "mask of a keyframe": framed}
    session.facts["raised"] = {n: session.error(partial(calls.residuals, c, x)) for n, c in cases.items()}


@dataclass
class Keyframe:
    """A timestep keyframe as Advanced-ControlNet keeps it."""

    mask_hint_orig: Any
    start_percent: float = 0.0
    strength: float = 1.0
    null_latent_kf_strength: float = 0.0
    guarantee_steps: int = 1
    inherit_missing: bool = True
    control_weights: Any = None
    latent_keyframes: Any = None


@dataclass
class Keyframes:
    """Timestep keyframes as Advanced-ControlNet keeps them."""

    keyframes: list[Any]


def difference(ours: list[Tensor], native: list[Tensor]) -> float:
    """The largest difference of two lists of residuals, relative to the largest residual."""
    assert len(ours) == len(native) > 0, f"{len(ours)} residuals of ours, {len(native)} of ComfyUI's"
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, native, strict=True))


def clones_of_models(session: Any) -> None:
    """MODEL, CLIP and VAE of our own shape, cloned as ComfyUI's MultiGPU nodes do it; nothing where it cannot.

    Facts: for each part whether the clone has weights of its own, the same values, and the device that was asked for.
    """
    packed = session.node("CNCore_Accelerate", model=session.model, weights="packed")
    packed = (packed["result"] if isinstance(packed, dict) else packed)[0]
    parts = {"MODEL": session.model, "packed": packed, "CLIP": session.clip.patcher, "VAE": session.vae.patcher}
    facts: dict[str, Any] = {}
    for name, patcher in parts.items() if hasattr(session.model, "deepclone_multigpu") else ():
        clone = patcher.deepclone_multigpu(new_load_device=torch.device("cpu", 1))
        pairs = list(zip(patcher.model.parameters(), clone.model.parameters(), strict=True))
        own = all(a.data_ptr() != b.data_ptr() for a, b in pairs)
        facts[name] = [own, all(torch.equal(a, b) for a, b in pairs), str(clone.load_device)]
    session.facts["clones"] = facts


# ---- the packs themselves


class Workflow:
    """A sampling run with a pack's nodes, for one of our net, ComfyUI's own, and none."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.hint = picture().movedim(1, -1)

    def node(self, name: str, **inputs: Any) -> Any:
        """Run a node of either schema; the values of its outputs."""
        cls = self.session.nodes.NODE_CLASS_MAPPINGS[name]
        if hasattr(cls, "define_schema"):
            return cls.execute(**inputs).args
        return getattr(cls(), cls.FUNCTION)(**inputs)

    def conditioning(self, net: Any, image: Tensor | None = None, **unit: Any) -> tuple[Any, Any]:
        """Both prompts with the net on them, by ComfyUI's own node; None: without control."""
        given = {"image": self.hint if image is None else image, "strength": 1.0, **unit}
        return self.session.prompts if net is None else self.session.natively_controlled(net, **given)

    def sample(self, model: Any, conditioning: tuple[Any, Any], images: int = 1) -> Tensor:
        """ComfyUI's own sampler on an empty latent."""
        whole, self.session.model = self.session.model, model
        try:
            return self.session.ksampler(conditioning, {"samples": torch.zeros(images, 4, SIZE, SIZE)})
        finally:
            self.session.model = whole


def tiled_diffusion(flow: Workflow, net: Any) -> Iterator[Tensor]:
    for method in ("MultiDiffusion", "Mixture of Diffusers", "SpotDiffusion"):
        size = {"tile_width": 64, "tile_height": 64, "tile_overlap": 32, "tile_batch_size": 2}
        (model,) = flow.node("TiledDiffusion", model=flow.session.model, method=method, **size)
        yield flow.sample(model, flow.conditioning(net))


def advanced_controlnet(flow: Workflow, net: Any) -> Iterator[Tensor]:
    mask = torch.rand(1, 40, 56, generator=torch.Generator().manual_seed(3))
    weights = flow.node("ACN_ScaledSoftControlNetWeights", base_multiplier=0.8, uncond_multiplier=0.5)[0]
    (latents,) = flow.node("LatentKeyframe", batch_index=-1, strength=0.4)
    (frames,) = flow.node("TimestepKeyframe", start_percent=0.0, strength=0.5, cn_weights=weights, guarantee_steps=1)
    later = {"start_percent": 0.4, "strength": 1.5, "mask_optional": mask, "guarantee_steps": 1}
    (frames,) = flow.node("TimestepKeyframe", prev_timestep_kf=frames, **later)
    cases = {
        "mask": {"mask_optional": mask},
        "weights": {"weights_override": weights},
        "latent keyframes": {"latent_kf_override": latents},
        "timestep keyframes": {"timestep_kf": frames},
    }
    for given in cases.values():
        applied = flow.session.prompts
        if net is not None:
            unit = {"strength": 1.0, "start_percent": 0.0, "end_percent": 0.9, "image": flow.hint}
            positive, negative = applied
            halves = {"positive": positive, "negative": negative}
            applied = flow.node("ACN_AdvancedControlNetApply_v2", **halves, control_net=net, **unit, **given)
        yield flow.sample(flow.session.model, applied, images=3)


def ultimate_sd_upscale(flow: Workflow, net: Any) -> Iterator[Tensor]:
    session = flow.session
    for batch in (1, 2):
        positive, negative = flow.conditioning(net)
        (image,) = flow.node(
            "UltimateSDUpscaleNoUpscale", upscaled_image=flow.hint, model=session.model, positive=positive,
            negative=negative, vae=session.vae, seed=7, steps=2, cfg=4.0, sampler_name="euler", scheduler="normal",
            denoise=0.6, mode_type="Linear", tile_width=64, tile_height=64, mask_blur=4, tile_padding=16,
            seam_fix_mode="None", seam_fix_denoise=1.0, seam_fix_width=64, seam_fix_mask_blur=8, seam_fix_padding=16,
            force_uniform_tiles=True, tiled_decode=False, batch_size=batch,
        )  # fmt: skip
        yield image


def animatediff_evolved(flow: Workflow, net: Any) -> Iterator[Tensor]:
    context = {"context_length": 3, "context_stride": 1, "context_overlap": 1}
    (options,) = flow.node("ADE_StandardUniformContextOptions", **context)
    given = {"model": flow.session.model, "beta_schedule": "use existing", "context_options": options}
    (model,) = flow.node("ADE_UseEvolvedSampling", **given)
    for count in (1, 5):
        yield flow.sample(model, flow.conditioning(net, picture(count).movedim(1, -1)), images=5)


PACKS: dict[str, Callable[[Workflow, Any], Iterator[Tensor]]] = {
    "ComfyUI-TiledDiffusion": tiled_diffusion,
    "ComfyUI-Advanced-ControlNet": advanced_controlnet,
    "ComfyUI_UltimateSDUpscale": ultimate_sd_upscale,
    "ComfyUI-AnimateDiff-Evolved": animatediff_evolved,
}


def run_pack(session: Any, name: str) -> Any:
    """The results of a pack's runs, or an error. With our net, the same accelerated, ComfyUI's own, and none."""
    flow, runs, whole = Workflow(session), [], session.model
    fast = session.node("CNCore_Accelerate", model=whole, weights="shared")
    fast = (fast["result"] if isinstance(fast, dict) else fast)[0]
    for net, model in ((session.net, whole), (session.net, fast), (session.native_net(), whole), (None, whole)):
        session.model = model
        error = session.error(lambda net=net: runs.append(list(PACKS[name](flow, net))))
        session.model = whole
        if error:
            return error
    compared = {"difference": (0, 2), "accelerated": (1, 2), "control": (2, 3)}
    return [
        {what: [largest(made[a], made[b]), differing(made[a], made[b])] for what, (a, b) in compared.items()}
        for made in zip(*runs, strict=True)
    ]


def differing(a: Tensor, b: Tensor) -> float:
    """The share of values that differ."""
    return float((a != b).float().mean())


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def packs(session: Any) -> None:
    """Each pack that is in COMFYUI_PACKS, with our net, with ComfyUI's own and without control.

    Facts: for each run the largest difference to ComfyUI's own net and the share of values that differ; the same for
    what control changes.
    """
    folder = Path(os.environ["COMFYUI_PACKS"])
    # AnimateDiff-Evolved refuses ComfyUI's own nets unless Advanced-ControlNet is there to make them its own.
    there = [name for name in PACKS if (folder / name).is_dir()]
    session.facts["loaded"] = {name: bool(session.load(folder / name)) for name in there}
    session.facts["packs"] = {name: run_pack(session, name) for name in there}
