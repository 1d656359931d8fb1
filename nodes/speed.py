"""Nodes that make sampling faster: this pack's engine under any sampler, and shortcuts at the price of exactness."""

from __future__ import annotations

from typing import Any

from ..controlnet_core.errors import UnfitError, ValueRangeError
from ..controlnet_core.run_options import EXACT, RunOptions, Shortcuts
from .fields import Field, Output, choice, integer, model, number, optional, share, switch
from .node import Node, with_text

WEIGHTS = ("shared", "packed")


class Accelerate(Node):
    """Runs this pack's engine inside any sampler. What does not change from step to step is computed once; the image
    stays the same. Where other nodes change the model (patches, hooks, other packs), ComfyUI's own code runs instead;
    after each run the text on the node says so and gives the reason.
    """

    DISPLAY_NAME = "Accelerate (ControlNet Core)"
    CATEGORY = "ControlNet Core/sample"
    SEARCH_ALIASES = ["speed", "fast", "optimize"]
    INPUTS = (
        model("model", "A Stable Diffusion model. LoRA nodes may come before or after this node."),
        choice(
            "weights",
            WEIGHTS,
            "shared: uses the weights of the model without copying them. packed: keeps a second copy in a layout for "
            "the CPU, which is faster there and takes as much memory again.",
            "shared",
        ),
    )
    HIDDEN = ("unique_id",)
    OUTPUTS = (
        Output("MODEL", "model", "The model, for any sampler."),
        Output("STRING", "report", "Whether the engine can run this model, or the reason why it cannot."),
    )

    def run(self, model: Any, weights: str, unique_id: str | None = None) -> dict[str, Any]:
        """-> MODEL, what to expect."""
        result, text = self.host.accelerate(model, weights, unique_id)
        return with_text(text, result, text)


def every(name: str, tooltip: str) -> Field:
    """A number of steps in which something is computed once."""
    return integer(name, 1, 1, 100, tooltip)


class ShortcutsNode(Node):
    """Skips work during sampling, so the image changes a little. What is skipped is extrapolated from the steps before.
    All shortcuts are off at first; the help page lists the error of each setting. This node replaces the settings of a
    Shortcuts node before it. Inside ComfyUI, shortcuts act on ControlNets that this pack loaded, and on the UNet where
    Accelerate is on the same model. Where a shortcut has no effect, the log and the text on the node say so.
    """

    DISPLAY_NAME = "Shortcuts (faster, not exact)"
    CATEGORY = "ControlNet Core/sample"
    SEARCH_ALIASES = ["speed", "fast", "cache", "deepcache", "teacache", "easycache", "guidance interval", "reuse"]
    INPUTS = (
        model("model", "The model. LoRA and Accelerate may come before or after this node."),
        every("reuse_every", "Run the ControlNets once in this many steps; 1 is every step."),
        number(
            "reuse_tolerance",
            0.0,
            0.0,
            10.0,
            "Run the ControlNets when the latent has changed by this fraction since they last ran; 0 is every step. "
            "They run often at the start and rarely at the end. With reuse_every they run when one of the two "
            "conditions is met.",
        ),
        every(
            "deep_every",
            "Run the ControlNets and the lower levels of the UNet once in this many steps; the top level runs in "
            "every step. Inside ComfyUI it needs Accelerate.",
        ),
        every(
            "encoder_every",
            "Run the ControlNets and the encoder of the UNet once in this many steps; 1 is every step. Cannot be "
            "combined with deep_every. Inside ComfyUI it needs Accelerate.",
        ),
        share(
            "guidance_start",
            0.0,
            "Where guidance by the negative prompt starts: 0 is pure noise, 1 is the finished image. Without guidance "
            "a step takes half the time.",
        ),
        share("guidance_end", 1.0, "Where guidance by the negative prompt ends."),
        *optional(
            switch(
                "careful",
                False,
                "For the fields whose names end in every: computes every step until 30 % of the sampling, where the "
                "layout is decided, and at least every second step until 50 %.",
            )
        ),
    )
    HIDDEN = ("unique_id",)
    OUTPUTS = (
        Output("MODEL", "model", "The model, for any sampler."),
        Output("STRING", "report", "What will be skipped."),
    )

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        encoder_every: int | None = None,
        deep_every: int | None = None,
        guidance_start: float | None = None,
        guidance_end: float | None = None,
    ) -> bool | str:
        """True, or a message about fields that contradict each other. A linked field is None."""
        # ComfyUI passes only the inputs that are named here, so **fields would receive nothing.
        fields = {
            "encoder_every": encoder_every, "deep_every": deep_every, "guidance_start": guidance_start,
            "guidance_end": guidance_end,
        }  # fmt: skip
        try:
            Shortcuts(**{name: value for name, value in fields.items() if value is not None})  # type: ignore[arg-type]
        except ValueRangeError as error:
            return str(error)
        return True

    def run(self, model: Any, unique_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """-> MODEL, what will be skipped. Raises ValueRangeError for fields that contradict each other."""
        # The node's ID lets the host show on it, after each run, what was skipped.
        options = RunOptions(Shortcuts(**fields))
        text = options.shortcuts.summary
        return with_text(text, self.host.with_options(model, options, unique_id), text)


def describe_skipped(options: RunOptions) -> str:
    """What a plan says about the options of a MODEL; empty where nothing is skipped."""
    if options.shortcuts == EXACT:
        return ""
    return f"shortcuts on this model: {options.shortcuts.summary}. The plan does not show which steps they skip"


def describe_ignored(model: RunOptions, used: RunOptions) -> str:
    """What a run says whose own options are used in place of those of a MODEL; empty where they skip the same."""
    if model.shortcuts in (EXACT, used.shortcuts):
        return ""
    ignored = f"those of the workflow are ignored ({model.shortcuts.summary})"
    return f"shortcuts: {used.shortcuts.summary}, from the options of this run; {ignored}"


def check_whole_guidance(options: RunOptions) -> None:
    """Raise UnfitError where the options limit guidance to an interval, which works with one scale only."""
    if options.limits_guidance:
        raise UnfitError(
            "guidance in an interval works with one scale: set guidance_start 0 and guidance_end 1 in the node "
            "Shortcuts (or remove --guidance), or use CFGGuider"
        )
