"""Memory told from shapes, beside the bytes that are alive when the run is made."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core import pipeline
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Area, Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import (
    DEMO,
    AdapterConfig,
    ControlNetConfig,
    DerivedConfig,
    UNetConfig,
    UnionConfig,
)
from comfyui_controlnet_core.controlnet_core.control.modes import block_heights
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit, Hint
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import UnfitError
from comfyui_controlnet_core.controlnet_core.memory_estimate import decode_bytes, estimate_run
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.control import (
    BindContext,
    ControlModel,
    ResidualProjection,
    identity,
)
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.derived import ControlLora
from comfyui_controlnet_core.controlnet_core.models.unet import UNet, encoder_widths
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.pipeline import build_denoiser, plan_run
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.runtime.memory import ROOM, Footprint, _allowed
from comfyui_controlnet_core.controlnet_core.runtime.tensor_memory import TensorMemory
from comfyui_controlnet_core.controlnet_core.speed import EXACT, EvaluationClock, Shortcuts
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu import winograd
from engine_runs import denoiser, evaluate, prepare_on
from few import few_of, rows_of

SCHEDULE = scaled_linear()
SMALL = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64, 96), context_dim=32))
DEEP = replace(
    SMALL,
    unet=replace(
        SMALL.unet, transformer_depth=(0, 1, 2), middle_depth=2, linear_projection=True, label_dim=64, head_dim=32
    ),
)
"""SDXL's pattern: no transformer at the first level, deep ones below, a label vector."""
WITHIN = 0.1


def predict(
    job: Job, backend: Backend, shortcuts: Shortcuts = EXACT, graphs: bool = False, tiles: bool = False, chunk: int = 0
) -> Footprint:
    """What is told of a run."""
    clock = EvaluationClock(shortcuts, job.schedule.percent_to_sigma)
    return estimate_run(job, backend, clock, graphs, tiles, chunk or job.shape[0], build_denoiser)


CASES = [
    (SMALL, 0, (1, 16, 16)),
    (SMALL, 2, (2, 24, 16)),
    (DEEP, 1, (3, 16, 16)),
]
"""Shapes, number of nets, (batch, h, w)."""


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("case", range(len(CASES)))
@torch.inference_mode()
def test_prediction_is_what_is_alive(case: int, packed: bool) -> None:
    config, nets, (batch, height, width) = CASES[case]
    torch.manual_seed(0)
    unet = UNet(config.unet).eval()
    net = ControlNet.from_unet(unet, ControlNetConfig(config.unet, hint_widths=(8, 16, 32, 64))).eval()
    pooled = None if config.unet.label_dim is None else torch.randn(1, config.unet.label_dim)
    picture = torch.rand(1, 3, 8 * height, 8 * width)
    units = tuple(ControlUnit(copy(net), picture, 0.7) for _ in range(nets))
    texts = [torch.randn(1, 77, config.unet.context_dim) for _ in range(2)]
    positive, negative = ([Condition(text, units, pooled)] for text in texts)
    backend = Backend(Runtime(pack_weights=packed))
    shape, sigmas = (batch, 4, height, width), [8.0, 4.0, 2.0, 1.0]
    job = Job(unet, config, SCHEDULE, positive, negative, shape, sigmas)
    told = predict(job, backend)
    x, sigma = torch.randn(shape), torch.tensor(4.0)
    evaluate(prepare_on(job, backend), x, sigma, 5.0)  # packs the weights
    with TensorMemory() as preparing:
        prepared = prepare_on(job, backend)
    with TensorMemory() as step:
        evaluate(prepared, x, sigma, 5.0)
    found = [preparing.live, preparing.peak, step.peak]
    assert [told.prepared, told.preparing, told.step] == pytest.approx(found, rel=WITHIN)
    assert told.weights == 4 * sum(p.numel() for m in (unet, *[net] * nets) for p in m.parameters())


@torch.inference_mode()
def test_areas_windows_adapters_and_hints_of_their_own() -> None:
    """Two groups, of which one ends; three pictures with hints of their own; a net that sees x, one that does not."""
    torch.manual_seed(0)
    unet = UNet(SMALL.unet).eval()
    net = ControlNet.from_unet(unet, ControlNetConfig(SMALL.unet, hint_widths=(8, 16, 32, 64))).eval()
    adapter = Adapter(AdapterConfig(widths=SMALL.unet.widths, res_blocks=1)).eval()
    pictures, texts = torch.rand(3, 3, 128, 128), torch.randn(3, 1, 77, SMALL.unet.context_dim)
    units = (ControlUnit(net, pictures, 0.7), ControlUnit(adapter, pictures[:1]))
    positive = [Condition(texts[0], units), Condition(texts[1], units[:1], area=Area(0, 0, 16, 8), end=0.6)]
    negative = [Condition(texts[2], units)]
    backend, shape, sigmas = Backend(Runtime(pack_weights=False)), (3, 4, 16, 16), [8.0, 4.0, 0.5]
    job = Job(unet, SMALL, SCHEDULE, positive, negative, shape, sigmas)
    told, x = predict(job, backend), torch.randn(shape)
    with TensorMemory() as preparing:
        prepared = prepare_on(job, backend)
    steps = []
    for sigma in sigmas:
        with TensorMemory() as step:
            evaluate(prepared, x, torch.tensor(sigma), 5.0)
        steps.append(step.peak)
    assert [told.prepared, told.step] == pytest.approx([preparing.live, max(steps)], rel=WITHIN)


LITTLE = replace(SMALL, unet=replace(SMALL.unet, widths=(32, 64), transformer_depth=SMALL.unet.transformer_depth[:2]))
NET = ControlNetConfig(LITTLE.unet, hint_widths=(8, 16, 32, 64))
EVALUATIONS = [8.0, 4.0, 2.0, 1.0]


@cache
def base() -> UNet:
    torch.manual_seed(0)
    return UNet(LITTLE.unet).eval()


def made(kind: type[ControlNet] = ControlNet, config: ControlNetConfig = NET) -> ControlNet:
    torch.manual_seed(1)
    return kind(config).eval()


def conditions(*units: ControlUnit, negative: tuple[ControlUnit, ...] | None = None) -> tuple[list[Condition], ...]:
    """Both halves with these units."""
    texts = torch.randn(2, 1, 77, LITTLE.unet.context_dim, generator=torch.Generator().manual_seed(2))
    return [Condition(texts[0], units)], [Condition(texts[1], units if negative is None else negative)]


@torch.inference_mode()
def whole_run(
    job: Job, backend: Backend, shortcuts: Shortcuts, graphs: bool, chunk: int, live: TensorMemory
) -> tuple[list[int], object]:
    """The most bytes alive while a run is prepared, those at its end, and the most in between; and what it keeps."""
    x = torch.randn(job.shape)
    denoise = denoiser(job, backend, 5.0, shortcuts, chunk, graphs)
    preparing, live.peak = live.peak, live.live
    for sigma in job.sigmas:
        denoise(x + sigma, torch.tensor(sigma))
    return [preparing, live.live, live.peak], denoise


def told_and_found(
    halves: tuple[list[Condition], ...],
    backend: Backend,
    batch: int = 1,
    shortcuts: Shortcuts = EXACT,
    graphs: bool = False,
    unet: UNet | None = None,
    chunk: int = 0,
) -> tuple[Footprint, list[int]]:
    """What is told of a run, and what `whole_run` finds."""
    job = Job(unet or base(), LITTLE, SCHEDULE, *halves, (batch, 4, 16, 16), EVALUATIONS)
    told = predict(job, backend, shortcuts, graphs, chunk=chunk)
    how = (job, backend, shortcuts, graphs, chunk or batch)
    if backend.packs:
        whole_run(*how, TensorMemory())  # packs the weights
        backend.runs.clear()
    with TensorMemory() as live:
        found, _ = whole_run(*how, live)
    return told, found


def told_bytes(told: Footprint) -> list[int]:
    kept = told.prepared + told.carried
    return [told.preparing, kept, kept + told.step]


def check(told: Footprint, found: list[int]) -> None:
    assert told_bytes(told) == pytest.approx(found, rel=WITHIN)


SHORTCUTS = [
    (Shortcuts(reuse_every=2), False),
    (Shortcuts(reuse_tolerance=0.5), True),
    (Shortcuts(encoder_every=2), False),
    (Shortcuts(encoder_every=2), True),
    (Shortcuts(deep_every=2), False),
    (Shortcuts(deep_every=2), True),
    (Shortcuts(reuse_every=3, encoder_every=2), False),
    (Shortcuts(guidance_start=0.2, guidance_end=0.7), False),
    (Shortcuts(reuse_every=2, guidance_end=0.7), True),
]
"""What is left out, and whether weights are packed."""


@pytest.mark.parametrize(("shortcuts", "packed"), rows_of(SHORTCUTS, 1, 3, 4, 7), ids=str)
def test_what_shortcuts_keep_is_told(shortcuts: Shortcuts, packed: bool) -> None:
    hint = torch.rand(1, 3, 128, 128)
    halves = conditions(ControlUnit(made(), hint, 0.7), ControlUnit(made(), hint, 0.4))
    told, found = told_and_found(halves, Backend(Runtime(pack_weights=packed)), 2, shortcuts)
    check(told, found)
    assert (told.carried > 0) == (shortcuts != replace(EXACT, guidance_start=0.2, guidance_end=0.7))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_nets_side_by_side_hold_all_residuals(packed: bool) -> None:
    hint = torch.rand(1, 3, 128, 128)
    units = (ControlUnit(made(), hint, 0.7), ControlUnit(made(), hint, 0.4))
    backend = Backend(Runtime(pack_weights=packed, parallel_nets=True))
    beside = told_and_found(conditions(*units), backend)
    check(*beside)
    assert beside[0].step > told_and_found(conditions(*units), Backend(Runtime(pack_weights=packed)))[0].step


@torch.inference_mode()
def test_only_what_changes_the_bytes_is_estimated_again() -> None:
    net, picture = made(), torch.rand(1, 3, 128, 128)
    unet, backend = base(), Backend(Runtime())

    def estimates(*units: ControlUnit, sigmas: tuple[float, ...] = (8.0, 0.1)) -> int:
        predict(Job(unet, LITTLE, SCHEDULE, *conditions(*units), (1, 4, 16, 16), sigmas), backend)
        return len(list(backend.estimates))

    count = len(net.config.unet.widths) * (net.config.unet.res_blocks + 1) + 1
    assert estimates(ControlUnit(net, picture, 0.7)) == 1
    assert estimates(ControlUnit(net, picture, 0.3, curve=lambda at: 0.5 + at / 2), sigmas=(9.0, 0.2)) == 1
    assert estimates(ControlUnit(net, picture, 0.7, end=0.5)) == 2  # is not run at the second level
    assert estimates(ControlUnit(net, picture, 0.7, block_weights=(0.0, *[1.0] * (count - 1)))) == 3
    assert estimates(ControlUnit(net, picture.clone(), 0.7)) == 4
    assert estimates(ControlUnit(net, picture, 0.7), ControlUnit(net, picture, 0.7)) == 4  # the copy is gone
    del picture
    gc.collect()
    assert estimates(ControlUnit(net, torch.rand(1, 3, 64, 64), 0.7)) == 1


def test_the_buffers_of_graphs_are_told() -> None:
    hint = torch.rand(1, 3, 128, 128)
    units = (ControlUnit(made(), hint, 0.7), ControlUnit(made(), hint, 0.4, end=0.6, mask=torch.rand(1, 16, 16)))
    check(*told_and_found(conditions(*units), Backend(Runtime(pack_weights=False)), graphs=True))


@pytest.mark.parametrize("pictures", few_of([1, 5], 5), ids=["one hint", "five hints"])
@pytest.mark.parametrize("more", [{"shortcuts": Shortcuts(reuse_every=2)}, {"graphs": True}], ids=["reuse", "graphs"])
def test_a_batch_in_parts_keeps_what_its_parts_keep(pictures: int, more: dict[str, Any]) -> None:
    halves = conditions(ControlUnit(made(), torch.rand(pictures, 3, 128, 128)))
    check(*told_and_found(halves, Backend(Runtime(pack_weights=False, chunk=2)), 5, chunk=2, **more))


def test_texts_of_different_lengths_are_as_long_as_both_fit_into() -> None:
    positive, negative = conditions(ControlUnit(made(), torch.rand(1, 3, 128, 128)))
    longer = [replace(condition, text=torch.cat([condition.text] * 2, dim=1)) for condition in positive]
    longest = [replace(condition, text=torch.cat([condition.text] * 3, dim=1)) for condition in negative]
    check(*told_and_found((longer, longest), Backend(Runtime(pack_weights=False))))


def test_a_net_for_another_base_is_refused_before_it_is_counted() -> None:
    other = made(config=replace(NET, unet=replace(LITTLE.unet, widths=(32, 96))))
    halves = conditions(ControlUnit(other, torch.rand(1, 3, 128, 128)))
    with pytest.raises(UnfitError, match="was made for"):
        plan_run(Job(base(), LITTLE, SCHEDULE, *halves, (1, 4, 16, 16), EVALUATIONS), Backend(Runtime()))


def test_wide_blocks_hold_what_plain_ones_hold() -> None:
    unet, halves = UNet(LITTLE.unet).eval(), conditions(ControlUnit(made(), torch.rand(1, 3, 128, 128)))
    backend = Backend(Runtime(pack_weights=False, fused_qkv=True))
    told_and_found(halves, backend, unet=unet)  # widens
    backend.runs.clear()
    check(*told_and_found(halves, backend, unet=unet))


def union_with(hint: torch.Tensor) -> ControlUnit:
    more = (Hint(1.0 - hint, "depth"), Hint(hint.flip(3), "canny"))
    config = replace(NET, union=UnionConfig(width=32))
    return ControlUnit(made(ControlNetUnion, config), hint, kind="openpose", more_hints=more)


def lora_of(net: ControlNet) -> ControlLora:
    """A file with products for some weights."""
    own = {name: tensor for name, tensor in net.state_dict().items() if name.startswith(("hint.", "zero_conv"))}
    name = "encoder.blocks.1.res.conv1"
    width_out, width_in = net.state_dict()[f"{name}.weight"].shape[:2]
    pair = {f"{name}.up": torch.randn(width_out, 4), f"{name}.down": torch.randn(4, width_in, 3, 3)}
    return ControlLora(DerivedConfig(LITTLE.unet.context_dim, hint_widths=NET.hint_widths), {**own, **pair})


class Filled(ControlModel):
    """A kind that does not tell what it takes: all targets get the same, made anew at each evaluation."""

    hint_channels = 3
    made_for = "any base"

    def fits(self, config: UNetConfig) -> bool:
        return True

    def bind(self, context: BindContext) -> BoundFilled:
        sides = zip(*(block_heights(context.base, side) for side in context.size), strict=True)
        widths = [*encoder_widths(context.base), context.base.widths[-1]]
        shapes = [(width, *side) for width, side in zip(widths, sides, strict=True)]
        return BoundFilled(shapes, float(context.hint.mean()))

    def features(self, x: torch.Tensor, inputs: BoundFilled) -> Iterator[torch.Tensor]:
        return (torch.full((len(x), *shape), inputs.level) for shape in inputs.shapes)

    def projections(self, inputs: BoundFilled) -> list[ResidualProjection]:
        return [identity] * len(inputs.shapes)


@dataclass(frozen=True)
class BoundFilled:
    shapes: list[tuple[int, int, int]]
    level: float

    def inputs_at(self, sigma: float) -> BoundFilled:
        return self


Make = Callable[[torch.Tensor], tuple[ControlUnit, ...]]
KINDS: dict[str, Make] = {
    "one net on two hints": lambda hint: tuple(map(ControlUnit, [made()] * 2, (hint, hint.flip(2)))),
    "union of three": lambda hint: (union_with(hint),),
    "lora": lambda hint: (ControlUnit(lora_of(made()), hint),),
    "adapter": lambda hint: (ControlUnit(Adapter(AdapterConfig(LITTLE.unet.widths)).eval(), hint),),
    "light adapter": lambda hint: (ControlUnit(Adapter(AdapterConfig(LITTLE.unet.widths, light=True)).eval(), hint),),
    "pooled": lambda hint: (ControlUnit(made(), hint, pool=True),),
    "a kind of its own": lambda hint: (ControlUnit(Filled(), hint),),
    "masked": lambda hint: (ControlUnit(made(), hint, mask=torch.rand(2, 16, 16), items=(0.5, 1.0)),),
}


PACKED = ("one net on two hints", "lora", "light adapter")


@pytest.mark.parametrize(
    ("kind", "packed"), rows_of([*((k, False) for k in KINDS), *((k, True) for k in PACKED)], 1, 3, 6, 8, 9)
)
def test_every_kind_of_net_tells_what_it_takes(kind: str, packed: bool) -> None:
    units = KINDS[kind](torch.rand(2, 3, 128, 128))
    shortcuts = EXACT if packed else Shortcuts(reuse_every=2)
    check(*told_and_found(conditions(*units), Backend(Runtime(pack_weights=packed)), 2, shortcuts))


def test_a_net_that_is_completed_with_its_base_is_held_beside_its_packed_form() -> None:
    halves = conditions(ControlUnit(lora_of(made()), torch.rand(1, 3, 128, 128)))
    job = Job(base(), LITTLE, SCHEDULE, *halves, (1, 4, 16, 16), EVALUATIONS)
    packed, plain = (predict(job, Backend(Runtime(pack_weights=pack))).weights for pack in (True, False))
    assert packed - plain == 4 * sum(p.numel() for p in made().parameters())


def test_of_layers_in_float8_the_one_that_is_cast_is_told() -> None:
    torch.manual_seed(0)
    unet = UNet(LITTLE.unet).eval()
    for p in unet.parameters():
        p.data = p.data.to(torch.float8_e4m3fn if p.ndim > 1 else torch.float32)
    halves = conditions(ControlUnit(made(), torch.rand(1, 3, 128, 128)))
    check(*told_and_found(halves, Backend(Runtime(pack_weights=False)), unet=unet))
    packed, (*kept, peak) = told_and_found(halves, Backend(Runtime()), unet=unet)
    assert told_bytes(packed)[:2] == pytest.approx(kept, rel=WITHIN)
    assert peak < told_bytes(packed)[2]  # what is reordered is not seen


def test_prediction_of_the_autoencoder() -> None:
    rows, height, width = 2, 12, 16
    vae = AutoencoderKL(DEMO.vae).eval()
    latent = torch.randn(rows, 4, height, width).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), TensorMemory() as live:
        vae.decode(latent)
    assert decode_bytes(vae, torch.float32, rows, (height, width)) == pytest.approx(live.peak, rel=WITHIN)


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    assert _allowed(tmp_path) is None
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 500\ninactive_file 150\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _allowed(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert _allowed(tmp_path) is None


@pytest.mark.parametrize(
    ("shortcuts", "batch", "chunk"),
    [(Shortcuts(guidance_end=0.5), 1, 0), (EXACT, 3, 2), (EXACT, 2, 0)],
    ids=["guidance", "parts", "whole"],
)
@pytest.mark.parametrize("tiles", [False, True], ids=["definition", "tiles"])
def test_convolutions_are_packed_for_each_size(
    shortcuts: Shortcuts, batch: int, chunk: int, tiles: bool, always_tiled: None
) -> None:
    halves = conditions(ControlUnit(made(), torch.rand(1, 3, 128, 128)))
    backend = Backend(Runtime(winograd=tiles))
    job = Job(base(), LITTLE, SCHEDULE, *halves, (batch, 4, 16, 16), [8.0, 1.0])
    whole_run(job, backend, shortcuts, False, chunk or batch, TensorMemory())
    told = predict(job, backend, shortcuts, tiles=tiles, chunk=chunk)
    found = sum(backend.loaded_bytes(m) for m in backend.models(job))
    # Told is too much where a layer comes before the text: it has one size with and without guidance.
    assert 0.99 * found <= told.weights <= 1.03 * found


@pytest.fixture
def always_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers go by tiles too."""
    monkeypatch.setattr(winograd, "LEAST_WIDTH", 32)
    monkeypatch.setattr(winograd, "LEAST_WORK", dict.fromkeys(winograd.LEAST_WORK, 0))


def guided_job(cells: int) -> Job:
    """A net on both halves."""
    torch.manual_seed(0)
    unet = UNet(SMALL.unet).eval()
    net = ControlNet.from_unet(unet, ControlNetConfig(SMALL.unet, hint_widths=(8, 16, 16, 16))).eval()
    units = (ControlUnit(net, torch.rand(1, 3, 8 * cells, 8 * cells), 0.7),)
    halves = ([Condition(torch.randn(1, 77, SMALL.unet.context_dim), units)] for _ in range(2))
    return Job(unet, SMALL, SCHEDULE, *halves, (1, 4, cells, cells), [4.0])


@pytest.mark.parametrize("cells", [16, 20, 10])
@torch.inference_mode()
def test_filters_of_tiles_are_told(cells: int, always_tiled: None) -> None:
    """What is packed after an evaluation, and the buffer that it wrote to; odd sides at the lower levels do not go."""
    job = guided_job(cells)
    backend, plain = Backend(Runtime()), Backend(Runtime(winograd=False))
    told, without = predict(job, backend, tiles=True), predict(job, backend)
    for one in (backend, plain):
        evaluate(prepare_on(job, one), torch.randn(job.shape), torch.tensor(4.0), 5.0)
    packed, by_definition = (sum(one.loaded_bytes(m) for m in one.models(job)) for one in (backend, plain))
    assert told.weights - without.weights == packed - by_definition > 0
    assert without.weights == pytest.approx(by_definition, rel=0.01)  # biases are not in `there`
    assert told.step - without.step == backend.work_buffer.buffer.numel() > 0


@pytest.mark.parametrize("area", [Area(0, 0, 10, 6), Area(0, 0, 16, 8)], ids=["odd", "even"])
@torch.inference_mode()
def test_filters_of_tiles_are_told_for_areas(area: Area, always_tiled: None) -> None:
    """The area comes first: some of its layers go by their definition, where those of the whole go by tiles."""
    torch.manual_seed(0)
    unet = UNet(SMALL.unet).eval()
    texts = torch.randn(3, 1, 77, SMALL.unet.context_dim)
    positive = [Condition(texts[0], area=area), Condition(texts[1])]
    job = Job(unet, SMALL, SCHEDULE, positive, [Condition(texts[2])], (1, 4, 16, 16), [4.0])
    backend, plain = Backend(Runtime()), Backend(Runtime(winograd=False))
    told, without = predict(job, backend, tiles=True), predict(job, backend)
    for one in (backend, plain):
        evaluate(prepare_on(job, one), torch.randn(job.shape), torch.tensor(4.0), 5.0)
    assert told.weights - without.weights == backend.loaded_bytes(unet) - plain.loaded_bytes(unet)
    assert without.weights == pytest.approx(plain.loaded_bytes(unet), rel=0.01)
    assert told.step - without.step == backend.work_buffer.buffer.numel() > 0


def test_without_memory_for_their_filters_convolutions_go_by_their_definition(
    always_tiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = guided_job(16)
    backend = Backend(Runtime())
    wide, plain = predict(job, backend, tiles=True), predict(job, backend)
    for free, tiles in ((2 * wide.peak, True), ((wide.peak + plain.peak) // 2, False), (2 * wide.peak, True)):
        monkeypatch.setattr(pipeline, "free_bytes", lambda device, free=free: int(free / ROOM))
        plan = pipeline.apply_plan(job, backend)
        assert plan.fits and plan.winograd is tiles and backend.uses_winograd is tiles
        assert ("definition" in plan.summary()) is not tiles
    unasked = pipeline.apply_plan(job, Backend(Runtime(winograd=False)))
    assert unasked.fits and unasked.winograd is None and "definition" not in unasked.summary()
