"""Model files as people have them: diffusers variants and shards, wrapped keys, scaled fp8, hint channels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import identify_file
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header, read_tensors, write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet, load_unet
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet
from comfyui_controlnet_core.controlnet_core.config import DEMO, ControlNetConfig, ModelConfig
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from few import few_of
from fuzz.diffusers_folder import save_folder
from safetensors.torch import load_file
from torch import Tensor, nn

UNET = replace(DEMO.unet, widths=(32, 64), res_blocks=1, transformer_depth=(1, 0), num_heads=2, context_dim=32)
NET = ControlNetConfig(unet=UNET, hint_widths=(16, 16, 32, 32))
MODEL = ModelConfig("tiny", UNET, DEMO.vae, DEMO.text)
STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNET)


@pytest.fixture(scope="module")
def net() -> ControlNet:
    torch.manual_seed(1)
    made = ControlNet(NET)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, unet: UNet) -> dict[str, Tensor]:
    """The UNet's weights under diffusers' names."""
    folder = tmp_path_factory.mktemp("unet")
    save_folder(folder, unet)
    return load_file(folder / f"{STEM}.safetensors")


def assert_same(loaded: nn.Module, original: nn.Module) -> None:
    expected = original.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


# --------------------------------------------------------------------------------------------- variants


def write_variant(folder: Path, weights: dict[str, Tensor], name: str) -> Path:
    """Write weights under this name; for an index, in two shards named as diffusers names them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"attention_head_dim": 2}')
    if not name.endswith(".json"):
        if name.endswith(".bin"):
            torch.save(weights, folder / name)
        else:
            write_safetensors(folder / name, weights)
        return folder / name
    stem = name.replace(".safetensors", "").replace(".index", "").removesuffix(".json")
    keys = sorted(weights)
    shards = {f"{stem}-{i + 1:05}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for shard, own in shards.items():
        write_safetensors(folder / shard, {key: weights[key] for key in own})
    places = {key: shard for shard, own in shards.items() for key in own}
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / name


NAMES = [
    f"{STEM}.safetensors",
    f"{STEM}.fp16.safetensors",
    f"{STEM}.bf16.safetensors",
    f"{STEM}.non_ema.safetensors",
    f"{STEM}.bin",
    f"{STEM}.non_ema.bin",
    f"{STEM}.safetensors.index.json",
    f"{STEM}.safetensors.index.fp16.json",
    f"{STEM}.safetensors.index.non_ema.json",
    f"{STEM}.fp16.safetensors.index.json",
]


@pytest.mark.parametrize("name", few_of(NAMES, *NAMES[::3]))
def test_every_variant_is_read_alone_and_by_its_folder(
    tmp_path: Path, weights: dict[str, Tensor], unet: UNet, name: str
) -> None:
    file = write_variant(tmp_path / "model", weights, name)
    for path in (file, file.parent):
        loaded = load_unet(path)
        assert loaded.config == UNET  # the heads are in config.json only
        assert_same(loaded, unet)
        assert inspect_file(path).loadable


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (NAMES, 0),
        (NAMES[1:], 6),
        ([*NAMES[1:6], NAMES[7]], 1),
        ([NAMES[2], NAMES[3], NAMES[4]], 2),
        ([NAMES[3], NAMES[4]], 3),
        ([NAMES[4], NAMES[5]], 4),
    ],
)
def test_which_variant_a_folder_takes(tmp_path: Path, weights: dict[str, Tensor], names: list[str], best: int) -> None:
    """Plain before fp16 before bf16 before others before non_ema; safetensors before .bin; one file before shards."""
    for name in names:
        marked = {key: torch.full_like(value, NAMES.index(name)) for key, value in weights.items()}
        write_variant(tmp_path / "model", marked, name)
    loaded = load_unet(tmp_path / "model").state_dict()
    assert {float(value.flatten()[0]) for value in loaded.values()} == {float(best)}


def test_a_pipeline_of_variants(tmp_path: Path, weights: dict[str, Tensor], unet: UNet) -> None:
    write_variant(tmp_path / "pipe" / "unet", weights, f"{STEM}.safetensors.index.fp16.json")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    loaded = load_checkpoint(tmp_path / "pipe")
    assert torch.equal(loaded.unet.conv_out.weight, unet.conv_out.weight)
    assert loaded.vae is None


# ------------------------------------------------------------------------------------------- wrapped keys


def flat(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {prefix + key: value for key, value in tensors.items()}


FLAT = {
    "compiled": flat("_orig_mod."),
    "parallel": flat("module."),
    "compiled and parallel": flat("module._orig_mod."),
    "state dict": flat("state_dict."),
    "model": flat("model."),
    "model and parallel": flat("model.module."),
    "compiled inside": lambda t: {k.replace("control_model.", "control_model._orig_mod."): v for k, v in t.items()},
    "step": lambda t: {**t, "global_step": torch.tensor(7), "epoch": torch.tensor([1])},
    "step and parallel": lambda t: {**flat("module.")(t), "global_step": torch.tensor(7)},
    "step inside parallel": lambda t: flat("module.")({**t, "global_step": torch.tensor(7)}),
    "averaged": lambda t: {**flat("module.")(t), "n_averaged": torch.tensor(7)},
    "sharded inside": lambda t: {k.replace(".", "._fsdp_wrapped_module.", 1): v for k, v in t.items()},
    "net": flat("net."),
    "averaged copy": flat("ema."),
}
NESTED = {
    "state_dict": lambda t: {"state_dict": t, "global_step": 7},
    "model": lambda t: {"model": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "epoch": 3},
    "model of a state dict": lambda t: {"model": {"state_dict": flat("module.")(t)}, "step": torch.tensor(3)},
    "model and loss": lambda t: {"model": t, "loss": torch.tensor(0.3), "hparams": {"lr": torch.tensor(1e-5)}},
    "net of a table": lambda t: {"controlnet": t, "step": 1},
    "module": lambda t: {"module": t, "lr_scheduler": {"base": torch.ones(1)}},
}


@pytest.mark.parametrize(
    ("form", "wrap"),
    [("safetensors", wrap) for wrap in FLAT.values()] + [("ckpt", wrap) for wrap in (*FLAT.values(), *NESTED.values())],
    ids=[f"{name} safetensors" for name in FLAT] + [f"{name} pickle" for name in (*FLAT, *NESTED)],
)
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_wrapped_nets(tmp_path: Path, net: ControlNet, wrap: Callable, form: str, layout: str) -> None:
    save_controlnet(tmp_path / "plain.safetensors", net, layout=layout)  # type: ignore[arg-type]
    path = tmp_path / f"net.{form}"
    wrapped = wrap(load_file(tmp_path / "plain.safetensors"))
    write_safetensors(path, wrapped) if form == "safetensors" else torch.save(wrapped, path)
    loaded, identity = load_controlnet(path)
    assert identity.kind == "controlnet"
    assert_same(loaded, net)


@pytest.mark.parametrize("wrap", FLAT.values(), ids=FLAT)
def test_wrapped_checkpoints_stay_checkpoints(tmp_path: Path, unet: UNet, wrap: Callable) -> None:
    """`model.` before the keys of LDM's UNet is a part of them, and no wrapper."""
    save_checkpoint(tmp_path / "plain.safetensors", MODEL, unet)
    write_safetensors(tmp_path / "model.safetensors", wrap(load_file(tmp_path / "plain.safetensors")))
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(loaded.unet.conv_out.weight, unet.conv_out.weight)


def test_weights_beside_unknown_tables_are_not_taken_for_all(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "vae": {"b": torch.ones(2)}}, tmp_path / "w.ckpt")
    assert set(read_header(tmp_path / "w.ckpt").tensors) == {"model.a", "vae.b"}


# --------------------------------------------------------------------------------------------- scaled fp8


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("per_row", [False, True])
def test_scaled_fp8_is_multiplied_by_its_scales(tmp_path: Path, unet: UNet, end: str, per_row: bool) -> None:
    save_checkpoint(tmp_path / "plain.safetensors", MODEL, unet, dtype=torch.float16)
    tensors, expected = {}, {}
    for key, value in load_file(tmp_path / "plain.safetensors").items():
        if value.ndim != 2:
            tensors[key] = value
            continue
        largest = value.float().abs().amax(1, keepdim=True) if per_row else value.float().abs().max()
        scale = largest / 448.0  # the largest float8_e4m3fn
        tensors[key] = (value.float() / scale).to(torch.float8_e4m3fn)
        tensors[key.replace(".weight", f".{end}")] = scale
        tensors[key.replace(".weight", ".scale_input")] = torch.tensor(0.1)
        expected[key] = (tensors[key].float() * scale).half()
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    path = tmp_path / "scaled.safetensors"
    write_safetensors(path, tensors)
    assert expected and "scaled fp8" in identify_file(path).details
    read = read_tensors(read_header(path))
    assert all(torch.equal(read[key], value) for key, value in expected.items())
    loaded = load_checkpoint(path).unet
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float16}
    originals = unet.state_dict()
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value.float(), originals[key], atol=0.02, rtol=0.07)


def test_scales_of_blocks_are_named(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.zeros(8, 8).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(4, 4)}
    write_safetensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: scaled fp8: a\.weight is \[8, 8\].*\[4, 4\]"):
        read_header(tmp_path / "w.safetensors")


# ---------------------------------------------------------------------------------------- hint channels


@pytest.mark.parametrize("layout", ["core", "ldm", "diffusers"])
def test_hints_of_four_channels_are_refused_when_the_net_is_loaded(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "net.safetensors"
    save_controlnet(path, ControlNet(replace(NET, hint_channels=4)), layout=layout)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"net\.safetensors .*reads hints of 4 channels"):
        load_control(path)
    assert "4 channels" in inspect_file(path).problem


def test_a_net_for_gray_hints_reads_the_mean_of_rgb(net: ControlNet) -> None:
    from comfyui_controlnet_core.controlnet_core.control.hint import check_hint_channels

    rgb = torch.rand(2, 3, 8, 8)
    assert torch.equal(check_hint_channels(rgb, 1), rgb.mean(1, keepdim=True))
    assert torch.equal(check_hint_channels(torch.cat([rgb, rgb[:, :1]], 1), 1), rgb.mean(1, keepdim=True))
    assert torch.equal(check_hint_channels(rgb[:, :1], 1), rgb[:, :1])


# -------------------------------------------------------------------------------------------- as choices


def test_a_workflow_chooses_folders_and_never_shards(tmp_path: Path, weights: dict[str, Tensor], unet: UNet) -> None:
    models = tmp_path / "models"
    write_variant(models / "diffusion_models" / "sharded", weights, f"{STEM}.safetensors.index.fp16.json")
    write_variant(models / "diffusion_models" / "single", weights, f"{STEM}.fp16.safetensors")
    write_variant(models / "checkpoints" / "sub" / "pipe" / "unet", weights, f"{STEM}.bf16.safetensors")
    (models / "checkpoints" / "sub" / "pipe" / "model_index.json").write_text("{}")
    host = StandaloneHost(models_dirs=[models], device="cpu", dtype="fp32")
    assert host.files("diffusion_models") == ("sharded", f"single/{STEM}.fp16.safetensors")
    assert host.files("checkpoints") == ("sub/pipe", f"sub/pipe/unet/{STEM}.bf16.safetensors")
    for kind, name in (("diffusion_models", "sharded"), ("checkpoints", "sub/pipe")):
        loaded = load_unet(host.find(kind, name))
        assert torch.equal(loaded.conv_out.weight, unet.conv_out.weight)


def test_adapters_are_found_in_their_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "t2i_adapter" / "canny.safetensors"
    write_safetensors(path, {"conv_in.weight": torch.zeros(4, 64, 1, 1)})
    host = StandaloneHost(models_dirs=[tmp_path], device="cpu", dtype="fp32")
    assert host.files("controlnet") == ("canny.safetensors",)
    assert host.find("controlnet", "canny.safetensors") == path
