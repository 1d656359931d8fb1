"""The real host on a graphics card that is pretended (tests/support/pretended_card.py); run by `comfyui_host.py`.

The host takes its CUDA paths, on float32 weights. The same scenario without the card tells what the tensors should be.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SUPPORT = Path(__file__).parents[1] / "support"
STEPS = (3, 6)
OURS = "nodes/comfyui/"
"""The folder of the pack in which a wait is ours."""


def wanted() -> bool:
    """Whether the host is to find a card."""
    return bool(os.environ.get("PRETENDED_CARD"))


@contextmanager
def card() -> Iterator[None]:
    """The card in the place of torch's, as the host looks for one."""
    if not wanted():
        yield
        return
    sys.path.insert(0, str(SUPPORT))
    importlib.import_module("diffusers.models.controlnets.controlnet")  # while torch.cuda is its own
    with pytest.MonkeyPatch.context() as patch, importlib.import_module("pretended_card").Card().install(patch) as own:
        stats = {"active_bytes.all.current": 0, "reserved_bytes.all.current": 0}
        patch.setattr(torch.version, "cuda", "12.8")
        patch.setattr(torch.cuda, "current_device", lambda: str(own.device))
        patch.setattr(torch.cuda, "memory_stats", lambda device=None: stats)
        patch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
        patch.setattr(torch.cuda, "ipc_collect", lambda: None)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        driver = SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0)
        patch.setattr(torch.cuda, "cudart", lambda: driver)
        sys.modules[__name__].current = own  # type: ignore[attr-defined]
        yield


def on_a_card(session: Any) -> None:
    """Samplings with nets of ours in every form, and what the host waited for in them."""
    ours, (positive, negative) = session.controlled(), session.prompts
    native = session.native_net()
    conditionings: dict[str, Any] = {
        "no net": (positive, negative),
        "our net": ours,
        "two of ours": session.controlled(ours, strength=0.5, upside_down=True),
        "in one half": session.controlled(mode="control"),
        "chain": session.controlled(session.natively_controlled(native), strength=0.5),
    }
    own = getattr(sys.modules[__name__], "current", None)
    facts: dict[str, Any] = {"device": str(importlib.import_module("comfy.model_management").get_torch_device())}
    accelerated = session.node("CNCore_Accelerate", model=session.model, weights="shared", unique_id=None)["result"][0]
    plain = session.model
    for name, conditioning in conditionings.items():
        for kind, model, sample in (
            ("native sampler", plain, session.ksampler),
            ("own sampler", plain, session.own_sample),
            ("accelerated", accelerated, session.ksampler),
        ):
            session.model = model
            counts = []
            for steps in STEPS:
                before = [] if own is None else list(own.waits)
                session.tensors[f"card.{name}.{kind}.{steps}"] = sample(conditioning, steps=steps)
                new = [] if own is None else own.waits[len(before) :]
                counts.append(sum(OURS in wait.split(" < ")[0] for wait in new))
            facts[f"{name}, {kind}"] = (counts[1] - counts[0]) / (STEPS[1] - STEPS[0])
            session.model = plain
    facts["races"] = [] if own is None else own.races
    session.facts["card"] = facts
