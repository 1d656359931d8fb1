"""The node Reference Control: what it passes on, and that it does nothing at strength 0."""

from __future__ import annotations

from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.models import reference as engine
from comfyui_controlnet_core.nodes.reference import MODES
from torch import Tensor


@torch.inference_mode()
def test_the_units_of_the_node(run: Any) -> None:
    model, clip, vae = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")
    picture = torch.rand(2, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    given = {"positive": positive, "negative": negative, "vae": vae, "image": picture}
    first, second = run("CNCore_ReferenceControl", mode="attention+adain", style_fidelity=0.75, **given)
    (unit,) = first[0][1]["control"]
    assert second[0][1]["control"] == (unit,)
    assert unit.hint.shape == (2, 4, 8, 6)
    assert (unit.half_factor(positive=True), unit.half_factor(positive=False)) == (1.0, 0.25)
    assert unit.net.uses_attention and unit.net.uses_adain

    def sampled(halves: Any) -> Tensor:
        settings = {"seed": 3, "steps": 2, "cfg": 4.0}
        latent = {"samples": torch.zeros(2, 4, 8, 8)}
        made = run("CNCore_Sample", model=model, positive=halves[0], negative=halves[1], latent=latent, **settings)
        return made[0]["samples"]

    plain = sampled((positive, negative))
    assert not torch.equal(sampled((first, second)), plain)
    assert torch.equal(sampled(run("CNCore_ReferenceControl", strength=0.0, **given)), plain)


def test_the_node_lists_the_modes_of_the_engine() -> None:
    assert MODES == engine.MODES
