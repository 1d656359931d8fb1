"""ControlNet-LLLite beside its published description on hooks (`support/lllite_reference.py`), on random weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints import ldm
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import identify_file
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.verify import verify_file
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO, SD15, SDXL, ModelConfig
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, UnfitError
from comfyui_controlnet_core.controlnet_core.models.control import ControlModel
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.lllite import ControlLLLite
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.prepare import Prepared
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions, Shortcuts
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed.fused_qkv import transform as fuse
from engine_runs import denoiser, evaluate, prepare_on
from lllite_reference import LAYERS, hooked, random_file
from random_tensors import assert_close, normal
from safetensors.torch import save_file
from torch import Tensor, nn

TOLERANCE = 1e-4
SCHEDULE = scaled_linear()
SMALL15 = replace(SD15.unet, widths=(32, 64, 64, 64), num_heads=2, context_dim=16)
SMALLXL = replace(
    SDXL.unet, widths=(32, 64, 64), transformer_depth=(0, 2, 3), middle_depth=3, head_dim=16, context_dim=24,
    label_dim=12,
)  # fmt: skip
BASES = {"sd15": SMALL15, "sdxl": SMALLXL}
SIZE = {"sd15": (8, 16), "sdxl": (8, 12)}


def places(unet: UNet) -> dict[str, tuple[int, int]]:
    """Every transformer block of a UNet by its public name -> width, pixels per token."""
    to_theirs = KeyMap(ldm.unet_rules(unet.config)).to_theirs
    found, per_level, last = {}, unet.config.res_blocks + 1, len(unet.config.widths) - 1
    for name, module in unet.named_modules():
        if not name.endswith(".attn1.q"):
            continue
        theirs = str(to_theirs(f"{name}.weight")).split(".attn1")[0]
        number = int(name.split(".")[2]) if "blocks." in name.split("transformer")[0] else 0
        level = {"encoder": (number - 1) // per_level, "middle": last, "decoder": last - number // per_level}
        found[theirs.replace(".", "_")] = (module.in_features, 8 << level[name.split(".")[0]])
    return found


def layer_of(unet: UNet) -> Callable[[str], nn.Module]:
    keymap = KeyMap(ldm.unet_rules(unet.config))
    names = {key.replace(".", "_"): key for key in map(str, map(keymap.to_theirs, unet.state_dict()))}
    return lambda name: unet.get_submodule(str(keymap.to_ours(names[f"{name}_weight"])).removesuffix(".weight"))


class Setting:
    """A base of random weights with its file, and its predictions both ways."""

    def __init__(self, family: str, folder: Path, layers: tuple[str, ...] = LAYERS) -> None:
        torch.manual_seed(0)
        self.family, self.unet = family, UNet(BASES[family]).eval()
        self.state = random_file(places(self.unet), 1, layers)
        self.path = folder / f"{family}.safetensors"
        save_file(self.state, self.path)
        self.net, self.identity = load_control(self.path)
        self.config: ModelConfig = replace(DEMO, unet=self.unet.config)
        self.size = SIZE[family]
        self.x, self.sigma = normal(2, 4, *self.size, seed=4) * 6.0, SCHEDULE.sigma(torch.tensor(400.0))
        self.hint = normal(1, 3, 8 * self.size[0], 8 * self.size[1], seed=5).sigmoid()
        self.texts = [normal(1, 7, self.unet.config.context_dim, seed=seed) for seed in (6, 7)]
        label = self.unet.config.label_dim
        self.label = None if label is None else normal(1, label, seed=8)

    def condition(self, text: Tensor, *units: ControlUnit) -> Condition:
        return Condition(text, units, label=self.label)

    def unit(self, **settings: object) -> ControlUnit:
        return ControlUnit(**{"net": self.net, "hint": self.hint, **settings})  # type: ignore[arg-type]

    def by_engine(self, *units: ControlUnit, cfg: float = 1.0, packed: bool = False, **how: object) -> Tensor:
        """The prediction of the noise."""
        backend = Backend(Runtime(pack_weights=packed))
        if how:
            made = denoiser(self.job(cfg, *units), backend, cfg, **how)(self.x, self.sigma)  # type: ignore[arg-type]
        else:
            made = evaluate(self.prepared(*units, cfg=cfg, backend=backend), self.x, self.sigma, cfg)
        return (self.x - made) / self.sigma

    def job(self, cfg: float, *units: ControlUnit) -> Job:
        halves = [[self.condition(text, *units)] for text in self.texts]
        negative = halves[1] if cfg != 1.0 else []
        shape = tuple(self.x.shape)
        return Job(self.unet, self.config, SCHEDULE, halves[0], negative, shape, [float(self.sigma)])

    def prepared(self, *units: ControlUnit, cfg: float = 1.0, backend: Backend | None = None) -> Prepared:
        return prepare_on(self.job(cfg, *units), backend or Backend(Runtime(pack_weights=False)))

    def plain(self, text: Tensor) -> Tensor:
        """The UNet's prediction by its own `forward`."""
        label = None if self.label is None else self.label.expand(2, -1)
        rows = scale_input(self.x, self.sigma)
        return self.unet(rows, torch.full((2,), 400.0), text.expand(2, -1, -1), label)

    def by_reference(self, text: Tensor, strength: float = 1.0, hint: Tensor | None = None, **how: object) -> Tensor:
        used = self.hint if hint is None else hint
        with hooked(layer_of(self.unet), self.state, used, strength, **how):  # type: ignore[arg-type]
            return self.plain(text)


def assert_differ(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max() / b.abs().max()) > 100 * TOLERANCE


@pytest.fixture(scope="module", params=sorted(BASES))
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(request.param, tmp_path_factory.mktemp("lllite"))


@torch.inference_mode()
def test_every_layer_of_every_block_is_changed_as_published(setting: Setting) -> None:
    """All places of encoder, middle and decoder, and all four layers, at once."""
    assert len(setting.net.config.layers) == 4 * len(places(setting.unet))
    expected = setting.by_reference(setting.texts[0], 0.7)
    assert_close(setting.by_engine(setting.unit(strength=0.7)), expected)
    assert_differ(setting.plain(setting.texts[0]), expected)


@torch.inference_mode()
@pytest.mark.parametrize("layer", LAYERS)
def test_each_kind_of_layer_alone(tmp_path: Path, layer: str) -> None:
    setting = Setting("sd15", tmp_path, (layer,))
    expected = setting.by_reference(setting.texts[0])
    assert_close(setting.by_engine(setting.unit()), expected)
    assert_differ(setting.plain(setting.texts[0]), expected)


@torch.inference_mode()
@pytest.mark.parametrize(
    "how", [{"packed": True}, {"graphs": True}, {"chunk": 1}, {"shortcuts": Shortcuts(reuse_every=2)}]
)
def test_accelerations_give_the_same(setting: Setting, how: dict[str, object]) -> None:
    plain = setting.by_engine(setting.unit(), cfg=3.0)
    assert_close(setting.by_engine(setting.unit(), cfg=3.0, **how), plain)  # type: ignore[arg-type]


@torch.inference_mode()
def test_fused_blocks_give_the_same(setting: Setting) -> None:
    """The form for GPUs, whose self attention has one product for queries, keys and values."""
    expected = setting.by_engine(setting.unit())
    plain, setting.unet = setting.unet, fuse(setting.unet)
    try:
        assert_close(setting.by_engine(setting.unit()), expected)
    finally:
        setting.unet = plain


@torch.inference_mode()
def test_both_halves_of_the_guidance_and_one(setting: Setting) -> None:
    first, second = (setting.by_reference(text) for text in setting.texts)
    assert_close(setting.by_engine(setting.unit(), cfg=3.0), second + 3.0 * (first - second))
    bare = setting.plain(setting.texts[1])
    assert_close(setting.by_engine(setting.unit(negative=0.0), cfg=3.0), bare + 3.0 * (first - bare))


@torch.inference_mode()
def test_a_hint_for_each_picture_and_factors(setting: Setting) -> None:
    hints = torch.cat([setting.hint, setting.hint.flip(2)])
    expected = setting.by_reference(setting.texts[0], hint=hints)
    assert_close(setting.by_engine(setting.unit(hint=hints)), expected)
    bare = setting.plain(setting.texts[0])
    made = setting.by_engine(setting.unit(hint=hints, items=(1.0, 0.0)))
    assert_close(made, torch.cat([expected[:1], bare[1:]]))


@torch.inference_mode()
def test_a_mask_weighs_each_token(setting: Setting) -> None:
    """At every level a token gets the mean of the mask over its part of the picture."""
    mask = (normal(1, 8 * setting.size[0], 8 * setting.size[1], seed=9) > 0).float()
    sizes = {name: pixels for name, (_, pixels) in places(setting.unet).items()}

    def weigh(name: str, change: Tensor) -> Tensor:
        pixels = sizes[name.removeprefix("lllite_unet_").rpartition("_attn")[0]]
        share = torch.nn.functional.avg_pool2d(mask[None], pixels)
        return change * share.flatten(2).transpose(1, 2)

    expected = setting.by_reference(setting.texts[0], weigh=weigh)
    assert_close(setting.by_engine(setting.unit(mask=mask)), expected)


@torch.inference_mode()
def test_block_weights_count_by_skip(setting: Setting) -> None:
    """A weight acts on the encoder block that makes a skip and on the decoder block that reads it."""
    skips = len(setting.unet.encoder.blocks)
    weights = tuple(0.1 * (n + 1) for n in range(skips + 1))

    def weigh(name: str, change: Tensor) -> Tensor:
        stack, number = re.search(r"unet_(input|output|middle)_blocks?_(\d+)", name).groups()  # type: ignore[union-attr]
        index = {"input": int(number), "output": skips - 1 - int(number), "middle": skips}[stack]
        return change * weights[index]

    expected = setting.by_reference(setting.texts[0], weigh=weigh)
    assert_close(setting.by_engine(setting.unit(block_weights=weights)), expected)


@torch.inference_mode()
def test_in_a_chain_with_a_controlnet_and_another_one(setting: Setting) -> None:
    """Two of them in a row, and a ControlNet's residuals."""
    torch.manual_seed(3)
    net = ControlNet.from_unet(setting.unet, replace(setting.config.controlnet, unet=setting.unet.config))
    for zero in net.zeros:
        zero.conv.weight.normal_(std=0.1)
    other = random_file(places(setting.unet), 11)
    path = setting.path.with_name("other.safetensors")
    save_file(other, path)
    units = [
        setting.unit(strength=0.5),
        setting.unit(net=load_control(path)[0], hint=setting.hint.flip(3)),
        setting.unit(net=net.eval()),
    ]
    rows = scale_input(setting.x, setting.sigma)
    text = setting.texts[0].expand(2, -1, -1)
    label = None if setting.label is None else setting.label.expand(2, -1)
    time = torch.full((2,), 400.0)
    residuals = net(rows, time, text, setting.hint.expand(2, -1, -1, -1), label)
    find = layer_of(setting.unet)
    # As in the published code, the second one reads what the first one has changed.
    with hooked(find, setting.state, setting.hint, 0.5), hooked(find, other, setting.hint.flip(3)):
        expected = setting.unet(rows, time, text, label, residuals)
    assert_close(setting.by_engine(*units), expected)


# -------------------------------------------------------------------------------------------------- whole runs


@torch.inference_mode()
def test_outside_its_window_it_costs_nothing(setting: Setting) -> None:
    bare = setting.plain(setting.texts[0])
    late = setting.unit(start=0.9)
    prepared = setting.prepared(late)
    assert prepared.inputs_at(float(setting.sigma)).batches[0].nets == ()
    assert_close(setting.by_engine(late), bare)


@torch.inference_mode()
def test_a_report_counts_where_it_acted(tmp_path: Path) -> None:
    setting = Setting("sd15", tmp_path, ("attn2_to_q",))
    options = RunOptions(recorder=Recorder("run", False))
    units = (setting.unit(start=0.9, name="late"), setting.unit(name="whole"))
    generate(
        DiffusionModel(setting.unet, setting.config, SCHEDULE), [setting.condition(setting.texts[0], *units)], [],
        torch.zeros(1, 4, 8, 8), SampleSettings(seed=1, steps=3, cfg=1.0),
        backend=Backend(Runtime(pack_weights=False)), options=options,
    )  # fmt: skip
    counts = {unit.name: (unit.acted, unit.ran) for unit in options.report().units}
    assert counts["whole"] == (3, 3) and counts["late"] == (1, 1)


# ------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("family", sorted(BASES))
def test_files_are_recognised_loaded_and_verified(tmp_path: Path, family: str) -> None:
    setting = Setting(family, tmp_path)
    assert (setting.identity.kind, setting.identity.family) == ("controlnet-lllite", family)
    assert isinstance(setting.net, ControlLLLite)
    assert inspect_file(setting.path).problem == ""
    assert verify_file(setting.path).passed
    other = BASES["sdxl" if family == "sd15" else "sd15"]
    assert setting.net.fits(setting.unet.config) and not setting.net.fits(other)


def test_another_base_is_an_error(tmp_path: Path) -> None:
    setting, wrong = Setting("sd15", tmp_path), Setting("sdxl", tmp_path)
    with pytest.raises(UnfitError, match="was made for"):
        wrong.by_engine(wrong.unit(net=setting.net))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("input_blocks_4_1_proj_in", "input_blocks_4_1_proj_in"),
        ("input_blocks_4_1_transformer_blocks_0_attn2_to_k", "attn2_to_k"),
        ("down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "down_blocks_1"),
    ],
)
def test_other_layers_are_an_error_that_names_them(tmp_path: Path, name: str, words: str) -> None:
    state = random_file({"input_blocks_4_1_transformer_blocks_0": (64, 16)})
    other = random_file({"x": (64, 16)}, layers=("q",))
    state |= {key.replace("x_q", name): tensor for key, tensor in other.items()}
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    assert words in identify_file(path).problem
    with pytest.raises(CheckpointError, match=words):
        load_control(path)


def test_a_file_with_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    state = random_file({"input_blocks_4_1_transformer_blocks_0": (64, 16)})
    del state["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.mid.0.bias"]
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"missing.*attn1_to_k.mid.0.bias"):
        load_control(path)


def test_a_file_for_every_block_of_sdxl_is_within_the_limits(tmp_path: Path) -> None:
    """70 transformer blocks with four networks each: more parts than any other net has."""
    blocks = {"input_blocks_4": 2, "input_blocks_5": 2, "input_blocks_7": 10, "input_blocks_8": 10, "middle_block": 10}
    blocks |= {f"output_blocks_{n}": 10 if n < 3 else 2 for n in range(6)}
    coarse = ("7", "8", "middle_block", "0", "1", "2")
    found = {
        f"{name}_1_transformer_blocks_{depth}": (1280, 32) if name.rpartition("_")[2] in coarse else (640, 16)
        for name, depths in blocks.items()
        for depth in range(depths)
    }
    found |= {name: (1280, 32) for name in found if name.startswith("middle")}
    path = tmp_path / "net.safetensors"
    save_file(random_file(found, inner=1, embed=2), path)
    report = inspect_file(path)
    assert report.problem == "" and "layers=280" in "\n".join(report.lines())
    assert load_control(path)[0].fits(SDXL.unet)


def test_a_weight_without_numbers_is_an_error(tmp_path: Path) -> None:
    state = random_file({"input_blocks_4_1_transformer_blocks_0": (64, 16)})
    state["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.conditioning1.0.weight"] = torch.zeros(
        3, 3, 0, 0
    )
    path = tmp_path / "net.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError, match="an axis of length 0"):
        load_control(path)


def test_a_net_that_reads_other_pixels_per_token_does_not_fit(tmp_path: Path) -> None:
    """Level 1 has 16 pixels per token; a network for 32 there would read the hint at the wrong place."""
    path = tmp_path / "net.safetensors"
    save_file(random_file({"input_blocks_4_1_transformer_blocks_0": (64, 32)}), path)
    net: ControlModel = load_control(path)[0]
    assert not net.fits(SMALL15)
