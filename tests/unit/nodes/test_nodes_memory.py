"""Latents are decoded as memory allows: fewer at a time, then in tiles, with a note."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.memory_estimate import decode_bytes
from comfyui_controlnet_core.controlnet_core.pipeline import generate
from comfyui_controlnet_core.controlnet_core.run_options import EXACT, RunOptions, Shortcuts
from comfyui_controlnet_core.controlnet_core.runtime.memory import ROOM
from comfyui_controlnet_core.nodes.standalone import autoencoder, sampling_job
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost

DEMO = "demo (built in)"


def test_weights_that_are_not_packed_yet_are_counted(host: StandaloneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, vae = host.load_checkpoint(host.assets_dir / "demo_base.safetensors")
    assert vae is not None
    notes: list[str] = []
    monkeypatch.setattr(host, "on_note", notes.append)
    enough = int(decode_bytes(vae.model, torch.float32, 1, (40, 40)) / ROOM) + 1
    monkeypatch.setattr(autoencoder, "free_bytes", lambda device: enough)
    latent = torch.zeros(1, 4, 40, 40)
    for words in (["in tiles of 32 cells"], []):  # the second time they are there
        host.decode(vae, latent)
        assert [note.partition("once: ")[2] for note in notes] == words
        notes.clear()


def test_decoding_fits_the_memory(host: StandaloneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, vae = host.load_checkpoint(host.assets_dir / "demo_base.safetensors")
    assert vae is not None
    notes: list[str] = []
    monkeypatch.setattr(host, "on_note", notes.append)

    def free(pictures: float, side: int) -> None:
        enough = decode_bytes(vae.model, torch.float32, 1, (side, side)) / ROOM
        monkeypatch.setattr(autoencoder, "free_bytes", lambda device: int(pictures * enough) + 1)

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


@pytest.mark.parametrize(
    ("shortcuts", "order"),
    [
        (Shortcuts(encoder_every=2), "shorter exact shorter"),
        (Shortcuts(guidance_end=0.5), "shorter exact exact shorter"),
    ],
    ids=["encoder", "guidance"],
)
def test_what_is_timed_has_been_packed_and_prepared_before(
    host: StandaloneHost, run: Any, monkeypatch: pytest.MonkeyPatch, shortcuts: Shortcuts, order: str
) -> None:
    done, told = [], []
    began: list[int] = []

    def noting(*args: Any, **options: Any) -> torch.Tensor:
        done.append("exact" if options["options"].shortcuts == EXACT else "shorter")
        return generate(*args, **options)

    monkeypatch.setattr(sampling_job, "generate", noting)
    monkeypatch.setattr(sampling_job, "perf_counter", lambda: began.append(len(done)) or float(len(began)))
    host.options, host.on_measured = RunOptions(shortcuts), lambda *measured: told.append(measured)
    model, clip, _ = run("CNCore_LoadCheckpoint", checkpoint=DEMO)
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")
    (latent,) = run("EmptyLatentImage", width=64, height=64)
    run("CNCore_Sample", model=model, positive=positive, negative=negative, latent=latent, steps=4)
    assert " ".join(done) == order
    assert began == [len(done) - 2, len(done) - 1, len(done)]
    ((error, seconds, exact),) = told
    assert (seconds, exact) == (1.0, 1.0)
    assert 0.0 < error < 1.0
