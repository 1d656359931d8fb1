"""Use Everywhere: inputs that get their values without a link, by the list in the file or by the pack's rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
from comfyui_controlnet_core.controlnet_core.errors import WorkflowError
from comfyui_controlnet_core.workflows.formats import parse_document, to_graph
from comfyui_controlnet_core.workflows.graph import Graph, Link

LOADER = {"id": 1, "type": "Loader", "outputs": [{"type": "MODEL"}, {"type": "CLIP"}, {"type": "VAE"}]}


def node(number: int, kind: str, inputs: Any = (), values: Any = (), **more: Any) -> dict[str, Any]:
    slots = [{"name": name, "type": type, "link": link} for name, type, link in inputs]
    return {"id": number, "type": kind, "inputs": slots, "widgets_values": list(values), "mode": 0, **more}


def text(number: int, title: str = "", link: int | None = None) -> dict[str, Any]:
    return node(number, "Text", [("clip", "CLIP", link)], title=title, outputs=[{"type": "CONDITIONING"}])


def sampler(number: int, **more: Any) -> dict[str, Any]:
    wanted = [("model", "MODEL", None), ("positive", "CONDITIONING", None), ("negative", "CONDITIONING", None)]
    return node(number, "Sampler", [*wanted, ("seed", "INT", None)], **more)


def read(nodes: list[Any], links: list[Any], **extra: Any) -> Graph:
    data = {"nodes": nodes, "links": links, "version": 0.4, "extra": extra}
    return to_graph(parse_document(json.dumps(data).encode(), "test.json"), {})


def test_the_links_that_the_pack_noted_are_taken() -> None:
    sender = node(5, "Anything Everywhere", [("CLIP", "*", 1)])
    noted = [
        {"downstream": 2, "downstream_slot": 0, "upstream": "1", "upstream_slot": 1, "controller": 5, "type": "CLIP"},
        {"downstream": 3, "downstream_slot": -1, "upstream": "1", "upstream_slot": 1, "controller": 5, "type": "CLIP"},
        {"downstream": "4", "downstream_slot": "0", "upstream": "9", "upstream_slot": 1, "controller": 5, "type": "*"},
    ]
    graph = read([LOADER, text(2), text(3), text(4), sender], [[1, 1, 1, 5, 0, "CLIP"]], ue_links=noted)
    assert list(graph.nodes) == ["1", "2", "3", "4"]
    assert graph.nodes["2"].inputs == {"clip": Link("1", 1)}
    # Nothing was noted for one node, and a source that is gone for the other.
    assert not graph.nodes["3"].inputs and not graph.nodes["4"].inputs


def test_without_a_list_a_value_goes_to_all_free_inputs_of_its_type() -> None:
    other = {**LOADER, "id": 8}
    nodes = [LOADER, other, text(2), text(3, link=2), text(4), sampler(6)]
    links = [[1, 1, 1, 5, 0, "CLIP"], [2, 8, 1, 3, 0, "CLIP"], [3, 1, 0, 7, 1, "MODEL"]]
    senders = [
        node(5, "Anything Everywhere", [("CLIP", "*", 1)]),
        node(7, "Anything Everywhere3", [("anything", "*", None), ("MODEL", "*", 3), ("anything3", "*", None)]),
    ]
    graph = read([*nodes, *senders], links)
    assert [graph.nodes[key].inputs["clip"] for key in "234"] == [Link("1", 1), Link("8", 1), Link("1", 1)]
    assert graph.nodes["6"].inputs == {"model": Link("1", 0)}


def test_prompts_and_seeds_go_to_inputs_of_their_names() -> None:
    prompts = node(5, "Prompts Everywhere", [("CONDITIONING", "*", 1), ("CONDITIONING", "*", 2)])
    seed = node(6, "Seed Everywhere", (), [7, "randomize"], outputs=[{"type": "INT"}])
    graph = read([text(2), text(3), prompts, seed, sampler(4)], [[1, 2, 0, 5, 0, "X"], [2, 3, 0, 5, 1, "X"]])
    found = graph.nodes["4"].inputs
    assert found == {"positive": Link("2", 0), "negative": Link("3", 0), "seed": Link("6", 0)}
    assert "6" in graph.nodes and "5" not in graph.nodes


def test_patterns_go_before_senders_to_everything() -> None:
    other = {**LOADER, "id": 8}
    wide = node(5, "Anything Everywhere", [("CLIP", "*", 1)])
    narrow = node(6, "Anything Everywhere?", [("CLIP", "*", 2)], ["^Face", "clip"])
    nodes = [LOADER, other, text(2, "Face prompt"), text(3, "Prompt of the face")]
    graph = read([*nodes, wide, narrow], [[1, 1, 1, 5, 0, "CLIP"], [2, 8, 1, 6, 0, "CLIP"]])
    assert graph.nodes["2"].inputs == {"clip": Link("8", 1)} and graph.nodes["3"].inputs == {"clip": Link("1", 1)}


def test_two_senders_of_one_rank_send_nothing_and_muted_ones_neither() -> None:
    other = {**LOADER, "id": 8}
    first, second = (node(5 + n, "Anything Everywhere", [("CLIP", "*", 1 + n)]) for n in range(2))
    links = [[1, 1, 1, 5, 0, "CLIP"], [2, 8, 1, 6, 0, "CLIP"]]
    assert not read([LOADER, other, text(2), first, second], links).nodes["2"].inputs
    graph = read([LOADER, other, text(2), first, {**second, "mode": 2}], links)
    assert graph.nodes["2"].inputs == {"clip": Link("1", 1)}


def test_a_value_is_sent_through_reroutes_and_bypassed_nodes() -> None:
    lora = node(3, "Lora", [("model", "MODEL", 1)], mode=4, outputs=[{"type": "MODEL"}])
    sender = node(5, "Anything Everywhere", [("MODEL", "*", 2)])
    graph = read([LOADER, lora, sender, sampler(4)], [[1, 1, 0, 3, 0, "MODEL"], [2, 3, 0, 5, 0, "MODEL"]])
    assert graph.nodes["4"].inputs == {"model": Link("1", 0)}


@pytest.mark.parametrize("pattern", ["(a+)+$", "(", "a*b*c*d*", "(x|y){9}", "a" * 300])
def test_a_pattern_that_may_take_long_is_refused(pattern: str) -> None:
    sender = node(5, "Anything Everywhere?", [("CLIP", "*", 1)], [pattern, ".*"])
    with pytest.raises(WorkflowError, match="has a pattern in node 5"):
        read([LOADER, text(2, "a" * 5000), sender], [[1, 1, 1, 5, 0, "CLIP"]])


def test_a_prompt_may_hold_the_senders() -> None:
    prompt = {
        "1": {"class_type": "Loader", "inputs": {}},
        "5": {"class_type": "Anything Everywhere", "inputs": {"anything": ["1", 1]}},
        "2": {"class_type": "Text", "inputs": {"clip": ["1", 1]}},
    }
    graph = to_graph(parse_document(json.dumps(prompt).encode(), "test.json"), {})
    assert list(graph.nodes) == ["1", "2"]


@pytest.mark.parametrize("noted", [7, [1], [{"downstream": 2}], [{"downstream": 2, "downstream_slot": "x"}]])
def test_a_damaged_list_is_named(noted: Any) -> None:
    sender = node(5, "Anything Everywhere", [("CLIP", "*", 1)])
    with pytest.raises(WorkflowError, match=r"extra\.ue_links"):
        read([LOADER, text(2), sender], [[1, 1, 1, 5, 0, "CLIP"]], ue_links=noted)
