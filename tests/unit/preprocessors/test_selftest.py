"""The self-test that users run on their own files tells absent, refused, implausible and sound ones apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.learned.hed import HED
from comfyui_controlnet_core.preprocessors.learned.library import Library
from comfyui_controlnet_core.preprocessors.learned.selftest import check, check_all, judge
from comfyui_controlnet_core.preprocessors.learned.teed import TEED

from .conftest import make_pictures

PICTURE = make_pictures(1, 64, 64)[0]


def test_without_files_all_are_absent(tmp_path: Path) -> None:
    findings = list(check_all(PICTURE, Library([tmp_path])))
    assert {finding.name for finding in findings} == {
        name for name in preprocessors.names() if preprocessors.get(name).weights
    }
    assert {finding.state for finding in findings} == {"absent"}
    assert all("https://" in finding.text for finding in findings)


def test_sound_refused_and_implausible(tmp_path: Path) -> None:
    entry, path = preprocessors.get("soft_edge_teed"), tmp_path / "7_model.pth"
    library = Library([tmp_path])

    def state(net: torch.nn.Module) -> str:
        torch.save(net.state_dict(), path)
        return check(entry, PICTURE, library).state

    torch.manual_seed(0)
    dead = TEED()
    for value in dead.state_dict().values():
        value.zero_()
    assert state(HED()) == "refused"
    assert state(dead) == "implausible"
    torch.manual_seed(1)
    assert state(TEED()) in ("ok", "implausible")


@pytest.mark.parametrize(
    ("name", "hint", "words"),
    [
        ("soft_edge_hed", np.full((32, 32, 3), np.nan), "NaN or infinite"),
        ("soft_edge_hed", np.zeros((32, 32, 3)), "black"),
        ("soft_edge_hed", np.full((32, 32, 3), 0.5), "flat"),
        ("soft_edge_hed", 1 - np.eye(32)[..., None].repeat(3, -1), "mean"),
        ("lines_mlsd", 1 - np.eye(32)[..., None].repeat(3, -1), "bright"),
        ("normal_bae", np.random.default_rng(0).random((32, 32, 3)) * (1, 1, 0.3), "away"),
        ("depth_anything_v2", np.linspace(1, 0, 32)[:, None, None].repeat(32, 1).repeat(3, 2), "nearer"),
        ("depth_anything_v2", np.linspace(0, 1, 32)[:, None, None].repeat(32, 1).repeat(3, 2), ""),
        ("soft_edge_hed", np.eye(32)[..., None].repeat(3, -1), ""),
    ],
)
def test_what_is_strange_is_said(name: str, hint: np.ndarray, words: str) -> None:
    said = judge(preprocessors.get(name), hint)
    assert words in said and bool(words) == bool(said)
