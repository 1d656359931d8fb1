"""A control file on another base than its own: told by name, from headers, in every combination of family and kind.

The files have the released shapes and real headers; their weights are holes in sparse files, gigabytes of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.adapters import ADAPTER_RULES
from comfyui_controlnet_core.controlnet_core.checkpoints.control import CONTROL_KINDS, outline
from comfyui_controlnet_core.controlnet_core.checkpoints.fit import misfit
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap, add_prefix
from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import DIFFUSERS, LDM, Layout
from comfyui_controlnet_core.controlnet_core.checkpoints.plan import open_as
from comfyui_controlnet_core.controlnet_core.config import DEMO, SD15, SD21, SDXL, AdapterConfig, UnionConfig
from comfyui_controlnet_core.controlnet_core.errors import UnfitError
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.nodes.standalone.values import ControlNetHandle
from comfyui_controlnet_core.nodes.values import ControlSpec
from comfyui_controlnet_core.workflows import cli
from PIL import Image

Shapes = dict[str, tuple[int, ...]]

FAMILIES = {"sd15": SD15, "sd2": SD21, "sdxl": SDXL, "demo": DEMO}
ADAPTERS = {
    "sd15": AdapterConfig(),
    "sdxl": AdapterConfig(unshuffle=16),
    "demo": AdapterConfig(widths=DEMO.unet.widths),
}
TITLES = {"controlnet": "ControlNet", "union": "Union", "control-lora": "Control-LoRA", "adapter": "T2I-Adapter"}
CONTROLS = [(kind, family) for kind in TITLES for family in (ADAPTERS if kind == "adapter" else FAMILIES)]
FITTING = [*((*control, control[1]) for control in CONTROLS), ("adapter", "sd15", "sd2")]
"""(kind, family, base); SD2's blocks are as wide as those of SD1.x, which is all that an adapter needs."""
MISFITS = [(*control, base) for control in CONTROLS for base in FAMILIES if (*control, base) not in FITTING]


def base_shapes(family: str) -> Shapes:
    unet = FAMILIES[family].unet
    with on_meta():
        state = UNet(unet).state_dict()
    keymap = KeyMap(LDM.unet_rules(unet))
    return {f"model.diffusion_model.{keymap.to_theirs(key)}": tuple(tensor.shape) for key, tensor in state.items()}


def net_shapes(family: str, layout: Layout = LDM, union: UnionConfig | None = None) -> Shapes:
    config = replace(FAMILIES[family].controlnet, union=union)
    with on_meta():
        state = (ControlNetUnion if union else ControlNet)(config).state_dict()
    prefix = "control_model." if layout is LDM else ""
    keymap = KeyMap(add_prefix(layout.controlnet_rules(config.unet, 2 * len(config.hint_widths)), prefix))
    return {str(keymap.to_theirs(key)): tuple(tensor.shape) for key, tensor in state.items()}


def lora_shapes(family: str, rank: int = 64) -> Shapes:
    """Pairs for the weights that the base has too; the others whole."""
    shapes: Shapes = {"lora_controlnet": (0,)}
    for key, shape in net_shapes(family).items():
        name = key.removeprefix("control_model.")
        if len(shape) < 2 or name.startswith(("zero_convs.", "input_hint_block.", "middle_block_out.")):
            shapes[name] = shape
        else:
            stem = name.removesuffix(".weight")
            shapes |= {f"{stem}.up": (shape[0], rank), f"{stem}.down": (rank, *shape[1:])}
    return shapes


def adapter_shapes(family: str) -> Shapes:
    config = ADAPTERS[family]
    with on_meta():
        state = Adapter(config).state_dict()
    blocks = (f"body.{n}.block1.weight" for n in range(len(config.widths) * config.res_blocks))
    keymap = KeyMap(ADAPTER_RULES["t2i-adapter", "original"](blocks))
    return {str(keymap.to_theirs(key)): tuple(tensor.shape) for key, tensor in state.items()}


SHAPES = {
    "base": base_shapes,
    "controlnet": net_shapes,
    "union": lambda family: net_shapes(family, DIFFUSERS, UnionConfig(width=FAMILIES[family].unet.widths[0])),
    "control-lora": lora_shapes,
    "adapter": adapter_shapes,
}


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A sound float16 safetensors file whose weights take no room on disk."""
    entries, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        entries[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


class Files:
    """Files by kind and family, written when first asked for, below the folders of a models tree."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.path = cache(self._write)

    def _write(self, kind: str, family: str) -> Path:
        folder = self.models / ("checkpoints" if kind == "base" else "controlnet")
        folder.mkdir(exist_ok=True)
        path = folder / f"{kind}_{family}.safetensors"
        write_sparse(path, SHAPES[kind](family))
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(("kind", "family", "base"), MISFITS)
def test_mat1_and_mat2_shapes_another_base_is_named_from_headers(
    files: Files, kind: str, family: str, base: str
) -> None:
    control, checkpoint = files.path(kind, family), files.path("base", base)
    began = time.process_time()
    message = misfit(control, checkpoint)
    assert time.process_time() - began < 1.0
    assert control.name in message
    assert checkpoint.name in message
    assert TITLES[kind] in message
    assert f"{FAMILIES[base].unet.context_dim} wide text" in message
    assert "load a control file made for" in message


@pytest.mark.parametrize(("kind", "family", "base"), FITTING)
def test_a_control_file_of_the_same_base_fits(files: Files, kind: str, family: str, base: str) -> None:
    assert misfit(files.path(kind, family), files.path("base", base)) == ""


# ---- Apply: the width of the text tells, before anything is sampled ----------------------------------------------


def apply(path: Path, width: int) -> list[Any]:
    """Both halves behind Apply, with a net that has shapes and no weights."""
    header, identity = open_as(path, *CONTROL_KINDS)
    net = outline(header, identity)
    text = [[torch.zeros(1, 77, width), {}]]
    spec = ControlSpec(ControlNetHandle(net, identity, path), torch.zeros(1, 64, 64, 3))
    return list(StandaloneHost(device="cpu").apply_control(text, text, [spec]))


@pytest.mark.parametrize(("kind", "family", "base"), MISFITS)
def test_mat1_and_mat2_shapes_apply_compares_the_width_of_the_text(
    files: Files, kind: str, family: str, base: str
) -> None:
    path, width = files.path(kind, family), FAMILIES[base].unet.context_dim
    began = time.process_time()
    with pytest.raises(UnfitError, match=f"{path.name} was made for .* wide text.*, the prompt .*{width} wide text"):
        apply(path, width)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(("kind", "family", "base"), FITTING)
def test_apply_takes_the_text_of_the_same_base(files: Files, kind: str, family: str, base: str) -> None:
    positive, negative = apply(files.path(kind, family), FAMILIES[base].unet.context_dim)
    assert len(positive[0][1]["control"]) == len(negative[0][1]["control"]) == 1


def test_apply_lets_an_adapter_of_no_known_model_pass(tmp_path: Path) -> None:
    """Nothing is known of its base's text: sampling compares the blocks."""
    path = tmp_path / "own.safetensors"
    with on_meta():
        net = Adapter(AdapterConfig(widths=(48, 96)))
    _, identity = open_as(_own(path, net), "t2i-adapter")
    spec = ControlSpec(ControlNetHandle(net, identity, path), torch.zeros(1, 64, 64, 3))
    text = [[torch.zeros(1, 77, 768), {}]]
    assert StandaloneHost(device="cpu").apply_control(text, text, [spec])[0][0][1]["control"]


def _own(path: Path, net: Adapter) -> Path:
    keymap = KeyMap(ADAPTER_RULES["t2i-adapter", "original"](f"body.{n}.block1.weight" for n in range(4)))
    write_sparse(path, {str(keymap.to_theirs(k)): tuple(t.shape) for k, t in net.state_dict().items()})
    return path


# ---- `controlnet validate` ---------------------------------------------------------------------------------------


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def native(base: str, control: str, strength: float = 1.0) -> dict[str, Any]:
    """Native nodes: loader, apply, sampler."""
    apply_node = node(
        "ControlNetApplyAdvanced", positive=["text", 0], negative=["text", 0], control_net=["net", 0],
        image=["hint", 0], strength=strength, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    return {**common(base), "net": node("ControlNetLoader", control_net_name=control), "apply": apply_node}


def stacked(base: str, control: str, strength: float = 1.0) -> dict[str, Any]:
    """Our nodes, the net in a stack."""
    unit = node(
        "CNCore_ControlUnit", control_net=["net", 0], image=["hint", 0], strength=strength, start_percent=0.0,
        end_percent=1.0, mode="balanced",
    )  # fmt: skip
    stack = node("CNCore_ApplyControlStack", positive=["text", 0], negative=["text", 0], stack=["unit", 0])
    nodes = {"net": node("CNCore_LoadControlNet", control_net=control), "unit": unit, "apply": stack}
    return {**common(base), **nodes}


def common(base: str) -> dict[str, Any]:
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name=base),
        "text": node("CLIPTextEncode", text="a red ball", clip=["load", 1]),
        "hint": node("LoadImage", image="hint.png"),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sample": node(
            "KSampler", model=["load", 0], positive=["apply", 0], negative=["apply", 1], latent_image=["empty", 0],
            seed=1, steps=1, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="a"),
    }  # fmt: skip


class Desk:
    """Runs `controlnet validate` on a workflow."""

    def __init__(self, files: Files, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.files, self.folder, self.capsys = files, folder, capsys
        Image.new("RGB", (64, 64)).save(folder / "hint.png")

    def validate(self, workflow: dict[str, Any]) -> tuple[int, list[str]]:
        """(exit code, lines of problems)."""
        path = self.folder / "w.json"
        path.write_text(json.dumps(workflow))
        code = cli.main(["validate", str(path), "--models", str(self.files.models), "--input", str(self.folder)])
        return code, self.capsys.readouterr().err.splitlines()


@pytest.fixture
def desk(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(files, tmp_path, capsys)


@pytest.mark.parametrize(
    ("kind", "family", "base", "workflow"),
    [*((*misfit, native) for misfit in MISFITS), *((kind, "sd15", "sdxl", stacked) for kind in TITLES)],
)
def test_validate_names_nodes_and_files_of_a_misfit(
    desk: Desk, kind: str, family: str, base: str, workflow: Any
) -> None:
    control, checkpoint = desk.files.path(kind, family), desk.files.path("base", base)
    began = time.process_time()
    code, lines = desk.validate(workflow(checkpoint.name, control.name))
    assert time.process_time() - began < 1.0
    assert code == 3
    [line] = lines
    for part in ("node net", "node sample", "node load", control.name, checkpoint.name, TITLES[kind]):
        assert part in line


@pytest.mark.parametrize("workflow", [native, stacked])
@pytest.mark.parametrize("kind", TITLES)
def test_validate_is_silent_where_all_fits_or_the_net_is_not_used(desk: Desk, kind: str, workflow: Any) -> None:
    control, base = desk.files.path(kind, "sd15").name, desk.files.path("base", "sd15").name
    assert desk.validate(workflow(base, control)) == (0, [])
    other = desk.files.path("base", "sdxl").name
    assert desk.validate(workflow(other, control, strength=0.0)) == (0, [])


def test_validate_tells_a_model_that_completes_a_net_of_another_base(desk: Desk) -> None:
    control, base = desk.files.path("control-lora", "sdxl"), desk.files.path("base", "sd15")
    workflow = native(base.name, control.name, strength=0.0)
    workflow["net"] = node("DiffControlNetLoader", model=["load", 0], control_net_name=control.name)
    code, [line] = desk.validate(workflow)
    assert code == 3
    assert "node net (DiffControlNetLoader), input control_net_name" in line
    assert "wide text: load a control file made for Stable Diffusion 1" in line


def test_mat1_and_mat2_shapes_a_run_ends_before_it_loads(desk: Desk) -> None:
    control, base = desk.files.path("controlnet", "sd15"), desk.files.path("base", "sdxl")
    folders = ["--models", str(desk.files.models), "--input", str(desk.folder), "--output", str(desk.folder / "out")]
    path = desk.folder / "w.json"
    path.write_text(json.dumps(native(base.name, control.name)))
    began = time.process_time()
    code = cli.main(["run", str(path), "--quiet", "--device", "cpu", *folders])
    assert time.process_time() - began < 1.0
    assert code == 3
    assert f"{base.name} is " in desk.capsys.readouterr().err
