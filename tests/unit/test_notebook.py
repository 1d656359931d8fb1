"""The notebook `docs/colab.ipynb`: cells that Python and bash can read, with commands and options that exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import comfyui_controlnet_core
import pytest
from comfyui_controlnet_core.workflows.bundled import bundled_names
from comfyui_controlnet_core.workflows.cli import COMMANDS, build_parser

FILE = Path(comfyui_controlnet_core.__file__).resolve().parent / "docs" / "colab.ipynb"
BASH = "%%bash\n"
COMMAND = re.compile(r"^\s*python -m comfyui_controlnet_core (.*)$", re.MULTILINE)


def sources(kind: str) -> list[str]:
    cells = json.loads(FILE.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def commands() -> list[list[str]]:
    """The words of all commands of this package, with variables as they are written."""
    found = []
    for source in sources("code"):
        for line in COMMAND.findall(source.replace("\\\n", " ")):
            words = shlex.split(re.sub(r"\$\{\w+:-(\w+)\}", r"\1", line))
            end = next((index for index, word in enumerate(words) if word in ("|", "||", "2>&1")), len(words))
            found.append(words[:end])
    return found


def test_it_is_a_notebook_without_results() -> None:
    notebook: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["language"] == "python"
    for cell in notebook["cells"]:
        assert cell["source"] and cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_each_cell_can_be_read() -> None:
    bash = shutil.which("bash")
    for source in sources("code"):
        if not source.startswith("%%"):
            ast.parse(source)
            continue
        assert source.startswith(BASH)
        if bash is not None:
            script = source.removeprefix(BASH)
            done = subprocess.run([bash, "-n"], input=script, text=True, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_each_command_and_its_options_exist(words: list[str]) -> None:
    args = build_parser(words[0]).parse_args(words)
    assert args.command in COMMANDS
    if args.command == "run":
        assert args.file in bundled_names()


def test_it_does_all_that_its_page_says() -> None:
    assert {words[0] for words in commands()} == {"doctor", "preprocess", "train", "run"}
    text = "\n".join(sources("code"))
    assert text.count("ln -s") == 3  # the package for Python and for ComfyUI, and the net


def test_pages_link_to_it() -> None:
    root = FILE.parents[1]
    assert "(docs/colab.ipynb)" in (root / "README.md").read_text("utf-8")
    assert "(colab.ipynb)" in (root / "docs" / "training.md").read_text("utf-8")
