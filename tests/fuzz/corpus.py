"""Valid originals that the campaign damages, made from code: model files, pictures, workflows, poses, examples."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.fileconfig import CONFIG_KEY
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header, read_tensors, write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet
from comfyui_controlnet_core.controlnet_core.config import (
    DEMO,
    AdapterConfig,
    ControlNetConfig,
    ModelConfig,
    TextConfig,
)
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.preprocessors import pose
from PIL import Image
from torch import Tensor

from .diffusers_folder import save_folder

UNET = replace(DEMO.unet, widths=(32, 32), res_blocks=1, transformer_depth=(1, 0), num_heads=2, context_dim=32)
NET = ControlNetConfig(unet=UNET, hint_widths=(8, 8, 8, 16))
MODEL = ModelConfig(
    "tiny",
    UNET,
    replace(DEMO.vae, widths=(32, 32), res_blocks=1, patch=1),
    TextConfig(width=32, layers=1, heads=2, vocab_size=40),
)
PROJECT = Path(__file__).parents[2]
EDM = {"edm_vpred.sigma_max": torch.tensor(80.0), "edm_vpred.sigma_min": torch.tensor(0.002)}


# ------------------------------------------------------------------------------------------------- models


@cache
def model_files() -> Mapping[str, bytes]:
    """Small model files of each kind and layout, by a name."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unet, net, vae = UNet(UNET), ControlNet(NET), AutoencoderKL(MODEL.vae)
        text = ClipTextModel(MODEL.text)
        half = torch.float16
        for layout in ("core", "ldm", "diffusers"):
            save_checkpoint(folder / f"model_{layout}", MODEL, unet, vae, text, layout=layout, dtype=half)
            save_controlnet(folder / f"net_{layout}", net, layout=layout, dtype=half)
        save_checkpoint(folder / "model_v", replace(MODEL, parametrization="v"), unet, vae, text, dtype=half)
        save_controlnet(folder / "net_fp8", net, dtype=half, narrow=torch.float8_e4m3fn)
        for title, module in (("unet", unet), ("net", net), ("vae", vae)):
            save_folder(folder / f"folder_{title}", module, dtype=half)
            weights = folder / f"folder_{title}" / "diffusion_pytorch_model.safetensors"
            weights.rename(folder / f"plain_{title}")
        # As transformers saves a text encoder.
        tensors = read_tensors(read_header(folder / "model_diffusers"))
        of_text = {k.removeprefix("text_encoder."): v for k, v in tensors.items() if k.startswith("text_encoder.")}
        write_safetensors(folder / "text", of_text)
        write_safetensors(folder / "adapter", dict(Adapter(AdapterConfig((32, 32, 32, 32))).state_dict()))
        for title, (tensors, metadata) in _small_files().items():
            write_safetensors(folder / title, tensors, metadata)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _small_files() -> dict[str, tuple[dict[str, Tensor], dict[str, str] | None]]:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    kohya = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
    peft = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
    settings = json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {"to_k": 2}, "unet.use_rslora": True})
    hada = {f"{kohya}.hada_{part}": torch.ones(2, 2) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
    fp8 = torch.ones(4, 4).to(torch.float8_e4m3fn)
    return {
        "lora_peft": (peft, {"lora_adapter_metadata": settings}),
        "lora_kohya": (
            {f"{kohya}.lora_up.weight": torch.ones(32, 2), f"{kohya}.lora_down.weight": torch.ones(2, 32),
             f"{kohya}.alpha": torch.tensor(2.0), f"{kohya}.dora_scale": torch.ones(32, 1)},
            {"ss_tag_frequency": "{}"},
        ),
        "lora_hada": ({**hada, "lora_te_text_model_a.diff": torch.ones(3), "lora_unet_b.diff_b": torch.ones(3)},
        None),
        "word": ({"emb_params": torch.ones(2, 32)}, None),
        "word_xl": ({"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 48)}, {"format": "pt"}),
        "word_own": ({"<cat>": torch.ones(32)}, None),
        "scaled": ({"a.weight": fp8, "a.scale_weight": torch.tensor(2.0), "a.scale_input": torch.tensor(1.0),
                    "b.weight": fp8, "b.weight_scale": torch.ones(4), "scaled_fp8": torch.zeros(2)}, None),
        "wrapped": ({f"module.model._orig_mod.{k}": torch.ones(2) for k in "ab"} | {"global_step": torch.tensor(3)},
        None),
    }  # fmt: skip


@cache
def pickle_files() -> tuple[bytes, ...]:
    """PyTorch files: zip and legacy form, plain and wrapped, with what trainers save beside the weights."""
    weights = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}
    tied = torch.ones(4)
    contents: tuple[Any, ...] = (
        weights,
        {"state_dict": weights, "epoch": 1, "global_step": 7, "hyper_parameters": {"lr": 0.1}},
        {"model": {"module": weights}, "optimizer": {"state": {}, "param_groups": []}, "args": {"x": (1, 2)}},
        {"a": tied, "b": tied, "c": tied[1:3], "nested": {"d": tied.to(torch.bfloat16)}},
        {"string_to_param": {"*": torch.ones(2, 32)}, "name": "cat", "step": 10, "string_to_token": {"*": 265}},
        {"emb_params": torch.nn.Parameter(torch.ones(1, 32))},
        [torch.ones(2)],
        {"w": torch.zeros(0), "note": "x" * 50, "flag": True, "ratio": 0.5},
    )
    files = []
    for content in contents:
        for as_zip in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=as_zip)
            files.append(buffer.getvalue())
    net = io.BytesIO()
    torch.save({f"control_model.{k}": v for k, v in ControlNet(NET).half().state_dict().items()}, net)
    return (*files, packed(files[0]), net.getvalue())


def packed(stored: bytes) -> bytes:
    """The same archive, compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(stored)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return buffer.getvalue()


def header_of(content: bytes) -> dict[str, Any]:
    """The JSON at the beginning of a safetensors file."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@cache
def configs() -> tuple[dict[str, Any], ...]:
    """The configs in the metadata of the model files."""
    found = (header_of(content).get("__metadata__", {}).get(CONFIG_KEY) for content in model_files().values())
    return tuple(json.loads(text) for text in found if text)


FOLDER_CONFIGS: tuple[dict[str, Any], ...] = (
    {"_class_name": "UNet2DConditionModel", "attention_head_dim": 2, "norm_num_groups": 32, "act_fn": "silu"},
    {"_class_name": "UNet2DConditionModel", "attention_head_dim": [2, 2], "num_attention_heads": None},
    {"_class_name": "UNet2DConditionModel", "attention_head_dim": [1, 2], "flip_sin_to_cos": True, "freq_shift": 0},
    {"_class_name": "ControlNetModel", "attention_head_dim": 2, "global_pool_conditions": True},
    {"_class_name": "AutoencoderKL", "scaling_factor": 0.13, "shift_factor": None, "latents_mean": [0, 0, 0, 0]},
    {"_class_name": "AutoencoderKL", "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
    {"_class_name": "CLIPTextModel", "hidden_act": "gelu", "num_attention_heads": 2},
)
SCHEDULERS: tuple[dict[str, Any], ...] = (
    {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon", "sigma_min": 0.002, "sigma_max": 80.0},
    {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 0.5},
)


# ----------------------------------------------------------------------------------------------- pictures


def picture_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def pictures() -> Mapping[str, bytes]:
    """Small pictures of every format, depth and kind of animation, by their file's name."""
    import cv2

    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (12, 16, 4), np.uint8))
    gray16 = Image.fromarray(rng.integers(0, 65536, (12, 16), np.uint16))
    floats = Image.fromarray(rng.random((12, 16), np.float32))
    palette, more = rgb.convert("P"), [rgb.rotate(90, expand=False), rgb.rotate(180)]
    exif = Image.Exif()
    exif[274] = 6
    found = {
        "a.png": picture_bytes(rgb, "PNG"), "b.png": picture_bytes(rgba, "PNG", exif=exif),
        "c.png": picture_bytes(gray16, "PNG"), "d.png": picture_bytes(palette, "PNG", transparency=3),
        "e.png": picture_bytes(rgb.convert("1"), "PNG"), "f.png": picture_bytes(rgba.convert("LA"), "PNG"),
        "anim.png": picture_bytes(rgb, "PNG", save_all=True, append_images=more),
        "stand_in.png": picture_bytes(rgb, "PNG", save_all=True, append_images=more, default_image=True),
        "a.jpg": picture_bytes(rgb, "JPEG", exif=exif), "b.jpg": picture_bytes(rgb.convert("CMYK"), "JPEG"),
        "c.jfif": picture_bytes(rgb.convert("L"), "JPEG", progressive=True),
        "a.gif": picture_bytes(palette, "GIF"),
        "anim.gif": picture_bytes(palette, "GIF", save_all=True, append_images=[m.convert("P") for m in more]),
        "a.webp": picture_bytes(rgba, "WEBP", lossless=True),
        "anim.webp": picture_bytes(rgb, "WEBP", save_all=True, append_images=more),
        "a.bmp": picture_bytes(rgb, "BMP"), "b.bmp": picture_bytes(palette, "BMP"),
        "a.tif": picture_bytes(rgb, "TIFF"), "b.tif": picture_bytes(rgb, "TIFF", compression="tiff_lzw"),
        "c.tif": picture_bytes(gray16, "TIFF", exif=exif), "d.tif": picture_bytes(floats, "TIFF"),
        "e.tif": picture_bytes(rgb, "TIFF", save_all=True, append_images=more, compression="tiff_deflate"),
    }  # fmt: skip
    if "AVIF" in Image.SAVE:
        found["a.avif"] = picture_bytes(rgb, "AVIF")
    deep = rng.integers(0, 65536, (12, 16, 3), np.uint16)
    for name, pixels in (
        ("deep.png", deep), ("deep.tif", deep), ("deep_alpha.png", rng.integers(0, 65536, (12, 16, 4), np.uint16)),
        ("float.tif", rng.random((12, 16, 3), np.float32)),
    ):  # fmt: skip
        found[name] = cv2.imencode(Path(name).suffix, pixels)[1].tobytes()
    for name, array in (("a.npy", rng.random((12, 16, 3), np.float32)), ("b.npy", rng.integers(0, 9, (12, 16)))):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found[name] = buffer.getvalue()
    found["bomb.npy"] = npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 100000), }")
    return found


def npy(header: bytes, body: bytes = b"") -> bytes:
    """A .npy file with this header."""
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


# ----------------------------------------------------------------------------------- workflows and poses

LIGHT: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
    "2": {"class_type": "Canny", "inputs": {"image": ["1", 0], "low_threshold": 0.4, "high_threshold": 0.8}},
    "3": {
        "class_type": "SaveImage",
        "inputs": {"images": ["2", 0], "filename_prefix": "a"},
        "_meta": {"title": "Save"},
    },
}
"""A workflow in the API form that runs in milliseconds."""
API: tuple[dict[str, Any], ...] = (
    LIGHT,
    {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "ImageToMask", "inputs": {"image": ["1", 0], "channel": "red"}},
        "3": {"class_type": "MaskToImage", "inputs": {"mask": ["2", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    },
    {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "demo_base.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a {red|blue} ball"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "demo_canny.safetensors"}},
        "5": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "6": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {
                "positive": ["2", 0], "negative": ["2", 0], "control_net": ["4", 0], "image": ["5", 0],
                "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0,
            },
        },
        "7": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["6", 0], "negative": ["6", 1], "latent_image": ["3", 0], "seed": 1,
                "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "a/%date:yyyy%_%width%"}},
    },
)  # fmt: skip


def _node(number: int, kind: str, inputs: Any = (), outputs: Any = (), values: Any = (), **more: Any) -> dict[str, Any]:
    """A node as the editor saves it. inputs: (name, type, link). outputs: (type, links)."""
    return {
        "id": number, "type": kind, "pos": [0, 0], "size": [200, 100], "flags": {}, "order": number, "mode": 0,
        "inputs": [{"name": name, "type": type_, "link": link} for name, type_, link in inputs],
        "outputs": [{"name": type_, "type": type_, "links": links} for type_, links in outputs],
        "properties": {"Node name for S&R": kind}, "widgets_values": list(values), **more,
    }  # fmt: skip


def _empty(number: int = 1, link: int = 1) -> dict[str, Any]:
    return _node(number, "EmptyImage", (), [("IMAGE", [link])], [16, 16, 1, 0])


def _preview(number: int, link: int | None) -> dict[str, Any]:
    return _node(number, "PreviewImage", [("images", "IMAGE", link)])


@cache
def drawn() -> tuple[dict[str, Any], ...]:
    """Workflows in the editor's form: reroutes, muted and bypassed nodes, Set/Get, primitives, subgraphs, bundled."""
    chain = {
        "version": 0.4, "last_node_id": 9, "last_link_id": 9, "config": {}, "extra": {}, "groups": [{"title": "g"}],
        "nodes": [
            _empty(), _node(2, "Reroute", [("", "*", 1)], [("*", [2])]),
            _node(3, "ImageInvert", [("image", "IMAGE", 2)], [("IMAGE", [3])], mode=4), _preview(4, 3),
            _node(5, "Note", values=["text"]), _preview(6, None) | {"mode": 2},
            _node(7, "SetNode", [("IMAGE", "IMAGE", 4)], values=["name"]),
            _node(8, "GetNode", (), [("IMAGE", [5])], ["name"]), _preview(9, 5), _empty(10, 4),
        ],
        "links": [
            [1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"], [4, 10, 0, 7, 0, "IMAGE"],
            [5, 8, 0, 9, 0, "IMAGE"],
        ],
    }  # fmt: skip
    widget = {"name": "width", "type": "INT", "link": 2, "widget": {"name": "width"}}
    primitive = {
        "version": 1, "nodes": [
            _empty() | {"inputs": [widget]}, _preview(2, 1), _node(3, "PrimitiveNode", (), [("INT", [2])], [32,
            "fixed"]),
        ],
        "links": [
            {"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "IMAGE"},
            {"id": 2, "origin_id": 3, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "INT"},
        ],
        "reroutes": [{"id": 1, "pos": [0, 0], "linkIds": [1]}],
    }  # fmt: skip
    inner = {
        "id": "sub", "name": "Sub", "version": 1, "inputNode": {"id": -10}, "outputNode": {"id": -20},
        "inputs": [{"id": "i", "name": "image", "type": "IMAGE", "linkIds": [1]}],
        "outputs": [{"id": "o", "name": "IMAGE", "type": "IMAGE", "linkIds": [2]}],
        "nodes": [_node(1, "ImageInvert", [("image", "IMAGE", 1)], [("IMAGE", [2])])],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "IMAGE"},
            {"id": 2, "origin_id": 1, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "IMAGE"},
        ],
    }  # fmt: skip
    instance = _node(2, "sub", [("image", "IMAGE", 1)], [("IMAGE", [2])], properties={"proxyWidgets": [["1", "x"]]})
    nested = {
        "version": 0.4, "nodes": [_empty(), instance, _preview(3, 2)],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]], "definitions": {"subgraphs": [inner]},
    }  # fmt: skip
    names = ("canny_to_image", "pose_from_json", "scribble_to_image")
    bundled = [json.loads((PROJECT / "workflows" / f"{name}.json").read_text()) for name in names]
    return (chain, primitive, nested, *bundled)


def png_with(texts: Mapping[str, str], *, compressed: bool = False) -> bytes:
    """A PNG that carries texts, as ComfyUI saves a workflow."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value, zip=compressed)
    return picture_bytes(Image.new("RGB", (4, 4)), "PNG", pnginfo=info)


@cache
def poses() -> tuple[Any, ...]:
    """Pose files in every form that is read, and in some that are refused by name."""
    whole = pose.write_poses([pose.template_pose("standing", 48, 48)])
    person = {"pose_keypoints_2d": [1.0, 2.0, 1.0] * 18, "hand_left_keypoints_2d": [3.0, 4.0, 0.5] * 21}
    bodies = [{"pose_keypoints_2d": [5.0, 6.0, 1.0] * count} for count in (17, 18, 25, 26, 133, 134, 15, 1)]
    frame = {"people": [person], "canvas_width": 32, "canvas_height": 40}
    shares = {"pose_keypoints_2d": [0.1, 0.9, 1.0] * 17 + [1.05, 0.5, 1.0], "face_keypoints_2d": [0.5, 0.5, 1] * 68}
    return (
        whole, whole[0], frame, [frame, frame, {**frame, "people": []}],
        *({"people": [body], "canvas_width": 32, "canvas_height": 40} for body in bodies),
        {"people": [shares, {"face_keypoints_2d": [0.1, 0.2, 1.0] * 56}], "canvas_width": 40, "canvas_height": 24},
        {"version": 1.3, "people": [person]},
        {"people": [{"pose_keypoints_2d": [[1, 2, 1]] * 18, "hand_right_keypoints_2d": None}], "canvas_width": 20,
         "canvas_height": 20},
        {"annotations": [], "images": []}, [{"keypoints": [[1, 2]]}], {"instance_info": []},
    )  # fmt: skip
