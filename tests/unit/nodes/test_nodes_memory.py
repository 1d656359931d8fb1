"""Pictures are decoded as memory allows: fewer at a time, then in tiles, and that is said."""

from __future__ import annotations

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.engine.footprint import decode_values
from comfyui_controlnet_core.controlnet_core.engine.memory import ROOM
from comfyui_controlnet_core.nodes import headless
from comfyui_controlnet_core.nodes.headless import HeadlessHost


def test_decoding_fits_the_memory(host: HeadlessHost, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, vae = host.load_checkpoint(host.assets_dir / "demo_base.safetensors")
    assert vae is not None
    notes: list[str] = []
    monkeypatch.setattr(host, "on_note", notes.append)

    def free(pictures: float, side: int) -> None:
        enough = 4 * decode_values(vae.model.config, 1, (side, side)) / ROOM
        monkeypatch.setattr(headless, "free_bytes", lambda device: int(pictures * enough) + 1)

    samples = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = host.decode(vae, samples)
    free(2.0, 8)
    torch.testing.assert_close(host.decode(vae, samples), whole, rtol=0.0, atol=1e-5)
    assert not notes
    large = torch.nn.functional.interpolate(samples[:1], size=(40, 40), mode="bilinear")
    free(1.0, 40)
    whole = host.decode(vae, large)
    assert not notes
    free(1.0, 32)
    tiled = host.decode(vae, large)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert float((tiled - whole).abs().mean()) < 0.05
    (note,) = notes
    assert note.startswith("memory: to decode 320x320 takes") and note.endswith("in tiles of 32 cells")
