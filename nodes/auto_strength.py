"""The node that finds the smallest strength at which the picture reaches a wanted fidelity to its hint."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..controlnet_core.errors import ValueRangeError
from .fields import Output, choice, edge_tolerance, image, integer, share, unit_number, vae
from .look import FIDELITY_KINDS, agreements, check_finder, mean_score
from .node import Node, with_text
from .pictures import show_images, to_image
from .sample import Sample
from .values import Conditioning, Latent, SamplerInputs

if TYPE_CHECKING:
    from ..controlnet_core.analysis.target_strength import TargetStrength


TARGET_INPUTS = (
    *Sample.INPUTS,
    vae("vae", "Decodes the latents, since fidelity is measured on images."),
    image("hint", "The hint that the image should follow, as linked to Apply ControlNet."),
    choice("kind", FIDELITY_KINDS, "What the hint shows.", "canny"),
    share("target", 0.8, "The fidelity to reach, as measured by Control Fidelity."),
    edge_tolerance(),
    unit_number(),
)


class TargetNode(Node):
    """Base of the nodes that sample until the image has the wanted fidelity to its hint."""

    CATEGORY = "ControlNet Core/sample"
    OUTPUT_NODE = True

    @classmethod
    def check_files(cls, kind: Any = None, **others: Any) -> None:
        """Raise MissingFileError for the network that finds maps of this kind."""
        check_finder(cls.host, kind)


class AutoStrength(TargetNode):
    """Finds the smallest strength of a ControlNet at which the image follows its hint as well as asked, and samples
    with it. At most three runs with half of the steps show how the fidelity depends on the strength, then a few full
    runs with the same seed hit the target. Takes about as long as three runs of Sample. Schedule, mask and block
    weights of the ControlNet stay as they are.
    """

    DISPLAY_NAME = "Auto Strength"
    SEARCH_ALIASES = ["tune strength", "target fidelity", "optimal strength", "search"]
    INPUTS = (
        *TARGET_INPUTS,
        integer("runs", 3, 1, 8, "At most so many full runs."),
    )
    OUTPUTS = (
        Output("LATENT", "latent", "The latent that was sampled with the strength that was found."),
        Output("FLOAT", "strength", "The strength: enter it in Apply ControlNet."),
        Output("STRING", "text", "The fidelity before and after, and all runs."),
        Output("IMAGE", "picture", "Fidelity over strength as a plot."),
    )

    def run(
        self, model: Any, positive: Conditioning, negative: Conditioning, latent: Latent, vae: Any, hint: Tensor,
        kind: str, target: float, tolerance: float, unit: int, runs: int, **settings: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """-> LATENT, the strength, text, IMAGE (1, H, W, 3). Raises ValueRangeError for a unit that does not exist."""
        from ..controlnet_core.analysis.charts import draw_target_strength
        from ..controlnet_core.analysis.target_strength import find_strength
        from ..controlnet_core.sample import SampleSettings

        wanted = SampleSettings(**settings)
        own, blocks = self._unit(model, positive, latent, unit)
        # Control may have been applied to one half only, which is known before the runs.
        negative_has_it = unit <= len(self.host.controlled(model, negative).units)
        made: dict[float, Latent] = {}

        def measure(strength: float, steps: int) -> float:
            # Factors of the blocks leave schedule, mask and mode as they are, under both hosts.
            factors = (strength / own,) * blocks
            scaled = self.host.reweigh(model, positive, unit - 1, factors)
            other = self.host.reweigh(model, negative, unit - 1, factors) if negative_has_it else negative
            inputs = SamplerInputs(model, scaled, other, latent, replace(wanted, steps=steps))
            # A full run comes after the short ones, so that the latent that is kept is that of the full run.
            made[strength] = self.host.sample(inputs)
            picture = self.host.decode(vae, made[strength]["samples"])
            return mean_score(agreements(self.host, picture, hint, kind, tolerance))

        found = find_strength(measure, target, wanted.steps, start=own, full_runs=runs, on_trial=self.host.progress)
        text = describe(found, kind)
        plot = to_image(draw_target_strength(found, "fidelity"))
        best = found.best.strength
        return with_text(text, made[best], best, text, plot, **show_images(self.host, plot))

    def _unit(self, model: Any, positive: Conditioning, latent: Latent, unit: int) -> tuple[float, int]:
        """The strength of a unit, and its number of blocks."""
        controlled = self.host.controlled(model, positive)
        chosen = controlled.unit(unit)
        if chosen.strength == 0.0:
            raise ValueRangeError(
                "the strength in Apply ControlNet is 0: set it to 1, and this node finds a better one"
            )
        return chosen.strength, len(chosen.weights(controlled.config.unet, latent["samples"].shape[-2]))


def describe(found: TargetStrength, kind: str) -> str:
    """The result as text."""
    best = found.best
    before = found.before
    lines = [
        f"strength {best.strength:.2f}: fidelity to the {kind} hint {best.fidelity:.3f}; before, strength "
        f"{before.strength:.2f}: {before.fidelity:.3f}",
        *([] if found.reached else [f"the target {found.target:g} was not reached; this is the best that was found"]),
        f"{'strength':>8}{'fidelity':>10}",
        *(f"{t.strength:>8.2f}{t.fidelity:>10.3f}  half of the steps" for t in found.short),
        *(f"{t.strength:>8.2f}{t.fidelity:>10.3f}  full run" for t in found.full),
    ]
    return "\n".join(lines)
