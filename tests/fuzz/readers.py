"""The ten readers: the cases of each, and the code of which the campaign states the coverage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis.strategies import SearchStrategy

from . import file_cases, model_cases, text_cases
from .case import Case

CHECKPOINTS = "controlnet_core/checkpoints"


@dataclass(frozen=True)
class Reader:
    """code: files of the package, from its folder; with `:name`, only the functions and classes of these names.

    left_out: functions of those files that read nothing, such as those that write.
    """

    cases: SearchStrategy[Case]
    code: tuple[str, ...]
    left_out: frozenset[str] = frozenset()


READERS: Mapping[str, Reader] = {
    "safetensors": Reader(
        model_cases.safetensors(),
        (f"{CHECKPOINTS}/files.py", f"{CHECKPOINTS}/wrappers.py", f"{CHECKPOINTS}/io.py:read_tensors"),
    ),
    "pickles": Reader(model_cases.pickles(), (f"{CHECKPOINTS}/pickles.py",)),
    "configs": Reader(
        model_cases.configs(),
        (f"{CHECKPOINTS}/headers.py", f"{CHECKPOINTS}/fileconfig.py", f"{CHECKPOINTS}/check_config.py"),
        frozenset({"config_to_json", "unet_entries", "controlnet_entries", "vae_entries"}),
    ),
    "pictures": Reader(
        file_cases.pictures(),
        ("controlnet_core/picture_files.py", "nodes/pictures.py:read_picture,read_mask,_check_range"),
    ),
    "poses": Reader(
        file_cases.poses(),
        ("preprocessors/pose/keypoint_json.py", "preprocessors/pose/people.py",
        "workflows/hint_making.py:read_pose_file"),
        frozenset({"write_poses", "fit_to_box", "resized"}),
    ),
    "workflows": Reader(
        file_cases.workflows(),
        tuple(f"workflows/{name}.py" for name in (
            "formats", "editor", "drawing", "png", "widgets", "graph", "migrations", "validation", "node_checks",
            "checks",
        )),
    ),
    "prompts": Reader(
        text_cases.prompts(),
        ("controlnet_core/models/prompt.py", "controlnet_core/models/tokenizer.py:ClipTokenizer",
        f"{CHECKPOINTS}/embeddings.py"),
    ),
    "yaml": Reader(text_cases.yaml_files(), ("workflows/model_paths.py", "workflows/paths.py:user_path")),
    "training folders": Reader(
        file_cases.training_folders(),
        ("controlnet_core/training/example_folder.py", "controlnet_core/training/examples.py:ExampleSet,read_pixels"),
    ),
    "command lines": Reader(
        text_cases.command_lines(),
        # Not what turns unexpected errors and signals into exit codes: the campaign demands that there are none.
        ("workflows/cli.py:build_parser,_Parser,_dispatch,_report", "workflows/overrides.py", "workflows/session.py",
        "workflows/destinations.py",
        "workflows/paths.py"),
    ),
}  # fmt: skip
