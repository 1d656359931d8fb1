"""ComfyUI's model-patch controls under our apply node; a scenario for `comfyui_host.py`.

Tiny random models of Qwen-Image and Z-Image, each with its control. ComfyUI's own node knows a strength only. What our
node adds is compared with ComfyUI's own patch whose strength and effect are changed here, call by call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

SIDE = 8
"""Height and width of the latent, in cells."""
STEPS, STRENGTH = 4, 0.7
WINDOW = (0.3, 0.8)
KEYFRAMES = "0: 1.5, 0.5: 0.2, 1: 1"
Weigh = Callable[[float, Tensor], Any]
"""(sigma, rows as they are in a call) -> factor of what a patch adds, a number or (rows, tokens, 1)."""


class Vae:
    """Encodes a picture as means of its cells; ComfyUI's VAEs of these models have 16 channels as well."""

    def __init__(self, frames: bool) -> None:
        self.frames = frames

    def spacial_compression_encode(self) -> int:
        """Pixels per cell."""
        return 8

    def encode(self, image: Tensor) -> Tensor:
        """(B, H, W, 3) -> (B, 16, h, w), or (B, 16, 1, h, w)."""
        cells = nn.functional.avg_pool2d(image.movedim(-1, 1), 8)
        latent = torch.cat([cells * factor for factor in (1, -1, 2, 0.5, -2, 3)], 1)[:, :16]
        return latent[:, :, None] if self.frames else latent


def randomize(module: nn.Module, seed: int) -> Any:
    """The module with random weights."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        value = scale * torch.randn(parameter.shape, generator=generator)
        parameter.data = value + 1 if "norm" in name and parameter.ndim == 1 else value
    return module


def patcher(model: Any) -> Any:
    return importlib.import_module("comfy.model_patcher").ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def qwen_image() -> tuple[Any, Any, Vae, int]:
    """MODEL, MODEL_PATCH, VAE and the width of the text."""
    config = {
        "image_model": "qwen_image", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6), "in_channels": 64, "out_channels": 16,
    }  # fmt: skip
    base, supported = (importlib.import_module(f"comfy.{name}") for name in ("model_base", "supported_models"))
    model = base.QwenImage(supported.QwenImage(config), device="cpu")
    ops = importlib.import_module("comfy.ops").manual_cast
    control = importlib.import_module("comfy_extras.nodes_model_patch").QwenImageBlockWiseControlNet(
        num_layers=2, dim=32, device="cpu", dtype=torch.float32, operations=ops
    )
    return patcher(randomize(model, 0)), patcher(randomize(control, 1)), Vae(frames=True), 24


def z_image() -> tuple[Any, Any, Vae, int]:
    """As `qwen_image`. ComfyUI assumes 30 blocks and a timestep embedding of width 256."""
    shared = {"dim": 256, "n_heads": 4, "n_kv_heads": 4, "multiple_of": 32, "qk_norm": True, "norm_eps": 1e-5}
    config = {
        "image_model": "lumina2", "n_layers": 30, "cap_feat_dim": 24, "axes_dims": [16, 24, 24], "in_channels": 16,
        "axes_lens": [64, 64, 64], "z_image_modulation": True, "ffn_dim_multiplier": 8 / 3, "rope_theta": 256.0,
        "time_scale": 1000.0, **shared,
    }  # fmt: skip
    base, supported = (importlib.import_module(f"comfy.{name}") for name in ("model_base", "supported_models"))
    model = base.Lumina2(supported.ZImage(config), device="cpu")
    control = importlib.import_module("comfy.ldm.lumina.controlnet").ZImage_Control(
        n_control_layers=3, refiner_control=True, additional_in_dim=17, device="cpu", dtype=torch.float32,
        operations=importlib.import_module("comfy.ops").manual_cast, **shared,
    )  # fmt: skip
    return patcher(randomize(model, 2)), patcher(randomize(control, 3)), Vae(frames=False), 24


FAMILIES = {"Qwen-Image": qwen_image, "Z-Image": z_image}


class Runs:
    """Samplings of one model with its control."""

    def __init__(self, session: Any, made: tuple[Any, Any, Vae, int]) -> None:
        self.session = session
        self.model, self.patch, self.vae, width = made
        generator = torch.Generator().manual_seed(5)
        positive, negative = torch.randn(2, 1, 6, width, generator=generator)
        self.prompts = [[positive, {}]], [[negative, {}]]
        self.image = torch.rand(1, 8 * SIDE, 8 * SIDE, 3, generator=generator)
        self.mask = torch.zeros(1, 8 * SIDE, 8 * SIDE)
        self.mask[..., : 4 * SIDE] = 1.0
        self.net = session.node("CNCore_ModelPatchControlNet", model_patch=self.patch, vae=self.vae)[0]

    def sample(self, model: Any, conditioning: Any) -> Tensor:
        """ComfyUI's own sampler."""
        whole, self.session.model = self.session.model, model
        try:
            latent = {"samples": torch.zeros(1, 16, SIDE, SIDE)}
            return self.session.ksampler(conditioning, latent, steps=STEPS, scheduler="simple")
        finally:
            self.session.model = whole

    def ours(self, **unit: Any) -> Tensor:
        """With our apply node."""
        given = {"control_net": self.net, "image": self.image, "strength": STRENGTH, **unit}
        return self.sample(self.model, self.session.controlled(self.prompts, **given))

    def native(self, weigh: Weigh | None = None) -> Tensor:
        """With ComfyUI's own node, and its patch weighed."""
        given = {"model_patch": self.patch, "vae": self.vae, "image": self.image}
        (model,) = self.session.node("QwenImageDiffsynthControlnet", model=self.model, strength=STRENGTH, **given)
        if weigh is not None:
            places = model.model_options["transformer_options"]["patches"]
            for place, patches in places.items():
                places[place] = [weighed(patch, weigh) for patch in patches]
        return self.sample(model, self.prompts)

    def position(self, sigma: float) -> float:
        """Where a flow model is at sigma = s p / (1 + (s - 1) p), from noise to picture."""
        shift = self.model.get_model_object("model_sampling").shift
        if hasattr(self.model.get_model_object("model_sampling"), "multiplier"):
            return 1.0 - sigma / (shift - (shift - 1.0) * sigma)
        e = 2.718281828459045**shift
        return 1.0 - sigma / (e - (e - 1.0) * sigma)


def weighed(patch: Any, weigh: Weigh) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A patch whose effect is multiplied."""

    def act(given: dict[str, Any]) -> dict[str, Any]:
        tokens, options = given["img"], given["transformer_options"]
        before = tokens.clone()
        changed = patch({**given}).get("img", tokens)
        halves = torch.tensor(options["cond_or_uncond"])
        factor = weigh(float(options["sigmas"][0]), halves)
        tokens.copy_(before + (changed - before) * factor)
        return {**given, "img": tokens}

    return act


def cases(runs: Runs) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, our run, ComfyUI's run."""
    node = runs.session.node
    yield "strength", runs.ours(), runs.native()
    first, last = WINDOW
    in_window = runs.native(lambda sigma, _: float(first <= runs.position(sigma) <= last))
    yield "window", runs.ours(start_percent=first, end_percent=last), in_window
    (schedule,) = node("CNCore_StrengthSchedule", keyframes=KEYFRAMES, easing="linear")
    yield "schedule", runs.ours(schedule=schedule), runs.native(lambda sigma, _: schedule(runs.position(sigma)))
    left = (torch.arange(SIDE // 2) < SIDE // 4).float().repeat(SIDE // 2)[None, :, None]
    yield "mask", runs.ours(mask=runs.mask), runs.native(lambda *_: left)
    options = {
        "hint_fit": "crop", "hint_type": "not said", "positive_factor": 1.0, "negative_factor": 0.5, "per_picture": "",
        "average_over_picture": False,
    }  # fmt: skip
    (half,) = node("CNCore_ControlOptions", **options)
    by_half = runs.native(lambda _, halves: torch.where(halves == 0, 1.0, 0.5)[:, None, None])
    yield "halves", runs.ours(options=half), by_half


def model_patches(session: Any) -> None:
    """For each family and case the difference to ComfyUI's run, and what the case changes; errors; what is left."""
    extra = importlib.import_module("comfy_extras.nodes_model_patch")
    session.nodes.NODE_CLASS_MAPPINGS.update(extra.NODE_CLASS_MAPPINGS)
    facts: dict[str, Any] = {}
    for family, make in FAMILIES.items():
        runs = Runs(session, make())
        none = runs.sample(runs.model, runs.prompts)
        found = {name: (ours, native) for name, ours, native in cases(runs)}
        whole = found["strength"][1]
        largest = float(whole.abs().max())
        facts[family] = {
            name: {
                "difference": float((ours - native).abs().max()) / largest,
                "changed": float((ours - (none if name == "strength" else whole)).abs().max()) / largest,
            }
            for name, (ours, native) in found.items()
        }
        applied = session.controlled(session.prompts, control_net=runs.net, image=runs.image)
        facts[f"{family} said"] = {
            "mode": session.error(lambda r=runs: r.ours(mode="cfg-rw")),
            "base": session.error(lambda a=applied: session.ksampler(a)),
            "again": torch.equal(runs.ours(), found["strength"][0]),
            "left": runs.model.model_options["transformer_options"],
        }
    other = patcher(nn.Linear(1, 1))
    given = {"model_patch": other, "vae": Vae(frames=False)}
    facts["kind"] = session.error(lambda: session.node("CNCore_ModelPatchControlNet", **given))
    session.facts["model patches"] = facts
