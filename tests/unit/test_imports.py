"""The house rules: imports point one way, and what is packaged is what is tracked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "comfyui_controlnet_core"
SOURCES = ("controlnet_core", "preprocessors", "nodes", "workflows")

# The layers of the engine, from the bottom up. Each may import from the ones above its line in this list.
LAYERS = (
    "errors", "limits", "config", "atomic_files", "models", "diffusion", "control", "conditioning", "runtime",
    "run_options", "prepare", "denoise", "recording", "sample", "speed", "finite", "backend", "memory_estimate",
    "pipeline",
)  # fmt: skip
CLOSER = {
    # Layers that must not see all of those below them.
    "models": {"errors", "config"},
    "diffusion": {"errors", "config", "models"},
    "runtime": {"errors", "models"},
    "sample": {"errors", "control", "diffusion", "runtime"},
}
ALLOWED: dict[str, set[str]] = {
    **{f"controlnet_core.{layer}": CLOSER.get(layer, set(LAYERS[:n])) for n, layer in enumerate(LAYERS)},
    "controlnet_core.checkpoints": {"errors", "limits", "config", "atomic_files", "models"},
    "controlnet_core.picture_files": {"errors", "limits"},
    "controlnet_core.text_files": {"errors"},
    "controlnet_core.training": {*LAYERS, "checkpoints", "picture_files", "text_files"},
    "controlnet_core.analysis": {*LAYERS, "training"},
}
ALLOWED_ABOVE = {
    "controlnet_core": {"controlnet_core"},
    "preprocessors": {"preprocessors"},
    "nodes": {"nodes", "controlnet_core", "preprocessors"},
    "workflows": {"workflows", "nodes", "controlnet_core", "preprocessors"},
}


def sources() -> Iterator[Path]:
    for folder in SOURCES:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(absolute dotted path below the package or outside name, relative level) of each import."""
    here = path.relative_to(ROOT).with_suffix("").parts
    parts = here[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.module or "", 0
                continue
            base = parts[: len(parts) - (node.level - 1)]
            target = [*base, *(node.module or "").split(".")] if node.module else list(base)
            if node.module:
                yield ".".join(target), node.level
            else:
                for alias in node.names:
                    yield ".".join([*target, alias.name]), node.level


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = path.relative_to(ROOT).with_suffix("").parts
    for name, level in imports(path):
        top = name.split(".")[0]
        if level == 0:
            assert top not in (*SOURCES, PACKAGE), f"{name}: imports inside the package are relative"
            inside_host_side = here[:2] == ("nodes", "comfyui")
            assert top not in ("comfy", "folder_paths", "nodes", "execution", "server") or inside_host_side
            continue
        assert top in ALLOWED_ABOVE[here[0]], f"{'.'.join(here)} must not import {name}"
        room = ".".join(here[:2])
        if room in ALLOWED and top == "controlnet_core":
            target = name.split(".")[1]
            assert target == here[1] or target in ALLOWED[room], f"{'.'.join(here)} must not import {name}"


def modules_imported(path: Path, known: set[str]) -> Iterator[str]:
    """The source files, by dotted name, that a file imports anywhere, also inside functions."""
    for name, level in imports(path):
        if level and name in known:
            yield name
        elif level and name.rpartition(".")[0] in known:
            yield name.rpartition(".")[0]


def test_no_file_imports_itself_through_others() -> None:
    """All imports count, also those inside functions and under TYPE_CHECKING; packages count by their __init__."""
    names = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources()
    }
    known = set(names.values())
    graph = {name: set(modules_imported(path, known)) - {name} for path, name in names.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "an import circle: " + " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_no_package_imports_a_name_that_one_of_its_files_has() -> None:
    """Importing such a file later would put the file in the place of the name."""
    for path in (path for path in sources() if path.name == "__init__.py"):
        files = {entry.stem for entry in path.parent.iterdir()}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level != 1 or node.module):
                # A file's own name is safe: `from .pack import pack` runs after the file was put there.
                names = {alias.asname or alias.name for alias in node.names} - {node.module}
                assert not files & names, f"{path.relative_to(ROOT)}: {files & names}"


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_fit_on_a_screen(path: Path) -> None:
    """No file over 400 lines, no function over 60."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    assert not [n.name for n in functions if n.end_lineno - n.lineno >= 60]  # type: ignore[operator]


FEATURES = {
    "shortcuts|Shortcuts": 8,
    "recorder|Recorder": 6,
    "CUDA graphs?|cuda_graphs": 4,
    "parallel_nets|ParallelNets": 4,
    "chunks?|ChunkedDenoiser": 6,  # one of them is the command preprocess, whose --chunk is its own
}
"""Words of an optional feature, and the most source files that may have them: it is passed through, not cut across."""


@pytest.mark.parametrize("words", FEATURES)
def test_few_files_name_an_optional_feature(words: str) -> None:
    naming = [path for path in sources() if re.search(rf"\b({words})\b", path.read_text(encoding="utf-8"))]
    assert len(naming) <= FEATURES[words], [str(path.relative_to(ROOT)) for path in naming]


def test_only_the_table_names_files_of_speed() -> None:
    """Accelerations are found through `speed/__init__.py`, so that each can be deleted with its row."""
    for path in sources():
        here = path.relative_to(ROOT).parts
        if here[:2] == ("controlnet_core", "speed"):
            continue
        inside = [name for name, level in imports(path) if level and name.startswith("controlnet_core.speed.")]
        assert not inside, f"{'/'.join(here)} imports {inside}"


def test_the_bare_package_is_never_loaded() -> None:
    import comfyui_controlnet_core.controlnet_core.pipeline  # noqa: F401

    assert "controlnet_core" not in sys.modules


def test_imports_are_inert_and_light() -> None:
    """Making the node classes loads neither other packages nor what only a run needs, and writes nothing."""
    parts = ("pipeline", "config", "models.unet", "checkpoints", "conditioning", "runtime", "speed", "training")
    code = (
        f"import sys, {PACKAGE}, {PACKAGE}.preprocessors; from {PACKAGE}.nodes import own_nodes; own_nodes();"
        "heavy = ['cv2', 'transformers', 'scipy', 'torchsde', 'diffusers', 'matplotlib', 'tokenizers'];"
        f"heavy += ['{PACKAGE}.controlnet_core.' + part for part in {parts}];"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def tracked() -> list[str]:
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip("not a git checkout: there is no list of tracked files to compare with")
    return result.stdout.splitlines()


def test_every_source_folder_is_packaged() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with tomllib, which Python 3.10 does not have")
    import tomllib

    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {str(Path(f).parent) for f in tracked() if f.endswith(".py") and f.split("/")[0] in SOURCES}
    expected = {f"{PACKAGE}.{folder.replace('/', '.')}" for folder in folders} | {PACKAGE}
    assert packages == expected


def test_paths_suit_every_file_system() -> None:
    """No symlinks, no characters that Windows refuses, no two names that differ only in case."""
    files = tracked()
    assert not [f for f in files if (ROOT / f).is_symlink()]
    assert not [f for f in files if set(f) & set(':*?"<>|\\')]
    assert len({f.lower() for f in files}) == len(files)


def test_no_file_is_too_large() -> None:
    """No file over 15 MB; the demo model's files at most 40 MB together."""
    sizes = {f: (ROOT / f).stat().st_size for f in tracked() if (ROOT / f).is_file()}
    assert max(sizes.values()) <= 15e6
    assert sum(size for f, size in sizes.items() if f.endswith(".safetensors")) <= 40e6
