"""Every name of ComfyUI that `nodes/comfyui` uses, found in its sources.

Imports, attributes of what they import, and names that stand for such an attribute (`KIND = comfy.module.Kind`) are
followed. `python tests/integration/host_names.py COMFYUI_DIR...` prints the table of `host_names.tsv` for these
checkouts, the oldest first.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "nodes" / "comfyui"
TABLE = Path(__file__).with_name("host_names.tsv")
MODULES = (
    "app", "comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "execution", "folder_paths",
    "latent_preview", "node_helpers", "nodes", "server",
)  # fmt: skip
"""Top-level modules of ComfyUI."""


def used_names() -> set[str]:
    """All names, such as `comfy.samplers.KSampler.SCHEDULERS`."""
    found = {name for path in sorted(FOLDER.rglob("*.py")) for name in names_of(ast.parse(path.read_text("utf-8")))}
    # An instance exists only while ComfyUI serves: what is asked of it is looked for in its class.
    return {name.replace(".instance.", ".").removesuffix(".instance") for name in found}


def names_of(tree: ast.Module) -> Iterator[str]:
    """The names in one file."""
    known = imported(tree)
    for _ in range(2):  # a name may stand for a part of another one
        known |= assigned(tree, known)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        name = resolved(node, known)
        if name and id(node) not in inner and name not in ("comfy",):
            yield name
    yield from (name for name in known.values() if name != "comfy")


def imported(tree: ast.Module) -> dict[str, str]:
    """What the names of a file stand for that its imports make."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if is_of_comfyui(alias.name):
                    first = alias.name.split(".")[0]
                    known |= {alias.asname: alias.name} if alias.asname else {first: first}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and is_of_comfyui(node.module or ""):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return known


def assigned(tree: ast.Module, known: dict[str, str]) -> dict[str, str]:
    """What further names stand for: `a = comfy.b`, also inside of functions."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = resolved(node.value, known)
            if name:
                found[node.targets[0].id] = name
    return found


def resolved(node: ast.AST, known: dict[str, str]) -> str:
    """The dotted name that an expression stands for; empty if it is none of ComfyUI's.

    Also `getattr(comfy.a, "b", default)`, and a module that is looked for: `sys.modules.get("a")`.
    """
    if isinstance(node, ast.Name):
        return known.get(node.id, "")
    if isinstance(node, ast.Attribute):
        before = resolved(node.value, known)
        return f"{before}.{node.attr}" if before else ""
    if isinstance(node, ast.Call) and node.args:
        called, texts = ast.unparse(node.func), [a.value for a in node.args if isinstance(a, ast.Constant)]
        if called in ("sys.modules.get", "import_module", "importlib.import_module"):
            return str(texts[0]) if texts and is_of_comfyui(str(texts[0])) else ""
        if called == "getattr" and texts:
            before = resolved(node.args[0], known)
            return f"{before}.{texts[0]}" if before else ""
    return ""


def is_of_comfyui(module: str) -> bool:
    """Whether a module is one of ComfyUI's."""
    return module.split(".")[0] in MODULES


def exists(name: str) -> bool:
    """Whether a name is there in this process, which has ComfyUI on its path."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def table() -> dict[str, set[str]]:
    """The releases in which each name exists, as the committed table says it."""
    rows = [line.split("\t") for line in TABLE.read_text("utf-8").splitlines()[1:]]
    return {name: set(releases.split()) for name, releases in rows}


def release_of(checkout: Path) -> str:
    """The release of a checkout."""
    return re.findall(r'"(\d[\d.]*)"', (checkout / "comfyui_version.py").read_text())[0]


def names_in(checkout: Path, python: str = sys.executable) -> set[str]:
    """Those of the used names that exist in a checkout, which is asked in a process of its own."""
    run = subprocess.run([python, __file__, "--ask", str(checkout)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return set(run.stdout.split("names:\n")[1].split())


def ask(checkout: str) -> None:
    """Print the used names that exist in a checkout."""
    sys.path.insert(0, str(Path(__file__).parent))
    host = importlib.import_module("comfyui_host")
    sys.path.insert(0, checkout)
    sys.argv = ["host", "--cpu"]
    host.without_torchvision()
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("utils.extra_config")  # before `nodes` puts the folder with comfy/utils.py on the path
    importlib.import_module("nodes")
    print("names:", *sorted(filter(exists, used_names())), sep="\n")


def main(folders: list[str]) -> None:
    """Print the table."""
    releases = {release_of(Path(folder)): names_in(Path(folder)) for folder in folders}
    print("name\treleases that have it")
    for name in sorted(used_names()):
        print(name, " ".join(release for release, names in releases.items() if name in names), sep="\t")


if __name__ == "__main__":
    if sys.argv[1] == "--ask":
        ask(sys.argv[2])
    else:
        main(sys.argv[1:])
