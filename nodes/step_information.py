"""Measure at which steps of a run a ControlNet matters, under both hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .values import Conditioning, Latent, SamplerInputs

if TYPE_CHECKING:
    from ..controlnet_core.analysis.information import StepInformation
    from ..controlnet_core.sample import SampleSettings
    from .host import Host

MOST_POINTS = 16
"""Longer runs are measured at so many noise levels; the other steps are interpolated."""


def information_of_unit(
    host: Host, model: Any, positive: Conditioning, finished: Latent, unit: int, settings: SampleSettings,
    points: int = MOST_POINTS,
) -> StepInformation:  # fmt: skip
    """Measure the information about the strength of one ControlNet at each step of a run.

    finished: a latent that was sampled with it. unit: its number, the first is 1. settings: of the run. points: number
    of steps that are measured. Takes three predictions of the positive half for each of them. Raises ValueRangeError
    for a unit that does not exist, an empty latent, or a run without steps.
    """
    from ..controlnet_core.analysis.information import over_steps, step_information
    from ..controlnet_core.analysis.sensitivity import sampled_steps
    from ..controlnet_core.run_options import DEFAULTS
    from ..controlnet_core.sample import cut_sigmas

    controlled = host.controlled(model, positive)
    blocks = len(controlled.unit(unit).weights(controlled.config.unet, finished["samples"].shape[-2]))
    sigmas = cut_sigmas(controlled.schedule, settings)[:-1].tolist()
    # Euler's table may differ from that of the run by a step, so results are interpolated by noise level.
    probe = replace(settings, cfg=1.0, sampler="euler", leftover_noise=False)
    levels = cut_sigmas(controlled.schedule, probe)[:-1].tolist()
    steps = sampled_steps(len(levels), points)
    # Outside of a noise mask the result is the input, which does not depend on the ControlNet.
    plain = {key: value for key, value in finished.items() if key != "noise_mask"}

    def predict(point: int, factor: float) -> Tensor:
        # One Euler step down to sigma 0 returns the prediction of x0, under every host.
        one_step = replace(probe, start_step=steps[point], end_step=steps[point] + 1)
        weighed = host.reweigh(model, positive, unit - 1, (factor,) * blocks)
        return host.sample(SamplerInputs(model, weighed, weighed, plain, one_step), DEFAULTS.with_recorder("one step"))[
            "samples"
        ]

    at = [levels[step] for step in steps]
    measured = step_information(predict, finished["samples"], at, on_point=host.progress)
    return over_steps(measured, at, sigmas, controlled.schedule)
