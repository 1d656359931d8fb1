"""The nodes of other packs that ComfyUI may replace by ours: each row fits our node."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from comfyui_controlnet_core.nodes import bind_nodes, own_nodes
from comfyui_controlnet_core.nodes.comfyui.replacements import register, run
from comfyui_controlnet_core.nodes.replacements import REPLACEMENTS, Replacement
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost

NODES = bind_nodes(own_nodes(), StandaloneHost(device="cpu", dtype="fp32"))


@pytest.mark.parametrize("one", REPLACEMENTS, ids=lambda one: one.old)
def test_a_replacement_fits_our_node(one: Replacement) -> None:
    groups = NODES[one.new].INPUT_TYPES()  # type: ignore[attr-defined]
    known = {**groups["required"], **groups.get("optional", {})}
    given = {*one.moved, *one.fixed}
    assert len(given) == len(one.moved) + len(one.fixed)
    assert set(groups["required"]) <= given <= known.keys()
    for name, value in one.fixed.items():
        kind = known[name][0]
        assert value in kind if isinstance(kind, list) else isinstance(value, bool if kind == "BOOLEAN" else int)
    returned = NODES[one.new].RETURN_TYPES  # type: ignore[attr-defined]
    assert all(index < len(returned) for index in one.outputs)


def test_each_node_has_one_replacement() -> None:
    assert len({one.old for one in REPLACEMENTS}) == len(REPLACEMENTS)


def test_releases_without_replacements_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=object())))  # type: ignore[arg-type]
    register()


def test_a_registration_that_waits_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    class Waiting:
        def __await__(self) -> Any:
            yield

    async def waiting() -> None:
        await Waiting()

    run(waiting())
    assert "node replacements are not offered" in caplog.text
