"""The node that samples a grid of pictures over one or two settings of control."""

from __future__ import annotations

from typing import Any

from ..controlnet_core.errors import ValueRangeError
from .control import STACK
from .fields import Output, choice, clip, edge_tolerance, integer, optional, socket, text, vae
from .look import FIDELITY_KINDS
from .node import Node, with_text
from .pictures import show_images
from .sample import DENOISE, GUIDED_MODEL, LATENT, SETTINGS
from .sweep_grid import ASK_ABOVE, MAX_CELLS
from .values import Conditioning, Latent, SamplerInputs, SpecStack

NOTHING = "nothing"
SWEPT = (
    "strength", "start_percent", "end_percent", "mode", "positive_factor", "negative_factor", "control_net", "seed",
    "steps", "cfg", "sampler", "scheduler", "denoise", "prompt",
)  # fmt: skip
"""What can be swept: inputs of Control Unit and Control Options, those of Sample, and the prompt."""
VALUES_TIP = "0.2..1.0/5: five numbers from 0.2 to 1. 1..4: whole numbers. Others: separated by commas; prompts by |."


class ControlSweep(Node):
    """Samples a labelled grid of images over one or two settings, such as strength and mode, with the fidelity to the
    hint under each image, and a table. Models are loaded once and hints are made once. Link the ControlNets as Control
    Units.
    """

    DISPLAY_NAME = "Control Sweep"
    CATEGORY = "ControlNet Core/look"
    SEARCH_ALIASES = ["xy plot", "xyz plot", "grid search", "compare strengths", "parameter sweep"]
    OUTPUT_NODE = True
    INPUTS = (
        *GUIDED_MODEL,
        socket(STACK, "stack", "The ControlNets with their hints, from Control Unit."),
        LATENT,
        vae("vae", "Decodes the latents."),
        choice("x", list(SWEPT), "What changes along a row.", "strength"),
        text("x_values", VALUES_TIP, "0, 0.5, 1"),
        choice("y", [NOTHING, *SWEPT], "What changes from row to row.", NOTHING),
        text("y_values", VALUES_TIP),
        integer("unit", 1, 0, 64, "Which Control Unit of the stack is changed and measured; 0 changes all of them."),
        choice(
            "kind", [NOTHING, *FIDELITY_KINDS],
            "What the hint shows, to measure how well each image follows it. depth and normal need the network of "
            "their preprocessor.", "canny",
        ),
        edge_tolerance(),
        integer("max_cells", ASK_ABOVE, 1, MAX_CELLS, "A grid of more images is an error, before anything is sampled."),
        *SETTINGS,
        DENOISE,
        *optional(clip("clip", "The text encoder; needed to sweep the prompt.")),
    )  # fmt: skip
    OUTPUTS = (
        Output("IMAGE", "grid", "The grid, as one image."),
        Output("STRING", "csv", "A row for each image: the values and the fidelity, separated by commas."),
        Output("IMAGE", "images", "The images as a batch, row by row."),
    )

    def run(
        self, model: Any, positive: Conditioning, negative: Conditioning, stack: SpecStack, latent: Latent, vae: Any,
        x: str, x_values: str, y: str, y_values: str, unit: int, kind: str, tolerance: float, max_cells: int,
        clip: Any = None, **settings: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """-> IMAGE (1, H, W, 3), the table, IMAGE (cells, H, W, 3).

        Raises ValueRangeError for values that are out of range and for too many cells, before anything is sampled.
        """
        from ..controlnet_core.sample import SampleSettings
        from .sweep_runs import Fidelity, SweepRuns, plan

        if y == NOTHING and y_values.strip():
            raise ValueRangeError(f"y_values is {y_values.strip()[:60]!r}, but y is {NOTHING!r}: choose what y changes")
        grid = plan([(name, values) for name, values in ((y, y_values), (x, x_values)) if name != NOTHING], max_cells)
        inputs = SamplerInputs(model, positive, negative, latent, SampleSettings(**settings))
        measured = None if kind == NOTHING else Fidelity(kind, tolerance)
        made = SweepRuns(self.host, inputs, stack, unit, clip).run(grid, vae, measured)
        return with_text(made.table, made.sheet, made.table, made.images, **show_images(self.host, made.sheet))
