"""The pages name files, functions and links that exist."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import comfyui_controlnet_core
import pytest
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.workflows.bundled import bundled_names
from comfyui_controlnet_core.workflows.cli import COMMANDS, build_parser

ROOT = Path(comfyui_controlnet_core.__file__).resolve().parent
FOLDERS = ("", "controlnet_core", "docs", "benchmarks", "tests")
"""A page names a file from one of these folders on."""
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")], key=lambda page: page.name
)
PATH = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.py)`")
NAME = re.compile(r"`([A-Za-z_][\w.]*)\(\)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MOST_README_LINES = 120
MOST_FILES_OF_A_WALK = 8


def test_there_are_pages() -> None:
    assert {"README.md", "README.ko.md", "CONTRIBUTING.md", "architecture.md"} <= {page.name for page in PAGES}


def find(path: str) -> Path | None:
    """The file of a path that a page names."""
    return next((ROOT / folder / path for folder in FOLDERS if (ROOT / folder / path).is_file()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_file_that_a_page_names_exists(page: Path) -> None:
    named = set(PATH.findall(page.read_text("utf-8")))
    # ComfyUI's own files are named with its folder `comfy/`
    assert not sorted(path for path in named if not path.startswith("comfy/") and find(path) is None)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes and `Class.method`s that a file defines."""

    def walk(body: list[ast.stmt], before: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield from (node.name, before + node.name)
                yield from walk(node.body, f"{before}{node.name}.")

    return frozenset(walk(ast.parse(path.read_text("utf-8")).body, ""))


def test_every_function_that_the_architecture_names_is_in_the_file_of_its_line() -> None:
    wrong = []
    for line in (ROOT / "docs" / "architecture.md").read_text("utf-8").splitlines():
        files = [found for path in PATH.findall(line) if (found := find(path)) is not None]
        for name in NAME.findall(line):
            if not any(name in names_in(file) for file in files):
                wrong.append(f"{name}: {line[:80]}")
    assert not wrong


def test_the_walks_pass_through_few_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    walks = [part for part in re.split(r"^#+ ", text, flags=re.MULTILINE) if part.startswith("Walk:")]
    assert len(walks) == 3
    for walk in walks:
        files = re.findall(r"^\| \d+ \| `([^`]+)`", walk, flags=re.MULTILINE)
        assert 3 <= len(set(files)) <= MOST_FILES_OF_A_WALK, walk.splitlines()[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text("utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "README.ko.md"])
def test_the_readme_is_short_and_has_its_two_commands(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert len(text.splitlines()) <= MOST_README_LINES
    commands = re.findall(r"<!-- command (one|two) -->\n```sh\n(.+)\n```", text)
    assert [name for name, _ in commands] == ["one", "two"]
    english = re.findall(r"<!-- command .*?```\n", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert english == re.findall(r"<!-- command .*?```\n", text, flags=re.DOTALL)


def test_the_readme_counts_right() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    plain = sum(not entry.weights for entry in ENTRIES)
    assert f"{plain} preprocessors without weights, {len(ENTRIES) - plain} with a network" in text
    assert f"{len(bundled_names())} workflows" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_has_its_options(page: Path) -> None:
    wrong = []
    for line in page.read_text("utf-8").splitlines():
        # commands stand in code: at the begin of a line of a block, or behind a backtick
        for found in re.finditer(r"(?:^|`)controlnet ([a-z-]+)([^`#|]*)", line):
            command, rest = found.groups()
            unknown = set(re.findall(r"--[a-z-]+", rest)) - options_of(command)
            wrong += [f"{command} {option}" for option in unknown]
    assert not wrong


@cache
def options_of(command: str) -> frozenset[str]:
    """All options of a subcommand; fails if there is no such subcommand."""
    assert command in COMMANDS, f"there is no command `controlnet {command}`"
    parser = build_parser(command)
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return frozenset(option for action in subparsers.choices[command]._actions for option in action.option_strings)


def test_the_page_of_commands_has_all_of_them() -> None:
    text = (ROOT / "docs" / "command_line.md").read_text("utf-8")
    assert not [command for command in COMMANDS if f"`controlnet {command}" not in text]
