"""Hostile and damaged model files: a typed error that names the file, within a second, for each of them."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.fileconfig import CONFIG_KEY, config_to_json
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header, read_tensors, write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet, load_unet
from comfyui_controlnet_core.controlnet_core.checkpoints.lora import read_lora
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet
from comfyui_controlnet_core.controlnet_core.config import DEMO, ControlNetConfig, TextConfig, UnionConfig
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, CoreError, MissingFileError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from fuzz.diffusers_folder import save_folder
from safetensors.torch import load_file

UNET = DEMO.unet.__class__(widths=(32, 64), res_blocks=1, transformer_depth=(1, 0), num_heads=2, context_dim=32)
NET = ControlNetConfig(unet=UNET, hint_widths=(16, 16, 32, 32))
SECONDS = 2.0
"""Processor time that a refusal may take; the work that is refused would take minutes."""


@contextmanager
def refused(words: str | None, name: str = "") -> Iterator[None]:
    """The block raises a CheckpointError of exit code 3 that names the file, in little processor time."""
    began = time.process_time()
    with pytest.raises(CheckpointError, match=words) as caught:
        yield
    assert time.process_time() - began < SECONDS
    assert caught.value.exit_code == 3 and name in str(caught.value)


def write_raw(path: Path, header: object, body: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


# -------------------------------------------------------------------------------------- safetensors headers

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "type is a list": {"w": {**ENTRY, "dtype": ["F32"]}},
    "type is a number": {"w": {**ENTRY, "dtype": 3}},
    "type is a table": {"w": {**ENTRY, "dtype": {}}},
    "shape is a number": {"w": {**ENTRY, "shape": 2}},
    "shape is a table": {"w": {**ENTRY, "shape": {"0": 2}}},
    "size is a fraction": {"w": {**ENTRY, "shape": [2.0]}},
    "size is true": {"w": {**ENTRY, "shape": [True, 2]}},
    "a million axes": {"w": {**ENTRY, "shape": [2**62] * 1_000_000}},
    "three offsets": {"w": {**ENTRY, "data_offsets": [0, 8, 8]}},
    "offsets are text": {"w": {**ENTRY, "data_offsets": ["0", "8"]}},
    "offsets are null": {"w": {**ENTRY, "data_offsets": None}},
    "metadata is a number": {"__metadata__": 3, "w": ENTRY},
    "metadata holds a number": {"__metadata__": {"format": 3}, "w": ENTRY},
    "name of a megabyte": {"w" * 1_000_000: ENTRY},
    "too many tensors": {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(50_001)},
    "millions of lists": b'{"w":[' + b"[]," * 10_000_000 + b"[]]}",
    "number of many digits": b'{"w":{"dtype":"F32","shape":[1' + b"0" * 5_000 + b'],"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_of_wrong_types_and_sizes(tmp_path: Path, header: object) -> None:
    path = write_raw(tmp_path / "w.safetensors", header, bytes(8))
    with refused("damaged or incomplete|expected at most", "w.safetensors"):
        read_header(path)


# ------------------------------------------------------------------------------------------------ pickles


def tuple_bomb(levels: int) -> bytes:
    """A pickle of {t: 1} where each tuple t holds the next one twice: 2^levels values to hash, 8 bytes a level."""
    code = b"\x80\x02}K\x01"
    for i in range(levels):
        code += b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86"
    return code + b"K\x01s."


def zipped(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return path


def test_a_tuple_bomb_is_one(tmp_path: Path) -> None:
    """The bytes mean what the name says: with few levels they are a table with a nested tuple as key."""
    assert pickle.loads(tuple_bomb(2)) == {((1, 1), (1, 1)): 1}


@pytest.mark.parametrize("form", ["zip", "legacy", "upper case", "zip behind it"])
def test_nested_tuples_as_keys(tmp_path: Path, form: str) -> None:
    path, bomb = tmp_path / "w.ckpt", tuple_bomb(40)
    assert len(bomb) < 300
    if form == "zip":
        zipped(path, bomb)
    elif form == "upper case":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/DATA.PKL", bomb)
    else:
        path.write_bytes(bomb + (zipped(tmp_path / "z", b"x").read_bytes() if form == "zip behind it" else b""))
    with refused(r"w\.ckpt: a tuple in its pickle has [\d,]+ values, expected at most 1,000"):
        read_header(path)


def test_a_bomb_in_a_later_pickle_of_a_legacy_file(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1)}, buffer, _use_new_zipfile_serialization=False)
    first = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    assert buffer.getvalue().startswith(first)
    path.write_bytes(first + pickle.dumps(1001, protocol=2) + pickle.dumps({}, protocol=2) + tuple_bomb(40))
    with refused("a tuple in its pickle"):
        read_header(path)


@pytest.mark.parametrize("large", ["pickle", "weights"])
def test_archives_that_unpack_to_gigabytes(tmp_path: Path, large: str) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(100_000_000 if large == "pickle" else 0))
        archive.writestr("archive/data/0", bytes(200_000_000 if large == "weights" else 0))
    assert path.stat().st_size < 300_000
    with refused(r"w\.pth: its archive has [\d,.]+ times its size on disk when unpacked, expected at most 4"):
        read_header(path)


def test_pickles_of_too_many_instructions(tmp_path: Path) -> None:
    with refused("its pickle has .* instructions, expected at most 400,000"):
        read_header(zipped(tmp_path / "w.pth", b"\x80\x02" + b"N" * 500_000 + b"."))


def test_views_with_more_elements_than_the_file_has_bytes(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1).expand(100_000, 100_000)}, tmp_path / "w.pth")
    with refused(r"w\.pth: the file has [\d,.]+ times its size on disk as tensors, expected at most 4"):
        read_header(tmp_path / "w.pth")


def test_a_storage_that_no_memory_holds(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(7)}, buffer, _use_new_zipfile_serialization=False)
    huge = b"\x8a\x06\x00\x00\x00\x00\x00\x10"  # 2^44 values in place of 7
    (tmp_path / "w.pth").write_bytes(buffer.getvalue().replace(b"K\x07", huge))
    with refused(r"w\.pth is damaged or incomplete: it asks for [\d,]+ bytes"):
        read_header(tmp_path / "w.pth")


def test_names_that_grow_with_every_level(tmp_path: Path) -> None:
    table: dict[str, object] = {"w": torch.ones(1)}
    for _ in range(20):
        table = {"x" * 100: table}
    torch.save(table, tmp_path / "w.pth")
    with refused("a name in it has [0-9,]+ characters, expected at most 1,000"):
        read_header(tmp_path / "w.pth")


def test_a_compressed_archive_of_usual_size_is_read(tmp_path: Path) -> None:
    stored, packed = tmp_path / "a.pth", tmp_path / "b.pth"
    weights = {"w": torch.randn(1000)}
    torch.save(weights, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert torch.equal(read_tensors(read_header(packed))["w"], weights["w"])


# ------------------------------------------------------------------------------------------------ configs


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, a ControlNet, both in our layout, and diffusers folders of UNet and ControlNet."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet, net = UNet(UNET), ControlNet(NET)
    vae = AutoencoderKL(DEMO.vae.__class__(widths=(32, 32), res_blocks=1))
    text = ClipTextModel(TextConfig(width=32, layers=1, heads=2, vocab_size=40))
    config = DEMO.__class__("tiny", UNET, vae.config, text.config)
    save_checkpoint(folder / "model.safetensors", config, unet, vae, text, layout="core")
    save_controlnet(folder / "net.safetensors", net, layout="core")
    save_folder(folder / "unet", unet)
    save_folder(folder / "net", net)
    return folder


HUGE = 10**9
BOMBS = {
    "res_blocks": ('"res_blocks":1', f'"res_blocks":{HUGE}'),
    "depth": ('"transformer_depth":[1,0]', f'"transformer_depth":[{HUGE},0]'),
    "middle depth": ('"middle_depth":1', f'"middle_depth":{HUGE}'),
    "many middle blocks": ('"middle_depth":1', '"middle_depth":9000000'),
    "many levels": ('"widths":[32,64]', '"widths":[' + "32," * 100_000 + "64]"),
    "width": ('"widths":[32,64]', f'"widths":[{HUGE**3},64]'),
    "heads": ('"num_heads":2', '"num_heads":0'),
    "heads that do not divide": ('"num_heads":2', '"num_heads":3'),
    "negative": ('"res_blocks":1', '"res_blocks":-3'),
    "text": ('"res_blocks":1', '"res_blocks":"1"'),
    "fraction": ('"res_blocks":1', '"res_blocks":1.5'),
    "infinity": ('"res_blocks":1', '"res_blocks":Infinity'),
    "true": ('"res_blocks":1', '"res_blocks":true'),
    "null": ('"widths":[32,64]', '"widths":null'),
    "table": ('"widths":[32,64]', '"widths":{"0":32}'),
    "levels differ": ('"widths":[32,64]', '"widths":[32,64,64]'),
    "half of JSON": ('"widths":[32,64]', '"widths":[32,64'),
    "nested": ('"widths":[32,64]', '"widths":' + "[" * 100_000),
}
NET_BOMBS = {
    "hint widths": ('"hint_widths":[16,16,32,32]', '"hint_widths":[' + "16," * 1_000_000 + "32]"),
    "hint width": ('"hint_widths":[16,16,32,32]', '"hint_widths":[16,16,32,-32]'),
    "union layers": ('"union":null', '"union":{"layers":' + f"{HUGE}}}"),
    "union types": ('"union":null', '"union":{"types":0}'),
    "union is text": ('"union":null', '"union":"all"'),
}
MODEL_BOMBS = {
    "layers": ('"layers":1', f'"layers":{HUGE}'),
    "vocabulary": ('"vocab_size":40', f'"vocab_size":{HUGE}'),
    "patch": ('"patch":1', '"patch":0'),
    "scale": ('"scaling_factor":0.18215', '"scaling_factor":NaN'),
    "activation": ('"activation":"quick_gelu"', '"activation":"relu"'),
}


def with_config(path: Path, target: Path, change: tuple[str, str]) -> Path:
    metadata = dict(read_header(path).metadata)
    text = metadata[CONFIG_KEY]
    assert change[0] in text, text
    write_safetensors(target, load_file(path), {**metadata, CONFIG_KEY: text.replace(*change, 1)})
    return target


@pytest.mark.parametrize("change", [*BOMBS.values(), *NET_BOMBS.values()], ids=[*BOMBS, *NET_BOMBS])
def test_configs_of_nets_are_bounded(models: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    path = with_config(models / "net.safetensors", tmp_path / "bad.safetensors", change)
    with refused(None, "bad.safetensors"):
        load_controlnet(path)
    began = time.process_time()
    assert not inspect_file(path).loadable
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("change", [*BOMBS.values(), *MODEL_BOMBS.values()], ids=[*BOMBS, *MODEL_BOMBS])
def test_configs_of_checkpoints_are_bounded(models: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    path = with_config(models / "model.safetensors", tmp_path / "bad.safetensors", change)
    with refused(None, "bad.safetensors"):
        load_checkpoint(path)
    assert not inspect_file(path).loadable


def test_a_union_of_the_released_size_is_within_the_limits() -> None:
    from comfyui_controlnet_core.controlnet_core.checkpoints.check_config import check_config
    from comfyui_controlnet_core.controlnet_core.config import SD15, SDXL, SDXL_REFINER

    for config in (SD15, SDXL, SDXL_REFINER, ControlNetConfig(SDXL.unet, union=UnionConfig(8))):
        check_config(config)
        assert config_to_json(config)


BAD_CONFIGS = {
    "no JSON": b"{",
    "no text": b"\xff\xfe\x00\x80",
    "a list": b"[]",
    "deep": b'{"a":' + b"[" * 100_000,
    "heads 0": b'{"attention_head_dim": [0, 0]}',
    "heads differ, 0": b'{"attention_head_dim": [2, 0]}',
    "heads text": b'{"attention_head_dim": ["2", "2"]}',
    "heads negative": b'{"attention_head_dim": -2}',
    "heads huge": b'{"attention_head_dim": 100000000000}',
    "heads that do not divide": b'{"attention_head_dim": 7}',
    "groups table": b'{"norm_num_groups": {}}',
}


@pytest.mark.parametrize("content", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
@pytest.mark.parametrize("name", ["unet", "net"])
def test_configs_of_diffusers_folders(models: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    weights = models / name / "diffusion_pytorch_model.safetensors"
    write_safetensors(folder / weights.name, load_file(weights))
    (folder / "config.json").write_bytes(content)
    load: Callable[[Path], object] = load_unet if name == "unet" else load_control
    with refused("config"):
        load(folder)


def test_schedulers_of_wrong_types(models: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipe"
    (pipeline / "unet").mkdir(parents=True)
    (pipeline / "scheduler").mkdir()
    (pipeline / "model_index.json").write_text("{}")
    weights = load_file(models / "unet" / "diffusion_pytorch_model.safetensors")
    write_safetensors(pipeline / "unet" / "diffusion_pytorch_model.safetensors", weights)
    for content in (
        {"prediction_type": ["epsilon"]},
        {"prediction_type": {}},
        {"_class_name": "EDMEuler", "sigma_max": "high"},
        {"_class_name": "EDMEuler", "sigma_max": float("nan")},
        {"_class_name": "EDMEuler", "sigma_max": None},
    ):
        (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
        with refused("pipe"):
            load_checkpoint(pipeline)


@pytest.mark.parametrize(
    "settings",
    ["{", "[]", '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": [1]}', '{"unet.alpha_pattern": {"to_k": "x"}}']
    + ['{"unet.alpha_pattern": ["to_k"]}', "[" * 100_000],
)
def test_settings_of_peft_are_an_error_that_inspect_reports_too(tmp_path: Path, settings: str) -> None:
    path = tmp_path / "lora.safetensors"
    name = "unet.down_blocks.0.attn2.to_k"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    write_safetensors(path, tensors, {"lora_adapter_metadata": settings})
    with refused("lora_adapter_metadata", "lora.safetensors"):
        read_lora(path)
    assert "lora_adapter_metadata" in inspect_file(path).problem


def test_an_alpha_of_two_numbers(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = {f"lora_unet_a.lora_{end}.weight": torch.ones(2, 2) for end in ("up", "down")}
    write_safetensors(path, {**tensors, "lora_unet_a.alpha": torch.ones(2)})
    with refused("alpha of lora_unet_a is not one number", "lora.safetensors"):
        read_lora(path)
    assert not inspect_file(path).loadable


# ------------------------------------------------------------------------------------------------- names


def test_names_that_no_file_has(tmp_path: Path) -> None:
    with refused("File name too long"):
        read_header(tmp_path / ("x" * 300 + ".safetensors"))
    with pytest.raises(MissingFileError):
        read_header(tmp_path / "a\0b.safetensors")


# ---------------------------------------------------------------------------------------------- mutations


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies with bytes flipped, cut out or repeated, most of them near the beginning, where the structure is."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed = changed or bytearray(1)
            at = int(len(changed) * rng.random() ** 3)
            match rng.randrange(4):
                case 0:
                    changed[at] = rng.randrange(256)
                case 1:
                    changed[at] ^= 1 << rng.randrange(8)
                case 2:
                    del changed[at : at + rng.choice((1, 4, 100))]
                case 3:
                    changed[at:at] = changed[at : at + rng.choice((1, 8, 200))]
        yield bytes(changed)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy", "lora"])
def test_mutated_files_end_in_a_typed_error_or_load(models: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / "mutant.ckpt"
    if form == "safetensors":
        path.write_bytes((models / "net.safetensors").read_bytes()[:40_000])
    elif form == "lora":
        name = "unet.a.attn2.to_k"
        tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
        write_safetensors(path, tensors, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4})})
    else:
        torch.save(
            {"state_dict": {f"w.{i}": torch.ones(2) for i in range(4)}, "epoch": 1},
            path,
            _use_new_zipfile_serialization=form == "zip",
        )
    original, read = path.read_bytes(), 0
    for mutant in mutations(original, 250, seed=7):
        path.write_bytes(mutant)
        try:
            inspect_file(path)
            read_tensors(read_header(path))
            read += 1
        except CoreError as error:
            assert error.exit_code == 3
    assert read < 250
