"""The training loop: the loss of the paper, stopping and continuing, saved weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_controlnet
from comfyui_controlnet_core.controlnet_core.config import DEMO, ModelConfig
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import NonFiniteError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.training import demo_stages
from comfyui_controlnet_core.controlnet_core.training.demo_world import vocabulary
from comfyui_controlnet_core.controlnet_core.training.loop import Loop, Recipe
from comfyui_controlnet_core.controlnet_core.training.optimizers import clip_gradients
from comfyui_controlnet_core.controlnet_core.training.rendered_set import RenderedSet, open_scenes, render_scenes
from comfyui_controlnet_core.controlnet_core.training.step import (
    base_predictor,
    control_predictor,
    high_noise_timesteps,
    initialise_hint_encoder,
    noise_losses,
)

TINY: ModelConfig = replace(
    DEMO,
    unet=replace(DEMO.unet, widths=(32, 32), transformer_depth=(1, 0), context_dim=32),
    vae=replace(DEMO.vae, widths=(32, 32)),
    text=replace(DEMO.text, width=32, layers=1),
    hint_widths=(8, 8, 8, 16),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> RenderedSet:
    folder = tmp_path_factory.mktemp("scenes")
    hints = {"depth": lambda r: np.repeat(np.isfinite(r.depth)[..., None], 3, -1).astype(np.float32)}
    made = render_scenes(folder, range(12), hints, size=64, workers=1)
    again = open_scenes(folder)
    assert made.captions == again.captions
    assert np.array_equal(made.pictures, again.pictures)
    return again


def control_loop(scenes: RenderedSet, recipe: Recipe, state: Path | None) -> Loop:
    text = demo_stages.demo_text_encoder(TINY, vocabulary(), 0)
    torch.manual_seed(0)
    unet = UNet(TINY.unet)
    latents = torch.randn(len(scenes), 4, 8, 8, generator=torch.Generator().manual_seed(1))
    data = demo_stages.DemoData(TINY, scenes, text, latents, text.tokenize(scenes.captions), text.tokenize([""]))
    return demo_stages.control_stage(data, "depth", unet, recipe, state)


def weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loop.parameters().values()])


def test_a_killed_run_goes_on_with_the_same_numbers(scenes: RenderedSet, tmp_path: Path) -> None:
    """Weights, averages, optimiser and the place in the random sequence: all of it is in the state file."""
    recipe = Recipe(steps=6, batch=4, lr=1e-3)
    unbroken = control_loop(scenes, recipe, None)
    assert unbroken.run()
    first = control_loop(scenes, recipe, tmp_path / "s.state")
    first.run(save_every=3, until=0.0)  # stops behind the first step
    assert first.step == 1
    second = control_loop(scenes, recipe, tmp_path / "s.state")
    assert second.resume()
    assert second.run()
    assert torch.equal(weights(second), weights(unbroken))
    assert [path.name for path in tmp_path.iterdir()] == ["s.state"]


def test_averaging_may_be_switched_off_and_on_again(scenes: RenderedSet, tmp_path: Path) -> None:
    """Without it no averages take memory; they change no weight, and may begin in the middle of a training."""
    recipe = Recipe(steps=4, batch=2, lr=1e-3)
    averaged = control_loop(scenes, recipe, None)
    assert averaged.run()
    plain = control_loop(scenes, replace(recipe, steps=2, ema=0.0), tmp_path / "s.state")
    assert plain.run()
    assert not plain.average
    with plain.averaged():  # what is sampled and written
        written = weights(plain)
    assert torch.equal(written, weights(plain))
    later = control_loop(scenes, recipe, tmp_path / "s.state")
    assert later.resume()
    assert all(torch.equal(later.average[name], p) for name, p in later.parameters().items())
    assert later.run()
    assert torch.equal(weights(later), weights(averaged))
    assert any(not torch.equal(later.average[name], p) for name, p in later.parameters().items())
    stopped = control_loop(scenes, replace(recipe, steps=5, ema=0.0), tmp_path / "s.state")
    assert stopped.resume()  # averages in the file are left out
    assert not stopped.average


@pytest.mark.parametrize("most", [0.5, 1e6])
def test_clipping_gives_the_bits_of_torch(most: float) -> None:
    """Where the norm is small enough the gradients are left alone, which has the same result."""
    both = []
    for clip in (clip_gradients, torch.nn.utils.clip_grad_norm_):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((40, 30), (7,))]
        for p in parameters:
            p.grad = torch.randn_like(p)
        norm = clip(parameters, most)
        both.append([norm, *(p.grad for p in parameters)])
    assert all(map(torch.equal, *both))
    parameters[0].grad = torch.full_like(parameters[0], torch.nan)
    assert bool(clip_gradients(parameters, most).isnan())
    assert bool(parameters[1].grad.isnan().all())  # type: ignore[union-attr]


def test_only_the_controlnet_learns_and_accumulation_counts_as_one_step(scenes: RenderedSet) -> None:
    loop = control_loop(scenes, Recipe(steps=2, batch=2, accumulate=2, lr=1e-3), None)
    assert all(name.startswith("net.") for name in loop.parameters())
    before = weights(loop)
    assert loop.run()
    assert loop.step == 2
    assert not torch.equal(weights(loop), before)
    net = loop.modules["net"]
    assert all(bool(zero.conv.weight.detach().abs().sum() > 0) for zero in net.zeros)


def test_a_trained_net_is_saved_and_comes_back(scenes: RenderedSet, tmp_path: Path) -> None:
    loop = control_loop(scenes, Recipe(steps=2, batch=4, lr=1e-3), None)
    loop.run()
    loop.use_average()
    net = loop.modules["net"]
    assert isinstance(net, ControlNet)
    save_controlnet(tmp_path / "net.safetensors", net, family="demo", metadata={"note": "two steps"})
    again, _ = load_controlnet(tmp_path / "net.safetensors")
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([400.0]), torch.randn(1, 5, 32)
    hint = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = net(x, t, context, hint), again(x, t, context, hint)
    assert all(torch.equal(a, b) for a, b in zip(theirs.skips, ours.skips, strict=True))


def test_training_lowers_the_loss(scenes: RenderedSet) -> None:
    """Overfits one batch: the noise loss with fixed noise falls well below its start."""
    torch.manual_seed(0)
    unet = UNet(TINY.unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(4, 4, 8, 8, generator=g), torch.randn(4, 4, 8, 8, generator=g)
    context, t = torch.randn(4, 5, 32, generator=g), torch.tensor([200.0, 400.0, 600.0, 800.0])
    losses = []
    for _ in range(30):
        loss = noise_losses(base_predictor(unet, context), latents, t, noise, scaled_linear(), "eps").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_perfect_predictor_has_no_loss() -> None:
    noise, latents = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([1.0, 500.0, 999.0])
    assert float(noise_losses(lambda x, s: noise, latents, t, noise, scaled_linear(), "eps").mean()) == 0.0
    sigma = scaled_linear().sigma(t)[:, None, None, None]
    v = (noise - sigma * latents) / (sigma**2 + 1.0) ** 0.5
    losses = noise_losses(lambda x, s: v, latents, t, noise, scaled_linear(), "v")
    assert float(losses.mean()) == pytest.approx(0.0, abs=1e-12)


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    module = torch.nn.Linear(2, 2)
    loop = Loop({"m": module}, lambda g: module.weight.sum() * torch.nan, Recipe(steps=5))
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        loop.run(every=1)


def test_timesteps_lean_to_high_noise() -> None:
    t = high_noise_timesteps(20000, torch.Generator().manual_seed(0))
    assert float(t.mean()) == pytest.approx(1000 * 2 / 3, rel=0.02)
    assert 0 <= float(t.min()) <= float(t.max()) <= 999


def test_the_hint_encoders_signal_survives_eight_layers() -> None:
    torch.manual_seed(0)
    net = ControlNet(DEMO.controlnet)
    picture = torch.rand(4, 3, 64, 64)
    torch.nn.init.normal_(net.hint.convs[-1].weight, std=0.05)
    with torch.no_grad():
        default = net.hint(picture).std()
        initialise_hint_encoder(net, 0.05, torch.Generator().manual_seed(0))
        ours = net.hint(picture).std()
    assert ours > 10 * default
    assert not any(bool(zero.conv.weight.any()) for zero in net.zeros)


def test_gradient_checkpointing_changes_no_gradient_and_keeps_less() -> None:
    """Every block is computed twice with the same operations, so the gradients are the same to the bit."""
    torch.manual_seed(0)
    unet = UNet(TINY.unet).requires_grad_(False)
    net = ControlNet.from_unet(unet, TINY.controlnet).requires_grad_(True)
    for zero in net.zeros:  # with zeros, nothing behind them would have a gradient
        torch.nn.init.normal_(zero.conv.weight, std=0.1)
    x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    context, hint = torch.randn(2, 5, 32), torch.rand(2, 3, 64, 64)
    found = []
    for recompute in (False, True):
        for part in (net.encoder, net.middle, unet.decoder):
            part.recompute = recompute
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            predict = control_predictor(unet, net, context, hint)
            loss = noise_losses(predict, x, torch.tensor([400.0, 700.0]), noise, scaled_linear(), "eps").mean()
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in net.named_parameters()}, sum(kept.values())))
        net.zero_grad()
    (loss, plain, much), (again, same, less) = found
    assert torch.equal(loss, again) and all(torch.equal(plain[name], same[name]) for name in plain)
    weights = sum(p.untyped_storage().nbytes() for p in (*net.parameters(), *unet.parameters()))
    assert less - weights < 0.5 * (much - weights)
