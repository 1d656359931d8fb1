"""SparseCtrl beside diffusers' SparseControlNetModel on random weights, in both layouts, with pictures and latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.config import UNetConfig
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, UnfitError
from comfyui_controlnet_core.controlnet_core.models.control import BindContext
from comfyui_controlnet_core.controlnet_core.models.sparsectrl import MotionModule, SparseCtrl, positions
from random_tensors import normal, relative_error
from safetensors.torch import save_file
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
BASE = UNetConfig(widths=(32, 64, 64), transformer_depth=(1, 1, 0), num_heads=8, context_dim=48, middle_depth=1)
SCHEDULE = scaled_linear()
TIMESTEP, FRAMES, TEXTS = 321.0, 5, 2
OLD_NAMES = {".norm1": ".norms.0", ".norm3": ".ff_norm", ".attn1": ".attention_blocks.0", "pos_embed.pe": "pos_encoder"}


def reference(latents: bool) -> Any:
    net = diffusers.SparseControlNetModel(
        conditioning_channels=4 if latents else 3,
        down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
        block_out_channels=BASE.widths,
        cross_attention_dim=BASE.context_dim,
        attention_head_dim=8,
        conditioning_embedding_out_channels=(16, 32, 96, 256),
        use_simplified_condition_embedding=latents,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        scale = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data.uniform_(-1.7 * scale, 1.7 * scale, generator=generator)
    return net.eval()


def save(net: Any, path: Path, old: bool = False) -> Path:
    """Write the net in diffusers' names, or with the authors' names for its motion modules."""
    state = {}
    for key, tensor in net.state_dict().items():
        if old and ".motion_modules." in key:
            stem, _, rest = key.partition(".motion_modules.")
            number, _, name = rest.partition(".")
            name = f".{name}"
            for new, old_name in OLD_NAMES.items():
                if new == "pos_embed.pe":
                    name = name.replace(".pos_embed.pe", ".attention_blocks.0.pos_encoder.pe")
                else:
                    name = name.replace(new, old_name)
            key = f"{stem}.motion_modules.{number}.temporal_transformer{name}"
        state[key] = tensor.contiguous()
    save_file(state, path)
    return path


def ours(net: SparseCtrl, hint: Tensor, text: Tensor, order: tuple[int, ...] | None = None) -> list[Tensor]:
    """Residuals for TEXTS texts with all frames each. hint: (FRAMES, 4, 8h, 8w)."""
    sigma = float(SCHEDULE.sigma(torch.tensor(TIMESTEP)))
    rows = order or tuple(range(FRAMES)) * TEXTS
    texts = text.repeat_interleave(len(rows) // len(text), 0)
    context = BindContext((hint,), ("",), texts, None, SCHEDULE, (sigma,), rows, len(rows), (8, 16), False, BASE)
    inputs = net.bind(context).inputs_at(sigma)
    steps = zip(net.features(normal(len(rows), 4, 8, 16), inputs), net.projections(inputs), strict=True)
    return [projection(feature) for feature, projection in steps]


def theirs(net: Any, condition: Tensor, mask: Tensor, text: Tensor) -> list[Tensor]:
    """condition: (FRAMES, C, ...), mask: (FRAMES, 1, ...)."""
    videos = [t.transpose(0, 1)[None].expand(TEXTS, -1, -1, -1, -1) for t in (condition, mask)]
    skips, middle = net(
        normal(TEXTS, 4, FRAMES, 8, 16), torch.full((TEXTS,), TIMESTEP), text.repeat_interleave(FRAMES, 0),
        videos[0], conditioning_mask=videos[1], return_dict=False,
    )  # fmt: skip
    return [*skips, middle]


@pytest.mark.parametrize("latents", [False, True], ids=["scribble", "rgb"])
@pytest.mark.parametrize("old", [False, True], ids=["diffusers", "authors"])
@torch.inference_mode()
def test_residuals(tmp_path: Path, latents: bool, old: bool) -> None:
    expected = reference(latents)
    net, identity = load_control(save(expected, tmp_path / "net.safetensors", old))
    assert isinstance(net, SparseCtrl) and identity.kind == "sparsectrl"
    hint, text = (
        torch.rand(FRAMES, 4, 64, 128, generator=torch.Generator().manual_seed(1)),
        normal(TEXTS, 7, 48, seed=2),
    )
    hint[:, 3] = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])[:, None, None]  # the frames that have a hint
    condition, mask = hint[:, :3] * hint[:, 3:], hint[:, 3:]
    if latents:
        net.encode_hint = lambda picture: torch.nn.functional.avg_pool2d(picture, 8)[:, [0, 1, 2, 0]]
        mask = mask[..., ::8, ::8]
        condition = net.encode_hint(hint[:, :3]) * mask
    for module in net.motion:
        module.joint_norm = True  # as diffusers does
    found, wanted = ours(net, hint, text), theirs(expected, condition, mask, text)
    worst = max(relative_error(a, b) for a, b in zip(found, wanted, strict=True))
    print(f"SparseCtrl: {worst:.1e}")
    assert worst <= TOLERANCE
    hint[:, 3] = 1.0
    assert relative_error(ours(net, hint, text)[-1], wanted[-1]) > 0.01


@torch.inference_mode()
def test_frames_attend_to_each_other_and_the_norm_is_of_each_frame() -> None:
    """The authors' module written out: GroupNorm of each frame, attention with positions, feed-forward."""
    torch.manual_seed(0)
    module = MotionModule(32, 1).eval()
    for parameter in module.parameters():
        parameter.data.uniform_(-0.3, 0.3)
    x, frames = normal(6, 32, 2, 3), 3
    block = module.blocks[0]
    h = module.proj_in(module.norm(x).permute(0, 2, 3, 1))  # (6, 2, 3, 32)
    expected = torch.empty_like(h)
    for video in (slice(0, 3), slice(3, 6)):
        for row in range(2):
            for column in range(3):
                tokens = h[video, row, column]
                seen = block.norm1(tokens) + positions(frames, 32)
                q, k, v = (
                    layer(seen).unflatten(-1, (8, 4)).transpose(0, 1)
                    for layer in (block.attn.q, block.attn.k, block.attn.v)
                )
                mixed = (torch.softmax(q @ k.transpose(1, 2) / 2.0, dim=-1) @ v).transpose(0, 1).flatten(1)
                tokens = tokens + block.attn.out(mixed)
                value, gate = block.ff.proj(block.norm2(tokens)).chunk(2, dim=-1)
                tokens = tokens + block.ff.out(value * nn.functional.gelu(gate))
                expected[video, row, column] = module.proj_out(tokens)
    torch.testing.assert_close(module(x, frames), x + expected.permute(0, 3, 1, 2))


@torch.inference_mode()
def test_a_picture_without_mask_counts_everywhere_and_missing_frames_are_an_error(tmp_path: Path) -> None:
    from comfyui_controlnet_core.controlnet_core.control.hint import check_hint_channels

    net, _ = load_control(save(reference(False), tmp_path / "net.safetensors"))
    hint = check_hint_channels(torch.rand(FRAMES, 3, 64, 128), net.hint_channels)
    assert hint.shape[1] == 4 and bool((hint[:, 3] == 1).all())
    with pytest.raises(UnfitError, match="all frames of the video"):
        ours(net, hint, normal(1, 7, 48), order=(0, 1, 2, 0, 1))
    with pytest.raises(UnfitError, match="knows 32 frames, the batch has 40"):
        ours(net, hint[:1], normal(1, 7, 48), order=tuple(range(40)))
    latents, _ = load_control(save(reference(True), tmp_path / "rgb.safetensors"))
    with pytest.raises(UnfitError, match="through a VAE"):
        ours(latents, hint, normal(1, 7, 48))


def test_inspect_and_damaged_files(tmp_path: Path) -> None:
    net = reference(False)
    report = inspect_file(save(net, tmp_path / "net.safetensors", old=True))
    assert report.loadable and "hints are pictures" in report.identity.summary
    state = {k: v.contiguous() for k, v in net.state_dict().items() if not k.endswith("motion_modules.1.proj_out.bias")}
    save_file(state, tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointError, match=r"motion_modules\.1\.proj_out\.bias"):
        load_control(tmp_path / "damaged.safetensors")
