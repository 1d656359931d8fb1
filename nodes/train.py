"""The node that trains a ControlNet on images and hints of a workflow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..controlnet_core.errors import Interrupted, ShapeError
from .builtin import base_names, base_path
from .fields import Output, choice, image, integer, number, optional, switch, text
from .nets import CATEGORY, DTYPE, DTYPES, prefix_field, write_numbered
from .node import Node

REPORT_EVERY = 5
"""Steps between two reports of loss and progress."""


class TrainControlNet(Node):
    """Trains a new ControlNet for a checkpoint on a batch of images and their hints, and reports whether it has started
    to control. For large data sets, and for long runs that can be stopped and resumed, use the command controlnet
    train.
    """

    DISPLAY_NAME = "Train ControlNet"
    CATEGORY = CATEGORY
    INPUTS = (
        choice("checkpoint", base_names, "The checkpoint that the ControlNet is for. It is not changed."),
        image("pictures", "What the ControlNet should learn to produce: a batch of square images."),
        image("hints", "One hint for each image, of the same size."),
        text("captions", "One line for each image, or one line for all images.", multiline=True),
        integer("steps", 300, 1, 1_000_000, "Number of optimiser steps. Control appears after some hundred steps."),
        integer("batch", 4, 1, 256, "Number of images in a step."),
        number("learning_rate", 1e-3, 0.0, 1.0, "Learning rate of AdamW; the paper uses 0.00001.", step=1e-6),
        switch("quick", True, "On: settings for small models and short runs. Off: the settings of the paper."),
        switch("only_middle", False, "Trains only control of the middle block, for few examples."),
        integer("seed", 0, 0, 2**32 - 1, "The same seed trains the same ControlNet."),
        DTYPE,
        prefix_field("controlnet/trained"),
        # Workflows from before this input run without it.
        *optional(
            integer(
                "rank", 0, 0, 4096, "0 trains a whole ControlNet. Above 0: a Control-LoRA of this rank, a smaller file."
            )
        ),
    )
    OUTPUTS = (
        Output("CONTROL_NET", "control_net", "The trained ControlNet. Its file is in the output folder."),
        Output("STRING", "report", "Steps, loss, and by how much the matching hint lowers the loss."),
        Output("IMAGE", "samples", "Hint, generated image and target image, one after the other."),
    )

    def run(self, checkpoint: str, pictures: Tensor, hints: Tensor, captions: str, **numbers: Any) -> tuple[Any, ...]:
        """-> CONTROL_NET, report, IMAGE (3n, S, S, 3). Raises ShapeError where images and hints do not match."""
        # ComfyUI runs nodes in inference mode, whose tensors cannot take part in training: hence the copies.
        with torch.inference_mode(False), torch.enable_grad():
            return self._train(checkpoint, pictures.clone(), hints.clone(), captions, numbers)

    def _train(
        self, checkpoint: str, pictures: Tensor, hints: Tensor, captions: str, numbers: dict[str, Any]
    ) -> tuple[Any, ...]:
        from ..controlnet_core.checkpoints.load import load_checkpoint
        from ..controlnet_core.training.controlnet_training import TrainingOptions, prepare_training
        from ..controlnet_core.training.export import export
        from ..controlnet_core.training.loop import Recipe

        base = load_checkpoint(base_path(self.host, checkpoint), dtype=torch.float32)
        # In runs of some hundred steps the usual beta2 of 0.999 would remember the gradients of the start until the
        # end.
        recipe = Recipe(
            numbers["steps"], numbers["batch"], numbers["learning_rate"], seed=numbers["seed"],
            betas=(0.9, 0.99) if numbers["quick"] else (0.9, 0.999),
        )  # fmt: skip
        options = TrainingOptions(
            only_mid_control=numbers["only_middle"], quick=numbers["quick"], rank=numbers.get("rank", 0)
        )
        data = make_examples(pictures, hints, captions)
        training = prepare_training(base, data, recipe, options, device=self.host.training_device())
        losses: list[float] = []

        def on_step(step: int) -> None:
            if step % REPORT_EVERY == 0:
                self.host.progress(step, recipe.steps)

        complete = training.loop.run(
            lambda report: losses.append(report.loss),
            every=REPORT_EVERY,
            on_step=on_step,
            cancelled=self.host.cancelled,
        )
        if not complete:
            raise Interrupted(f"training stopped at step {training.loop.step}; no file was written")
        path = write_numbered(
            self.host.output_dir,
            numbers["filename_prefix"],
            lambda path: export(training, path, dtype=DTYPES[numbers["dtype"]]),
        )
        probe, samples = training.probe(), training.sample(min(4, len(data)))
        report = (
            f"{recipe.steps} steps on {len(data)} examples, loss {losses[-1]:.4f}; the matching hint lowers the "
            f"loss by {probe.control:.1%} ({probe.certainty:.1f} standard errors): "
            f"{'it controls' if probe.appeared else 'it does not control yet, train for longer'}; saved as {path}"
        )
        # Loaded from its file, so that the node returns exactly what a later run will load.
        return self.host.load_controlnet(path), report, samples.movedim(1, -1)


def make_examples(pictures: Tensor, hints: Tensor, captions: str) -> Any:
    """Training examples of IMAGE batches and lines of text. Raises ShapeError where counts or sizes differ."""
    from ..controlnet_core.training.examples import ExampleBatch

    if pictures.shape[:3] != hints.shape[:3] or pictures.shape[1] != pictures.shape[2]:
        raise ShapeError(
            f"the images have shape {tuple(pictures.shape)}, the hints {tuple(hints.shape)}: give one square hint for "
            "each square image, of the same size"
        )
    lines = captions.strip().split("\n")
    words = lines * len(pictures) if len(lines) == 1 else lines
    if len(words) != len(pictures):
        raise ShapeError(f"there are {len(words)} captions for {len(pictures)} images: give one each, or one for all")
    picture, hint = (x[..., :3].float().movedim(-1, 1) for x in (pictures, hints))
    return ExampleBatch(picture * 2.0 - 1.0, hint, tuple(words))
