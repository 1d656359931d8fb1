"""Kinds of control beside the plain ControlNet, in the engine: each against its definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints import ldm
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_controlnet
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO, AdapterConfig, ControlNetConfig, UnionConfig
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit, Hint
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, ShapeError, UnfitError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.control import ControlModel
from comfyui_controlnet_core.controlnet_core.models.controlnet import COPIED, ControlNet
from comfyui_controlnet_core.controlnet_core.models.derived import ControlDifference, ControlLora
from comfyui_controlnet_core.controlnet_core.models.unet import Residuals, UNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.controlnet_core.models.union_types import UNION_CHOICES, union_type
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from engine_runs import evaluate, prepare_on
from fuzz.diffusers_folder import save_folder
from random_tensors import uniform
from torch import Tensor, nn

UNET = replace(DEMO.unet, widths=(32, 32, 64), num_heads=2, context_dim=16)
CONFIG = replace(DEMO, unet=UNET, hint_widths=(8, 8, 8, 8))
SCHEDULE = scaled_linear()
TIMESTEP = 400.0
LATENT = (2, 4, 8, 12)


def heard(module: nn.Module, seed: int) -> nn.Module:
    """Small random weights where a fresh net has zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1, generator=generator)
    return module.eval()


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNET).eval()


def made(kind: str) -> ControlModel:
    torch.manual_seed(7)
    if kind == "adapter":
        return heard(Adapter(AdapterConfig(widths=UNET.widths)), 1)  # type: ignore[return-value]
    if kind == "union":
        config = replace(CONFIG.controlnet, union=UnionConfig(types=6, width=32, type_dim=16))
        return heard(ControlNetUnion(config), 2)  # type: ignore[return-value]
    return heard(ControlNet(CONFIG.controlnet), 3)  # type: ignore[return-value]


def noisy() -> tuple[Tensor, Tensor]:
    x = torch.randn(LATENT, generator=torch.Generator().manual_seed(4)) * 6.0
    return x, SCHEDULE.sigma(torch.tensor(TIMESTEP))


def by_engine(
    unet: UNet,
    *units: ControlUnit,
    rows: slice = slice(None),
    packed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The prediction of x0 under one condition."""
    x, sigma = noisy()
    conditions = [Condition(uniform(1, 7, 16), units)]
    shape = x[rows].shape
    backend = Backend(Runtime(dtype=dtype, pack_weights=packed))
    prepared = prepare_on(Job(unet, CONFIG, SCHEDULE, conditions, [], shape, [float(sigma)]), backend)
    return evaluate(prepared, x[rows], sigma, 1.0)


def by_definition(
    unet: UNet, residuals: Residuals | None = None, features: Mapping[int, Tensor] = MappingProxyType({})
) -> Tensor:
    """The UNet written out, with residuals behind its encoder and features inside it."""
    x, sigma = noisy()
    scaled, text = scale_input(x, sigma), uniform(1, 7, 16).expand(2, -1, -1)
    emb = unet.embed(torch.full((2,), TIMESTEP))
    shifts, kv, _ = unet.encoder.project(emb, text)
    h, skips = scaled, []
    for index, (block, shift, keys) in enumerate(zip(unet.encoder.blocks, shifts, kv, strict=True)):
        h = block(h, shift, keys) + features.get(index, 0.0)
        skips.append(h)
    middle = unet.middle(h, unet.middle.project(emb, text)) + features.get(len(skips), 0.0)
    if residuals is not None:
        skips = [s + r for s, r in zip(skips, residuals.skips, strict=True)]
        middle = middle + residuals.middle
    return x - unet.head(unet.decoder(middle, skips, unet.decoder.project(emb, text))) * sigma


def net_inputs() -> tuple[Tensor, Tensor, Tensor]:
    return scale_input(*noisy()), torch.full((2,), TIMESTEP), uniform(1, 7, 16).expand(2, -1, -1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def hint(seed: int = 1, batch: int = 1) -> Tensor:
    return uniform(batch, 3, 64, 96, seed=seed)


def _pairs(first: Residuals, second: Residuals) -> Iterator[tuple[Tensor, Tensor]]:
    return zip((*first.skips, first.middle), (*second.skips, second.middle), strict=True)


def scaled(residuals: Residuals, factor: float) -> Residuals:
    return Residuals(tuple(r * factor for r in residuals.skips), residuals.middle * factor)


# ------------------------------------------------------------------------------------------------------- Union


@torch.inference_mode()
@pytest.mark.parametrize("packed", [False, True])
def test_a_union_of_one_and_of_two_hints(unet: UNet, packed: bool) -> None:
    net = made("union")
    assert isinstance(net, ControlNetUnion)
    one = ControlUnit(net, hint(1), 0.7, kind="depth")
    expected = net(*net_inputs(), [hint(1).expand(2, -1, -1, -1)], (1,))
    close(by_engine(unet, one, packed=packed), by_definition(unet, scaled(expected, 0.7)))
    two = replace(one, more_hints=(Hint(hint(2), "canny/lineart"),))
    both = [hint(1).expand(2, -1, -1, -1), hint(2).expand(2, -1, -1, -1)]
    expected = net(*net_inputs(), both, (1, 3))
    close(by_engine(unet, two, packed=packed), by_definition(unet, scaled(expected, 0.7)))


@torch.inference_mode()
def test_a_union_without_a_type_is_told_nothing(unet: UNet) -> None:
    """As the host's "auto": the plain hint encoder, and no type beside the timestep."""
    net = made("union")
    assert isinstance(net, ControlNetUnion)
    expected = net(*net_inputs(), [hint().expand(2, -1, -1, -1)], ())
    close(by_engine(unet, ControlUnit(net, hint())), by_definition(unet, expected))
    with pytest.raises(ShapeError, match="at least one has no control type"):
        by_engine(unet, ControlUnit(net, hint(), more_hints=(Hint(hint(2), "depth"),)))


def test_union_types_by_name() -> None:
    assert [union_type(name) for name in UNION_CHOICES] == list(range(8))
    assert (union_type("mlsd"), union_type("Depth"), union_type("5")) == (3, 1, 5)
    with pytest.raises(ValueRangeError, match="'sound' is unknown to ControlNet Union: choose one of openpose"):
        union_type("sound")


@torch.inference_mode()
def test_a_type_of_promax_on_a_smaller_union(unet: UNet) -> None:
    with pytest.raises(ValueRangeError, match=r"type 6 \(tile\) came, this ControlNet Union knows types 0 to 5"):
        by_engine(unet, ControlUnit(made("union"), hint(), kind="tile"))


@torch.inference_mode()
def test_several_hints_for_a_net_that_reads_one(unet: UNet) -> None:
    with pytest.raises(ShapeError, match="reads one hint image and got 2"):
        by_engine(unet, ControlUnit(made("net"), hint(), more_hints=(Hint(hint(2)),)))


# ------------------------------------------------------------------------------------------------- T2I-Adapter


@torch.inference_mode()
@pytest.mark.parametrize("packed", [False, True])
def test_an_adapter_acts_inside_the_encoder(unet: UNet, packed: bool) -> None:
    net = made("adapter")
    maps = [0.6 * feature for feature in net(hint())]
    expected = by_definition(unet, features=dict(zip((1, 3, 5), maps, strict=True)))
    close(by_engine(unet, ControlUnit(net, hint(), 0.6), packed=packed), expected)


def test_a_report_of_an_adapter_on_both_halves_leaves_the_picture_as_it_is(unet: UNet) -> None:
    """Its feature maps have one row for the rows of both halves."""
    unit = ControlUnit(made("adapter"), hint(), 0.6, name="adapter")
    model = DiffusionModel(unet, CONFIG, SCHEDULE)
    halves = [Condition(uniform(1, 7, 16), (unit,))], [Condition(uniform(1, 7, 16, seed=9), (unit,))]
    settings = SampleSettings(steps=2, cfg=3.0)

    def run(recorder: Recorder | None) -> Tensor:
        backend = Backend(Runtime(pack_weights=False))
        return generate(
            model,
            *halves,
            torch.zeros(1, *LATENT[1:]),
            settings,
            backend=backend,
            options=RunOptions(recorder=recorder),
        )

    recorder = Recorder("euler", observe=True)
    assert torch.equal(run(recorder), run(None))
    (told,) = recorder.report().units
    assert [sum(norm is not None for norm in norms) for norms in told.norms] == [3, 3]  # its three of the skips


@torch.inference_mode()
def test_an_adapter_obeys_mask_and_block_weights(unet: UNet) -> None:
    net = made("adapter")
    mask = uniform(1, 64, 96, seed=3)
    weights = (0.0, 0.5, 0.0, 2.0, 0.0, 1.0, 0.0)
    maps = [
        w * feature * torch.nn.functional.adaptive_avg_pool2d(mask[:, None], feature.shape[-2:])
        for w, feature in zip((0.5, 2.0, 1.0), net(hint()), strict=True)
    ]
    expected = by_definition(unet, features=dict(zip((1, 3, 5), maps, strict=True)))
    close(by_engine(unet, ControlUnit(net, hint(), mask=mask, block_weights=weights)), expected)


@torch.inference_mode()
def test_a_gray_adapter_reads_the_mean_of_a_colour_hint(unet: UNet) -> None:
    net = heard(Adapter(AdapterConfig(widths=UNET.widths, hint_channels=1)), 1)
    gray = hint().mean(dim=1, keepdim=True)
    close(by_engine(unet, ControlUnit(net, hint())), by_engine(unet, ControlUnit(net, gray)))  # type: ignore[arg-type]


@torch.inference_mode()
def test_control_silently_dropped_an_adapter_on_another_base_is_an_error(unet: UNet) -> None:
    """The host logs a shape that does not fit and goes on without control."""
    net = Adapter(AdapterConfig())
    with pytest.raises(UnfitError, match=r"was made for a base of widths \(320, 640, 1280\)"):
        by_engine(unet, ControlUnit(net, hint(), name="sketch adapter"))


# --------------------------------------------------------------------------------- files that need their base

RULES = ldm.controlnet_rules(UNET, 8)


def cldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    to_theirs = KeyMap(RULES).to_theirs
    return {str(to_theirs(key)): tensor for key, tensor in state.items()}


def base_like(unet: UNet) -> dict[str, Tensor]:
    """The weights that a ControlNet copies."""
    return {key: tensor for key, tensor in unet.state_dict().items() if key.split(".")[0] in COPIED}


def difference_file(path: Path, unet: UNet, *absent: str) -> dict[str, Tensor]:
    """Writes a difference file; returns the complete weights, by the definition."""
    whole = made("net").state_dict()
    base = base_like(unet)
    stored = {key: (t - base[key] if key in base else t) for key, t in whole.items() if key not in absent}
    state = {f"control_model.{key}": tensor for key, tensor in cldm(stored).items()}
    write_safetensors(path, {**state, "difference": torch.zeros(1)})
    return {key: base[key] if key in absent else tensor for key, tensor in whole.items()}


def lora_file(path: Path, unet: UNet) -> dict[str, Tensor]:
    """Writes a Control-LoRA; returns the complete weights, by the definition."""
    whole, base = made("net").state_dict(), base_like(unet)
    stored: dict[str, Tensor] = {"lora_controlnet": torch.zeros(1)}
    complete = dict(whole)
    for key, tensor in whole.items():
        name = next(iter(cldm({key: tensor})))
        if key not in base or tensor.ndim < 2:
            stored[name] = tensor
            continue
        up, down = uniform(len(tensor), 3, seed=1) - 0.5, uniform(3, *tensor.shape[1:], seed=2) - 0.5
        stem = name.removesuffix(".weight")
        stored |= {f"{stem}.up": up, f"{stem}.down": down}
        product = torch.einsum("or,ri->oi", up, down.reshape(3, -1)).reshape(tensor.shape)
        complete[key] = base[key] + product
    write_safetensors(path, stored)
    return complete


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["difference", "lora"])
def test_files_that_need_their_base_are_base_plus_what_they_hold(tmp_path: Path, unet: UNet, kind: str) -> None:
    path = tmp_path / "control.safetensors"
    absent = ("encoder.blocks.1.res.conv1.weight", "middle.res1.norm1.bias")
    complete = difference_file(path, unet, *absent) if kind == "difference" else lora_file(path, unet)
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    net, identity = load_control(path)
    assert isinstance(net, ControlDifference if kind == "difference" else ControlLora)
    assert inspect_file(path).loadable
    assert identity.config is not None
    resolved = net.resolve(unet)
    assert resolved.state_dict().keys() == complete.keys()
    for key, tensor in resolved.state_dict().items():
        torch.testing.assert_close(tensor, complete[key])
    expected = ControlNet(CONFIG.controlnet).eval()
    expected.load_state_dict(complete)
    residuals = expected(*net_inputs(), hint().expand(2, -1, -1, -1))
    close(by_engine(unet, ControlUnit(net, hint())), by_definition(unet, residuals))
    # The base keeps its own weights, and shares no memory with what was made of it.
    assert all(torch.equal(tensor, before[key]) for key, tensor in unet.state_dict().items())
    assert not {t.data_ptr() for t in resolved.parameters()} & {t.data_ptr() for t in unet.parameters()}


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["difference", "lora"])
def test_a_file_that_needs_another_base(tmp_path: Path, unet: UNet, kind: str) -> None:
    path = tmp_path / "control.safetensors"
    (difference_file if kind == "difference" else lora_file)(path, unet)
    net, _ = load_control(path)
    wider = UNet(replace(UNET, widths=(32, 32, 96)))
    assert not net.fits(wider.config)
    with pytest.raises(UnfitError, match="do not fit a base of widths"):
        net.resolve(wider)
    assert not net.fits(replace(UNET, context_dim=24))
    assert not net.fits(replace(UNET, in_channels=9))


def test_incomplete_files_that_need_their_base(tmp_path: Path, unet: UNet) -> None:
    path = tmp_path / "control.safetensors"
    lora_file(path, unet)
    from safetensors.torch import load_file

    state = load_file(path)
    half = {key: tensor for key, tensor in state.items() if key != "input_blocks.1.0.in_layers.2.down"}
    write_safetensors(path, half)
    with pytest.raises(CheckpointError, match=r"without its other half: encoder.blocks.1.res.conv1"):
        load_control(path)
    assert not inspect_file(path).loadable
    write_safetensors(path, {**state, "tool__version": torch.zeros(1)})
    assert inspect_file(path).loadable
    load_control(path)
    write_safetensors(path, {**state, "input_blocks.99.what.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"left over: input_blocks.99.what.weight"):
        load_control(path)
    write_safetensors(path, {key: tensor for key, tensor in state.items() if not key.startswith("zero_convs")})
    with pytest.raises(CheckpointError, match="zero_convs"):
        load_control(path)
    assert "zero_convs" in inspect_file(path).problem


# ---------------------------------------------------------------------------------------------- all kinds alike


@torch.inference_mode()
def test_units_of_different_kinds_add_up_and_their_order_does_not_matter(unet: UNet) -> None:
    """ControlNets sum behind the encoder; an adapter acts inside it, so it comes first whatever the order."""
    net, union, adapter = made("net"), made("union"), made("adapter")
    assert isinstance(net, ControlNet)
    assert isinstance(union, ControlNetUnion)
    units = (ControlUnit(net, hint(1), 0.5), ControlUnit(union, hint(2), kind="depth"), ControlUnit(adapter, hint(3)))
    first = net(*net_inputs(), hint(1).expand(2, -1, -1, -1))
    second = union(*net_inputs(), [hint(2).expand(2, -1, -1, -1)], (1,))
    both = zip(first.skips, second.skips, strict=True)
    total = Residuals(tuple(0.5 * a + b for a, b in both), 0.5 * first.middle + second.middle)
    expected = by_definition(unet, total, dict(zip((1, 3, 5), adapter(hint(3)), strict=True)))
    close(by_engine(unet, *units), expected)
    close(by_engine(unet, *units[::-1]), expected)


@torch.inference_mode()
@pytest.mark.parametrize("pool", [False, True])
def test_two_hints_for_one_net_add_up(unet: UNet, pool: bool) -> None:
    """Units of one net may run as one batch; one of them pooled, they may not."""
    net = made("net")
    assert isinstance(net, ControlNet)
    units = (ControlUnit(net, hint(1), 0.5), ControlUnit(net, hint(2), 1.5, pool=pool))
    first, second = (net(*net_inputs(), hint(i).expand(2, -1, -1, -1)) for i in (1, 2))
    second_all = [r.mean(dim=(2, 3), keepdim=True) if pool else r for r in (*second.skips, second.middle)]
    *skips, middle = [0.5 * a + 1.5 * b for a, b in zip((*first.skips, first.middle), second_all, strict=True)]
    close(by_engine(unet, *units), by_definition(unet, Residuals(tuple(skips), middle)))


@torch.inference_mode()
def test_two_hints_of_different_types_for_one_union_and_one_adapter(unet: UNet) -> None:
    union, adapter = made("union"), made("adapter")
    assert isinstance(union, ControlNetUnion)
    types = (ControlUnit(union, hint(1), kind="depth"), ControlUnit(union, hint(2), 0.5, kind="segment"))
    first, second = (union(*net_inputs(), [hint(i).expand(2, -1, -1, -1)], (k,)) for i, k in ((1, 1), (2, 5)))
    *skips, middle = [a + 0.5 * b for a, b in _pairs(first, second)]
    close(by_engine(unet, *types), by_definition(unet, Residuals(tuple(skips), middle)))
    maps = [a + 0.5 * b for a, b in zip(adapter(hint(1)), adapter(hint(2)), strict=True)]
    pair = (ControlUnit(adapter, hint(1)), ControlUnit(adapter, hint(2), 0.5))
    close(by_engine(unet, *pair), by_definition(unet, features=dict(zip((1, 3, 5), maps, strict=True))))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["net", "union", "adapter"])
def test_a_batch_of_frames_equals_its_singles(unet: UNet, kind: str) -> None:
    unit = ControlUnit(made(kind), hint(5, batch=2), 0.8, kind="depth" if kind == "union" else "", items=(1.0, 0.5))
    both = by_engine(unet, unit)
    for i, factor in enumerate((1.0, 0.5)):
        one = slice(i, i + 1)
        single = replace(unit, hint=unit.hint[one], items=(factor,))
        close(by_engine(unet, single, rows=one), both[one])


@torch.inference_mode()
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["net", "union", "adapter", "difference", "lora"])
def test_dtype_mismatch_every_kind_runs_in_the_run_s_own(tmp_path: Path, kind: str, stored: torch.dtype) -> None:
    """Files of one type, a base of another, a float32 hint and text: all is cast where the engine takes it."""
    torch.manual_seed(0)
    base = UNet(UNET).eval()
    if kind in ("difference", "lora"):
        path = tmp_path / "control.safetensors"
        (difference_file if kind == "difference" else lora_file)(path, base)
        net, _ = load_control(path)
        exact = by_engine(base, ControlUnit(net, hint()))
        net, _ = load_control(path, dtype=stored)
    else:
        net = made(kind)
        exact = by_engine(base, ControlUnit(net, hint()))
        net = net.to(stored)
    unit = ControlUnit(net, hint(), mask=torch.ones(1, 8, 12), items=(1.0, 1.0))
    got = by_engine(base.to(torch.float16), unit, dtype=torch.bfloat16)
    assert got.dtype == torch.float32
    assert (got - exact).abs().mean() < 0.05 * exact.abs().mean()


@torch.inference_mode()
def test_a_net_without_transformers_controls_a_base_that_has_them(unet: UNet) -> None:
    """SDXL's mid and small nets have depths of their own, and middles of their own."""
    small = replace(UNET, transformer_depth=(0, 0, 0), middle_depth=0, middle_res=1)
    net = heard(ControlNet(ControlNetConfig(small, hint_widths=(8, 8, 8, 8))), 5)
    assert isinstance(net, ControlNet)
    residuals = net(*net_inputs(), hint().expand(2, -1, -1, -1))
    close(by_engine(unet, ControlUnit(net, hint())), by_definition(unet, residuals))


def test_a_net_that_pools_keeps_that_in_files_and_folders(tmp_path: Path) -> None:
    """Shapes do not show it; our files' config and a diffusers folder's do."""
    net = ControlNet(replace(CONFIG.controlnet, global_pool=True, hint_widths=(16, 32, 96, 256)))
    save_controlnet(tmp_path / "net.safetensors", net)
    save_folder(tmp_path / "net", net)
    for path in (tmp_path / "net.safetensors", tmp_path / "net"):
        loaded, _ = load_control(path)
        assert isinstance(loaded, ControlNet)
        assert loaded.config.global_pool
        assert loaded.conditional_only
    union = ControlNetUnion(replace(CONFIG.controlnet, union=UnionConfig(6, 32, 1, 16)))
    save_controlnet(tmp_path / "union.safetensors", union)
    again, identity = load_control(tmp_path / "union.safetensors")
    assert isinstance(again, ControlNetUnion)
    assert again.config == union.config
    assert identity.kind == "controlnet-union"
    with pytest.raises(CheckpointError, match="ControlNet Union cannot be written"):
        save_folder(tmp_path / "union", union)


def test_file_not_recognised_a_relative_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    write_safetensors(path, {"style_embedding": torch.zeros(1, 8, 1024)})
    with pytest.raises(CheckpointError, match="of another kind: T2I style adapter"):
        load_control(path)
    write_safetensors(path, {"layers.0.wq.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"not a model this package knows; its keys look like layers.0.wq"):
        load_control(path)
