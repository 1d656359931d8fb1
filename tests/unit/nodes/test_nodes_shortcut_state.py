"""What a sampling in the editor carries, without the editor: when it begins anew, and who looks twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.speed import EvaluationClock, Shortcuts
from comfyui_controlnet_core.controlnet_core.speed.forecast import DAMPING
from comfyui_controlnet_core.nodes.comfyui.shortcut_state import KEY, Sampling, describe_skipped, identity, sampling_of
from torch import Tensor

EULER = [14.0, 9.0, 6.0, 4.0, 2.5, 1.5, 0.9, 0.5]
HEUN = [14.0, 9.0, 9.0, 6.0, 6.0, 4.0, 4.0, 2.5]
HEUNPP2 = [14.0, 9.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0, 2.5]
RESTART = [14.0, 9.0, 6.0, 4.0, 2.5, 9.0, 6.0, 4.0, 2.5]


def computed(sigmas: Sequence[float], **shortcuts: float) -> list[int]:
    """The evaluations in which a net runs."""
    sampling = Sampling(EvaluationClock(Shortcuts(**shortcuts)))  # type: ignore[arg-type]
    ran: list[int] = []
    for index, sigma in enumerate(sigmas):
        sampling.evaluation(sigma)

        def run(index: int = index) -> list[Tensor]:
            ran.append(index)
            return [torch.full((2,), float(index))]

        (found,) = sampling.residuals("a net", torch.ones(2), True, run)
        way = min(index - ran[-1], ran[-1] - ran[-2]) if index > ran[-1] else 0
        torch.testing.assert_close(found, torch.full((2,), ran[-1] + DAMPING * way))
    return ran


@pytest.mark.parametrize(
    ("sigmas", "expected"),
    [
        (EULER, [0, 1, 4, 7]),
        (HEUN, [0, 1, 4, 7]),
        (HEUNPP2, [0, 1, 4, 7]),
        (RESTART, [0, 1, 4, 5, 6]),
    ],
    ids=["euler", "heun", "heunpp2", "restart"],
)
def test_fresh_noise_begins_anew_and_samplers_of_higher_order_do_not(sigmas: list[float], expected: list[int]) -> None:
    assert computed(sigmas, reuse_every=3) == expected


def test_the_rounding_of_a_level_is_no_fresh_noise() -> None:
    assert computed([9.0, 9.0000001, 9.0, 9.0000002], reuse_every=4) == [0, 1]


def test_a_second_look_in_an_evaluation_is_computed_and_not_remembered() -> None:
    sampling = Sampling(EvaluationClock(Shortcuts(reuse_every=2)))
    x, looked = torch.ones(2), []
    for now in range(6):
        sampling.evaluation(10.0 - now)
        (first,) = sampling.residuals("a net", x, True, lambda: [torch.full((2,), 1.0)])
        (second,) = sampling.residuals("a net", -x, True, lambda: looked.append(1) or [torch.full((2,), -100.0)])
        torch.testing.assert_close(first, torch.full((2,), 1.0))
        assert float(second[0]) == -100.0
    assert len(looked) == 6
    assert sampling.is_first("another") and not sampling.is_first("another")


def test_the_interval_of_guidance() -> None:
    clock = EvaluationClock(Shortcuts(guidance_start=0.2, guidance_end=0.8), lambda percent: 10.0 - 10.0 * percent)
    sampling = Sampling(clock)
    assert [sampling.guides(sigma) for sigma in (14.0, 8.0, 3.0, 2.0, 0.5)] == [False, True, True, True, False]
    assert (sampling.halves, sampling.unguided) == (5, 2)
    assert "the negative half was skipped in 2 of 5" in "\n".join(describe_skipped(sampling))


def test_who_finds_the_state_of_a_sampling() -> None:
    sampling = Sampling(EvaluationClock(Shortcuts(reuse_every=2)))
    assert sampling_of({KEY: sampling}) is sampling
    assert sampling_of({KEY: sampling, "context_window": object()}) is None
    assert sampling_of({}) is None and sampling_of(None) is None


def test_conditionings_are_told_apart_by_their_half_too() -> None:
    class Uuid:
        int = 7

    assert identity({"uuids": [Uuid()], "cond_or_uncond": [0]}) != identity({"uuids": [Uuid()], "cond_or_uncond": [1]})
    assert identity({"cond_or_uncond": [0]}) == ()
