"""Training a ControlNet on pictures and hints of a workflow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..controlnet_core.errors import Interrupted, ShapeError
from .host import Node
from .nets import CATEGORY, DTYPE, base_names, base_path, prefix_input, write_numbered

EVERY = 5


class TrainControlNet(Node):
    """A new net from pictures and their hints."""

    DISPLAY_NAME = "Train ControlNet"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Trains a new ControlNet for a checkpoint on a batch of pictures and their hints, and tells whether it has "
        "begun to control. For large sets and long runs, with stopping and going on, use the command controlnet train."
    )
    RETURN_TYPES = ("CONTROL_NET", "STRING", "IMAGE")
    RETURN_NAMES = ("control_net", "report", "samples")
    OUTPUT_TOOLTIPS = (
        "The trained net, ready for use; its file is in the output folder.",
        "Steps, loss, and by how much the right hint lowers the loss.",
        "Hint, what the net makes of it, and the target, in turn.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        steps = {"default": 300, "min": 1, "max": 1_000_000}
        rate = {"default": 1e-3, "min": 0.0, "max": 1.0, "step": 1e-6}
        caption = {"default": "", "multiline": True}
        return {
            "required": {
                "checkpoint": (base_names(cls.host), {"tooltip": "The base that the net is for; it is not changed."}),
                "pictures": ("IMAGE", {"tooltip": "What the net is to make: a batch of square pictures."}),
                "hints": ("IMAGE", {"tooltip": "One hint for each picture, of the same size."}),
                "captions": ("STRING", {**caption, "tooltip": "A line for each picture, or one line for all."}),
                "steps": ("INT", {**steps, "tooltip": "Steps of the optimiser; control appears after some hundreds."}),
                "batch": ("INT", {"default": 4, "min": 1, "max": 256, "tooltip": "Pictures per step."}),
                "learning_rate": ("FLOAT", {**rate, "tooltip": "Of AdamW; the paper's is 0.00001."}),
                "quick": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "On: for small models and short runs. Off: as the paper trains."},
                ),
                "only_middle": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Controls the middle block alone, for few examples."},
                ),
                "seed": (
                    "INT",
                    {"default": 0, "min": 0, "max": 2**32 - 1, "tooltip": "The same seed trains the same net."},
                ),
                "dtype": DTYPE,
                "filename_prefix": prefix_input("controlnet/trained"),
            }
        }

    def run(self, checkpoint: str, pictures: Tensor, hints: Tensor, captions: str, **numbers: Any) -> tuple[Any, ...]:
        """-> CONTROL_NET, report, IMAGE (3n, S, S, 3). Raises ShapeError for pictures and hints that do not pair."""
        # the editor runs nodes without gradients
        with torch.inference_mode(False), torch.enable_grad():
            return self._train(checkpoint, pictures.clone(), hints.clone(), captions, numbers)

    def _train(
        self, checkpoint: str, pictures: Tensor, hints: Tensor, captions: str, numbers: dict[str, Any]
    ) -> tuple[Any, ...]:
        from ..controlnet_core.checkpoints.load import load_checkpoint
        from ..controlnet_core.training.controlnet_training import TrainingOptions, prepare_training
        from ..controlnet_core.training.export import export
        from ..controlnet_core.training.loop import Recipe
        from .nets import DTYPES

        base = load_checkpoint(base_path(self.host, checkpoint), dtype=torch.float32)
        recipe = Recipe(
            numbers["steps"], numbers["batch"], numbers["learning_rate"], seed=numbers["seed"],
            betas=(0.9, 0.99) if numbers["quick"] else (0.9, 0.999),
        )  # fmt: skip
        options = TrainingOptions(only_mid_control=numbers["only_middle"], quick=numbers["quick"])
        data = paired(pictures, hints, captions)
        training = prepare_training(base, data, recipe, options, device=self.host.training_device())
        losses: list[float] = []

        def on_step(step: int) -> None:
            if step % EVERY == 0:
                self.host.progress(step, recipe.steps)

        complete = training.loop.run(
            lambda report: losses.append(report.loss), every=EVERY, on_step=on_step, cancelled=self.host.cancelled
        )
        if not complete:
            raise Interrupted(f"training stopped at step {training.loop.step}; nothing was written")
        path = write_numbered(
            self.host.output_dir,
            numbers["filename_prefix"],
            lambda path: export(training, path, dtype=DTYPES[numbers["dtype"]]),
        )
        probe, samples = training.probe(), training.sample(min(4, len(data)))
        report = (
            f"{recipe.steps} steps on {len(data)} examples, loss {losses[-1]:.4f}; the right hint lowers the loss by "
            f"{probe.control:.1%} ({probe.certainty:.1f} standard errors): "
            f"{'it controls' if probe.appeared else 'it does not control yet, train for longer'}; saved as {path}"
        )
        return self.host.load_controlnet(path), report, samples.movedim(1, -1)


def paired(pictures: Tensor, hints: Tensor, captions: str) -> Any:
    """IMAGE batches and lines of text as examples. Raises ShapeError where their numbers or sizes differ."""
    from ..controlnet_core.training.examples import ExampleBatch

    if pictures.shape[:3] != hints.shape[:3] or pictures.shape[1] != pictures.shape[2]:
        raise ShapeError(
            f"the pictures are {tuple(pictures.shape)}, the hints {tuple(hints.shape)}: give one square hint for each "
            "square picture, of the same size"
        )
    lines = captions.strip().split("\n")
    words = lines * len(pictures) if len(lines) == 1 else lines
    if len(words) != len(pictures):
        raise ShapeError(f"there are {len(words)} captions for {len(pictures)} pictures: one each, or one for all")
    picture, hint = (x[..., :3].float().movedim(-1, 1) for x in (pictures, hints))
    return ExampleBatch(picture * 2.0 - 1.0, hint, tuple(words))
