"""What users see of the nodes: help pages, translations and pictures, and that all of it is in the package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.workflows.bundled import bundled_names
from comfyui_controlnet_core.workflows.contract import read_spec
from load_script import load_script
from PIL import Image

ROOT = Path(__file__).parents[2]
PACKAGE = "comfyui_controlnet_core"
PACKAGED = ("controlnet_core", "preprocessors", "nodes", "workflows", "web", "locales")
AGAIN = "run python docs/make_node_docs.py"
THUMBNAIL_AGAIN = "run python docs/draw_thumbnails.py"
TEMPLATE_FOLDERS = ("example_workflows", "example", "examples", "workflow", "workflows")
"""Folder names that ComfyUI looks for. Of a pack with two of them it can open only one."""
COVERED = 0.9
"""Fraction of the texts that must be translated; ComfyUI shows the rest in English."""
HANGUL = re.compile("[\uac00-\ud7a3]")


generator = load_script(ROOT / "docs" / "make_node_docs.py")
NODES: dict[str, Any] = generator.node_classes()


def locale(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))


# ---- help pages


def test_generated_texts_are_up_to_date() -> None:
    stale = [str(p.relative_to(ROOT)) for p, text in generator.files(NODES).items() if not _same(p, text)]
    assert not stale, AGAIN


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_node_has_its_page_and_picture(name: str) -> None:
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
    cls = NODES[name]
    assert page.startswith(f"# {cls.DISPLAY_NAME}\n")
    assert cls.DESCRIPTION in page
    spec = read_spec(name, cls)
    for item in [*spec.inputs, *spec.output_names]:
        assert f"| `{item}`" in page, f"{item}: {AGAIN}"
    assert "## Example" in page
    picture = ROOT / "web" / "docs" / "images" / f"{name}.jpg"
    assert picture.exists(), AGAIN
    assert picture.stat().st_size < 150_000
    with Image.open(picture) as image:
        assert image.format == "JPEG"


def test_there_are_no_pages_of_nodes_that_are_gone() -> None:
    docs = ROOT / "web" / "docs"
    found = {path.stem for path in docs.glob("*.md")} | {path.parent.name for path in docs.glob("*/*.md")}
    pictures = {path.stem for path in (docs / "images").glob("*.jpg")}
    assert found == set(NODES)
    assert pictures == set(NODES)
    notes = {path.name.split(".")[0] for path in (ROOT / "docs" / "node_notes").glob("*.md")}
    assert notes <= set(NODES)


# ---- translations


@pytest.mark.parametrize("name", sorted(NODES))
def test_english_is_complete(name: str) -> None:
    entry, cls = locale("en")[name], NODES[name]
    spec = read_spec(name, cls)
    assert generator.plain(entry)["display_name"] == cls.DISPLAY_NAME, AGAIN
    assert generator.plain(entry)["description"] == cls.DESCRIPTION
    for item in spec.inputs.values():
        assert entry["inputs"][item.name]["name"]
        assert generator.plain(entry)["inputs"][item.name]["tooltip"] == item.options["tooltip"]
    assert [output["name"] for output in entry["outputs"].values()] == list(spec.output_names)
    assert list(entry["outputs"]) == [str(slot) for slot in range(len(spec.outputs))]


def test_korean_is_korean_and_of_nodes_that_exist() -> None:
    korean, english = locale("ko"), locale("en")
    known, wanted = generator.keys(korean), generator.keys(english)
    assert not known - wanted, "texts of nodes or inputs that are gone"
    assert len(known) >= COVERED * len(wanted), f"not translated: {sorted(wanted - known)}"
    for key in known:
        text = _at(korean, key)
        assert HANGUL.search(text) or key.endswith(".name"), f"{key}: {text}"


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_node_has_a_korean_name_and_description(name: str) -> None:
    entry = locale("ko").get(name, {})
    assert HANGUL.search(entry.get("display_name", "")), f"{name}: write its entry in locales/ko/nodeDefs.json"
    assert HANGUL.search(entry.get("description", ""))
    assert (ROOT / "web" / "docs" / name / "ko.md").exists(), AGAIN


def _at(entry: Any, key: str) -> str:
    for part in key.split("."):
        entry = entry[part]
    return entry


@pytest.mark.parametrize("language", ["en", "ko"])
def test_translations_escape_the_signs_of_comfyuis_message_format(language: str) -> None:
    texts = json.dumps(locale(language), ensure_ascii=False)
    for text in re.findall(r'"((?:[^"\\]|\\.)*)"', texts):
        assert not generator.SPECIAL.search(generator.LITERAL.sub("", text)), text
    escaped = generator.escaped({"tip": "a|b {c} @d $e"})
    assert escaped == {"tip": "a{'|'}b {'{'}c{'}'} {'@'}d {'$'}e"}
    assert generator.plain(escaped) == {"tip": "a|b {c} @d $e"}


# ---- templates


def test_comfyui_finds_one_folder_of_templates() -> None:
    assert [name for name in TEMPLATE_FOLDERS if (ROOT / name).is_dir()] == ["workflows"]


@pytest.mark.parametrize("name", bundled_names())
def test_every_template_has_a_thumbnail(name: str) -> None:
    path = ROOT / "workflows" / f"{name}.jpg"
    assert path.exists(), THUMBNAIL_AGAIN
    assert path.stat().st_size < 60_000
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert image.width == image.height


# ---- the package


def test_the_wheel_holds_all_tracked_files_of_the_package(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: there is no list of tracked files to compare with")
    if find_spec("setuptools") is None:
        pytest.skip("building a wheel needs setuptools")
    source, out = tmp_path / "source", tmp_path / "out"
    tracked = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    for name in tracked:
        if name.split("/")[0] not in ("tests", "benchmarks", "docs"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    if "license-files" in built.stderr or "Invalid dash-separated" in built.stderr:
        pytest.skip("this setuptools is older than what pyproject.toml asks for")
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix(f"{PACKAGE}/") for name in archive.namelist() if name.startswith(f"{PACKAGE}/")}
    wanted = {name for name in tracked if name.split("/")[0] in PACKAGED}
    assert wanted <= held, f"not in the wheel: {sorted(wanted - held)}"
    assert held - wanted <= {"__init__.py", "__main__.py", "LICENSE"}
