"""What several parity tests share."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from comfyui_controlnet_core.controlnet_core.models.tokenizer import VOCAB_FILE


@pytest.fixture(scope="module")
def reference_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' tokenizer from vocab.json and merges.txt, both made from the CLIP merge table."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    with gzip.open(VOCAB_FILE, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    latin = [chr(c) for c in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    alphabet = latin + [chr(0x100 + n) for n in range(256 - len(latin))]
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *(m.replace(" ", "") for m in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    kind = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    return kind.from_pretrained(str(folder))
