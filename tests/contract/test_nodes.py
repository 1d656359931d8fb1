"""What saved workflows depend on: IDs, inputs with their order, defaults and ranges, outputs.

`object_info.json` is what the nodes said when they were last changed on purpose, `releases/` what they said in each
release. Choices and optional inputs may be added; anything else that differs breaks somebody's workflow. Run this file
as a program to record it anew; a new release gets a copy of the record.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.nodes import PREFIX, build_nodes, own_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.contract import read_spec

RECORD = Path(__file__).with_name("object_info.json")
RELEASES = sorted(RECORD.with_name("releases").glob("*.json"))
FILES = "files"
FILE_INPUTS = {"ckpt_name", "control_net_name", "vae_name", "checkpoint", "lora_name"}
NATIVE = {
    "CheckpointLoaderSimple",
    "ControlNetLoader",
    "ControlNetApply",
    "ControlNetApplyAdvanced",
    "CLIPTextEncode",
    "CLIPSetLastLayer",
    "EmptyLatentImage",
    "KSampler",
    "KSamplerAdvanced",
    "VAEEncode",
    "VAEDecode",
    "VAELoader",
    "LoadImage",
    "LoadImageMask",
    "SaveImage",
    "PreviewImage",
    "ImageScale",
    "ImageScaleToTotalPixels",
    "ImageInvert",
    "Canny",
    "LatentUpscale",
    "LatentUpscaleBy",
    "ConditioningCombine",
    "SetLatentNoiseMask",
    "VAEEncodeForInpaint",
    "LoraLoader",
    "LoraLoaderModelOnly",
}


def classes(folder: Path) -> dict[str, type]:
    """All nodes over a host that has no files."""
    return build_nodes(StandaloneHost(folder, folder, device="cpu", dtype="fp32", assets_dir=folder))


def info(cls: Any) -> dict[str, Any]:
    """A node class in the form of ComfyUI's /object_info, without lists of files."""
    declared = cls.INPUT_TYPES()

    def entry(name: str, value: tuple[Any, ...]) -> list[Any]:
        is_files = name in FILE_INPUTS or (isinstance(value[0], list) and not value[0])
        return [FILES if is_files else value[0], *value[1:]]

    groups = {g: {n: entry(n, v) for n, v in declared[g].items()} for g in ("required", "optional") if g in declared}
    outputs = list(cls.RETURN_TYPES)
    return {
        "input": groups,
        "input_order": {group: list(names) for group, names in groups.items()},
        "output": outputs,
        "output_name": list(getattr(cls, "RETURN_NAMES", outputs)),
        "output_node": getattr(cls, "OUTPUT_NODE", False),
        "display_name": cls.DISPLAY_NAME,
        "category": cls.CATEGORY,
    }


def record() -> dict[str, Any]:
    """Our nodes as they are now."""
    with tempfile.TemporaryDirectory() as folder:
        found = classes(Path(folder))
        return {name: info(found[name]) for name in own_nodes()}


NOW = json.loads(json.dumps(record()))


SAVED = {path.stem: json.loads(path.read_text("utf-8")) for path in (RECORD, *RELEASES) if path.exists()}


@pytest.mark.parametrize(("record", "name"), [(record, name) for record, nodes in SAVED.items() for name in nodes])
def test_saved_workflows_still_fit(record: str, name: str) -> None:
    before, now = SAVED[record][name], NOW.get(name)
    assert now is not None, f"{name} is gone"
    assert now["output_node"] == before["output_node"]
    for key in ("output", "output_name"):  # links are saved by slot: new outputs go to the end
        assert now[key][: len(before[key])] == before[key], key
    for group, order in before["input_order"].items():
        assert now["input_order"].get(group, [])[: len(order)] == order, group
        for input_name in order:
            _compatible(before["input"][group][input_name], now["input"][group][input_name], input_name)
    assert now["input_order"].get("required", []) == before["input_order"].get("required", [])


def _compatible(before: list[Any], now: list[Any], name: str) -> None:
    if isinstance(before[0], list):
        assert isinstance(now[0], list) and set(before[0]) <= set(now[0]), f"{name} lost a choice"
    else:
        assert now[0] == before[0], name
    for option in ("default", "min", "max", "step"):
        old, new = (entry[1].get(option) if len(entry) > 1 else None for entry in (before, now))
        assert old == new, f"{name} {option}"


def test_the_record_has_all_nodes() -> None:
    assert set(NOW) == set(SAVED[RECORD.stem]), "record the new nodes: python tests/contract/..."


@pytest.mark.parametrize("name", sorted(own_nodes()))
def test_our_nodes_have_names_and_tooltips(name: str, tmp_path: Path) -> None:
    cls: Any = classes(tmp_path)[name]
    assert name.startswith(PREFIX)
    assert cls.DISPLAY_NAME and cls.DESCRIPTION.endswith(".") and cls.CATEGORY.startswith("ControlNet Core/")
    assert len(cls.RETURN_NAMES) == len(cls.RETURN_TYPES) == len(cls.OUTPUT_TOOLTIPS)
    spec = read_spec(name, cls)
    for entry in spec.inputs.values():
        assert str(entry.options.get("tooltip", "")).endswith("."), f"{name}.{entry.name} has no tooltip"


@pytest.mark.parametrize("name", sorted(build_nodes(StandaloneHost(device="cpu", dtype="fp32"))))
def test_every_node_keeps_the_contract(name: str, tmp_path: Path) -> None:
    cls: Any = classes(tmp_path)[name]
    spec = read_spec(name, cls)
    assert callable(getattr(cls, cls.FUNCTION)) and cls.DESCRIPTION and cls.CATEGORY and cls.__doc__
    for entry in spec.inputs.values():
        low, high, default = (entry.options.get(key) for key in ("min", "max", "default"))
        if entry.type in ("INT", "FLOAT"):
            assert low <= entry.default <= high, entry.name
        if entry.choices and default is not None:
            assert default in entry.choices, entry.name


def test_the_native_nodes_of_common_workflows_exist(tmp_path: Path) -> None:
    assert set(classes(tmp_path)) >= NATIVE


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1, ensure_ascii=False) + "\n", "utf-8")
