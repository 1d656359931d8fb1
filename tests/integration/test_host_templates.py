"""The editor's own templates, as they come, without the editor.

They are not part of this package: the tests need the package comfyui-workflow-templates, or its folder in
COMFYUI_TEMPLATES. The files that the templates name are made here, with random weights of the demo's shape.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import ldm
from comfyui_controlnet_core.controlnet_core.checkpoints.adapters import ADAPTER_RULES
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet, save_vae
from comfyui_controlnet_core.controlnet_core.config import DEMO, AdapterConfig, ModelConfig
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.workflows import cli
from PIL import Image

SMALL = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64, 128, 128), transformer_depth=(1, 1, 1, 0), num_heads=4))
"""Four levels, as Stable Diffusion 1.5 has: a T2I-Adapter's original file does not tell another number."""

INPAINT = replace(SMALL, unet=replace(SMALL.unet, in_channels=9))

SMALL_LATENT = ("EmptyLatentImage.width=64", "EmptyLatentImage.height=64")
CUT = (*SMALL_LATENT, "KSampler.steps=2")
UPSCALED = ("LatentUpscale.width=96", "LatentUpscale.height=96")
SMALLEST_PICTURE = ("ImageScaleToTotalPixels.megapixels=0.01", "KSampler.steps=3")


def area(top: int) -> dict[str, int]:
    """A band of 64 x 64 pixels."""
    return {"width": 64, "height": 64, "y": top}


AREAS = {15: 0, 11: 32, 34: 48, 18: 64}
"""Node and top of each area: the template's 0, 312, 512 and 704 of 1280 pixels, brought to 128."""


@dataclass(frozen=True)
class Template:
    """How a template is cut by --set, and what it saves then.

    other: a further setting, of what the template is about, that has to change the last picture. sizes: width and
    height of the pictures saved. base: the shape of its checkpoints.
    """

    cut: tuple[str, ...] = CUT
    other: tuple[str, ...] = ("ControlNetApplyAdvanced.strength=0",)
    sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    base: ModelConfig = SMALL


TEMPLATES = {
    "controlnet_example": Template(),
    "mixing_controlnets": Template(other=("36.strength=0",)),
    "lora": Template(other=("11.strength_model=0",)),
    "lora_multiple": Template(other=("10.strength_model=0", "11.strength_model=0")),
    "depth_controlnet": Template(),
    "depth_t2i_adapter": Template(),
    "2_pass_pose_worship": Template((*SMALL_LATENT, *UPSCALED, "50.steps=2", "58.steps=2"), sizes=((96, 96),)),
    "inpaint_example": Template(SMALLEST_PICTURE, ("VAEEncodeForInpaint.grow_mask_by=0",), ((80, 120),), INPAINT),
    "image2image": Template(SMALLEST_PICTURE, ("KSampler.denoise=0.3",), ((80, 120),)),
    "hiresfix_latent_workflow": Template(
        (*SMALL_LATENT, *UPSCALED, "3.steps=2", "11.steps=2"), ("11.denoise=1",), ((96, 96),)
    ),
    "area_composition": Template(
        (
            "EmptyLatentImage.width=64",
            "EmptyLatentImage.height=128",
            *(f"{node}.{key}={value}" for node, top in AREAS.items() for key, value in area(top).items()),
            "LatentUpscale.width=96",
            "LatentUpscale.height=192",
            "3.steps=2",
            "24.steps=2",
        ),
        ("34.y=0",),
        ((64, 128), (96, 192)),
    ),
}


def templates_folder() -> Path | None:
    """Where the templates are, if they are."""
    if "COMFYUI_TEMPLATES" in os.environ:
        return Path(os.environ["COMFYUI_TEMPLATES"])
    found = importlib.util.find_spec("comfyui_workflow_templates")
    return Path(found.origin).parent / "templates" if found and found.origin else None


FOLDER = templates_folder()
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs comfyui-workflow-templates or COMFYUI_TEMPLATES")


def named_files(name: str) -> Iterator[tuple[str, str]]:
    """(class, file) of the nodes that load a file."""
    assert FOLDER is not None
    loaders = ("CheckpointLoaderSimple", "VAELoader", "ControlNetLoader", "LoadImage", "LoraLoader")
    for node in json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["nodes"]:
        if node["type"] in loaders:
            yield node["type"], node["widgets_values"][0]


def make_files(name: str, models: Path, pictures: Path) -> None:
    """All files that a template names, each with weights of its own."""
    config = TEMPLATES[name].base
    vocab = {"vocab_map": VocabMap.from_words(ClipTokenizer.load(), ["a red ball"]).to_tensor()}
    pictures.mkdir()
    for kind, file in named_files(name):
        torch.manual_seed(sum(file.encode()))
        unet, vae, text = UNet(config.unet), AutoencoderKL(config.vae), ClipTextModel(config.text)
        if kind == "CheckpointLoaderSimple":
            target = new(models / "checkpoints" / file)
            save_checkpoint(target, config, unet, vae, text, extras=vocab)
        elif kind == "VAELoader":
            save_vae(new(models / "vae" / file), vae)
        elif kind == "ControlNetLoader":
            make_control(new(models / "controlnet" / file), unet, config)
        elif kind == "LoraLoader":
            write_safetensors(new(models / "loras" / file), lora_tensors(unet, text, file))
        else:
            save_picture(new(pictures / file))


def make_control(path: Path, unet: UNet, config: ModelConfig) -> None:
    """A ControlNet whose zero convolutions have been trained, or a T2I-Adapter in its original layout."""
    if "T2IAdapter" not in path.name:
        net = ControlNet.from_unet(unet, config.controlnet)
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        save_controlnet(path, net, family="demo")
        return
    state = Adapter(AdapterConfig(widths=config.unet.widths)).state_dict()
    blocks = [f"body.{n}.block1.weight" for n in range(2 * len(config.unet.widths))]
    names = KeyMap(ADAPTER_RULES["t2i-adapter", "original"](blocks)).to_theirs
    write_safetensors(path, {str(names(key)): tensor for key, tensor in state.items()})


def save_picture(path: Path) -> None:
    """A ramp of colours, 64 wide and 96 high; its middle is transparent, which is where to inpaint."""
    ramp = np.linspace(0, 255, 96 * 64 * 4).reshape(96, 64, 4).astype(np.uint8)
    ramp[..., 3] = 255
    ramp[32:64, 16:48, 3] = 0
    Image.fromarray(ramp).save(path)


def lora_tensors(unet: UNet, text: ClipTextModel, seed: str) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 on all attention, in kohya's names."""
    generator = torch.Generator().manual_seed(sum(seed.encode()))
    tensors: dict[str, torch.Tensor] = {}
    parts = (
        ("lora_unet_", KeyMap(ldm.unet_rules(unet.config)), unet),
        ("lora_te_", KeyMap(ldm.clip_rules()), text),
    )
    for prefix, keymap, module in parts:
        for key, weight in module.state_dict().items():
            if "attn" in key and key.endswith(".weight"):
                stem = prefix + str(keymap.to_theirs(key)).removesuffix(".weight").replace(".", "_")
                out, inner = weight.shape
                tensors[f"{stem}.lora_up.weight"] = 0.5 * torch.randn(out, 2, generator=generator)
                tensors[f"{stem}.lora_down.weight"] = 0.5 * torch.randn(2, inner, generator=generator)
    return tensors


def new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def template_file(name: str) -> str:
    """The template's path; a folder of another version may lack it."""
    assert FOLDER is not None
    if not (FOLDER / f"{name}.json").exists():
        pytest.skip(f"{FOLDER} has no {name}.json")
    return str(FOLDER / f"{name}.json")


@pytest.fixture(scope="module", params=TEMPLATES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A template's name, and the folder of its models and pictures."""
    template_file(request.param)
    root = tmp_path_factory.mktemp("template")
    make_files(request.param, root / "models", root / "input")
    return request.param, root


def folders(root: Path, *keys: str) -> list[str]:
    return [part for key in keys for part in (f"--{key}", str(root / key))]


def cut_run(name: str, root: Path, *more: str) -> int:
    """Run a template on the files below `root`, with its cut and more settings. -> exit code."""
    settings = [part for setting in (*TEMPLATES[name].cut, *more) for part in ("--set", setting)]
    places = folders(root, "models", "input", "output")
    return cli.main(["run", template_file(name), *places, *settings, "--device", "cpu", "--json"])


def test_template_is_valid_as_it_comes_once_its_files_are_there(
    made: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name, root = made
    code = cli.main(["validate", template_file(name), *folders(root, "models", "input"), "--json"])
    assert result(capsys)["problems"] == []
    assert code == 0


def test_template_runs_cut_by_set_and_hears_what_it_is_about(
    made: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same seed with one setting more (no net, no LoRA, another area or mask) gives another picture."""
    name, root = made
    last = []
    for more in ((), TEMPLATES[name].other):
        assert cut_run(name, root, *more) == 0
        pictures = [np.asarray(Image.open(path)) for path in result(capsys)["images"]]
        assert sorted((p.shape[1], p.shape[0]) for p in pictures) == sorted(TEMPLATES[name].sizes)
        last.append(pictures[-1])
    assert not np.array_equal(*last)


@pytest.mark.parametrize("name", ["controlnet_example", "mixing_controlnets", "lora_multiple"])
def test_template_without_its_files_names_them_and_where_they_go(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", template_file(name), "--models", str(tmp_path), "--json"]) == 3
    said = " ".join(problem["message"] for problem in result(capsys)["problems"])
    for _, named in named_files(name):
        assert named in said
    assert ("models/loras" if name == "lora_multiple" else "models/controlnet") in said


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)
