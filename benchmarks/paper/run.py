"""Run the experiments on the paper's claims, and write the table of docs/laboratory.md.

    python benchmarks/paper/run.py [--quick] [--only NAME ...] [--page FILE]

Each experiment is a script of its own in this folder. Runs that were stopped continue; those that are done are read.
`--quick` runs everything with one seed and few steps, in less than an hour of one core, and publishes nothing.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from pathlib import Path

from page import write_page
from report import Experiment, laboratory_of, parse

NAMES = (
    "zero_start", "architecture", "prompts", "sudden", "data_size", "empty_prompts", "guidance", "composition", "cost",
    "locking", "transfer",
)  # fmt: skip


def experiments(names: tuple[str, ...] | list[str] = NAMES) -> list[Experiment]:
    """The experiments of these names, in the order of the page."""
    return [import_module(name).EXPERIMENT for name in names]


def main() -> None:
    """Run what the command line names, then write the page."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES, metavar="NAME")
        parser.add_argument("--page", type=Path, help="write docs/laboratory.md from the rows; alone, with --only-page")
        parser.add_argument("--only-page", action="store_true", help="run nothing, read the rows that are there")
        parser.add_argument("--train", action="store_true", help="only train, all runs of the first seed first")

    args = parse(__doc__.splitlines()[0], add)
    laboratory = laboratory_of(args)
    if args.train:
        # One seed of everything is worth more than all seeds of one thing, should the time run out.
        variants = dict.fromkeys(v for experiment in experiments(args.only) for v in experiment.variants)
        for variant, seed in laboratory.runs(tuple(variants)):
            laboratory.train(variant, seed)
        return
    for experiment in experiments(args.only) if not args.only_page else ():
        started = time.monotonic()
        experiment.run(laboratory, args.results, args.images)
        print(f"{experiment.name}: {time.monotonic() - started:.0f} s", flush=True)
    if args.page:
        write_page(args.page, experiments(), args.results, args.images)


if __name__ == "__main__":
    main()
