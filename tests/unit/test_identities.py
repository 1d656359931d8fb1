"""The paper's identities: what zero convolutions promise (Zhang et al. 2023, section 3.1)."""

from __future__ import annotations

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO, SD15, ControlNetConfig
from comfyui_controlnet_core.controlnet_core.control.residuals import add_residual
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet, HintEncoder
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.unet import Residuals, UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.training.step import control_predictor
from torch import Tensor


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(DEMO.unet)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, 16, 16, generator=g)
    t = torch.tensor([17.0, 803.0])[:batch]
    context = torch.randn(batch, 9, DEMO.unet.context_dim, generator=g)
    hint = torch.rand(batch, 3, 128, 128, generator=g)
    return x, t, context, hint


def test_fresh_controlnet_leaves_the_unet_bit_equal(unet: UNet) -> None:
    x, t, context, hint = inputs()
    net = ControlNet.from_unet(unet, DEMO.controlnet)
    with torch.no_grad():
        assert torch.equal(unet(x, t, context), unet(x, t, context, residuals=net(x, t, context, hint)))


def test_the_copy_is_a_copy_and_not_the_same_parameters(unet: UNet) -> None:
    net = ControlNet.from_unet(unet, DEMO.controlnet)
    theirs, ours = unet.encoder.state_dict(), net.encoder.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert not {p.data_ptr() for p in unet.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_zero_convolutions_learn_and_gradients_reach_only_the_controlnet(unet: UNet) -> None:
    x, t, context, hint = inputs()
    unet.requires_grad_(False)
    net = ControlNet.from_unet(unet, DEMO.controlnet).requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    predict = control_predictor(unet, net, context, hint)
    predict(x, t).square().mean().backward()
    assert all(p.grad is None for p in unet.parameters())
    grads = [zero.conv.weight.grad for zero in net.zeros]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in grads)
    optimizer.step()
    assert all(bool(zero.conv.weight.detach().abs().sum() > 0) for zero in net.zeros)


def test_only_middle_drops_the_skip_residuals(unet: UNet) -> None:
    x, t, context, hint = inputs()
    net = ControlNet.from_unet(unet, DEMO.controlnet)
    for zero in net.zeros:
        torch.nn.init.normal_(zero.conv.weight, std=0.05)
    with torch.no_grad():
        residuals = net(x, t, context, hint)
        only = control_predictor(unet, net, context, hint, only_middle=True)(x, t)
        skips = tuple(torch.zeros_like(r) for r in residuals.skips)
        assert torch.equal(only, unet(x, t, context, residuals=Residuals(skips, residuals.middle)))


def test_a_weighted_residual_is_the_definition() -> None:
    torch.manual_seed(3)
    net = ControlNet(DEMO.controlnet)
    zero = net.zero_convs[1]
    torch.nn.init.normal_(zero.conv.weight)
    torch.nn.init.normal_(zero.conv.bias)
    h, skip = torch.randn(2, 64, 5, 7), torch.randn(2, 64, 5, 7)
    expected = skip + 0.3 * zero(h)
    added = skip.clone()
    add_residual(added, zero(h), 0.3)
    torch.testing.assert_close(added, expected, rtol=1e-5, atol=1e-5)


def test_sd15_has_the_released_sizes() -> None:
    """859.5 M, 361.3 M and 83.7 M parameters: those of the released files; 12 + 1 zero convolutions."""
    with on_meta():
        unet, net, vae = UNet(SD15.unet), ControlNet(SD15.controlnet), AutoencoderKL(SD15.vae)
    counts = [sum(p.numel() for p in m.parameters()) for m in (unet, net, vae)]
    assert counts == [859_520_964, 361_279_120, 83_653_863]
    assert len(net.zeros) == 13


def test_the_hint_encoder_is_the_released_one() -> None:
    convs = HintEncoder(ControlNetConfig()).convs
    shapes = [(c.in_channels, c.out_channels, c.stride[0]) for c in convs]
    assert shapes == [
        (3, 16, 1),
        (16, 16, 1),
        (16, 32, 2),
        (32, 32, 1),
        (32, 96, 2),
        (96, 96, 1),
        (96, 256, 2),
        (256, 320, 1),
    ]
    assert not convs[-1].weight.any()
