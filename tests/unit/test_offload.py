"""Weights that come to the device layer by layer: the same result, in bounded memory. A cast stands for the copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from comfyui_controlnet_core.controlnet_core import pipeline
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel, SampleSettings, generate
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.controlnet_core.runtime import memory
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.runtime.memory import (
    Footprint,
    MemoryPlan,
    Streaming,
    plan_decoding,
    plan_memory,
)
from comfyui_controlnet_core.controlnet_core.speed import WeightPolicy, offload
from comfyui_controlnet_core.controlnet_core.speed.offload import AHEAD, OffloadedLayer, WeightPrefetcher, transform
from torch import Tensor, nn

CPU = torch.device("cpu")
CONFIG = replace(DEMO, unet=replace(DEMO.unet, widths=(32, 64), transformer_depth=(1, 1), context_dim=32))


def make_models(dtype: torch.dtype) -> list[nn.Module]:
    """A UNet and a net of random weights, always the same."""
    torch.manual_seed(0)
    unet = UNet(CONFIG.unet).eval().to(dtype)
    net = ControlNet.from_unet(unet).eval()
    for zero in net.zeros:
        nn.init.normal_(zero.conv.weight, std=0.05)
    return [unet, net]


def sample_with(
    models: list[nn.Module], backend: Backend, on_memory: Callable[[MemoryPlan], None] | None = None
) -> Tensor:
    """Two steps with a net."""
    unet, net = models
    assert isinstance(unet, UNet) and isinstance(net, ControlNet)
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    text = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(2))
    conditions = [Condition(text, (ControlUnit(net, hint),))], [Condition(text * 0.5)]
    model = DiffusionModel(unet, CONFIG, scaled_linear())
    settings = SampleSettings(steps=2, cfg=3.0)
    return generate(
        model, *conditions, torch.zeros(1, 4, 8, 8), settings, backend=backend, options=RunOptions(on_memory=on_memory)
    )


def sample(dtype: torch.dtype, backend: Backend) -> Tensor:
    """The same, weights in `dtype`."""
    return sample_with(make_models(dtype), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_streamed_is_bit_equal_to_resident(dtype: torch.dtype) -> None:
    expected = sample(dtype, Backend(Runtime(pack_weights=False)))
    assert torch.equal(sample(dtype, Backend(Runtime(memory="streamed"))), expected)
    partly = Backend(Runtime(pack_weights=False))
    partly.offload_beyond(200_000)
    assert torch.equal(sample(dtype, partly), expected)


class Line(nn.Sequential):
    """Layers that are used one after the other."""

    def __init__(self, count: int, width: int = 8) -> None:
        super().__init__(*(nn.Linear(width, width, bias=False, dtype=torch.float16) for _ in range(count)))


class Watched(WeightPrefetcher):
    """Notes what is sent for, and the most bytes that are under way."""

    def __init__(self, ahead: int) -> None:
        super().__init__(CPU, torch.float32, ahead=ahead)
        self.sent: list[OffloadedLayer] = []
        self.most = 0

    def take(self, layer: OffloadedLayer) -> Tensor:
        weight = super().take(layer)
        self.most = max(self.most, sum(copy.weight.nbytes for copy in self.in_flight.values()))
        return weight

    def _send(self, layer: OffloadedLayer):  # type: ignore[no-untyped-def]
        self.sent.append(layer)
        return super()._send(layer)


def test_the_next_layers_are_brought_while_one_computes_and_no_more_than_may_be_under_way() -> None:
    size = 8 * 8 * 4
    prefetcher = Watched(ahead=2 * size)
    line = Line(5)
    twin = transform(line, WeightPolicy(Runtime(), prefetcher=prefetcher))
    x = torch.randn(3, 8)
    expected = line.float()(x)
    assert torch.equal(twin(x), expected)
    layers = list(twin)
    assert prefetcher.sent == layers  # the order was not known
    prefetcher.sent.clear()
    assert torch.equal(twin(x), expected)
    # While the first layer computes, two more are under way, and so on: each is sent for once, and in order; behind the
    # last comes the first, as it did between the calls.
    assert prefetcher.sent == [*layers, *layers[:2]]
    assert prefetcher.most <= 2 * size


def test_another_order_than_last_time_only_costs_what_was_sent_for_in_vain() -> None:
    prefetcher = Watched(ahead=10_000)
    line = Line(4)
    twin = transform(line, WeightPolicy(Runtime(), prefetcher=prefetcher))
    x = torch.randn(3, 8)
    a, b, c, d = twin
    e, f, g, h = line.float()
    for _ in range(2):
        assert torch.equal(d(c(b(a(x)))), h(g(f(e(x)))))
        assert torch.equal(a(c(b(d(x)))), e(g(f(h(x)))))


def test_so_many_bytes_stay_on_the_device_and_the_module_is_left_alone() -> None:
    line = Line(4)
    before = [layer.weight.data_ptr() for layer in line]
    prefetcher = WeightPrefetcher(CPU, torch.float32, resident=2 * 8 * 8 * 4 + 5)
    twin = transform(line, WeightPolicy(Runtime(), prefetcher=prefetcher))
    assert [isinstance(layer, OffloadedLayer) for layer in twin] == [False, False, True, True]
    assert prefetcher.resident_left == 5
    assert [(layer.weight.data_ptr(), layer.weight.dtype) for layer in line] == [(p, torch.float16) for p in before]


def test_a_conveyor_keeps_no_layer_alive() -> None:
    prefetcher = WeightPrefetcher(CPU, torch.float32)
    twin = transform(Line(3), WeightPolicy(Runtime(), prefetcher=prefetcher))
    for _ in range(2):
        twin(torch.randn(1, 8))
    del twin
    assert not prefetcher.following and not prefetcher.in_flight


def footprint(pictures: int) -> Footprint:
    return Footprint(weights=10 * AHEAD, prepared=0, preparing=0, step=AHEAD * pictures)


def plan(free: float, loaded: float = 0.0, **how: int | None) -> MemoryPlan:
    """Where `free` times what may be under way is free."""
    streaming = Streaming(may=True, under_way=AHEAD, **how)  # type: ignore[arg-type]
    return plan_memory(footprint, 4, int(loaded * AHEAD), int(free * AHEAD / 0.9), streaming=streaming)


def test_weights_are_streamed_only_when_fewer_pictures_do_not_help() -> None:
    assert (plan(14.1).chunk, plan(14.1).resident) == (4, None)
    assert (plan(11.1).chunk, plan(11.1).resident) == (1, None)
    streamed = plan(5)
    assert streamed.chunk == 1 and streamed.fits
    assert streamed.resident == pytest.approx(2 * AHEAD, rel=1e-6)  # one is under way, one is spare
    assert streamed.peak == pytest.approx(4 * AHEAD, rel=1e-6)
    assert "stay on the host" in streamed.summary()
    assert not plan(1).fits and plan(1).resident == 0
    assert plan(100, fixed=0).resident == 0  # asked for, whatever is free


def test_each_run_is_planned_anew_and_a_share_that_suits_stays() -> None:
    now = plan(6).resident
    assert now == pytest.approx(3 * AHEAD, rel=1e-6)
    assert plan(3, loaded=3, now=now).resident == now  # the same again: what is loaded is not free
    assert plan(2.2, loaded=3, now=now).resident == now  # a little less is what was left to spare
    assert plan(1.5, loaded=3, now=now).resident == pytest.approx(1.5 * AHEAD, rel=1e-6)  # another program took some
    assert plan(7, loaded=3, now=now).resident == pytest.approx(7 * AHEAD, rel=1e-6)
    assert plan(9, loaded=3, now=now).resident is None


def weights_on_the_device(backend: Backend) -> tuple[int, int]:
    """Bytes of convolutions and linear layers, of both models: resident ones, streamed ones."""
    layers = [leaf for twin in backend._twins.values() for leaf in twin.modules()]
    plain = sum(leaf.weight.nbytes for leaf in layers if type(leaf) in (nn.Linear, nn.Conv2d))
    return plain, sum(leaf.host.nbytes for leaf in layers if isinstance(leaf, OffloadedLayer))


def test_streaming_ends_with_the_run_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU of changing size: what is free is what a card of so many bytes would have left."""
    monkeypatch.setattr(Backend, "may_offload", True)
    monkeypatch.setattr(offload, "AHEAD", 10_000)
    backend, models, shares = Backend(Runtime(pack_weights=False)), make_models(torch.float32), []
    expected = sample_with(models, Backend(Runtime(pack_weights=False)))
    whole = sum(p.nbytes for model in models for p in model.parameters())
    monkeypatch.setattr(memory, "SPARE", whole // 20)

    def card(size: int) -> None:
        taken = sum(backend.loaded_bytes(model) for model in models)
        monkeypatch.setattr(pipeline, "free_bytes", lambda device: size - taken)

    for room in (10.0, 1.0, 0.7, 0.7, 10.0):
        card(int(room * whole))
        plans: list[MemoryPlan] = []
        assert torch.equal(sample_with(models, backend, plans.append), expected)
        resident, streamed = weights_on_the_device(backend)
        shares.append(plans[0].resident)
        assert resident + streamed > 0.9 * whole
        assert (streamed == 0) == (shares[-1] is None)
        if shares[-1] is not None:
            assert 0 < resident <= shares[-1]
            assert backend.prefetcher is not None and not backend.prefetcher.in_flight
            assert backend.prefetcher.current is None
    first, large, small, again, last = shares
    assert first is None and last is None
    assert large is not None and small is not None and small < large
    assert again == small


def test_before_weights_are_streamed_what_only_other_runs_need_leaves_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Backend, "may_offload", True)
    backend = Backend(Runtime(pack_weights=False))
    models, others = make_models(torch.float32), make_models(torch.float32)
    room = 3 * sum(backend.loaded_bytes(model) for model in models)
    monkeypatch.setattr(pipeline, "free_bytes", lambda device: room - sum(map(backend.loaded_bytes, backend._twins)))
    sample_with(others, backend)
    assert set(backend._twins) == set(others)
    plans: list[MemoryPlan] = []
    sample_with(models, backend, plans.append)
    assert set(backend._twins) == {*models, *others} and plans[0].resident is None
    room //= 2
    sample_with(models, backend, plans.append)
    assert set(backend._twins) == set(models) and plans[1].resident is None


@pytest.mark.parametrize(
    ("free", "expected"), [(None, (4, None)), (4000, (4, None)), (3999, (2, None)), (1000, (1, None)), (500, (1, 64))]
)
def test_an_autoencoder_decodes_fewer_pictures_before_it_decodes_tiles(
    free: int | None, expected: tuple[int, int | None]
) -> None:
    def values(rows: int, size: tuple[int, int]) -> int:
        return rows * size[0] * size[1] // 16 if rows > 1 or size[0] > 32 else 1

    scaled = None if free is None else -(-free * 10 // 9)
    assert plan_decoding(values, 4, (160, 100), scaled) == expected
