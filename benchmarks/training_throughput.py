"""Measure steps per second and peak memory of our trainer beside diffusers' own example, on the same base.

    python benchmarks/training_throughput.py train_controlnet.py [--shapes small sd15] [--sizes 64 128] [--json FILE]

train_controlnet.py is `examples/controlnet/train_controlnet.py` of diffusers' repository, of the release that is
installed; it needs `pip install datasets torchvision tensorboard`. Base: an SD1.5 of random weights (speed does not
depend on them). Both train a ControlNet on the same pictures: float32, one process, no averaged weights, AdamW.

Each run is a process of its own, and the two take turns; sizes are trained one after the other in a process. Loading is
not part of a step. Steps per second: the inverse of the median step of all rounds. Spread: between the rounds' medians.
Memory: the largest resident set during the counted steps, with the pages of mapped files.

plain         pictures and captions are encoded at each step
cached        both are read from a cache. The example has none, so it gets latents and hidden states in the place of its
              pictures and tokens, and loads neither autoencoder nor text encoder
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.models.tokenizer import VOCAB_FILE
from measure import machine
from PIL import Image
from training_engines import BASE, FILLED, PICTURES

SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {"unet": {}, "vae": (128, 256, 512, 512), "text": 12},
    "small": {"unet": {"block_out_channels": (320,) * 4, "layers_per_block": 1}, "vae": (64,) * 4, "text": 3},
}
EXAMPLES = 16
LARGEST = 128
"""Side of the pictures in the files, in pixels."""
ENGINES = ("ours", "diffusers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("example", type=Path, help="diffusers' examples/controlnet/train_controlnet.py")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["sd15", "small"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=1, help="steps of each size that are not counted")
    parser.add_argument("--steps", type=int, default=3, help="steps of each size that are counted, in each round")
    parser.add_argument("--modes", nargs="+", choices=("plain", "cached"), default=["plain", "cached"])
    parser.add_argument("--folder", type=Path, help="keep base and pictures here, for the next call")
    parser.add_argument("--json", type=Path, help="file with the rows")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for shape in args.shapes:
            folder = (args.folder or Path(temporary)) / f"{shape}_{'_'.join(map(str, args.sizes))}"
            if not folder.exists():
                write_base(folder / BASE, shape)
                write_pictures(folder / PICTURES)
            if "cached" in args.modes and not (folder / FILLED).exists():
                run_engine("fill", folder, args, cached=True)
            for mode in args.modes:
                rows += compare(folder, args, shape, mode)
                if args.json:  # after each case, so that an interruption does not lose the earlier ones
                    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


def compare(folder: Path, args: argparse.Namespace, shape: str, mode: str) -> list[dict[str, Any]]:
    """Run both engines in turn. Returns a row for each engine and size."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for round_number in range(args.rounds):
        for engine in ENGINES if round_number % 2 else ENGINES[::-1]:
            for row in run_engine(engine, folder, args, cached=mode == "cached"):
                found.setdefault((engine, row["size"]), []).append(row)
                print(shape, mode, engine, row, file=sys.stderr, flush=True)
    about = {"shape": shape, "mode": mode, "batch": args.batch, "machine": machine(torch.device("cpu"))}
    about["run"] = datetime.now().isoformat(timespec="seconds")
    rows = []
    for (engine, size), parts in sorted(found.items(), key=lambda item: (item[0][1], item[0][0] != "ours")):
        times = [second for part in parts for second in part["seconds"]]
        medians = [statistics.median(part["seconds"]) for part in parts]
        numbers = {
            "seconds": statistics.median(times),
            "spread": max(medians) - min(medians),
            "peak_bytes": statistics.median(part["peak"] for part in parts),
            "peak_spread": max(part["peak"] for part in parts) - min(part["peak"] for part in parts),
            "peak_before": statistics.median(part["before"] for part in parts),
            "steps": len(times),
        }
        rows.append({"engine": engine, "size": size, **numbers, **about})
    return rows


def run_engine(engine: str, folder: Path, args: argparse.Namespace, *, cached: bool) -> list[dict[str, Any]]:
    """Run one process; returns its rows."""
    options: Sequence[Any] = ("--batch", args.batch, "--warm", args.warm, "--steps", args.steps, "--sizes", *args.sizes)
    command = [sys.executable, Path(__file__).with_name("training_engines.py"), engine, folder, *options]
    command += ["--example", args.example, *(["--cached"] if cached else [])]
    quiet = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(list(map(str, command)), env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{engine} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if engine != "fill" else []


def write_base(folder: Path, shape: str) -> None:
    """Write a whole model of random weights as a diffusers folder, float32."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = SHAPES[shape]
    levels = len(sizes["vae"])
    UNet2DConditionModel(cross_attention_dim=768, **sizes["unet"]).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=sizes["vae"],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
    ).save_pretrained(folder / "vae")
    marks: dict[str, Any] = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    heads: dict[str, Any] = {
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_size": 768,
        "vocab_size": 49408,
    }
    text = CLIPTextConfig(
        num_hidden_layers=sizes["text"], projection_dim=768, hidden_act="quick_gelu", **heads, **marks
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    schedule: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    DDPMScheduler(**schedule).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    parts = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "scheduler": "DDPMScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
    }
    index = {name: ["transformers" if "t" in name[:1] else "diffusers", kind] for name, kind in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's tokenizer as transformers reads it, from the merge table of this package."""
    folder.mkdir(parents=True)
    with gzip.open(VOCAB_FILE, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    latin = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    alphabet = latin + [chr(0x100 + number) for number in range(256 - len(latin))]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *(m.replace(" ", "") for m in merges), *marks]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    named = {"bos_token": marks[0], "eos_token": marks[1], "unk_token": marks[1], "pad_token": marks[1]}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pictures(folder: Path) -> None:
    """Write pictures, hints and captions as an image folder of Hugging Face `datasets`."""
    (folder / "hints").mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = []
    for number in range(EXAMPLES):
        picture, hint = f"{number:03d}.png", f"hints/{number:03d}.png"
        for name in (picture, hint):
            pixels = generator.integers(0, 256, (LARGEST, LARGEST, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        names = {"file_name": picture, "conditioning_image_file_name": hint}
        lines.append(json.dumps({**names, "text": f"a photograph of thing number {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, ours beside diffusers'."""
    head = "| shape | size | caches | ours s (spread) | diffusers s (spread) | steps per second | peak GB | peak |"
    lines = [head.replace("| peak |", "ours / diffusers | peak ratio |"), "| --- " * 8 + "|"]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        times = [f"{row['seconds']:.2f} ({row['spread']:.2f})" for row in (ours, theirs)]
        peaks = [row["peak_bytes"] / 1e9 for row in (ours, theirs)]
        caches = {"plain": "off", "cached": "on"}[ours["mode"]]
        lines.append(
            f"| {ours['shape']} | {ours['size']} | {caches} | {times[0]} | {times[1]} "
            f"| **{theirs['seconds'] / ours['seconds']:.2f}** times | {peaks[0]:.2f} / {peaks[1]:.2f} "
            f"| **{peaks[0] / peaks[1]:.2f}** |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
