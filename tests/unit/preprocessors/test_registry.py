"""The catalogue: what each entry declares is complete and true, and costs nothing until it runs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.entry import Entry, Parameter

RUN_OPTIONS = {
    "resolution", "resize", "multiple", "output", "mask", "normalize", "seed", "target", "fit", "progress", "library",
}  # fmt: skip


def test_names_are_unique_and_in_snake_case() -> None:
    names = preprocessors.names()
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalnum() and name == name.lower() for name in names)


def test_every_condition_of_the_paper_and_of_its_successor_is_there() -> None:
    conditions = {entry.condition for entry in ENTRIES}
    paper = {"canny", "mlsd", "softedge", "scribble", "openpose", "seg", "normal", "depth", "lineart"}
    successor = {"shuffle", "tile", "inpaint", "blur", "recolor", "brightness", "color", "ip2p", "reference"}
    assert paper | successor <= conditions


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_what_an_entry_declares_is_what_its_function_takes(entry: Entry) -> None:
    arguments = inspect.signature(entry.call).parameters
    for parameter in entry.parameters:
        assert parameter.name not in RUN_OPTIONS
        if entry.ranged and parameter.name in ("near", "far"):
            continue  # the range is made outside of the function
        assert parameter.name in arguments
        assert parameter.help.endswith(".")
        assert parameter.check(parameter.default) == parameter.default
        given = arguments[parameter.name].default
        if not entry.weights and entry.name not in ("depth_map",):
            assert given == parameter.default or given is inspect.Parameter.empty
    assert entry.summary.endswith(".") and entry.title and entry.polarity
    assert entry.nature in ("measurement", "prior", "conversion", "drawing", "random", "learned")
    assert (entry.nature == "learned") == bool(entry.weights)


def test_help_says_what_is_a_prior_and_what_is_not_semantic() -> None:
    assert "assumption" in preprocessors.get("depth_ground_prior").summary.lower()
    assert "not semantic" in preprocessors.get("segment_regions").summary.lower()
    assert not any("estimated" in entry.summary for entry in ENTRIES if not entry.weights)


def test_describe_says_what_ran() -> None:
    text = preprocessors.get("canny").describe(low=50)
    assert text == "canny (cv2, measurement): low=50, high=200, l2_gradient=False"


@pytest.mark.parametrize(
    ("parameter", "bad"),
    [
        (Parameter("n", "int", 1, "N.", 0, 5), 2.5),
        (Parameter("n", "int", 1, "N.", 0, 5), 6),
        (Parameter("x", "float", 1.0, "X.", 0, 5), float("nan")),
        (Parameter("x", "float", 1.0, "X.", 0, 5), "wide"),
        (Parameter("c", "choice", "a", "C.", choices=("a", "b")), "d"),
        (Parameter("b", "bool", True, "B."), "yes"),
    ],
)
def test_values_out_of_range_are_refused(parameter: Parameter, bad: object) -> None:
    with pytest.raises(preprocessors.ParameterError, match=f"{parameter.name}="):
        parameter.check(bad)


def test_importing_and_listing_loads_no_heavy_library() -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "from comfyui_controlnet_core import preprocessors; preprocessors.names()\n"
        "heavy = {'numpy', 'torch', 'cv2', 'scipy', 'transformers'} & set(sys.modules)\n"
        "print(time.process_time() - start, sorted(heavy))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    seconds = min(float(run.stdout.split()[0]) for run in runs)
    assert all(run.stdout.split(maxsplit=1)[1].strip() == "[]" for run in runs)
    assert seconds < 0.1  # 0.03 s of a quiet core; numpy alone would take 0.1, torch 1


def test_the_documentation_names_every_one_with_its_parameters() -> None:
    text = (Path(__file__).parents[3] / "docs" / "preprocessors.md").read_text("utf-8")
    for entry in ENTRIES:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{entry.name}` |"))
        assert entry.summary in row
        for weights in entry.weights:
            assert f"`{weights.file}`" in row and weights.licence in row
        for parameter in () if entry.weights else entry.parameters:
            assert f"`{parameter.name}` {parameter.default}" in row
