"""Nodes that train, save, convert and transfer ControlNets, and the grid that compares images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import identify_file
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.errors import (
    Interrupted,
    PathError,
    ShapeError,
    UnfitError,
    ValueRangeError,
)
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.derived import ControlLora
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.training.transfer_controlnet import transfer_controlnet
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost

CANNY, BASE = "demo canny (built in)", "demo (built in)"


def state(path: Path | str) -> dict[str, torch.Tensor]:
    return load_controlnet(path, dtype=torch.float32)[0].state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("layout", ["cldm", "diffusers", "core"])
def test_save_and_convert_keep_every_weight(run: Any, assets: Path, tmp_path: Path, layout: str) -> None:
    before = state(assets / "demo_canny.safetensors")
    (net,) = run("CNCore_LoadControlNet", control_net=CANNY)
    saved = run("CNCore_SaveControlNet", control_net=net, layout=layout, dtype="fp32")["result"][0]
    options = {"control_net_name": CANNY, "layout": layout, "dtype": "fp32"}
    converted = run("CNCore_ConvertControlNet", **options)["result"][0]
    again = run("CNCore_ConvertControlNet", **options)["result"][0]
    assert again != converted, "nothing is overwritten"
    for path in (saved, converted):
        assert Path(path).is_relative_to(tmp_path / "output" / "controlnet")
        assert identify_file(path).layout == layout and same(state(path), before)


def test_a_name_does_not_leave_the_output_folder(run: Any) -> None:
    with pytest.raises(PathError):
        run("CNCore_ConvertControlNet", control_net_name=CANNY, filename_prefix="../../net")


def test_other_kinds_of_control_are_not_saved(run: Any) -> None:
    with pytest.raises(UnfitError, match="only a plain ControlNet can be saved, this is str"):
        run("CNCore_SaveControlNet", control_net="no net")


def test_transfer_adds_the_difference_of_the_bases(
    run: Any, host: StandaloneHost, assets: Path, tmp_path: Path
) -> None:
    base = load_checkpoint(assets / "demo_base.safetensors", dtype=torch.float32)
    torch.manual_seed(5)
    target = UNet(base.config.unet)
    save_checkpoint(tmp_path / "tuned" / "tuned.safetensors", base.config, target, layout="core")
    host.model_folders["checkpoints"] = (tmp_path / "tuned",)
    chosen = {"control_net_name": CANNY, "source": BASE, "target": "tuned.safetensors", "strength": 0.5}
    handle, path = run("CNCore_TransferControlNet", **chosen, dtype="fp32")
    net, source, tuned = state(assets / "demo_canny.safetensors"), base.unet.state_dict(), target.state_dict()
    moved = state(path)
    for key, weight in net.items():
        shared = key in source and not key.startswith(("hint.", "zero_conv"))
        expected = weight + 0.5 * (tuned[key] - source[key]) if shared else weight
        torch.testing.assert_close(moved[key], expected, msg=key)
    assert same(handle.net.state_dict(), moved)
    there = transfer_controlnet(load_controlnet(assets / "demo_canny.safetensors")[0], base.unet, target)
    back = transfer_controlnet(there, target, base.unet)
    for key, weight in back.state_dict().items():
        torch.testing.assert_close(weight, net[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(UnfitError, match="all three have to be of one family"):
        transfer_controlnet(ControlNet(DEMO.controlnet), base.unet, target)


def examples(count: int = 3, size: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    pictures, hints = (torch.rand(count, size, size, 3, generator=generator) for _ in range(2))
    return {"pictures": pictures, "hints": hints, "captions": "a red sphere", "checkpoint": BASE}


def test_the_training_node_makes_a_net_that_can_be_used_immediately(run: Any, host: StandaloneHost) -> None:
    with torch.inference_mode():  # as the editor runs its nodes
        net, report, samples = run("CNCore_TrainControlNet", **examples(), steps=2, batch=2)
    assert samples.shape == (9, 32, 32, 3)
    assert "2 steps on 3 examples" in report and "does not control yet" in report
    assert any(bool(zero.conv.weight.any()) for zero in net.net.zeros)
    assert Path(report.rpartition("saved as ")[2]).is_file()


def test_the_training_node_makes_a_control_lora(run: Any, host: StandaloneHost) -> None:
    net, report, samples = run("CNCore_TrainControlNet", **examples(2), steps=1, batch=2, rank=2)
    path = Path(report.rpartition("saved as ")[2])
    assert identify_file(path).kind == "control-lora" and samples.shape == (6, 32, 32, 3)
    assert isinstance(net.net, ControlLora) and net.net.weights["middle.res1.conv1.up"].shape[1] == 2


def test_training_refuses_hints_and_captions_that_do_not_match(run: Any) -> None:
    with pytest.raises(ShapeError, match="give one square hint for each"):
        run("CNCore_TrainControlNet", **{**examples(), "hints": torch.rand(2, 32, 32, 3)})
    with pytest.raises(ShapeError, match="2 captions for 3 images"):
        run("CNCore_TrainControlNet", **{**examples(), "captions": "a\nb"})


def test_a_training_can_be_stopped(run: Any, host: StandaloneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_cancelled", lambda: True)
    with pytest.raises(Interrupted, match="stopped at step 1"):
        run("CNCore_TrainControlNet", **examples(), steps=5)


def test_the_grid_has_every_picture_in_its_place(run: Any) -> None:
    first, second = torch.zeros(3, 16, 24, 3), torch.full((1, 32, 48, 3), 0.5)
    first[1] = 1.0
    (grid,) = run("CNCore_CompareGrid", images=first, images_2=second)
    assert grid.shape == (1, 2 * 16 + 4, 2 * 24 + 4, 3)
    found = [grid[0, y : y + 16, x : x + 24].unique().tolist() for y in (0, 20) for x in (0, 28)]
    assert found == [[0.0], [1.0], [0.0], [0.5]]
    (row,) = run("CNCore_CompareGrid", images=first, columns=3, labels="a\n\nc")
    assert row.shape == (1, 16 + 14, 3 * 24 + 8, 3)
    strips = [row[0, 16:, x : x + 24] for x in (0, 28, 56)]
    assert [bool((strip < 0.5).any()) for strip in strips] == [True, False, True]
    with pytest.raises(ValueRangeError, match="4 labels for 3 images"):
        run("CNCore_CompareGrid", images=first, labels="a\nb\nc\nd")
