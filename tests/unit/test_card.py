"""Runs on a graphics card that is pretended: where tensors lie, what the host waits for, in which order streams work.

The picture is the processor's, so each run is also held to the one that was made without a card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from card_cases import CASES, OPTIONS, Case, World, assert_alike, everything, on_card, on_host, rand, several
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.diffusion.samplers import SAMPLERS, Step
from comfyui_controlnet_core.controlnet_core.pipeline import SampleSettings
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.controlnet_core.speed import WeightPolicy, fused_qkv
from comfyui_controlnet_core.controlnet_core.speed.offload import OffloadedLayer, WeightPrefetcher, transform
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import prepare_training
from comfyui_controlnet_core.controlnet_core.training.examples import RandomAccess
from comfyui_controlnet_core.controlnet_core.training.loop import Loop, Recipe
from comfyui_controlnet_core.nodes.standalone.host import ASSETS, StandaloneHost
from comfyui_controlnet_core.nodes.values import ControlSpec, SamplerInputs
from few import few_of, rows_of
from pretended_card import Card
from torch import Tensor


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """A card that computes what is asked for on it; no kernels of Triton's."""
    monkeypatch.setattr(fused_qkv, "_kernels", lambda device: None)
    with Card().install(monkeypatch) as card:
        yield card


def test_a_torch_with_cuda_of_its_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tests are skipped, and say why."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(pytest.skip.Exception, match="built for CUDA"):
        Card().install(monkeypatch)


class Watch:
    """What the host waited for, and what it sent, while a run was in its loop: between the first step and the last."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.before: tuple[int, int] | None = None
        self.inside: list[str] = []
        self.sent: list[str] = []

    def __call__(self, step: Step) -> None:
        if self.before is None:
            self.before = len(self.card.waits), len(self.card.sent)
        self.inside, self.sent = self.card.waits[self.before[0] :], self.card.sent[self.before[1] :]


def watched(card: Card, case: Case, runtime: Runtime) -> tuple[Tensor, Watch]:
    """A latent that was made on the card, and who watched the loop."""
    world, watch = World(), Watch(card)
    return world.sample(runtime, **case(world), on_step=watch), watch


def run_on(card: Card, case: Case, runtime: Runtime) -> tuple[Tensor, list[str]]:
    """A latent that was made on the card, and what the host waited for in the loop."""
    made, watch = watched(card, case, runtime)
    return made, watch.inside


@cache
def run_off(case: Case, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same on the processor, as it is without any option. No card is in the way."""
    with torch._C.DisableTorchFunction():
        world = World()
        return world.sample(Runtime(dtype=dtype, pack_weights=False), **case(world))


EACH_TIME = ("several nets", "areas, masks and windows", "a report")


@pytest.mark.parametrize("name", few_of(CASES, *EACH_TIME))
def test_nothing_waits_in_the_loop_and_the_picture_is_the_same(card: Card, name: str) -> None:
    made, watch = watched(card, CASES[name], on_card())
    assert_alike(made, run_off(CASES[name]))
    assert not watch.inside and not watch.sent and not card.races


@pytest.mark.parametrize("options", few_of(OPTIONS, "graphs, side by side, wide", "streamed"))
def test_by_choice_nothing_waits_either_and_streams_keep_their_order(card: Card, options: str) -> None:
    made, waits = run_on(card, everything, on_card(**OPTIONS[options]))
    assert_alike(made, run_off(everything))
    assert not card.races
    assert not [wait for wait in waits if "capture begins" not in wait]
    assert bool(card.captures) is ("graphs" in options)


def test_what_the_halves_have_in_common_is_replayed_too(card: Card) -> None:
    made, waits = run_on(card, CASES["no label"], on_card(graphs=True, parallel_nets=True, fused_qkv=True))
    assert_alike(made, run_off(CASES["no label"]))
    assert card.captures and not card.races
    assert not [wait for wait in waits if "capture begins" not in wait]


@pytest.mark.parametrize("sampler", few_of(SAMPLERS, "uni_pc"))
def test_no_sampler_waits(card: Card, sampler: str) -> None:
    settings = SampleSettings(steps=3, cfg=4.0, sampler=sampler, ancestral="cpu")

    def case(world: World) -> dict[str, Any]:
        return {"units": [], "batch": 1, "settings": settings}

    made, waits = run_on(card, case, on_card())
    assert_alike(made, run_off(case), 1e-4)
    assert not waits


@pytest.mark.parametrize(
    ("dtype", "options"),
    rows_of([(torch.float16, "graphs, side by side, wide"), (torch.bfloat16, "plain")], 1),
    ids=str,
)
def test_half_precision(card: Card, dtype: torch.dtype, options: str) -> None:
    made, waits = run_on(card, CASES["several nets"], on_card(dtype, **OPTIONS[options]))
    assert_alike(made, run_off(CASES["several nets"], dtype), 0.1)
    assert not card.races
    assert not [wait for wait in waits if "capture begins" not in wait]


def test_a_run_on_a_warm_backend_waits_for_its_latent_and_its_noise_alone(card: Card) -> None:
    """Nothing is prepared again for another seed: two copies in, one out, and one look whether all was finite."""
    world, backend = World(), Backend(on_card())
    units = several(world)["units"]

    def run(seed: int, steps: int) -> list[str]:
        before = len(card.waits)
        world.sample(backend.runtime, units, backend=backend, settings=SampleSettings(seed, steps, cfg=4.0))
        return card.waits[before:]

    run(0, 4)
    assert len(run(1, 4)) == len(run(2, 2)) == 4, run(3, 2)


@pytest.mark.parametrize(
    "options", few_of(["streamed, side by side", "graphs, side by side, wide"], "graphs, side by side, wide")
)
def test_memory_does_not_grow_with_steps_or_runs(card: Card, options: str) -> None:
    world, backend = World(), Backend(on_card(**OPTIONS[options]))
    units = [world.unit(), world.unit(world.second)]

    def reserved(steps: int) -> int:
        settings = SampleSettings(steps=steps, cfg=4.0, sampler="ddim", scheduler="simple")
        world.sample(backend.runtime, units, backend=backend, settings=settings)
        return card.reserved

    first = reserved(2)
    assert reserved(2) <= 1.01 * first
    assert reserved(4) <= 1.1 * first  # two more projected timesteps


def test_streamed_weights_take_no_more_than_what_may_be_under_way(card: Card) -> None:
    world = World()
    prefetcher = WeightPrefetcher(card.device, torch.float32, ahead=200_000)
    twin = transform(world.unet, WeightPolicy(Runtime(card.device), prefetcher=prefetcher))
    layers = [module for module in twin.modules() if isinstance(module, OffloadedLayer)]
    largest = max(layer.host.nbytes for layer in layers)
    x, t, text, y = rand(1, 1, 4, 8, 8), torch.tensor([500.0]), rand(2, 1, 77, 32), rand(3, 1, 16)
    with torch.inference_mode():
        expected = world.unet(x, t, text, y)
        for _ in range(3):
            made = twin(*(part.to(card.device) for part in (x, t, text, y)))
        assert_alike(made.cpu(), expected)
    assert prefetcher.stream.most <= prefetcher.ahead + 2 * largest
    assert sum(layer.host.nbytes for layer in layers) > 3 * prefetcher.ahead
    assert not card.races


def test_what_a_graph_replays_is_what_a_run_says_now(card: Card) -> None:
    """Another seed, strength, hint, prompt and scale of guidance: captured once, and each picture the processor's."""
    world, backend = World(), Backend(on_card(graphs=True, parallel_nets=True))
    calm = World()

    def alike(**changes: Any) -> None:
        def sample(own: World, runtime: Runtime, **more: Any) -> Tensor:
            units = [own.unit(**changes.get("unit", {})), own.unit(own.second)]
            settings = SampleSettings(steps=2, **{"cfg": 4.0, **changes.get("settings", {})})
            return own.sample(runtime, units, settings=settings, **more)

        made = sample(world, backend.runtime, backend=backend)
        assert_alike(made, sample(calm, on_host()), 5e-5)

    other = {"unit": {"strength": 0.3, "seed": 12}, "settings": {"seed": 5, "cfg": 2.0, "sampler": "heun"}}
    for changes in ({}, other):
        alike(**changes)
        assert card.captures == 1
    alike(unit={"end": 0.5})
    assert card.captures == 2
    assert not card.races


def test_a_capture_for_which_there_is_no_memory(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full(*_: Any, **__: Any) -> Iterator[None]:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore words.")
        yield

    world, recorder, backend = World(), Recorder(), Backend(on_card(graphs=True))
    world.sample(backend.runtime, [world.unit()], backend=backend)
    assert len(backend.programs.made) == 1
    monkeypatch.setattr(torch.cuda, "graph", full)
    units = [world.unit(), world.unit(world.second)]
    made = world.sample(backend.runtime, units, backend=backend, recorder=recorder)
    calm = World()
    assert_alike(made, calm.sample(on_host(), [calm.unit(), calm.unit(calm.second)]))
    assert recorder.report().notes == (
        "no graphs: an evaluation could not be captured (CUDA out of memory. Tried to allocate 20.00 MiB.)",
    )
    assert not backend.programs.made  # their memory is free for the run


def test_a_run_that_cannot_be_captured_goes_on_without(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(x: Tensor) -> Tensor:
        return x.clamp(max=max(1e9, float(x.max())))

    world, recorder = World(), Recorder()
    expected = world.sample(on_host(), [world.unit()])
    world.unet.conv_out.register_forward_pre_hook(lambda module, args: looks(args[0]))
    made = world.sample(on_card(graphs=True), [world.unit()], recorder=recorder)
    assert_alike(made, expected)
    (note,) = recorder.report().notes
    assert "could not be captured" in note and "not permitted when stream is capturing" in note
    assert torch.cuda.current_stream() is card.default


def test_from_files_to_a_picture_as_the_command_does_it(card: Card, tmp_path: Path) -> None:
    """The demo model, a net in float16 and one in float8, text encoder and autoencoder."""

    def picture(runtime: Runtime) -> Tensor:
        host = StandaloneHost(tmp_path, tmp_path, runtime=runtime, observe=False, on_report=lambda report: None)
        model, clip, vae = host.load_checkpoint(host.assets_dir / "demo_base.safetensors")
        vae = vae or host.load_vae(host.assets_dir / "demo_vae.safetensors")
        positive, negative = (host.encode_prompt(clip, text) for text in ("a (red:1.2) sphere", ""))
        nets = [host.load_controlnet(host.assets_dir / f"demo_{kind}.safetensors") for kind in ("canny", "scribble")]
        hint = rand(3, 1, 64, 64, 3).clamp(0, 1)
        specs = [ControlSpec(net, hint, strength=0.7) for net in nets]
        positive, negative = host.apply_control(positive, negative, specs)
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        made = host.sample(SamplerInputs(model, positive, negative, latent, SampleSettings(steps=2)))
        back = host.encode(vae, host.decode(vae, made["samples"]))
        return torch.cat([host.decode(vae, made["samples"]), host.decode(vae, back, tile=6, overlap=2)])

    made = picture(on_card(**OPTIONS["graphs, side by side, wide"]))
    assert not card.races and card.captures == 1
    assert_alike(made, picture(on_host()), 1e-4)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_what_a_card_computes_in(
    card: Card, capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for name in ("auto", "cuda"):
        assert Runtime.choose(name) == Runtime(card.device, torch.float16, expected)


class Pairs(RandomAccess):
    """Pictures and hints of random numbers."""

    size = 64

    def __len__(self) -> int:
        return 4

    def captions(self, rows: Sequence[int]) -> list[str]:
        return ["a red sphere"] * len(rows)

    def pictures(self, rows: Sequence[int]) -> Tensor:
        return torch.cat([rand(row, 1, 3, 64, 64).clamp(-1, 1) for row in rows])

    def hints(self, rows: Sequence[int]) -> Tensor:
        return torch.cat([rand(10 + row, 1, 3, 64, 64).clamp(0, 1) for row in rows])


def test_training_on_a_card_learns_the_same_and_waits_for_no_step(card: Card) -> None:
    def trained(device: str) -> tuple[list[float], Tensor, list[int]]:
        checkpoint = load_checkpoint(ASSETS / "demo_base.safetensors")
        torch.manual_seed(0)
        training = prepare_training(checkpoint, Pairs(), Recipe(steps=3, batch=1, accumulate=2), device=device)
        # Made once, whenever an example or a caption is first drawn.
        training.latents(range(len(Pairs())))
        training.condition(("", "a red sphere"), (Pairs.size, Pairs.size))
        losses: list[float] = []
        waits: list[int] = []

        def count(step: int) -> None:
            waits.append(len(card.waits))

        training.loop.run(lambda report: losses.append(report.loss), every=3, save_every=9, on_step=count)
        return losses, torch.cat([p.detach().flatten() for p in training.loop.parameters().values()]).cpu(), waits

    losses, weights, waits = trained(str(card.device))
    expected = trained("cpu")
    assert losses == pytest.approx(expected[0], rel=1e-5)
    assert_alike(weights, expected[1])
    assert waits[1] - waits[0] <= 1  # what clips gradients asks C++ where they are, which knows no card


def test_averages_can_stay_on_the_host(card: Card) -> None:
    torch.manual_seed(0)
    host = torch.nn.Linear(4, 4)
    loops = []
    for device, on_cpu in (("cpu", False), (str(card.device), True)):
        module = torch.nn.Linear(4, 4)
        module.load_state_dict(host.state_dict())
        module.to(device)

        def loss(generator: torch.Generator, module: torch.nn.Linear = module) -> Tensor:
            return module.weight.square().sum() + module.bias.sum()

        loops.append(Loop({"m": module}, loss, Recipe(steps=3, lr=0.1, ema_on_cpu=on_cpu)))
        loops[-1].run()
    plain, kept = loops
    assert all(average.device.type == "cpu" for average in kept.average.values())
    with kept.averaged():
        for name, weight in kept.parameters().items():
            assert_alike(weight.cpu(), plain.average[name])


# ---- the card itself: what it is there to find, it finds


def test_the_card_finds_mixed_devices_and_every_way_to_wait(card: Card) -> None:
    x = torch.ones(4, 4).to(card.device)
    with pytest.raises(RuntimeError, match=r"same device: add meets host tensors \[\(4,\)\]"):
        x + torch.ones(4)
    assert (x * torch.tensor(2.0)).device == card.device  # a number may come from the host
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    looks: list[Callable[[], Any]] = [
        lambda: x.sum().item(), lambda: float(x.sum()), lambda: bool(x.all()), lambda: x.tolist(), lambda: x.cpu(),
        lambda: x.to("cpu"), lambda: x[x > 0], lambda: x[[0, 1]], lambda: x.nonzero(), lambda: torch.equal(x, x),
        lambda: f"{x.sum():.2f}", lambda: torch.tensor([1.0], device=card.device), lambda: x.new_tensor([1.0]),
        lambda: torch.ones(3).to(card.device), lambda: x.copy_(torch.ones(4, 4)), lambda: torch.cuda.synchronize(),
    ]  # fmt: skip
    for look in looks:
        before = len(card.waits)
        look()
        assert len(card.waits) == before + 1
    quiet: list[Callable[[], Any]] = [
        lambda: x + 1.0, lambda: x[:2, 1], lambda: torch.zeros(3, device=card.device), lambda: torch.zeros_like(x),
        lambda: x.shape[0] + x.numel(), lambda: torch.ones(3).pin_memory().to(card.device, non_blocking=True),
    ]  # fmt: skip
    before = len(card.waits)
    for call in quiet:
        call()
    assert len(card.waits) == before


def test_the_card_finds_streams_out_of_order(card: Card) -> None:
    x, aside = torch.zeros(8, device=card.device), torch.cuda.Stream(card.device)
    with torch.cuda.stream(aside):
        made = x + 1.0
    assert len(card.races) == 1  # x may not be there yet
    card.races.clear()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        made = x + 1.0
    x.add_(1.0)
    assert len(card.races) == 1  # it is still read
    card.races.clear()
    torch.cuda.current_stream().wait_stream(aside)
    assert float(made.sum()) == 8.0
    made.mul_(2.0)
    del made
    assert len(card.races) == 1  # its memory goes back to a stream that does not wait for this one
    card.races.clear()
    x.add_(1.0)
    assert not card.races


def test_the_card_replays_what_it_recorded_and_nothing_else(card: Card) -> None:
    x, factor = torch.ones(2, device=card.device), 3.0
    graph, host_side = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        host_side.append(factor)
        made = (x * factor).add_(1.0)
    assert made.isnan().all()  # nothing has run yet
    factor = 5.0
    x.fill_(2.0)
    graph.replay()
    assert made.tolist() == [7.0, 7.0] and len(host_side) == 1
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
        x.sum().item()
    other = torch.cuda.Stream()
    with pytest.raises(RuntimeError, match="have not been joined"), torch.cuda.graph(graph):
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            x.mul(2.0)
