"""Nodes end to end on a tiny model: the paths from files to pictures, and what they refuse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import (
    CheckpointError,
    Interrupted,
    MissingFileError,
    PathError,
    ShapeError,
    UnfitError,
    ValueRangeError,
)
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost

DEMO, CANNY, DEPTH = "demo (built in)", "demo canny (built in)", "demo depth (built in)"


@pytest.fixture
def scene(run: Any) -> dict[str, Any]:
    """Model, prompts, a net, a hint and an empty latent of 8x8 cells."""
    model, clip, vae = run("CNCore_LoadCheckpoint", checkpoint=DEMO)
    positive, negative = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")
    (net,) = run("CNCore_LoadControlNet", control_net=CANNY)
    (other,) = run("CNCore_LoadControlNet", control_net=DEPTH)
    (latent,) = run("EmptyLatentImage", width=64, height=64)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    return {
        "model": model, "clip": clip, "vae": vae, "positive": positive, "negative": negative,
        "net": net, "other": other, "latent": latent, "hint": hint,
    }  # fmt: skip


def sample(run: Any, scene: dict[str, Any], **changes: Any) -> torch.Tensor:
    inputs = {name: scene[name] for name in ("model", "positive", "negative", "latent")}
    (latent,) = run("CNCore_Sample", **{**inputs, "steps": 2, **changes})
    return latent["samples"]


def test_from_file_to_picture(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    (image, caption) = run("CNCore_ExampleImage", picture="coffee", size=64)
    assert image.shape == (1, 64, 64, 3) and "coffee" in caption
    hint, _ = run("CNCore_Preprocess", image=image)["result"]
    positive, negative = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=hint)
    controlled = sample(run, scene, positive=positive, negative=negative)
    assert not torch.equal(controlled, sample(run, scene))
    (picture,) = run("VAEDecode", samples={"samples": controlled}, vae=scene["vae"])
    assert picture.shape == (1, 64, 64, 3) and picture.min() >= 0.0 and picture.max() <= 1.0
    saved = run("SaveImage", images=picture)["ui"]["images"]
    assert saved == [{"filename": "ComfyUI_00001_.png", "subfolder": "", "type": "output"}]
    assert (host.output_dir / "ComfyUI_00001_.png").is_file()


def _halves(scene: dict[str, Any]) -> dict[str, Any]:
    return {"positive": scene["positive"], "negative": scene["negative"]}


def test_native_nodes_give_the_same_picture(run: Any, scene: dict[str, Any]) -> None:
    model, clip, _ = run("CheckpointLoaderSimple", ckpt_name="sub/tiny.safetensors")
    (net,) = run("ControlNetLoader", control_net_name="tiny.safetensors")
    (positive,) = run("CLIPTextEncode", text="a red sphere", clip=clip)
    (negative,) = run("CLIPTextEncode", text="", clip=clip)
    positive, negative = run(
        "ControlNetApplyAdvanced", positive=positive, negative=negative, control_net=net, image=scene["hint"]
    )
    (native,) = run(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=scene["latent"], steps=2, cfg=7.0
    )
    own = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"])
    assert torch.equal(native["samples"], sample(run, scene, positive=own[0], negative=own[1]))


def test_old_apply_controls_the_negative_too(run: Any, scene: dict[str, Any]) -> None:
    (old,) = run("ControlNetApply", conditioning=scene["positive"], control_net=scene["net"], image=scene["hint"])
    new = run("ControlNetApplyAdvanced", **_halves(scene), control_net=scene["net"], image=scene["hint"])
    assert torch.equal(sample(run, scene, positive=old), sample(run, scene, positive=new[0], negative=new[1]))


def test_a_chain_a_stack_and_their_order(run: Any, scene: dict[str, Any]) -> None:
    first = {"control_net": scene["net"], "image": scene["hint"], "strength": 0.7}
    second = {"control_net": scene["other"], "image": 1.0 - scene["hint"], "end_percent": 0.6}
    chain = _halves(scene)
    for unit in (first, second):
        chain = dict(zip(chain, run("CNCore_ApplyControlNet", **chain, **unit), strict=True))
    (stack,) = run("CNCore_ControlUnit", **first)
    (stack,) = run("CNCore_ControlUnit", stack=stack, **second)
    assert len(stack) == 2
    stacked = run("CNCore_ApplyControlStack", **_halves(scene), stack=stack)
    swapped = run("CNCore_ApplyControlStack", **_halves(scene), stack=stack[::-1])
    reference = sample(run, scene, **chain)
    assert torch.equal(reference, sample(run, scene, positive=stacked[0], negative=stacked[1]))
    difference = reference - sample(run, scene, positive=swapped[0], negative=swapped[1])
    assert difference.abs().max() < 1e-3


def test_both_halves_share_one_unit(run: Any, scene: dict[str, Any]) -> None:
    halves = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"])
    assert halves[0][0][1]["control"][0] is halves[1][0][1]["control"][0]
    assert "control" not in scene["positive"][0][1]


def test_strength_zero_changes_nothing(run: Any, scene: dict[str, Any]) -> None:
    for name in ("CNCore_ApplyControlNet", "ControlNetApplyAdvanced"):
        off = run(name, **_halves(scene), control_net=scene["net"], image=scene["hint"], strength=0.0)
        assert off[0] is scene["positive"] and off[1] is scene["negative"]


@pytest.mark.parametrize("shape", [(1, 64, 64, 1), (1, 64, 64, 4), (1, 1, 1, 3), (1, 37, 91, 3), (2, 16, 16, 3)])
def test_hints_of_any_form(run: Any, scene: dict[str, Any], shape: tuple[int, ...]) -> None:
    (latent,) = run("EmptyLatentImage", width=64, height=48, batch_size=2)
    halves = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=torch.rand(shape))
    result = sample(run, scene, positive=halves[0], negative=halves[1], latent=latent, steps=1)
    assert result.shape == (2, 4, 6, 8) and bool(torch.isfinite(result).all())


@pytest.mark.parametrize(
    ("hint", "error", "said"),
    [
        (torch.zeros(1, 8, 8, 2), ShapeError, "2 channels"),
        (torch.full((1, 8, 8, 3), float("nan")), ValueRangeError, "NaN"),
        (torch.zeros(1, 0, 8, 3), ShapeError, "expected"),
    ],
)
def test_hints_that_are_refused(run: Any, scene: dict[str, Any], hint: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        halves = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=hint)
        sample(run, scene, positive=halves[0], negative=halves[1])


def test_a_net_for_another_base(run: Any, scene: dict[str, Any]) -> None:
    (net,) = run("ControlNetLoader", control_net_name="other.safetensors")
    for name in ("CNCore_ApplyControlNet", "ControlNetApplyAdvanced"):
        with pytest.raises(UnfitError, match=r"other.safetensors was made for .*64 wide.*32 wide"):
            run(name, **_halves(scene), control_net=net, image=scene["hint"])


def test_a_window_that_ends_before_it_starts(run: Any, scene: dict[str, Any]) -> None:
    unit = {"control_net": scene["net"], "image": scene["hint"], "start_percent": 0.8, "end_percent": 0.2}
    with pytest.raises(ValueRangeError, match="swap"):
        run("CNCore_ApplyControlNet", **_halves(scene), **unit)
    assert run("ControlNetApplyAdvanced", **_halves(scene), **unit)[0] is scene["positive"]


def test_block_weights(run: Any, scene: dict[str, Any]) -> None:
    (ones,) = run("CNCore_BlockWeights")
    (middle,) = run("CNCore_BlockWeights", full=0.0, half=0.0, quarter=0.0, eighth=0.0)
    unit = {"control_net": scene["net"], "image": scene["hint"]}
    plain = run("CNCore_ApplyControlNet", **_halves(scene), **unit)
    same = run("CNCore_ApplyControlNet", **_halves(scene), **unit, block_weights=ones)
    only = run("CNCore_ApplyControlNet", **_halves(scene), **unit, block_weights=middle)
    mode = run("CNCore_ApplyControlNet", **_halves(scene), **unit, mode="mid-only")
    results = [sample(run, scene, positive=p, negative=n, steps=1) for p, n in (plain, same, only, mode)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[2], results[3])
    assert not torch.equal(results[0], results[2])
    (few,) = run("CNCore_BlockWeights", custom="1, 0.5")
    with pytest.raises(ValueRangeError, match="2 block weights"):
        halves = run("CNCore_ApplyControlNet", **_halves(scene), **unit, block_weights=few)
        sample(run, scene, positive=halves[0], negative=halves[1])
    with pytest.raises(ValueRangeError, match="numbers separated"):
        run("CNCore_BlockWeights", custom="1, x")


def test_plan(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    unit = {"control_net": scene["net"], "image": scene["hint"], "end_percent": 0.5, "mask": torch.ones(1, 8, 8)}
    halves = run("CNCore_ApplyControlNet", **_halves(scene), **unit)
    shown = run("CNCore_ControlPlan", model=scene["model"], positive=halves[0], latent=scene["latent"], steps=4)
    text, hints, picture = shown["result"]
    assert "demo_canny.safetensors, strength 1, 0% to 50%, balanced, both halves, inside its mask" in text
    assert "\n\nmemory: " in text
    assert "runs in 2 of 4 evaluations" in text and "not run: after its window, which ends at 50%" in text
    assert torch.equal(hints, scene["hint"]) and shown["ui"]["text"] == [text]
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and picture.std() > 0.05
    (entry,) = shown["ui"]["images"]
    assert entry["type"] == "temp" and (host.temp_dir / entry["filename"]).is_file()


def test_plan_without_control(run: Any, scene: dict[str, Any]) -> None:
    off = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"], strength=0.0)
    shown = run("CNCore_ControlPlan", model=scene["model"], positive=off[0], latent=scene["latent"])
    assert "no ControlNet acts" in shown["result"][0]


def test_plan_with_a_finished_latent(run: Any, scene: dict[str, Any]) -> None:
    """A unit has information only where it acts, and its own name and table."""
    halves = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"])
    two = run("CNCore_ApplyControlNet", positive=halves[0], negative=halves[1], control_net=scene["other"],
              image=scene["hint"], end_percent=0.5)  # fmt: skip
    given = {"model": scene["model"], "positive": two[0], "latent": scene["latent"], "steps": 4}
    finished = {"samples": sample(run, scene, positive=two[0], negative=two[1])}
    text, _, picture = run("CNCore_ControlPlan", **given, finished=finished)["result"]
    first, second = (part for part in text.split("\n\n") if ": information about its strength" in part)
    assert first.startswith("1  demo_canny") and second.startswith("2  demo_depth")
    shares = [line.split()[-1] for line in second.splitlines()[2:6]]
    assert shares[2:] == ["0.0%", "0.0%"] and "steps 1 to 2 keep 100%" in second
    assert picture.shape[1] > run("CNCore_ControlPlan", **given)["result"][2].shape[1]
    with pytest.raises(ValueRangeError, match="finished latent"):
        run("CNCore_ControlPlan", **given, finished=scene["latent"])


def test_a_mask_limits_control(run: Any, scene: dict[str, Any]) -> None:
    unit = {"control_net": scene["net"], "image": scene["hint"]}
    black = run("CNCore_ApplyControlNet", **_halves(scene), **unit, mask=torch.zeros(1, 20, 30))
    result = sample(run, scene, positive=black[0], negative=black[1])
    assert torch.allclose(result, sample(run, scene), atol=1e-5)


def test_image_to_image_and_inpainting(run: Any, scene: dict[str, Any]) -> None:
    picture = torch.rand(1, 70, 64, 3)
    (latent,) = run("VAEEncode", pixels=picture, vae=scene["vae"])
    assert latent["samples"].shape == (1, 4, 8, 8)
    assert torch.equal(sample(run, scene, latent=latent, denoise=0.0), latent["samples"])
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1.0
    (masked,) = run("SetLatentNoiseMask", samples=latent, mask=mask)
    result = sample(run, scene, latent=masked)
    assert torch.allclose(result[..., :3], latent["samples"][..., :3], atol=1e-5)
    assert not torch.allclose(result[..., 5:], latent["samples"][..., 5:], atol=1e-2)
    (inpaint,) = run("VAEEncodeForInpaint", pixels=picture, vae=scene["vae"], mask=mask)
    assert inpaint["noise_mask"].shape == (1, 1, 64, 64)
    assert inpaint["noise_mask"][0, 0, 0].nonzero().min() == 30


def test_two_advanced_samplers_make_one_run(run: Any, scene: dict[str, Any]) -> None:
    inputs = {name: scene[name] for name in ("model", "positive", "negative")} | {"steps": 4, "noise_seed": 5}
    (whole,) = run("KSamplerAdvanced", **inputs, latent_image=scene["latent"])
    (half,) = run(
        "KSamplerAdvanced", **inputs, latent_image=scene["latent"], end_at_step=2, return_with_leftover_noise="enable"
    )
    (rest,) = run("KSamplerAdvanced", **inputs, latent_image=half, start_at_step=2, add_noise="disable")
    assert torch.allclose(whole["samples"], rest["samples"], atol=1e-5)


def test_progress_and_cancelling(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    heard: list[tuple[int, int]] = []
    host._progress = lambda done, total, preview=None: heard.append((done, total))
    sample(run, scene, steps=3)
    assert heard == [(1, 3), (2, 3), (3, 3)]
    host._cancelled = lambda: len(heard) > 4
    with pytest.raises(Interrupted):
        sample(run, scene, steps=5)


def test_files_are_loaded_once_until_they_change(run: Any, host: StandaloneHost, assets: Path) -> None:
    first = run("CNCore_LoadControlNet", control_net=CANNY)[0]
    assert run("CNCore_LoadControlNet", control_net=CANNY)[0] is first
    path = assets / "demo_canny.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert run("CNCore_LoadControlNet", control_net=CANNY)[0] is not first


def test_files_that_are_not_there(run: Any, host: StandaloneHost, assets: Path) -> None:
    with pytest.raises(MissingFileError, match=r"did you mean 'tiny\.safetensors'"):
        run("ControlNetLoader", control_net_name="tinny.safetensors")
    with pytest.raises(PathError):
        run("ControlNetLoader", control_net_name="../checkpoints/sub/tiny.safetensors")
    with pytest.raises(MissingFileError, match="Searched"):
        run("CNCore_LoadCheckpoint", checkpoint="none.safetensors")
    with pytest.raises(CheckpointError, match="of another kind"):
        host.load_checkpoint(assets / "demo_canny.safetensors")


def test_preprocess_settings(run: Any) -> None:
    image = torch.rand(1, 20, 20, 3)
    hint, _ = run("CNCore_Preprocess", image=image, kind="canny", resolution=40, settings="low=50, high=90")["result"]
    assert hint.shape == (1, 40, 40, 3)
    for settings in ("low", "loww=3", "low=x"):
        with pytest.raises(ValueRangeError):
            run("CNCore_Preprocess", image=image, kind="canny", settings=settings)


def test_scenes_have_exact_hints(run: Any) -> None:
    for view in ("picture", "canny", "scribble", "depth", "openpose", "segmentation"):
        image, caption = run("CNCore_ExampleImage", picture="demo scene 2", view=view, size=64)
        assert image.shape == (1, 64, 64, 3) and image.dtype == torch.float32
        assert image.min() >= 0.0 and image.max() <= 1.0 and caption
    with pytest.raises(ValueRangeError, match="photograph"):
        run("CNCore_ExampleImage", picture="coffee", view="depth", size=64)


def test_clip_skip_and_missing_parts(run: Any, scene: dict[str, Any]) -> None:
    (skipped,) = run("CLIPSetLastLayer", clip=scene["clip"], stop_at_clip_layer=-2)
    (text,) = run("CLIPTextEncode", text="a red sphere", clip=skipped)
    assert not torch.equal(text[0][0], scene["positive"][0][0])
    with pytest.raises(CheckpointError, match="text encoder"):
        run("CLIPTextEncode", text="", clip=None)
    with pytest.raises(CheckpointError, match="autoencoder"):
        run("VAEDecode", samples=scene["latent"], vae=None)


def test_fidelity(run: Any, host: StandaloneHost) -> None:
    picture = torch.zeros(1, 40, 40, 3)
    picture[:, 10:30, 10:30] = 1.0
    hint, _ = run("CNCore_Preprocess", image=picture, kind="canny")["result"]
    shown = run("CNCore_ControlFidelity", picture=picture, hint=hint)
    assert shown["result"][0] == 1.0 and "F1 1.00" in shown["ui"]["text"][0]
    assert shown["result"][2].shape[0] == 1 and (host.temp_dir / shown["ui"]["images"][0]["filename"]).is_file()
    assert run("CNCore_ControlFidelity", picture=picture.flip(1).roll(8, 1), hint=hint)["result"][0] < 0.6
    assert run("CNCore_ControlFidelity", picture=picture, hint=torch.zeros(1, 9, 9, 1))["result"][0] == 0.0
    both = run("CNCore_ControlFidelity", picture=torch.cat([picture, picture.roll(8, 1)]), hint=hint)["result"]
    assert 0.4 < both[0] < 1.0 and both[2].shape[0] == 2 and len(both[1].splitlines()) == 3


def test_fidelity_of_maps(run: Any) -> None:
    picture = torch.zeros(1, 40, 40, 3)
    picture[:, 10:30, 10:30] = torch.tensor([0.9, 0.2, 0.1])
    hint = torch.zeros(1, 40, 40, 3)
    hint[:, 10:30, 10:30] = torch.tensor([0.0, 0.2, 1.0])
    assert run("CNCore_ControlFidelity", picture=picture, hint=hint, kind="segmentation")["result"][0] == 1.0
    half = run("CNCore_ControlFidelity", picture=picture, hint=hint, kind="segmentation", found=hint.roll(10, 1))
    assert half["result"][0] == pytest.approx((200 / 600 + 1000 / 1400) / 2)
    ramp = torch.linspace(0, 1, 40)[None, :, None, None].expand(1, 40, 40, 3)
    same = run("CNCore_ControlFidelity", picture=picture, hint=ramp, kind="depth", found=0.2 + ramp / 3)
    assert same["result"][0] == 1.0 and "error 0.000" in same["result"][1]
    with pytest.raises(MissingFileError, match="depth_anything"):
        run("CNCore_ControlFidelity", picture=picture, hint=ramp, kind="depth")


def test_accelerate_changes_nothing_where_our_engine_runs_anyway(run: Any, scene: dict[str, Any]) -> None:
    shown = run("CNCore_Accelerate", model=scene["model"], weights="packed", unique_id="7")
    model, report = shown["result"] if isinstance(shown, dict) else shown
    assert model is scene["model"]
    assert report.startswith("fast path")


def test_block_sensitivity(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    halves = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"])
    two = run("CNCore_ApplyControlNet", positive=halves[0], negative=halves[1], control_net=scene["other"],
              image=scene["hint"], block_weights=run("CNCore_BlockWeights", full=0.0)[0])  # fmt: skip
    latent = {"samples": sample(run, scene, positive=two[0], negative=two[1])}
    given = {"model": scene["model"], "positive": two[0], "latent": latent, "steps": 2, "samples": 1}
    shown = run("CNCore_BlockSensitivity", **given)
    weights, text, picture, start, end = shown["result"]
    assert (start, end) == (0.0, 1.0) and "proposed window: start_percent 0.000, end_percent 1.000" in text
    assert max(weights.custom) == 1.0 and len(weights.custom) == 7 and "information" in text
    assert picture.ndim == 4 and (host.temp_dir / shown["ui"]["images"][0]["filename"]).is_file()
    second = run("CNCore_BlockSensitivity", **given, unit=2)["result"][0]
    assert second.custom[0] == second.custom[1] == 0.0 < second.custom[6]
    run("CNCore_ControlUnit", control_net=scene["net"], image=scene["hint"], block_weights=weights)
    with pytest.raises(ValueRangeError, match="has 2 ControlNets"):
        run("CNCore_BlockSensitivity", **given, unit=3)
    with pytest.raises(ValueRangeError, match="finished latent"):
        run("CNCore_BlockSensitivity", **{**given, "latent": scene["latent"]})


def test_auto_strength(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    halves = run(
        "CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"], strength=0.5
    )
    given = {
        "model": scene["model"], "latent": scene["latent"], "vae": scene["vae"], "hint": scene["hint"],
        "positive": halves[0], "negative": halves[1], "kind": "canny", "target": 0.9, "runs": 1, "steps": 2,
    }  # fmt: skip
    shown = run("CNCore_AutoStrength", **given)
    latent, strength, text, picture = shown["result"]
    # The same latent as with this strength from the start: the factor is on the strength.
    same = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"],
               strength=strength)  # fmt: skip
    expected = sample(run, scene, positive=same[0], negative=same[1], steps=2)
    torch.testing.assert_close(latent["samples"], expected, rtol=0, atol=1e-4)
    assert "full run" in text and picture.shape[-1] == 3
    with pytest.raises(ValueRangeError, match="has 1 ControlNets"):
        run("CNCore_AutoStrength", **given, unit=2)
    zero = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"], strength=0.0)
    with pytest.raises(ValueRangeError, match=r"is 0|has 0 ControlNets"):
        run("CNCore_AutoStrength", **{**given, "positive": zero[0], "negative": zero[1]})


def test_sample_to_target(run: Any, scene: dict[str, Any], host: StandaloneHost, monkeypatch: Any) -> None:
    """The corrections act on the steps after them: the same strengths on a schedule give the same latent."""
    halves = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"])
    given = {
        "model": scene["model"], "latent": scene["latent"], "positive": halves[0], "negative": halves[1], "steps": 4,
    }  # fmt: skip
    rule = {"vae": scene["vae"], "hint": scene["hint"], "kind": "canny", "target": 1.0}
    (plain,) = run("CNCore_Sample", **given)
    off = run("CNCore_SampleToTarget", **given, **rule, proportional=0.0, integral=0.0)["result"]
    assert torch.equal(off[0]["samples"], plain["samples"]) and off[1] == 1.0
    with_curve, loops = host.with_curve, []
    monkeypatch.setattr(host, "with_curve", lambda *args: (loops.append(args[-1]), with_curve(*args))[1])
    latent, strength, text, picture = run("CNCore_SampleToTarget", **given, **rule, every=1)["result"]
    measured = loops[0].measured
    assert len(measured) == 4 and measured[-1].strength != 1.0 and strength == loops[0].mean_strength
    table = {m.position: m.strength for m in measured}
    again = with_curve(scene["model"], *halves, 0, table.__getitem__)
    (expected,) = run("CNCore_Sample", **{**given, "positive": again[0], "negative": again[1]})
    torch.testing.assert_close(latent["samples"], expected["samples"], rtol=0, atol=1e-5)
    assert "mean strength" in text and picture.shape[-1] == 3
    with pytest.raises(ValueRangeError, match="has 1 ControlNets"):
        run("CNCore_SampleToTarget", **given, **rule, unit=2)


def test_watching_a_run_does_not_change_it(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    given = {"image": scene["hint"], "mask": torch.ones(1, 8, 8) * 0.5}
    halves = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], end_percent=0.5, **given)
    two = run("CNCore_ApplyControlNet", positive=halves[0], negative=halves[1], control_net=scene["other"],
              image=scene["hint"], mode="control")  # fmt: skip
    told: list[Any] = []
    host.on_report = told.append
    settings = {"positive": two[0], "negative": two[1], "steps": 4, "sampler": "heun"}
    plain = sample(run, scene, **settings)
    shown = run("CNCore_ControlReport", model=scene["model"], latent=scene["latent"], **settings)
    latent, text, picture = shown["result"]
    assert torch.equal(latent["samples"], plain)
    counted, watched = told
    assert counted.evaluations == watched.evaluations == 7 and len(watched.sigmas) == 4
    assert [unit.ran for unit in counted.units] == [unit.ran for unit in watched.units]
    first, second = watched.units
    assert 0 < first.ran < 7 == second.ran and counted.units[0].norms == ()
    assert first.norms[0][0] > 0.0 and first.norms[-1] == (None,) * 7 and second.norms[-1][6] > 0.0
    assert first.seconds > 0.0 and "nothing was cast" in text and picture.shape[-1] == 3
    plan = run("CNCore_ControlPlan", model=scene["model"], latent=scene["latent"], positive=two[0], steps=4,
               sampler="heun")["result"][0]  # fmt: skip
    assert f"runs in {first.ran} of 7 evaluations" in plan and "runs in 7 of 7 evaluations" in plan


def test_the_norms_are_those_of_the_residuals(run: Any, scene: dict[str, Any], host: StandaloneHost) -> None:
    norms = []
    for strength in (1.0, 0.5):
        halves = run("CNCore_ApplyControlNet", **_halves(scene), control_net=scene["net"], image=scene["hint"],
                     strength=strength)  # fmt: skip
        told: list[Any] = []
        host.on_report, host.observe = told.append, True
        sample(run, scene, positive=halves[0], negative=halves[1], steps=1)
        norms.append(told[0].units[0].norms[0])
    net, conditioning = scene["net"].net, [scene["positive"][0][0], scene["negative"][0][0]]
    (report,) = told
    sigma = torch.tensor(report.sigmas[0])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    t = scene["model"].diffusion.schedule.timestep(sigma).expand(2)
    with torch.inference_mode():
        skips, middle = net(noise, t, torch.cat(conditioning), scene["hint"].movedim(-1, 1).expand(2, -1, -1, -1))
    expected = [float(r.square().mean().sqrt()) for r in (*skips, middle)]
    assert norms[0] == pytest.approx(expected, rel=1e-3)
    assert norms[1] == pytest.approx([norm / 2 for norm in norms[0]], rel=1e-3)
