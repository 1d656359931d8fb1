"""`controlnet train`: train a ControlNet on a folder of examples."""

from __future__ import annotations

import argparse

from ...controlnet_core.training.large_pages import use_large_pages
from ..paths import path_argument

LAYOUTS = ("cldm", "diffusers", "core")
KINDS = ("controlnet", "control-lora")
TRACKERS = ("tensorboard", "wandb")
OPTIMIZERS = ("adamw", "adamw8bit")
EMA = ("cpu", "device", "off")
DTYPES = ("fp16", "bf16", "fp32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    parser.add_argument("--data", type=path_argument, required=True, help="folder of examples, see docs/training.md")
    parser.add_argument("--base", required=True, help="checkpoint file or folder to train on, or demo")
    parser.add_argument(
        "--output", type=path_argument, required=True, help="the ControlNet to write, a .safetensors file"
    )
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help="what to train (controlnet)")
    parser.add_argument("--rank", type=int, help="of a Control-LoRA: the columns of its thin matrices (128)")
    parser.add_argument("--start", type=path_argument, help="a ControlNet to start from, instead of a copy of the base")
    parser.add_argument(
        "--work", type=path_argument, help="folder for state, log and samples (default: beside the output)"
    )
    for option, column in (
        ("--image-column", "image"),
        ("--hint-column", "conditioning_image"),
        ("--text-column", "text"),
    ):
        parser.add_argument(
            option, default=column, help=f"column of metadata.jsonl or .csv, name in tar files ({column})"
        )
    parser.add_argument("--skip-bad", action="store_true", help="leave out examples that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that this training did not write")
    _add_recipe(parser)
    _add_run(parser)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    numbers = parser.add_argument_group("recipe (defaults: the paper's)")
    numbers.add_argument("--steps", type=int, help="steps of the optimiser (10000)")
    numbers.add_argument("--batch", type=int, help="pictures per batch, of all processes together (4)")
    numbers.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    numbers.add_argument("--accumulate", type=int, help="batches per step (1)")
    numbers.add_argument(
        "--lr", type=float, help="learning rate of AdamW (1e-5; 2e-6 with --unlock, 1e-4 for a Control-LoRA)"
    )
    numbers.add_argument(
        "--ema",
        type=_ema_word,
        nargs="+",
        metavar="DECAY|cpu|device|off",
        help="averaged weights, which are what is written: their decay (0.999), and where they are kept (device)",
    )
    numbers.add_argument("--seed", type=int, help="seed of weights, batches and noise (0)")
    numbers.add_argument("--size", type=int, help="side of the pictures in pixels (the base's own)")
    numbers.add_argument(
        "--buckets", action="store_true", help="keep the proportions of pictures: sizes of at most the same area"
    )
    numbers.add_argument("--empty", type=float, default=0.5, help="fraction of empty prompts (0.5)")
    numbers.add_argument("--unlock", action="store_true", help="train the base's decoder too (sd_locked=False)")
    numbers.add_argument("--only-mid", action="store_true", help="control only the middle block (only_mid_control)")
    numbers.add_argument("--quick", action="store_true", help="not the paper's: for small models and short runs")
    numbers.add_argument("--bf16", action="store_true", help="compute in bfloat16, with the weights in float32")
    numbers.add_argument(
        "--fp16", action="store_true", help="compute in float16 with a loss scale, for GPUs without bf16"
    )
    numbers.add_argument("--optimizer", choices=OPTIMIZERS, default=OPTIMIZERS[0], help="adamw8bit needs bitsandbytes")
    numbers.add_argument("--min-snr", type=float, default=0.0, help="gamma of min-SNR weights, 5 in their paper (off)")
    numbers.add_argument("--noise-offset", type=float, default=0.0, help="strength of offset noise, such as 0.1 (off)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    look = parser.add_argument_group("run")
    look.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    look.add_argument("--minutes", type=float, help="stop after this time; the same command continues from there")
    look.add_argument("--probe-every", type=int, default=100, help="steps between probes of control (100)")
    look.add_argument("--sample-every", type=int, default=500, help="steps between sample pictures; 0 for none (500)")
    look.add_argument("--sample-steps", type=int, default=20, help="sampling steps of a sample picture (20)")
    look.add_argument("--save-every", type=int, default=200, help="steps between saved states (200)")
    look.add_argument("--layout", choices=LAYOUTS, default="cldm", help="layout of the written file (cldm)")
    look.add_argument("--dtype", choices=DTYPES, default="fp16", help="precision of the written file (fp16)")
    look.add_argument("--cache", action="store_true", help="keep latents and texts on disk, for the next start")
    look.add_argument("--workers", type=int, default=0, help="threads that read pictures ahead (0)")
    look.add_argument("--compile", action="store_true", help="compile the networks at the first step; needs a compiler")
    look.add_argument("--tracker", choices=TRACKERS, help="send curves and samples there too; needs accelerate")
    look.add_argument("--json", action="store_true", help="print one JSON object at the end")


def _ema_word(text: str) -> float | str:
    """A decay, or a word of `EMA`."""
    return text if text in EMA else float(text)


def run(args: argparse.Namespace) -> int:
    """Train, or continue a training that was stopped; at the end the net is written to its file.

    Raises Interrupted, with the state saved, when the user stops it.
    """
    # Before torch is loaded by the next import.
    use_large_pages()
    from ..training_run import train

    return train(args)
