"""`controlnet train-demo STAGE`: make the demo model again, stage by stage."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..paths import path_argument

NETS = ("canny", "segmentation", "openpose", "depth", "scribble")
CONTROL_LORAS = ("soft_edge", "lines", "lineart", "normal")
STAGES = ("scenes", "autoencoder", "base", *NETS, "union", *CONTROL_LORAS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train-demo`."""
    parser.add_argument(
        "stages", nargs="+", choices=(*STAGES, "all"), metavar="STAGE", help=", ".join((*STAGES, "all"))
    )
    parser.add_argument(
        "--work", type=path_argument, default=Path("runs/demo"), help="folder for scenes and states (12 GB)"
    )
    parser.add_argument("--scenes", type=int, default=24000, help="number of scenes to render and train on (24000)")
    parser.add_argument("--steps", type=int, help="steps of the stage, instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command continues from there")
    parser.add_argument("--start", choices=(*NETS, "fresh"), help="net to start from, instead of the recipe's")


def run(args: argparse.Namespace) -> int:
    """Run the stages in their order. Each continues where it was stopped, and ends with a file of weights."""
    from ..demo_training import DemoTraining

    training = DemoTraining(args.work, args.scenes, args.steps, args.minutes, args.start)
    stages = STAGES if "all" in args.stages else [stage for stage in STAGES if stage in args.stages]
    for stage in stages:
        if not training.run_stage(stage):
            print(f"{stage}: stopped before its last step; the same command continues from there")
            return 0
    return 0
