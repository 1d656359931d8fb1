"""The node that gives regions of the image texts of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fields import Output, clip, conditioning, factor, image, mask, optional, share, text, window
from .node import Node, with_text
from .values import Conditioning, ControlSpec, UnitOptions

MASKS = ("masks", "masks_2", "masks_3", "masks_4")
EXAMPLE = "sky [0, 0, 1, 0.5]: stormy clouds\nmeadow [0, 0.5, 1, 0.5]: red flowers"
NAME = "region prompts"


class RegionPrompts(Node):
    """Gives regions of the image texts of their own: inside a region the image attends to the region's text, elsewhere
    to the prompt. Regions come from masks, from a label map, or from boxes in the text. Combine it with ControlNets and
    LoRAs in any order.
    """

    DISPLAY_NAME = "Region Prompts"
    CATEGORY = "ControlNet Core/prompt"
    SEARCH_ALIASES = ["attention couple", "regional prompt", "regional prompter", "latent couple", "area", "spatext"]
    INPUTS = (
        conditioning("positive", "The encoded prompt of the whole image. It acts where no region is."),
        conditioning("negative", "The encoded negative prompt. Regions do not change it."),
        clip("clip", "The text encoder of the checkpoint; it encodes the texts of the regions."),
        text(
            "regions",
            "One line for each region: its name, a colon and its text. The name is a class of the label map (sky), a "
            "colour of it (#06e6e6), or any word for the next mask. A weight may follow, such as (1.5), and a box in "
            "fractions of the image: [left, top, width, height].",
            EXAMPLE,
            multiline=True,
        ),
        factor("weight", tooltip="How much the texts of the regions replace the prompt there. 0 turns the node off."),
        share("softness", 0.02, "Width of the soft border of a region, as a fraction of the shorter side."),
        *window(
            "Where the regions start to act: 0 is pure noise, 1 is the finished image.",
            "Where the regions stop acting. Early steps decide the layout, late steps the details.",
        ),
        *optional(
            mask(
                "masks",
                "A mask for each line that has no box and names no class of the label map, in the order of the lines.",
            ),
            image(
                "label_map", "A map in the colours of ADE20K or COCO, as Segment Palette makes it, or in any colours."
            ),
            *(mask(name, "More masks, for the next lines.") for name in MASKS[1:]),
        ),
    )
    OUTPUTS = (
        Output("CONDITIONING", "positive", "The prompt with the regions."),
        Output("CONDITIONING", "negative", "The negative prompt, for the same sampler."),
        Output("STRING", "report", "How much of the image each region has, and which regions overlap."),
    )

    def run(
        self, positive: Conditioning, negative: Conditioning, clip: Any, regions: str, weight: float, softness: float,
        start_percent: float, end_percent: float, label_map: Tensor | None = None, **masks: Tensor | None,
    ) -> dict[str, Any]:  # fmt: skip
        """-> CONDITIONING, CONDITIONING, what the regions are. Raises ValueRangeError or ShapeError."""
        # Only a run needs the engine and the palettes; ComfyUI imports this file at its start.
        from ..controlnet_core.models.regions import RegionPrompts as RegionNet
        from .region_masks import describe, read_regions, region_masks, soften

        wanted = read_regions(regions)
        linked = [given for name in MASKS if (given := masks.get(name)) is not None]
        areas = region_masks(wanted, linked, label_map)
        texts = [self.host.encode_prompt(clip, region.text)[0][0] for region in wanted]
        net = self.host.control_of(RegionNet(texts, [region.weight for region in wanted]), NAME)
        spec = ControlSpec(
            net, soften(areas, softness).movedim(1, -1), weight, start_percent, end_percent,
            options=UnitOptions(negative=0.0), name=NAME,
        )  # fmt: skip
        halves = self.host.apply_control(positive, negative, [spec])
        report = describe(wanted, areas)
        return with_text(report, *halves, report)
