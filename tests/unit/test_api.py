"""The Python API: the README's own lines, the same picture as the workflow, and errors that say what to do."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import comfyui_controlnet_core as cn
import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.controlnet_core.errors import (
    CheckpointError,
    DamagedFileError,
    MissingFileError,
    ShapeError,
    ValueRangeError,
)
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import ASSETS, StandaloneHost
from comfyui_controlnet_core.preprocessors import ParameterError, PictureError, WeightsError
from PIL import Image

ROOT = Path(cn.__file__).parent
PHOTO = ASSETS / "examples" / "coins.jpg"
PROMPT = "a photo of a red ball and a blue ball on yellow ground"


@pytest.fixture(scope="module")
def pipe() -> cn.Pipe:
    return cn.load("demo", device="cpu")


@pytest.fixture(scope="module")
def hint() -> np.ndarray:
    return cn.preprocess("canny", PHOTO, resolution=128, resize="shortest", output="detect_size")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def readme_code(page: str) -> str:
    """The block of a README that uses the API."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "cn.load" in block]
    return code


def test_the_lines_of_the_readme_run(tmp_path: Path) -> None:
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    subprocess.run([sys.executable, "-c", readme_code("README.md")], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (128, 128)
        assert np.asarray(image).std() > 10


def test_the_korean_readme_has_the_same_lines() -> None:
    english, korean = (ast.unparse(ast.parse(readme_code(page))) for page in ("README.md", "README.ko.md"))
    assert english == korean


def test_importing_the_package_loads_neither_torch_nor_the_api() -> None:
    code = "import sys, comfyui_controlnet_core; print([m for m in sys.modules if m in ('torch', 'numpy', 'PIL')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'loud'"):
        cn.loud  # noqa: B018


def test_a_call_gives_the_picture_of_the_nodes(pipe: cn.Pipe, hint: np.ndarray) -> None:
    """Same seed, same settings, same bits as Load, Preprocess, Apply ControlNet, Sample and VAE Decode."""
    mask = np.zeros((128, 128), np.float32)
    mask[:, :64] = 1.0
    one = cn.control("canny", hint, strength=0.8, start=0.1, end=0.9, mode="cfg-rw", mask=mask)
    image = pipe(PROMPT, negative="dark", controls=[one], seed=5, steps=4, cfg=5.0)

    nodes = build_nodes(StandaloneHost(device="cpu"))

    def node(name: str, **inputs: object) -> tuple:
        return getattr(nodes[name](), nodes[name].FUNCTION)(**inputs)

    model, clip, vae = node("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    positive, negative = node("CNCore_EncodePrompt", clip=clip, prompt=PROMPT, negative_prompt="dark")
    (net,) = node("CNCore_LoadControlNet", control_net="demo canny (built in)")
    positive, negative = node(
        "CNCore_ApplyControlNet", positive=positive, negative=negative, control_net=net,
        image=torch.from_numpy(hint)[None], strength=0.8, start_percent=0.1, end_percent=0.9, mode="cfg-rw",
        mask=torch.from_numpy(mask)[None],
    )  # fmt: skip
    (latent,) = node("EmptyLatentImage", width=128, height=128, batch_size=1)
    (latent,) = node(
        "CNCore_Sample", model=model, positive=positive, negative=negative, latent=latent, seed=5, steps=4, cfg=5.0,
        sampler="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    (decoded,) = node("VAEDecode", samples=latent, vae=vae)
    assert np.array_equal(pixels(image), (255.0 * decoded[0].numpy()).astype(np.uint8))


def test_controls_change_the_picture_and_add_up(pipe: cn.Pipe, hint: np.ndarray) -> None:
    def made(*controls: cn.Control) -> np.ndarray:
        return pixels(pipe(PROMPT, controls=controls, seed=7, steps=4))

    plain, canny = made(), made(cn.control("canny", hint))
    depth = cn.control("depth", np.linspace(0, 1, 128 * 128, dtype=np.float32).reshape(128, 128))
    assert np.array_equal(plain, made(cn.control("canny", hint, strength=0.0)))
    assert np.abs(plain - canny).mean() > 1
    assert np.abs(canny - made(cn.control("canny", hint), depth)).mean() > 1
    # a union reads the same hint differently when it is told another kind
    union = [made(cn.control("union", hint, kind=kind)) for kind in ("canny", "depth")]
    assert np.abs(union[0] - union[1]).mean() > 1


def test_the_size_can_be_chosen(pipe: cn.Pipe) -> None:
    assert pipe(PROMPT, steps=1).size == (128, 128)
    assert pipe(PROMPT, steps=1, size=64).size == (64, 64)
    assert pipe(PROMPT, steps=1, size=(96, 64)).size == (96, 64)
    with pytest.raises(ShapeError, match=r"100x100 pixels: give multiples of 8, such as 128"):
        pipe(PROMPT, size=100)


def test_models_are_found_by_path_and_by_name(pipe: cn.Pipe, hint: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "controlnet").mkdir()
    shutil.copy(ASSETS / "demo_canny.safetensors", tmp_path / "controlnet" / "mine.safetensors")
    other = cn.load(ASSETS / "demo_base.safetensors", models=tmp_path, device="cpu")
    expected = pixels(pipe(PROMPT, controls=[cn.control("canny", hint)], steps=2))
    for net in ("mine.safetensors", ASSETS / "demo_canny.safetensors"):
        assert np.array_equal(expected, pixels(other(PROMPT, controls=[cn.control(net, hint)], steps=2)))


def test_pictures_come_as_files_pillow_images_arrays_and_tensors(tmp_path: Path) -> None:
    with Image.open(PHOTO) as opened:
        photo = opened.convert("RGB")
    array = np.asarray(photo)
    unit = array.astype(np.float32) / np.float32(255.0)
    expected = preprocessors.process("canny", unit[None])[0]
    assert expected.shape == (*array.shape[:2], 3) and 0 < expected.mean() < 1
    for picture in (PHOTO, str(PHOTO), photo, array, unit, torch.from_numpy(unit), unit[None]):
        assert np.array_equal(cn.preprocess("canny", picture), expected)
    # 16-bit gray keeps its range: Pillow's own conversion to RGB would cut it off
    deep = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    values = cn.preprocess("reference", deep)
    assert np.allclose(values[0, :, 0], [0.0, 0.5, 1.0], atol=1e-4)


def test_alpha_is_laid_over_white_but_not_in_a_mask(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, 2:] = (100, 100, 100, 255)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    half = picture.convert("LA")
    for given in (tmp_path / "a.png", picture, pixels, half):
        hint = cn.preprocess("reference", given)
        assert np.allclose(hint[:, :2], 1.0) and np.allclose(hint[:, 2:], 100 / 255)
        mask = cn.control("canny", given, mask=given).mask
        assert mask is not None and mask.max() < 0.5


def test_an_inpainting_hint_keeps_its_marks() -> None:
    mask = np.ones((1, 8, 8), np.float32)
    hint = cn.preprocess("inpaint", np.full((8, 8, 3), 0.5, np.float32), mask=mask)
    assert np.array_equal(hint, np.full((8, 8, 3), -1.0))
    assert np.array_equal(cn.control("inpaint", hint).hint, hint)


def test_errors_of_preprocess_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueRangeError, match=r"no preprocessor 'cany': choose one of canny, lines, .*depth_pro"):
        cn.preprocess("cany", PHOTO)
    with pytest.raises(ParameterError, match=r"canny has no parameter 'lo'; it has low, high"):
        cn.preprocess("canny", PHOTO, lo=3)
    with pytest.raises(MissingFileError, match=r"there is no picture nowhere.png: check the path"):
        cn.preprocess("canny", "nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DamagedFileError, match=r"text.png cannot be read as a picture"):
        cn.preprocess("canny", tmp_path / "text.png")
    with pytest.raises(PictureError, match=r"expected \(B,H,W,C\) with 1 to 4 channels"):
        cn.preprocess("canny", np.zeros((3, 8, 8, 8)))
    with pytest.raises(ShapeError, match=r"2 pictures of shape \(2, 8, 8, 3\) came, expected one"):
        cn.preprocess("canny", np.zeros((2, 8, 8, 3)))
    with pytest.raises(WeightsError, match=r"ControlNetHED.pth"):
        cn.preprocess("soft_edge_hed", PHOTO, models=tmp_path)


def test_errors_of_load_and_control_say_what_to_do(pipe: cn.Pipe, hint: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no file nothing.safetensors, .*: give a path to a file, .* demo"):
        cn.load("nothing.safetensors")
    with pytest.raises(MissingFileError, match=r"no file cany, .*built-in names canny, lines, soft_edge"):
        pipe(PROMPT, controls=[cn.control("cany", hint)])
    with pytest.raises(CheckpointError, match=r"demo_base.safetensors is .*expected a ControlNet"):
        pipe(PROMPT, controls=[cn.control(ASSETS / "demo_base.safetensors", hint)])
    with pytest.raises(ValueRangeError, match=r"mode 'strong' is unknown: choose one of balanced"):
        pipe(PROMPT, controls=[cn.control("canny", hint, mode="strong")])
    with pytest.raises(ValueRangeError, match=r"start_percent is 0.5 and end_percent 0.2"):
        pipe(PROMPT, controls=[cn.control("canny", hint, start=0.5, end=0.2)])
    with pytest.raises(ValueRangeError, match=r"device 'gpu' is unknown"):
        cn.load("demo", device="gpu")
