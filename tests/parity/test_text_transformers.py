"""Tokenizer and text encoder against transformers: random weights, vocabulary from our own file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import SD15, TextConfig
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer
from installed import is_older

transformers = pytest.importorskip("transformers")

GOLDENS = Path(__file__).parent.parent / "unit" / "data" / "tokenizer_goldens.json"
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the reference's largest value."""

RENAMES = (
    ("text_model.", ""),
    ("embeddings.", ""),
    ("encoder.layers", "layers"),
    ("layer_norm", "norm"),
    ("final_norm", "norm_out"),
    ("self_attn", "attn"),
    ("mlp.", ""),
    ("q_proj", "q"),
    ("k_proj", "k"),
    ("v_proj", "v"),
    ("out_proj", "out"),
)


def test_tokenizer(reference_tokenizer: Any) -> None:
    tokenizer = ClipTokenizer.load()
    texts = [text for text, _ in json.loads(GOLDENS.read_text(encoding="utf-8"))["cases"]]
    assert len(set(texts)) >= 200
    for text in texts:
        if text == "<|ENDOFTEXT|>" and is_older("transformers", 5):
            continue  # a special token in small letters only, up to then
        expected = reference_tokenizer(text)["input_ids"]
        assert [tokenizer.start, *tokenizer.encode(text), tokenizer.end] == expected, text


def pair(config: TextConfig) -> tuple[ClipTextModel, Any]:
    """Our model and transformers', with the same random weights."""
    torch.manual_seed(0)
    reference = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            hidden_act=config.activation,
            eos_token_id=49407,
            attn_implementation="eager",
        )
    ).eval()
    state = {}
    for name, value in reference.state_dict().items():
        if name.endswith("position_ids"):
            continue
        # Fresh biases are zero and fresh norms one: make every weight count.
        value += 0.02 * torch.randn_like(value)
        key = name
        for theirs, ours in RENAMES:
            key = key.replace(theirs, ours)
        state[key] = value
    with on_meta():
        model = ClipTextModel(config)
    model.load_state_dict(state, assign=True)
    return model.eval(), reference


def ids_of(prompts: list[str]) -> torch.Tensor:
    tokenizer = ClipTokenizer.load()
    rows = [[tokenizer.start, *tokenizer.encode(prompt)[:75], tokenizer.end] for prompt in prompts]
    return torch.tensor([row + [tokenizer.end] * (77 - len(row)) for row in rows])


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


SMALL = TextConfig(width=64, layers=3, heads=4)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SMALL, id="reduced"),
        pytest.param(replace(SMALL, activation="gelu"), id="reduced-gelu"),
        pytest.param(SD15.text, id="sd15", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_text_model(config: TextConfig) -> None:
    model, reference = pair(config)
    ids = ids_of(["", "a red sphere on green ground, 8k", "word " * 90])
    theirs = reference(ids, output_hidden_states=True)
    norm = model.norm_out
    for skip in (0, 1, config.layers - 1):
        hidden, pooled = model(ids, skip_last=skip)
        expected = theirs.last_hidden_state if skip == 0 else norm(theirs.hidden_states[-1 - skip])
        assert difference(hidden, expected) <= TOLERANCE
        assert difference(pooled, theirs.pooler_output) <= TOLERANCE
        bare, _ = model(ids, skip_last=skip, apply_final_norm=False)
        assert difference(bare, theirs.hidden_states[-1 - skip]) <= TOLERANCE
