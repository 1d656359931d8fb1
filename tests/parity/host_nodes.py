"""Runs nodes of the real host on small inputs: `python host_nodes.py COMFYUI_DIR OUT`.

Started as a program of its own by `test_nodes_host.py`. OUT is the safetensors file that is written: one tensor
"N.M" for output M of case N.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def values(*shape: int, seed: int = 0, signed: bool = False) -> Tensor:
    """Numbers from 0 to 1, or of a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn if signed else torch.rand)(shape, generator=generator)


def latent(*shape: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"samples": values(*shape, seed=seed, signed=True), **more}


@dataclass(frozen=True)
class Case:
    """A node with its inputs, and the module of the host that has it."""

    name: str
    inputs: Mapping[str, Any]
    module: str


def cases(module: str, name: str, *inputs: Mapping[str, Any]) -> list[Case]:
    return [Case(name, given, module) for given in inputs]


IMAGE, SMALL = values(2, 40, 56, 3), values(1, 24, 16, 3, seed=1)
MASK, SPOT = values(1, 40, 56, seed=2), values(1, 12, 20, seed=3)
LATENT, OTHER = latent(2, 4, 16, 24), latent(1, 4, 8, 12, seed=1)
PLACES = [{"x": 0, "y": 0}, {"x": 8, "y": 16}, {"x": 48, "y": 24}]
SIGMAS = torch.tensor([14.6, 7.0, 3.0, 1.0, 0.0])
HINTS = [
    ([(values(1, 20, seed=7, signed=True), 1.0, 0.0)], 5, 0.05),
    ([(values(1, 20, seed=8, signed=True), -0.5, 0.37)], 2**40, 0.05),
    ([(values(2, 20, seed=9, signed=True), 0.7, 0.2), (values(1, 20, seed=10, signed=True), 1.3, 1.0)], 12, 0.05),
    ([(values(3, 20, seed=11, signed=True), 0.4, 0.5)], 77, 0.0),
]
"""Pictures (embeds, strength, noise) that guide a model, the seed, and the noise of their sum."""
FUSERS = [("input_blocks.1.1", 16), ("middle_block.1", 32), ("output_blocks.2.1", 32), ("output_blocks.10.1", 16)]
"""Transformer blocks of a small model, and their widths."""
BOXES = [
    [(values(1, 768, seed=1, signed=True), 4, 6, 2, 3)],
    [(values(1, 768, seed=n, signed=True), 3 + n, 9 - n, n, 2 * n) for n in range(5)],
]
"""Texts with height, width, top and left, in latent cells."""
HYPERNETWORKS: tuple[dict[str, Any], ...] = (
    {"activation_func": "relu"}, {"activation_func": "swish", "activate_output": True}, {"activation_func": "linear"},
    {"activation_func": "tanh", "normalised": True}, {"activation_func": "mish", "normalised": True,
    "activate_output": True}, {},
)  # fmt: skip
"""Facts of hypernetworks."""
LCM_STEPS = (1, 2, 4, 8, 13, 50)
LCM_SIGMAS = torch.tensor([0.02, 0.1, 0.9, 14.6, 80.0])
MODEL = "model"
"""Stands for a MODEL with the schedule of Stable Diffusion."""
CASES = [
    *cases("nodes_mask", "SolidMask", {"value": 0.3, "width": 20, "height": 12}),
    *cases("nodes_mask", "CropMask", *({"mask": MASK, "width": 30, "height": 20, **at} for at in PLACES)),
    *cases(
        "nodes_mask", "MaskComposite",
        *({"destination": MASK, "source": SPOT, "operation": operation, **at}
          for operation in ("multiply", "add", "subtract", "and", "or", "xor") for at in PLACES),
    ),
    *cases(
        "nodes_mask", "FeatherMask", *({"mask": MASK, "left": a, "top": b, "right": c, "bottom": d}
        for a, b, c, d in ((0, 0, 0, 0), (5, 0, 7, 3), (0, 9, 0, 1), (80, 80, 80, 80))),
    ),
    *cases(
        "nodes_mask", "GrowMask",
        *({"mask": MASK, "expand": n, "tapered_corners": t} for n in (-3, 0, 1, 6) for t in (True, False)),
    ),
    *cases("nodes_mask", "ThresholdMask", {"mask": MASK, "value": 0.5}),
    *cases("nodes_mask", "ImageColorToMask", {"image": (IMAGE * 2).round() / 2, "color": 0x80FF00}),
    *cases(
        "nodes_mask", "ImageCompositeMasked",
        *({"destination": IMAGE, "source": SMALL, "resize_source": fit, "mask": mask, **at}
          for fit in (True, False) for mask in (None, SPOT) for at in PLACES),
    ),
    *cases(
        "nodes_mask", "LatentCompositeMasked",
        *({"destination": LATENT, "source": OTHER, "resize_source": fit, "mask": mask, **at}
          for fit in (True, False) for mask in (None, SPOT) for at in PLACES),
    ),
    *cases(
        "nodes", "LatentComposite",
        *({"samples_to": LATENT, "samples_from": OTHER, "feather": f, **at} for f in (0, 16, 48) for at in PLACES),
    ),
    *cases("nodes", "LatentBlend", {"samples1": LATENT, "samples2": OTHER, "blend_factor": 0.3}),
    *cases("nodes", "LatentCrop", *({"samples": LATENT, "width": 64, "height": 72, **at} for at in PLACES)),
    *cases("nodes", "LatentFlip", *({"samples": LATENT, "flip_method": way}
                                    for way in ("x-axis: vertically", "y-axis: horizontally"))),
    *cases("nodes", "LatentRotate", *({"samples": LATENT, "rotation": turn}
                                      for turn in ("none", "90 degrees", "180 degrees", "270 degrees"))),
    *cases("nodes_latent", "LatentBatch", {"samples1": LATENT, "samples2": OTHER}),
    *cases("nodes_images", "ImageCrop", *({"image": IMAGE, "width": 30, "height": 20, **at} for at in PLACES)),
    *cases("nodes_images", "RepeatImageBatch", {"image": IMAGE, "amount": 3}),
    *cases("nodes_images", "ImageFromBatch", {"image": IMAGE, "batch_index": 5, "length": 3}),
    *cases(
        "nodes_post_processing", "ImageBlend",
        *({"image1": IMAGE, "image2": other, "blend_factor": 0.6, "blend_mode": mode}
          for other in (IMAGE.flip(2), SMALL)
          for mode in ("normal", "multiply", "screen", "overlay", "soft_light", "difference")),
    ),
    *cases("nodes_compositing", "SplitImageWithAlpha", {"image": IMAGE}, {"image": values(1, 9, 7, 4)}),
    *cases("nodes_compositing", "JoinImageWithAlpha", {"image": IMAGE, "alpha": SPOT}),
    *cases("nodes_custom_sampler", "KarrasScheduler",
           {"steps": 17, "sigma_max": 14.61, "sigma_min": 0.03, "rho": 6.0}),
    *cases("nodes_custom_sampler", "ExponentialScheduler", {"steps": 17, "sigma_max": 14.61, "sigma_min": 0.03}),
    *cases("nodes_custom_sampler", "PolyexponentialScheduler",
           {"steps": 17, "sigma_max": 14.61, "sigma_min": 0.03, "rho": 1.7}),
    *cases("nodes_custom_sampler", "VPScheduler", {"steps": 17, "beta_d": 19.9, "beta_min": 0.1, "eps_s": 0.001}),
    *cases("nodes_custom_sampler", "SDTurboScheduler", {"model": MODEL, "steps": 4, "denoise": 1.0},
           {"model": MODEL, "steps": 1, "denoise": 0.5}),
    *cases("nodes_custom_sampler", "BetaSamplingScheduler", {"model": MODEL, "steps": 9, "alpha": 0.7, "beta": 0.5}),
    *cases("nodes_custom_sampler", "SplitSigmas", {"sigmas": SIGMAS, "step": 2}),
    *cases("nodes_custom_sampler", "SplitSigmasDenoise", *({"sigmas": SIGMAS, "denoise": d} for d in (0.0, 0.4, 1.0))),
    *cases("nodes_custom_sampler", "FlipSigmas", {"sigmas": SIGMAS}),
    *cases("nodes_custom_sampler", "SetFirstSigma", {"sigmas": SIGMAS, "sigma": 20.0}),
]  # fmt: skip


def larger(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=4.0, mode="bilinear")


def smaller(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 8)


TILED: list[tuple[Callable[[Tensor], Tensor], tuple[int, int], int, float]] = [
    (larger, (16, 16), 4, 4.0), (larger, (24, 12), 4, 4.0), (larger, (64, 64), 4, 4.0),
    (smaller, (24, 24), 8, 0.125), (smaller, (16, 48), 8, 0.125),
]  # fmt: skip
"""Functions that are run in tiles: tile, overlap, scale."""


def outputs(made: Any) -> list[Tensor]:
    """The tensors of a node's result, also of latents and of V3 nodes."""
    row = getattr(made, "args", None) or getattr(made, "result", None) or made
    return [item["samples"] if isinstance(item, dict) else item for item in row]


def find(case: Case) -> Any:
    """A function of the host's node."""
    module = importlib.import_module(case.module if case.module == "nodes" else f"comfy_extras.{case.module}")
    for cls in vars(module).values():
        if not inspect.isclass(cls):
            continue
        if hasattr(cls, "define_schema") and "execute" in vars(cls) and cls.define_schema().node_id == case.name:
            return cls.execute
        if cls.__name__ == case.name and hasattr(cls, "FUNCTION") and "execute" not in vars(cls):
            return getattr(cls(), cls.FUNCTION)
    raise LookupError(case.name)


def distilled() -> dict[str, Tensor]:
    """What a MODEL samples with after the host's ModelSamplingDiscrete with lcm: conversions, tables, predictions."""
    module = importlib.import_module("comfy_extras.nodes_model_advanced")
    sampling, samplers = importlib.import_module("host_sampling"), importlib.import_module("comfy.samplers")
    found = {}
    for zsnr in (False, True):
        patched: dict[str, Any] = {}
        patch = SimpleNamespace(add_object_patch=patched.__setitem__)
        model = SimpleNamespace(
            clone=lambda patch=patch: patch, model=SimpleNamespace(model_config=SimpleNamespace(sampling_settings={}))
        )
        patch.model = model.model
        module.ModelSamplingDiscrete().patch(model, "lcm", zsnr)
        levels = patched["model_sampling"]
        sigmas, timesteps, percents = sampling.probes()
        found[f"lcm.{zsnr}.timestep"] = levels.timestep(sigmas)
        found[f"lcm.{zsnr}.sigma"] = levels.sigma(timesteps)
        found[f"lcm.{zsnr}.percent"] = torch.tensor([levels.percent_to_sigma(percent) for percent in percents])
        for name in sampling.SCHEDULES:
            for steps in LCM_STEPS:
                found[f"lcm.{zsnr}.{name}.{steps}"] = samplers.calculate_sigmas(levels, name, steps)
        x, output = values(len(LCM_SIGMAS), 4, 3, 5, signed=True), values(len(LCM_SIGMAS), 4, 3, 5, seed=1, signed=True)
        found[f"lcm.{zsnr}.x0"] = levels.calculate_denoised(LCM_SIGMAS, output, x)
    return found


def guided_by_pictures() -> dict[str, Tensor]:
    """The host's label vectors of pictures, and its CLIP image encoder with the weights of `vision_weights`."""
    base = importlib.import_module("comfy.model_base")
    found = {}
    for number, (hints, seed, merged) in enumerate(HINTS):
        augmentor = base.CLIPEmbeddingNoiseAugmentation(
            noise_schedule_config={"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}, timestep_dim=20
        )
        given = [
            {
                "clip_vision_output": SimpleNamespace(image_embeds=embeds),
                "strength": strength,
                "noise_augmentation": share,
            }
            for embeds, strength, share in hints
        ]
        found[f"unclip.{number}"] = base.unclip_adm(given, "cpu", augmentor, merged, seed - 10)
    config = {
        "num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 16, "intermediate_size": 80,
        "hidden_act": "quick_gelu", "model_type": "clip_vision_model", "num_channels": 3, "patch_size": 7,
        "image_size": 28, "projection_dim": 20,
    }  # fmt: skip
    # Older releases read it from a file only.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(config))
        file.flush()
        vision = importlib.import_module("comfy.clip_vision").ClipVisionModel(file.name)
    vision.load_sd(vision_weights({key: tuple(value.shape) for key, value in vision.model.state_dict().items()}))
    for crop in (True, False):
        made = vision.encode_image(IMAGE, crop=crop)
        for name in ("last_hidden_state", "penultimate_hidden_states", "image_embeds"):
            found[f"vision.{crop}.{name}"] = made[name]
    return found


def text_boxes() -> dict[str, Tensor]:
    """What the host's GLIGEN makes of the tokens of each transformer block."""
    made = importlib.import_module("comfy.gligen").load_gligen(gligen_weights())
    found = {}
    for number, boxes in enumerate(BOXES):
        patch = made.set_position((2, 4, 12, 20), boxes, "cpu")
        for block, (_, width) in enumerate(FUSERS):
            x = values(2, 15, width, seed=block, signed=True)
            found[f"gligen.{number}.{block}"] = patch(x, {"transformer_index": block}).detach()
    return found


def gligen_weights() -> dict[str, Tensor]:
    """A file of GLIGEN with random weights for the transformer blocks in `FUSERS`."""
    shapes: dict[str, tuple[int, ...]] = {"position_net.null_positive_feature": (768,)}
    shapes["position_net.null_position_feature"] = (64,)
    for number, (rows, columns) in {0: (512, 832), 2: (512, 512), 4: (768, 512)}.items():
        shapes[f"position_net.linears.{number}.weight"] = (rows, columns)
        shapes[f"position_net.linears.{number}.bias"] = (rows,)
    for block, width in FUSERS:
        name = f"{block}.transformer_blocks.0.fuser"
        shapes |= {f"{name}.alpha_attn": (), f"{name}.alpha_dense": ()}
        shapes |= {f"{name}.attn.to_{part}.weight": (width, width) for part in "qkv"}
        pairs = {"linear": (width, 768), "attn.to_out.0": (width, width), "ff.net.0.proj": (8 * width, width)}
        for part, shape in {**pairs, "ff.net.2": (width, 4 * width)}.items():
            shapes |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": shape[:1]}
        shapes |= {f"{name}.norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    return {key: 0.2 * values(*shape, seed=n, signed=True) + 0.1 for n, (key, shape) in enumerate(shapes.items())}


def hypernetworks() -> dict[str, Tensor]:
    """What the host's hypernetworks make of keys and values, for widths that a file has and one that it lacks."""
    module = importlib.import_module("comfy_extras.nodes_hypernetwork")
    reference = importlib.import_module("hypernetwork_reference")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, facts in enumerate(HYPERNETWORKS):
            file = Path(folder, f"{number}.pt")
            torch.save(reference.random_file((24, 40), **facts), file)
            patch = module.load_hypernetwork_patch(str(file), 0.7)
            for width in (24, 40, 32):
                key, value = (values(2, 9, width, seed=seed, signed=True) for seed in (1, 2))
                for name, made in zip(("q", "k", "v"), patch(key, key, value, {}), strict=True):
                    found[f"hypernetwork.{number}.{width}.{name}"] = made.detach().clone()
    return found


def vision_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random weights by the names of transformers, rounded to fp16: the host keeps them so."""
    made = {key: 0.3 * values(*shapes[key], seed=len(key), signed=True) for key in sorted(shapes)}
    return {key: (value + ("norm" in key and key.endswith("weight"))).half().float() for key, value in made.items()}


def main(folder: str, out: str) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests / name) for name in ("parity", "integration", "support")]
    importlib.import_module("comfyui_host").without_torchvision()
    sys.path.insert(0, folder)
    sys.argv = ["host", "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("utils.extra_config")  # before `nodes` puts the folder with comfy/utils.py on the path
    importlib.import_module("host_sampling").import_host(Path(folder))
    # Newer releases have modules that import each other, and can be imported in this order only.
    importlib.import_module("comfy_extras.nodes_post_processing")
    schedule = importlib.import_module("comfy.model_sampling").ModelSamplingDiscrete()
    model = SimpleNamespace(get_model_object=lambda name: schedule)
    tensors = {}
    for number, case in enumerate(CASES):
        given = {name: model if value is MODEL else value for name, value in case.inputs.items()}
        for index, tensor in enumerate(outputs(find(case)(**given))):
            tensors[f"{number}.{index}"] = tensor.float().clone().contiguous()
    scale = importlib.import_module("comfy.utils").tiled_scale
    for number, (function, tile, overlap, factor) in enumerate(TILED):
        x = values(2, 3, 40, 56, seed=4)
        made = scale(x, function, tile[1], tile[0], overlap, upscale_amount=factor, out_channels=3)
        tensors[f"tiled.{number}"] = made.contiguous()
    tensors |= {**distilled(), **guided_by_pictures(), **text_boxes(), **hypernetworks()}
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
