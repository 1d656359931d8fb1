"""What our control objects know about other packs: hint channels, rows of x, inputs of Advanced-ControlNet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import ShapeError, ValueRangeError
from comfyui_controlnet_core.nodes.comfyui.advanced import AdvancedFactors, AdvancedInputs, KeyframeState
from comfyui_controlnet_core.nodes.comfyui.batch_rows import BatchRows, batch_rows, row_factors
from comfyui_controlnet_core.nodes.comfyui.hint_channels import HintParts

# ---- the hint's channels


def test_a_hint_alone_stays_the_same_tensor() -> None:
    hint = torch.rand(1, 3, 8, 8)
    assert HintParts(hint, (), (None, None)).join() is hint


def test_mask_and_further_hints_follow_a_crop_of_the_hint() -> None:
    hint, more, mask = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.rand(1, 8, 8)
    parts = HintParts(hint, (more,), (None, mask))
    cropped = parts.split(parts.join()[:, :, 2:6, 4:8], "canny")
    assert torch.equal(cropped.hint, hint[:, :, 2:6, 4:8])
    assert torch.equal(cropped.more[0], more[:, :, 2:6, 4:8])
    assert cropped.masks[0] is None
    assert cropped.masks[1] is not None
    assert torch.equal(cropped.masks[1], mask[:, 2:6, 4:8])


def test_parts_of_other_sizes_and_counts_are_brought_together() -> None:
    hint, mask = torch.rand(2, 3, 8, 8), torch.rand(3, 4, 4)
    joined = HintParts(hint, (), (mask,)).join()
    assert joined.shape == (6, 4, 8, 8)
    for image in range(6):  # each image of a batch of six gets the hint and the mask that it would get without joining
        assert torch.equal(joined[image, :3], hint[image % 2])
        assert torch.equal(joined[image, 3, ::2, ::2], mask[image % 3])


def test_another_hint_under_a_mask_is_refused() -> None:
    parts = HintParts(torch.rand(1, 3, 8, 8), (), (torch.rand(1, 8, 8),))
    with pytest.raises(ShapeError, match="another pack replaced the hint of canny by a tensor of shape"):
        parts.split(torch.rand(1, 3, 8, 8), "canny")


# ---- rows


def test_rows_of_a_batch() -> None:
    assert batch_rows(4, 2, {}) == BatchRows((0, 0, 1, 1), (0, 1, 0, 1))


def test_rows_of_tiles_follow_each_other() -> None:
    """Two tiles of two conditionings of one image: the second conditioning is each other row."""
    assert batch_rows(4, 2, {"sigmas": torch.ones(1)}) == BatchRows((0, 1, 0, 1), (0, 0, 0, 0))


@pytest.mark.parametrize("by_host", [False, True])
def test_rows_of_a_context_window(by_host: bool) -> None:
    options = {"context_window": SimpleNamespace(index_list=[3, 5], dim=0)} if by_host else {}
    rows = batch_rows(4, 2, options, None if by_host else [3, 5])
    assert rows == BatchRows((0, 0, 1, 1), (3, 5, 3, 5), windowed=True)


# ---- Advanced-ControlNet


def keyframe(start: float, **given: Any) -> Any:
    plain = {
        "strength": 1.0, "null_latent_kf_strength": 0.0, "guarantee_steps": 1, "inherit_missing": True,
        "control_weights": None, "latent_keyframes": None, "mask_hint_orig": None,
    }  # fmt: skip
    return SimpleNamespace(start_percent=start, **{**plain, **given})


def states(frames: list[Any], sigmas: list[float]) -> list[tuple[float, Any]]:
    """Strength and weights at each noise level. A position p of the timestep axis is the noise level 10 - 10 p."""
    state = KeyframeState(SimpleNamespace(keyframes=frames), lambda percent: 10 - 10 * percent)
    found = []
    for sigma in sigmas:
        state.advance(sigma, torch.tensor([sigmas[0], 0.0]))
        state.advance(sigma, torch.tensor([sigmas[0], 0.0]))  # the other half of the guidance: no step of its own
        found.append((state.frame.strength, state.weights))
    return found


def test_a_keyframe_begins_at_its_start_and_takes_over_what_it_does_not_set() -> None:
    frames = [keyframe(0.0, strength=0.5, control_weights="soft"), keyframe(0.5, strength=2.0)]
    assert states(frames, [10.0, 6.0, 5.0, 1.0]) == [(0.5, "soft"), (0.5, "soft"), (2.0, "soft"), (2.0, "soft")]


def test_a_keyframe_that_inherits_nothing_clears_the_weights() -> None:
    frames = [keyframe(0.0, control_weights="soft"), keyframe(0.5, inherit_missing=False)]
    assert [weights for _, weights in states(frames, [10.0, 4.0])] == ["soft", None]


def test_guaranteed_steps_hold_a_keyframe_and_do_not_count_before_the_run() -> None:
    frames = [keyframe(0.0, strength=1.0), keyframe(0.1, strength=2.0, guarantee_steps=3), keyframe(0.2, strength=3.0)]
    assert [strength for strength, _ in states(frames, [10.0, 5.0, 4.0, 3.0, 2.0])] == [1.0, 2.0, 2.0, 2.0, 3.0]
    assert [strength for strength, _ in states(frames, [5.0, 4.0])] == [3.0, 3.0]  # image to image begins later


def test_latent_keyframes_and_the_uncond_multiplier_make_a_factor_for_each_row() -> None:
    inputs = AdvancedInputs()
    inputs.latent_keyframe_override = SimpleNamespace(
        keyframes=[SimpleNamespace(batch_index=i, strength=s) for i, s in ((0, 0.5), (-1, 2.0), (7, 9.0))]
    )
    inputs.weights_override = SimpleNamespace(uncond_multiplier=0.1, weight_mask=None)
    inputs.begin_advanced(lambda percent: 10 - 10 * percent)
    rows = batch_rows(6, 2, {})
    factors = inputs.advanced_factors(10.0, rows, {"cond_or_uncond": [1, 0]})
    assert factors is not None
    assert factors.rows == pytest.approx((0.05, 0.0, 0.2, 0.5, 0.0, 2.0))


def test_weights_for_another_kind_of_net_are_refused() -> None:
    inputs = AdvancedInputs()
    inputs.weights_override = SimpleNamespace(weight_type="t2iadapter")
    with pytest.raises(ValueRangeError, match="made for t2iadapter, and this net takes controlnet or universal"):
        inputs.verify_all_weights()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("skips", [0.5**12, 0.5**11, 0.5**1, 0.75]),
        ("encoder", [0.5**7, 0.5**7, 0.5**0, 0.75]),
    ],
)
def test_universal_weights_fall_towards_the_fine_blocks(entry: str, expected: list[float]) -> None:
    weights = SimpleNamespace(
        weight_type="universal", base_multiplier=0.5, weight_mask=None, extras={"middle_mult": 0.75}
    )
    factors = AdvancedFactors((1.0,), 1.0, weights, None, None, (0,))
    assert [factors.block_weight(i, 12, entry) for i in (0, 1, 11, 12)] == expected


def test_a_mask_is_extended_by_its_last_image() -> None:
    mask = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    factors = AdvancedFactors((1.0,) * 3, 1.0, None, mask, None, (0, 1, 2))
    assert factors.mask(0, 12, "skips", (2, 2), (2, 2))[:, 0, 0, 0].tolist() == [0.0, 1.0, 1.0]


def test_a_row_has_the_factors_of_its_half_and_of_its_image() -> None:
    rows = BatchRows((0, 0, 0, 1, 1, 1), (0, 1, 2, 0, 1, 2))
    halves = {"cond_or_uncond": [1, 0]}  # the negative prompt first
    assert row_factors(rows, halves, lambda positive: 1.0 if positive else 0.5, (1.0, 3.0)) == [0.5, 1.5, 0.5, 1, 3, 1]
    assert row_factors(rows, {}, lambda positive: 1.0 if positive else 0.5, (1.0,)) == [1.0] * 6
