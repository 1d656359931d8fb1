"""What `training_throughput.py` measures, one process for each run: our trainer, and diffusers' example.

    python benchmarks/training_engines.py ours FOLDER --sizes 64 128 [--cached] [--warm 2] [--steps 4]
    python benchmarks/training_engines.py diffusers FOLDER --example train_controlnet.py --sizes 64 128 ...

Both train on the same base (a diffusers folder) and the same pictures. The sizes are trained in one process, one after
the other, because loading takes longer than the steps. Prints one JSON list, an object for each size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.training.large_pages import use_large_pages
from torch import Tensor

BASE, PICTURES, CACHED, FILLED = "base", "pictures", "cached", "cached.done"
EMPTY = 0.5
"""Fraction of empty prompts, as the paper has it."""


class Enough(Exception):
    """All steps were measured; the example would go on and write its net."""


@dataclass
class Meter:
    """Takes the time and the peak of the resident memory of the steps of each size; `step` is called after each."""

    sizes: list[int]
    warm: int
    steps: int
    count: int = 0
    last: float = 0.0
    seconds: list[list[float]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    before: int = 0

    @property
    def each(self) -> int:
        """Steps of a size, with those that are not counted."""
        return self.warm + self.steps

    def size_of(self, step: int) -> int:
        """The size of the pictures of a step, counted from 0."""
        return self.sizes[min(step // self.each, len(self.sizes) - 1)]

    def step(self) -> None:
        """End a step. Raises Enough after the last one."""
        now = time.perf_counter()
        within = self.count % self.each
        if within == 0:  # the first step of a size also ended the loading, or the size before
            self.before = max(self.before, peak_memory())
            forget_peak()
            self.seconds.append([])
        elif within >= self.warm:
            self.seconds[-1].append(now - self.last)
        self.count += 1
        if self.count % self.each == 0:
            self.peaks.append(peak_memory())
        if len(self.peaks) == len(self.sizes):
            raise Enough
        self.last = time.perf_counter()

    def rows(self) -> list[dict[str, Any]]:
        """One row for each size. before: the peak while loading, and during the steps that were not counted."""
        found = zip(self.sizes, self.seconds, self.peaks, strict=True)
        return [{"size": size, "seconds": times, "peak": peak, "before": self.before} for size, times, peak in found]


def peak_memory() -> int:
    """Most bytes of the process that were in memory at once, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def forget_peak() -> None:
    """Let the peak begin at what is in memory now."""
    Path("/proc/self/clear_refs").write_text("5")


# --------------------------------------------------------------------------------------------- ours


def train_ours(folder: Path, meter: Meter, cached: bool, batch: int) -> None:
    """Train with this package, as its command does, but for averaged weights."""
    from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
    from comfyui_controlnet_core.controlnet_core.training.controlnet_training import PAPER, prepare_training
    from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples

    disk = open_cache(folder) if cached else None
    checkpoint = load_checkpoint(folder / BASE, dtype=torch.float32)
    recipe = replace(PAPER, steps=meter.each * len(meter.sizes), batch=batch, ema=0.0)
    data = open_examples(folder / PICTURES, meter.sizes[0])
    # Nothing is kept in memory: the encoded data comes from the encoders, or from the cache on the disk.
    training = prepare_training(checkpoint, data, recipe, disk=disk, keep_bytes=0)
    training.loop.run(on_step=lambda step: change_size(training, data, meter))


def open_cache(folder: Path) -> Any:
    """The cache of the command's option --cache."""
    from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
    from comfyui_controlnet_core.controlnet_core.training.disk_cache import DiskCache, encoders_digest

    return DiskCache(folder / f"{CACHED}_ours", encoders_digest(load_checkpoint(folder / BASE)))


def change_size(training: Any, data: Any, meter: Meter) -> None:
    """End a step, and let the next one read pictures of its size."""
    meter.step()
    object.__setattr__(data, "size", meter.size_of(meter.count))


def fill_cache(folder: Path, sizes: list[int]) -> None:
    """Encode all pictures and captions of the training, as its first epoch would."""
    from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
    from comfyui_controlnet_core.controlnet_core.training.controlnet_training import PAPER, prepare_training
    from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples

    checkpoint = load_checkpoint(folder / BASE, dtype=torch.float32)
    disk = open_cache(folder)
    for size in sizes:
        data = open_examples(folder / PICTURES, size)
        training = prepare_training(checkpoint, data, PAPER, disk=disk, keep_bytes=0)
        rows = list(range(len(data)))
        training.latents(rows)
        training.condition([*data.captions(rows), ""], (size, size))
        training.flush()


# --------------------------------------------------------------------------------------------- diffusers


def load_example(path: Path) -> Any:
    """The example script as a module."""
    spec = importlib.util.spec_from_file_location("train_controlnet", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def example_arguments(module: Any, folder: Path, meter: Meter, batch: int) -> argparse.Namespace:
    """Its arguments: the paper's recipe as ours, without files in between."""
    options = {
        "pretrained_model_name_or_path": folder / BASE,
        "output_dir": folder / "output",
        "cache_dir": folder / "datasets",
        "train_data_dir": folder / PICTURES,
        "caption_column": "text",
        "resolution": meter.sizes[0],
        "train_batch_size": batch,
        "max_train_steps": meter.each * len(meter.sizes) + 1,
        "checkpointing_steps": 10**6,
        "learning_rate": 1e-5,
        "lr_scheduler": "constant",
        "proportion_empty_prompts": EMPTY,
        "report_to": "tensorboard",
        "seed": 0,
    }
    return module.parse_args([word for name, value in options.items() for word in (f"--{name}", str(value))])


class SizedDataset(torch.utils.data.Dataset):
    """One data set for each size; the number of examples that were read says which is due."""

    def __init__(self, sets: dict[int, Any], meter: Meter, batch: int) -> None:
        self.sets, self.meter, self.batch, self.read = sets, meter, batch, 0

    def __len__(self) -> int:
        return len(next(iter(self.sets.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        # Not the number of steps: the loader reads one batch ahead.
        size = self.meter.size_of(self.read // self.batch)
        self.read += 1
        return self.sets[size][row]


class CachedDataset(torch.utils.data.Dataset):
    """The example's data set with latents in the place of pictures, and hidden states in that of tokens."""

    def __init__(self, plain: Any, latents: Tensor, texts: Tensor, empty: Tensor) -> None:
        self.plain, self.latents, self.texts, self.empty = plain, latents, texts, empty

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        text = self.empty if torch.rand(()) < EMPTY else self.texts[row]
        return {
            "pixel_values": self.latents[row],
            "conditioning_pixel_values": self.plain[row]["conditioning_pixel_values"],
            "input_ids": text,
        }


class Encoded(torch.nn.Module):
    """Stands for the autoencoder and the text encoder where their results come from the cache."""

    config = SimpleNamespace(scaling_factor=1.0)

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Encoded:
        """Load nothing."""
        return cls()

    def encode(self, latents: Tensor) -> Any:
        """The latents that were given."""
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: latents))

    def forward(self, hidden: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The hidden states that were given."""
        return (hidden,)


def train_diffusers(folder: Path, example: Path, meter: Meter, cached: bool, batch: int) -> None:
    """Run the example. What is replaced: its progress bar, which ends each step, and its data set, see above."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    module = load_example(example)
    args = example_arguments(module, folder, meter, batch)
    make = module.make_train_dataset

    def make_sized(args: Any, tokenizer: Any, accelerator: Any) -> SizedDataset:
        sets: dict[int, Any] = {}
        for size in meter.sizes:
            args.resolution = size
            sets[size] = make(args, tokenizer, accelerator)
            if cached:
                stored = torch.load(folder / f"{CACHED}_{size}.pt", mmap=True, weights_only=True)
                sets[size] = CachedDataset(HintsOnly(sets[size], size), **stored)
        return SizedDataset(sets, meter, batch)

    module.make_train_dataset = make_sized
    module.tqdm = lambda *words, **options: SimpleNamespace(
        update=lambda count: meter.step(), set_postfix=lambda **logs: None
    )
    if cached:
        module.AutoencoderKL = Encoded
        module.import_model_class_from_model_name_or_path = lambda *words: Encoded
    module.main(args)


class HintsOnly(torch.utils.data.Dataset):
    """The hints of the example's data set, read and transformed as it does, without the pictures."""

    def __init__(self, dataset: Any, size: int) -> None:
        from torchvision import transforms

        bilinear = transforms.InterpolationMode.BILINEAR
        self.rows = dataset.with_format(None).select_columns(["conditioning_image"])
        self.transform = transforms.Compose(
            [transforms.Resize(size, interpolation=bilinear), transforms.CenterCrop(size), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        picture = self.rows[row]["conditioning_image"].convert("RGB")
        return {"conditioning_pixel_values": self.transform(picture)}


@torch.no_grad()
def fill_example_cache(folder: Path, sizes: list[int]) -> None:
    """Encode pictures and captions with diffusers' and transformers' modules, as the example does at each step."""
    from diffusers import AutoencoderKL
    from PIL import Image
    from torchvision import transforms
    from transformers import AutoTokenizer, CLIPTextModel

    base = folder / BASE
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    text = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(base, subfolder="tokenizer", use_fast=False)
    lines = [json.loads(line) for line in (folder / PICTURES / "metadata.jsonl").read_text().splitlines()]

    def hidden(caption: str) -> Tensor:
        return text(tokenizer([caption], max_length=77, padding="max_length", return_tensors="pt").input_ids)[0][0]

    texts = torch.stack([hidden(line["text"]) for line in lines])
    for size in sizes:
        prepare = transforms.Compose(
            [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        )
        pictures = [prepare(Image.open(folder / PICTURES / line["file_name"])) for line in lines]
        means = [vae.encode(picture[None]).latent_dist.mean[0] for picture in pictures]
        latents = torch.stack(means) * vae.config.scaling_factor
        torch.save({"latents": latents, "texts": texts, "empty": hidden("")}, folder / f"{CACHED}_{size}.pt")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=("ours", "diffusers", "fill"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--example", type=Path, help="diffusers' examples/controlnet/train_controlnet.py")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cached", action="store_true")
    args = parser.parse_args()
    meter = Meter(args.sizes, args.warm, args.steps)
    if args.engine == "fill":
        fill_cache(args.folder, args.sizes)
        fill_example_cache(args.folder, args.sizes)
        (args.folder / FILLED).touch()
        return 0
    try:
        if args.engine == "ours":
            use_large_pages()  # as the command does
            train_ours(args.folder, meter, args.cached, args.batch)
        else:
            train_diffusers(args.folder, args.example, meter, args.cached, args.batch)
    except Enough:
        print(json.dumps(meter.rows()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
