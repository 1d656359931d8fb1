"""Files that follow from what a workflow computes or chooses: `validate` misses those that `run` would miss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows import cli
from comfyui_controlnet_core.workflows.formats import parse_document, to_graph
from graphs import check
from PIL import Image

EMPTY = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
SHOW = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
IMAGE = {"image": ["1", 0], "resolution": 64}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "annotators").mkdir()
    return tmp_path


def put(models: Path, *names: str) -> None:
    for name in names:
        path = models / "annotators" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def problems(models: Path, nodes: dict[str, Any]) -> list[str]:
    classes = build_nodes(StandaloneHost(models, models, [models], device="cpu"))
    graph = to_graph(parse_document(json.dumps(nodes).encode(), "test.json"), classes)
    return [problem.message for problem in check(graph, classes)[1]]


def hint(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"1": EMPTY, "2": {"class_type": kind, "inputs": {**IMAGE, **inputs}}, "3": SHOW}


@pytest.mark.parametrize(
    ("kind", "inputs", "files"),
    [
        ("CNCore_Preprocess", {"kind": "soft_edge_hed", "resize": "shortest"}, ["ControlNetHED.pth"]),
        ("CNCore_SoftEdge", {"kind": "soft_edge_pidinet"}, ["table5_pidinet.pth"]),
        ("CNCore_Normal", {}, ["scannet.pt"]),
        ("CNCore_Depth", {"kind": "depth_anything_v2"}, ["depth_anything_v2_vits.pth"]),
        ("CNCore_Depth", {"kind": "depth_anything_v2", "model": "large"}, ["depth_anything_v2_vitl.pth"]),
        ("CNCore_Depth", {"kind": "depth_zoe"}, ["zoedepth-nyu-kitti/config.json"]),
        (
            "CNCore_Pose",
            {"kind": "pose_openpose", "hands": True, "face": False},
            ["body_pose_model.pth", "hand_pose_model.pth"],
        ),
        (
            "CNCore_Preprocess",
            {"kind": "pose_openpose", "resize": "shortest", "settings": "face=true"},
            ["body_pose_model.pth", "facenet.pth"],
        ),
        ("HEDPreprocessor", {"safe": "enable"}, ["ControlNetHED.pth"]),
        ("MiDaS-DepthMapPreprocessor", {"a": 6.28, "bg_threshold": 0.1}, ["dpt-hybrid-midas/config.json"]),
        ("AIO_Preprocessor", {"preprocessor": "LineArtPreprocessor"}, ["sk_model.pth"]),
    ],
)
def test_a_network_of_a_preprocessor(models: Path, kind: str, inputs: dict[str, Any], files: list[str]) -> None:
    work = hint(kind, **inputs)
    for number, file in enumerate(files):
        (message,) = problems(models, work)
        assert message.startswith(f"node 2 ({kind}): ") and file.split("/")[0] in message and "was not found" in message
        put(models, file)
        assert (number == len(files) - 1) == (problems(models, work) == [])


def test_a_kind_that_needs_no_network_needs_no_file(models: Path) -> None:
    assert problems(models, hint("CNCore_SoftEdge", kind="soft_edge")) == []
    assert problems(models, hint("AIO_Preprocessor", preprocessor="none")) == []
    assert problems(models, hint("AIO_Preprocessor", preprocessor="CannyEdgePreprocessor")) == []


def test_the_network_that_measures_fidelity(models: Path) -> None:
    inputs = {"picture": ["1", 0], "hint": ["1", 0], "kind": "depth", "tolerance": 2.0}
    work = {"1": EMPTY, "2": {"class_type": "CNCore_ControlFidelity", "inputs": inputs}}
    assert "depth_anything_v2_vits.pth was not found" in problems(models, work)[0]
    work["2"]["inputs"] = {**inputs, "found": ["1", 0]}
    assert problems(models, work) == []


def test_validate_and_run_give_the_same_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "w.json").write_text(json.dumps(hint("CNCore_SoftEdge", kind="soft_edge_hed")))
    words = [str(tmp_path / "w.json"), "--output", str(tmp_path), "--models", str(tmp_path / "models")]
    messages = []
    for command in ("validate", "run"):
        assert cli.main([command, *words]) == 3
        messages.append(capsys.readouterr().err)
    assert "error: node 2 (CNCore_SoftEdge): ControlNetHED.pth was not found" in messages[0]
    assert messages[0] == messages[1]
    assert "soft_edge needs no weights" in messages[0]


def encode(text: Any, kind: str = "CLIPTextEncode") -> dict[str, Any]:
    return {
        "4": {"class_type": "CNCore_LoadCheckpoint", "inputs": {"checkpoint": "demo (built in)"}},
        "5": {"class_type": kind, "inputs": {"text": text, "clip": ["4", 1]}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "7": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["4", 0], "positive": ["5", 0], "negative": ["5", 0], "latent_image": ["6", 0], "seed": 1,
                "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["4", 2]}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("PrimitiveStringMultiline", "value"),
        ("Text Multiline", "text"),
        ("ShowText|pysssss", "text"),
        ("Any Switch (rgthree)", "any_01"),
    ],
)
@pytest.mark.parametrize("encoder", ["CLIPTextEncode", "Text to Conditioning"])
def test_an_embedding_in_a_text_that_arrives_over_links(models: Path, kind: str, name: str, encoder: str) -> None:
    text = {"class_type": "PrimitiveString", "inputs": {"value": "a ball, (embedding:good:1.1)"}}
    work = {**encode(["11", 0], encoder), "10": text, "11": {"class_type": kind, "inputs": {name: ["10", 0]}}}
    (message,) = problems(models, work)
    assert message.startswith(f"node 5 ({encoder}), input text: there is no embeddings file 'good'")
    (models / "embeddings").mkdir()
    (models / "embeddings" / "good.safetensors").write_bytes(b"")
    assert problems(models, work) == []


def test_what_only_a_run_knows_is_left_to_it(models: Path) -> None:
    Image.new("RGB", (8, 8)).save(models / "p.png")
    text = {"class_type": "CNCore_Preprocess", "inputs": {**IMAGE, "kind": "canny", "resize": "shortest"}}
    work = {**encode(["10", 1]), "1": EMPTY, "10": text}
    assert problems(models, work) == []


def test_a_text_file_that_is_missing(models: Path) -> None:
    text = {"class_type": "Load Text File", "inputs": {"file_path": "p.txt", "dictionary_name": "[filename]"}}
    work = {**encode(["10", 0]), "10": text}
    assert "there is no text file 'p.txt'" in problems(models, work)[0]
    (models / "p.txt").write_text("embedding:bad")
    assert "there is no embeddings file 'bad'" in problems(models, work)[0]
