"""LoRA files: each kind's arithmetic against its published formula, each tool's names, and merging as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.lora import read_lora
from comfyui_controlnet_core.controlnet_core.checkpoints.lora_places import merge, place_text, place_unet
from comfyui_controlnet_core.controlnet_core.config import DEMO, TextConfig
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, UnfitError
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from torch import Tensor

CONFIG = replace(DEMO.unet, widths=(32, 64, 64), num_heads=2, context_dim=48)
TEXT = TextConfig(width=48, layers=2, heads=2, vocab_size=60)
QUERY = "encoder.blocks.1.transformer.blocks.0.attn2.k.weight"
CONV = "encoder.blocks.3.res.conv1.weight"
QUERY_NAMES = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k",
    "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k",
    "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k",
)
CONV_NAME = "lora_unet_down_blocks_1_resnets_0_conv1"


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG).requires_grad_(False)


@pytest.fixture(scope="module")
def text() -> ClipTextModel:
    torch.manual_seed(1)
    return ClipTextModel(TEXT).requires_grad_(False)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def written(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    path = folder / "some name.safetensors"
    write_safetensors(path, tensors, metadata)
    return path


def merged(path: Path, unet: UNet, strength: float = 1.0) -> dict[str, Tensor]:
    """Only what differs from the base."""
    placed = place_unet(read_lora(path), unet)
    assert not placed.unplaced
    before = unet.state_dict()
    after = merge(unet, [(placed.updates, strength)]).state_dict()
    return {key: value for key, value in after.items() if not torch.equal(value, before[key])}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------- kinds of updates


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7])
def test_lora_is_alpha_over_rank_times_up_down(unet: UNet, tmp_path: Path, strength: float) -> None:
    up, down = some(32, 4), some(4, 48)
    path = written(
        tmp_path,
        {
            f"{QUERY_NAMES[0]}.lora_up.weight": up,
            f"{QUERY_NAMES[0]}.lora_down.weight": down,
            f"{QUERY_NAMES[0]}.alpha": torch.tensor(3.0),
        },
    )
    result = merged(path, unet, strength)
    assert set(result) == {QUERY}
    close(result[QUERY], unet.state_dict()[QUERY] + strength * 3.0 / 4.0 * up @ down)


def test_lora_without_alpha_counts_whole(unet: UNet, tmp_path: Path) -> None:
    up, down = some(32, 4), some(4, 48)
    path = written(tmp_path, {f"{QUERY_NAMES[0]}.lora_up.weight": up, f"{QUERY_NAMES[0]}.lora_down.weight": down})
    close(merged(path, unet)[QUERY], unet.state_dict()[QUERY] + up @ down)


def test_lora_of_a_convolution_is_two_convolutions_in_a_row(unet: UNet, tmp_path: Path) -> None:
    up, down, x = some(64, 4, 1, 1), some(4, 32, 3, 3), some(1, 32, 5, 5)
    path = written(tmp_path, {f"{CONV_NAME}.lora_up.weight": up, f"{CONV_NAME}.lora_down.weight": down})
    delta = merged(path, unet)[CONV] - unet.state_dict()[CONV]
    conv2d = torch.nn.functional.conv2d
    torch.testing.assert_close(conv2d(x, delta), conv2d(conv2d(x, down), up), rtol=1e-4, atol=1e-4)


def test_lora_in_tucker_form_is_three_convolutions_in_a_row(unet: UNet, tmp_path: Path) -> None:
    up, mid, down, x = some(64, 4, 1, 1), some(4, 4, 3, 3), some(4, 32, 1, 1), some(1, 32, 5, 5)
    parts = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}
    path = written(tmp_path, {f"{CONV_NAME}.{part}": tensor for part, tensor in parts.items()})
    delta = merged(path, unet)[CONV] - unet.state_dict()[CONV]
    conv2d = torch.nn.functional.conv2d
    expected = conv2d(conv2d(conv2d(x, down), mid), up)
    torch.testing.assert_close(conv2d(x, delta), expected, rtol=1e-4, atol=1e-3)


def test_loha_is_the_elementwise_product_of_two_matrices(unet: UNet, tmp_path: Path) -> None:
    parts = {"w1_a": some(32, 4), "w1_b": some(4, 48), "w2_a": some(32, 4, seed=1), "w2_b": some(4, 48, seed=1)}
    tensors = {f"{QUERY_NAMES[1]}.hada_{part}": tensor for part, tensor in parts.items()}
    path = written(tmp_path, {**tensors, f"{QUERY_NAMES[1]}.alpha": torch.tensor(2.0)})
    delta = (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"]) * 2.0 / 4.0
    close(merged(path, unet)[QUERY], unet.state_dict()[QUERY] + delta)


def test_lokr_is_a_kronecker_product_and_alpha_needs_a_rank(unet: UNet, tmp_path: Path) -> None:
    w1, w2 = some(4, 6), some(8, 8)
    alpha = {f"{QUERY_NAMES[1]}.alpha": torch.tensor(7.0)}
    path = written(tmp_path, {f"{QUERY_NAMES[1]}.lokr_w1": w1, f"{QUERY_NAMES[1]}.lokr_w2": w2, **alpha})
    delta = torch.stack([torch.cat([w1[i, j] * w2 for j in range(6)], dim=1) for i in range(4)]).reshape(32, 48)
    close(merged(path, unet)[QUERY], unet.state_dict()[QUERY] + delta)
    a, b = some(8, 2), some(2, 8)
    inner = {f"{QUERY_NAMES[1]}.lokr_w2_a": a, f"{QUERY_NAMES[1]}.lokr_w2_b": b}
    path = written(tmp_path, {f"{QUERY_NAMES[1]}.lokr_w1": w1, **inner, **alpha})
    delta = torch.stack([torch.cat([w1[i, j] * (a @ b) for j in range(6)], dim=1) for i in range(4)]).reshape(32, 48)
    close(merged(path, unet)[QUERY], unet.state_dict()[QUERY] + delta * 7.0 / 2.0)


def test_dora_scales_rows_to_the_trained_magnitude(unet: UNet, tmp_path: Path) -> None:
    base = unet.state_dict()[QUERY]
    up, down, m = some(32, 4), some(4, 48), some(32, 1).abs()
    tensors = {f"{QUERY_NAMES[0]}.lora_up.weight": up, f"{QUERY_NAMES[0]}.lora_down.weight": down}
    kohya = written(tmp_path, {**tensors, f"{QUERY_NAMES[0]}.dora_scale": m})
    whole = (base + up @ down) * m / base.norm(dim=1, keepdim=True)
    close(merged(kohya, unet)[QUERY], whole)
    close(merged(kohya, unet, 0.4)[QUERY], base + 0.4 * (whole - base))
    peft = written(
        tmp_path,
        {
            f"{QUERY_NAMES[3]}.lora_B.weight": up,
            f"{QUERY_NAMES[3]}.lora_A.weight": down,
            f"{QUERY_NAMES[3]}.lora_magnitude_vector": m[:, 0],
        },
    )
    rows = merged(peft, unet)[QUERY]
    close(rows.norm(dim=1, keepdim=True), m)
    columns = some(1, 48).abs()
    path = written(tmp_path, {**tensors, f"{QUERY_NAMES[0]}.dora_scale": columns})
    close(merged(path, unet)[QUERY].norm(dim=0, keepdim=True), columns)


def test_differences_reach_weights_and_biases(unet: UNet, tmp_path: Path) -> None:
    diff, bias, norm = some(64, 32, 3, 3), some(64), some(32)
    path = written(
        tmp_path,
        {
            f"{CONV_NAME}.diff": diff,
            f"{CONV_NAME}.diff_b": bias,
            "lora_unet_down_blocks_0_attentions_0_norm.w_norm": norm,
        },
    )
    result, before = merged(path, unet, 0.5), unet.state_dict()
    expected = {CONV: diff, CONV.replace("weight", "bias"): bias, "encoder.blocks.1.transformer.norm.weight": norm}
    assert set(result) == set(expected)
    for key, change in expected.items():
        close(result[key], before[key] + 0.5 * change)


def test_alpha_of_peft_stands_in_the_metadata(unet: UNet, tmp_path: Path) -> None:
    up, down = some(32, 4), some(4, 48)
    tensors = {f"{QUERY_NAMES[3]}.lora_B.weight": up, f"{QUERY_NAMES[3]}.lora_A.weight": down}
    base = unet.state_dict()[QUERY]
    for settings, scale in (
        ({"unet.lora_alpha": 8}, 2.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 1}}, 0.25),
    ):
        path = written(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(settings)})
        close(merged(path, unet)[QUERY], base + scale * up @ down)


# ----------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_every_tool_name_finds_the_same_weight(unet: UNet, tmp_path: Path, name: str) -> None:
    tensors = {f"{name}.lora_up.weight": some(32, 2), f"{name}.lora_down.weight": some(2, 48)}
    assert set(merged(written(tmp_path, tensors), unet)) == {QUERY}


@pytest.mark.parametrize(
    "ends",
    [
        ("lora_up.weight", "lora_down.weight"),
        ("lora_B.weight", "lora_A.weight"),
        ("lora_B.default.weight", "lora_A.default.weight"),
        ("lora.up.weight", "lora.down.weight"),
        ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["text_encoder.text_model.encoder.", "lora_te_text_model_encoder_"])
def test_the_text_encoder_is_found_too(text: ClipTextModel, tmp_path: Path, ends: tuple[str, str], prefix: str) -> None:
    layer = "layers.1.self_attn.q_proj" if prefix.endswith(".") else "layers_1_self_attn_q_proj"
    up, down = some(48, 2), some(2, 48)
    path = written(tmp_path, {f"{prefix}{layer}.{ends[0]}": up, f"{prefix}{layer}.{ends[1]}": down})
    (placed,) = place_text(read_lora(path), [text])
    result = merge(text, [(placed.updates, 1.0)]).state_dict()["layers.1.attn.q.weight"]
    close(result, text.state_dict()["layers.1.attn.q.weight"] + up @ down)


def test_of_two_text_encoders_each_gets_its_own(text: ClipTextModel, tmp_path: Path) -> None:
    tensors = {
        f"lora_te{i}_text_model_encoder_layers_0_mlp_fc1.lora_{end}.weight": some(*shape, seed=i)
        for i in (1, 2, 3)
        for end, shape in (("up", (192, 2)), ("down", (2, 48)))
    }
    first, second = place_text(read_lora(written(tmp_path, tensors)), [text, text])
    assert set(first.updates) == set(second.updates) == {"layers.0.fc1.weight"}
    key = "layers.0.fc1.weight"
    assert not torch.equal(first.updates[key].parts["up"], second.updates[key].parts["up"])
    assert first.unplaced == ()  # lora_te3_ is not a text encoder's name here, so it is the UNet's to report


def test_what_finds_no_place_is_listed(unet: UNet, tmp_path: Path) -> None:
    tensors = {
        f"{name}.lora_{end}.weight": some(*shape)
        for name in (QUERY_NAMES[0], "lora_unet_down_blocks_9_resnets_0_conv1")
        for end, shape in (("up", (32, 2)), ("down", (2, 48)))
    }
    path = written(tmp_path, {**tensors, "something.else": some(2)})
    lora = read_lora(path)
    placed = place_unet(lora, unet)
    assert set(placed.updates) == {QUERY}
    assert placed.unplaced == ("lora_unet_down_blocks_9_resnets_0_conv1",)
    assert lora.unread == ("something.else",)


# -------------------------------------------------------------------------------------------- bad files


def test_wrong_base_is_named(unet: UNet, tmp_path: Path) -> None:
    tensors = {f"{QUERY_NAMES[0]}.lora_up.weight": some(32, 2), f"{QUERY_NAMES[0]}.lora_down.weight": some(2, 2048)}
    lora = read_lora(written(tmp_path, tensors))
    with pytest.raises(UnfitError, match=r"LoRA for Stable Diffusion XL .* another base: .*\(2, 2048\).*\(32, 48\)"):
        place_unet(lora, unet)


def test_half_an_update_is_an_error_that_inspect_tells_too(tmp_path: Path) -> None:
    path = written(tmp_path, {f"{QUERY_NAMES[0]}.lora_down.weight": some(2, 48)})
    with pytest.raises(CheckpointError, match="has only down, which is not a whole LoRA"):
        read_lora(path)
    assert "not a whole LoRA" in inspect_file(path).problem


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="textual inversion"):
        read_lora(written(tmp_path, {"emb_params": some(2, 768)}))


def test_inspect_tells_kind_rank_and_parts(tmp_path: Path) -> None:
    names = ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",)
    names += ("lora_te_text_model_encoder_layers_0_mlp_fc1",)
    tensors = {
        f"{name}.{end}": some(*shape)
        for name in names
        for end, shape in (("lora_up.weight", (32, 8)), ("lora_down.weight", (8, 768)), ("dora_scale", (32, 1)))
    }
    report = inspect_file(written(tmp_path, tensors))
    assert report.loadable
    assert report.identity.summary == (
        "LoRA for Stable Diffusion 1.x (kohya layout, DoRA, rank 8, with the text encoder)"
    )


# ---------------------------------------------------------------------------------------------- as data


def test_the_base_stays_and_the_rest_is_shared(unet: UNet, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    tensors = {f"{QUERY_NAMES[0]}.lora_up.weight": some(32, 2), f"{QUERY_NAMES[0]}.lora_down.weight": some(2, 48)}
    placed = place_unet(read_lora(written(tmp_path, tensors)), unet)
    new = merge(unet, [(placed.updates, 1.0)])
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
    shared = {k for k, v in new.state_dict().items() if v.data_ptr() == unet.state_dict()[k].data_ptr()}
    assert set(before) - shared == {QUERY}
    new.to(torch.float16)
    assert all(value.dtype == torch.float32 for value in unet.state_dict().values())


def test_strengths_add_up_and_undo_each_other(unet: UNet, tmp_path: Path) -> None:
    tensors = {f"{QUERY_NAMES[0]}.lora_up.weight": some(32, 2), f"{QUERY_NAMES[0]}.lora_down.weight": some(2, 48)}
    updates = place_unet(read_lora(written(tmp_path, tensors)), unet).updates
    twice = merge(unet, [(updates, 0.3), (updates, 0.7)]).state_dict()[QUERY]
    close(twice, merge(unet, [(updates, 1.0)]).state_dict()[QUERY])
    close(merge(unet, [(updates, 2.0), (updates, -2.0)]).state_dict()[QUERY], unet.state_dict()[QUERY])


def test_half_precision_is_rounded_once_at_the_end(unet: UNet, tmp_path: Path) -> None:
    half = merge(unet, []).to(torch.float16)
    tensors = {f"{QUERY_NAMES[0]}.lora_up.weight": some(32, 2), f"{QUERY_NAMES[0]}.lora_down.weight": some(2, 48)}
    updates = place_unet(read_lora(written(tmp_path, tensors)), half).updates
    result = merge(half, [(updates, 0.1), (updates, 0.1)]).state_dict()[QUERY]
    delta = tensors[f"{QUERY_NAMES[0]}.lora_up.weight"] @ tensors[f"{QUERY_NAMES[0]}.lora_down.weight"]
    expected = half.state_dict()[QUERY].float() + 0.1 * delta + 0.1 * delta
    assert result.dtype == torch.float16 and torch.equal(result, expected.half())
