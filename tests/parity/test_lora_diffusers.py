"""LoRA files and textual inversions against diffusers and PEFT: the same random weights, the same files.

PEFT applies an update beside the layer, here it is merged into the weight; the outputs agree.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.embeddings import read_embedding
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_text_model, load_unet
from comfyui_controlnet_core.controlnet_core.checkpoints.lora import read_lora
from comfyui_controlnet_core.controlnet_core.checkpoints.lora_places import merge, place_text, place_unet
from comfyui_controlnet_core.controlnet_core.config import TextConfig
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel, TextEncoder
from comfyui_controlnet_core.controlnet_core.models.tokenizer import VOCAB_SIZE, ClipTokenizer
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from few import rows_of
from random_tensors import randomise
from safetensors.torch import save_file
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOLERANCE = 1e-4
WIDTH = 64
"""One head of the text encoder, whose heads are 64 wide in every released one."""
RANK = 4
PROMPT = "a red sphere on green ground"


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the reference's largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def reference_unet() -> Any:
    return randomise(
        diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
        )
    )


def reference_text() -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2, num_attention_heads=1,
        vocab_size=VOCAB_SIZE, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    return randomise(transformers.CLIPTextModel(config))


@pytest.fixture
def pipeline(reference_tokenizer: Any) -> Any:
    """A fresh pipeline without an autoencoder, which LoRAs do not touch."""
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=32),
        text_encoder=reference_text(),
        tokenizer=copy.deepcopy(reference_tokenizer),
        unet=reference_unet(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def ours(pipeline: Any, folder: Path) -> tuple[UNet, ClipTextModel]:
    """The same models here, by way of their files."""
    pipeline.unet.save_pretrained(folder / "unet")
    save_file({k: v.contiguous() for k, v in pipeline.text_encoder.state_dict().items()}, folder / "text.safetensors")
    return load_unet(folder / "unet"), load_text_model(folder / "text.safetensors")


def targets(module: nn.Module, *, conv: bool) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers that trainers adapt: attention and feed-forward, and convolutions if wanted."""
    ends = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "q_proj", "out_proj", "fc1")
    for name, layer in module.named_modules():
        is_conv = isinstance(layer, nn.Conv2d) and name.endswith(("conv1", "conv2"))
        if (name.endswith(ends) and not is_conv) or (conv and is_conv):
            yield name, layer  # type: ignore[misc]


def halves(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random up and down of a layer, of a size that is seen in the output."""
    out, *rest = layer.weight.shape
    tail = [1] * (len(rest) - 1)
    up = torch.randn(out, RANK, *tail, generator=generator) * 0.1
    return up, torch.randn(RANK, *rest, generator=generator) * 0.1


def lora_file(pipeline: Any, form: str, *, conv: bool, dora: bool = False) -> dict[str, Tensor]:
    """A LoRA of both models, in the names of kohya or of PEFT."""
    generator = torch.Generator().manual_seed(7)
    tensors: dict[str, Tensor] = {}
    parts = (("unet", "lora_unet", pipeline.unet), ("text_encoder", "lora_te", pipeline.text_encoder))
    for peft_name, kohya_name, module in parts:
        for name, layer in targets(module, conv=conv):
            up, down = halves(layer, generator)
            full = name if peft_name == "unet" or name.startswith("text_model.") else f"text_model.{name}"
            if form == "kohya":
                stem = f"{kohya_name}_{full.replace('.', '_')}"
                tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
                tensors[f"{stem}.alpha"] = torch.tensor(2.5)
            else:
                tensors |= {f"{peft_name}.{name}.lora_B.weight": up, f"{peft_name}.{name}.lora_A.weight": down}
            if dora:
                rows = layer.weight.flatten(1).norm(dim=1) * (0.5 + torch.rand(len(up), generator=generator))
                shape = (1, -1, 1, 1) if layer.weight.ndim == 4 else (-1,)
                tensors[f"{peft_name}.{name}.lora_magnitude_vector"] = rows.detach().reshape(shape)
    return tensors


@torch.no_grad()
def outputs(unet: Any, text: Any) -> tuple[Tensor, Tensor]:
    """What each of the models says, ours or theirs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 16, 16, generator=generator)
    context = torch.randn(1, 7, WIDTH, generator=generator)
    ids = torch.tensor([[49406, 320, 736, 49407]])
    predicted, states = unet(x, torch.tensor([321.0]), context), text(ids)
    return getattr(predicted, "sample", predicted), getattr(states, "last_hidden_state", states[0])


FORMS = (("kohya", False), ("peft", False), ("peft", True))


@pytest.mark.parametrize(
    ("form", "conv", "strength"), rows_of(((*form, s) for form in FORMS for s in (1.0, 0.6)), 0, 3, 4)
)
def test_lora(pipeline: Any, tmp_path: Path, form: str, conv: bool, strength: float) -> None:
    unet, text = ours(pipeline, tmp_path)
    before = outputs(unet, text)
    path = tmp_path / "lora.safetensors"
    save_file(lora_file(pipeline, form, conv=conv), path)
    pipeline.load_lora_weights(str(path), adapter_name="a")
    pipeline.set_adapters("a", strength)
    lora = read_lora(path)
    placed, (placed_text,) = place_unet(lora, unet), place_text(lora, [text])
    assert not placed.unplaced and not placed_text.unplaced
    assert len(placed.updates) + len(placed_text.updates) == len(lora.updates)
    merged = outputs(merge(unet, [(placed.updates, strength)]), merge(text, [(placed_text.updates, strength)]))
    for mine, theirs, plain in zip(merged, outputs(pipeline.unet, pipeline.text_encoder), before, strict=True):
        assert difference(mine, theirs) <= TOLERANCE
        assert difference(plain, theirs) > 100 * TOLERANCE, "the LoRA is not heard"


def test_dora_of_peft(pipeline: Any, tmp_path: Path) -> None:
    unet, _ = ours(pipeline, tmp_path)
    tensors = {k: v for k, v in lora_file(pipeline, "peft", conv=True, dora=True).items() if k.startswith("unet.")}
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    pipeline.load_lora_weights(str(path))
    placed = place_unet(read_lora(path), unet)
    assert not placed.unplaced
    merged, _ = outputs(merge(unet, [(placed.updates, 1.0)]), pipeline.text_encoder)
    assert difference(merged, outputs(pipeline.unet, pipeline.text_encoder)[0]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr factors"])
def test_loha_and_lokr_of_peft(pipeline: Any, tmp_path: Path, kind: str) -> None:
    """PEFT's own adapters, saved with its own names; alpha is the rank, for its file keeps alpha elsewhere."""
    unet, _ = ours(pipeline, tmp_path)
    names = [name for name, _ in targets(pipeline.unet, conv=True)]
    common = {"r": RANK, "alpha": RANK, "target_modules": names, "init_weights": False}
    configs = {
        "loha": lambda: peft.LoHaConfig(**common, use_effective_conv2d=True),
        "lokr": lambda: peft.LoKrConfig(**common, use_effective_conv2d=True, decompose_factor=4),
        "lokr factors": lambda: peft.LoKrConfig(**common, decompose_both=True, decompose_factor=16),
    }
    torch.manual_seed(3)
    adapted = peft.get_peft_model(pipeline.unet, configs[kind]())
    path = tmp_path / "adapter.safetensors"
    save_file({k: v.contiguous() for k, v in peft.get_peft_model_state_dict(adapted).items()}, path)
    placed = place_unet(read_lora(path), unet)
    assert not placed.unplaced and len(placed.updates) == len(names)
    merged, _ = outputs(merge(unet, [(placed.updates, 1.0)]), pipeline.text_encoder)
    theirs, _ = outputs(adapted, pipeline.text_encoder)
    assert difference(merged, theirs) <= TOLERANCE
    assert difference(outputs(unet, pipeline.text_encoder)[0], theirs) > 100 * TOLERANCE


@pytest.mark.parametrize("form", ["diffusers.bin", "webui.pt"])
def test_textual_inversion(pipeline: Any, tmp_path: Path, form: str) -> None:
    _, text = ours(pipeline, tmp_path)
    vectors = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2))
    content: Any = {"<thing>": vectors} if form == "diffusers.bin" else {"string_to_param": {"*": vectors}, "name": "x"}
    torch.save(content, tmp_path / form)
    encoder = TextEncoder(text, ClipTokenizer.load(), TextConfig(WIDTH, 2, 1))
    word = read_embedding(tmp_path / form)
    mine, pooled = encoder.encode_pooled("a embedding:thing on grass", lambda width, name: word.of_width(width))
    pipeline.load_textual_inversion(str(tmp_path / form), token="<thing>")
    prompt = pipeline.maybe_convert_prompt("a <thing> on grass", pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    ids[ids == pipeline.tokenizer.pad_token_id] = 49407
    with torch.no_grad():
        theirs = pipeline.text_encoder(ids)
    assert difference(mine, theirs.last_hidden_state) <= TOLERANCE
    assert difference(pooled, theirs.pooler_output) <= TOLERANCE
