"""Empty prompts in training: half of them against none and nine of ten.

    python benchmarks/paper/empty_prompts.py [--seeds 0 1 2] [--quick]

Budget: 0.2 hours of one core for three seeds (nine trainings, three of them shared with `architecture.py`). Source:
Zhang et al. 2023, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from laboratory import Laboratory, Variant
from report import Experiment, Row, Verdict, draw_groups, f1, main, page_at, seeds_of, select

SHARES = (0.0, 0.5, 0.9)
VARIANTS = tuple(Variant(empty=share) for share in SHARES)
CLEAR = 0.03
"""Differences of the mean edge F1 below this count as equal."""


def measure(laboratory: Laboratory) -> list[Row]:
    """Train with each fraction of empty prompts and each seed."""
    prompts = ("caption", "none", "conflicting")
    return [laboratory.measured(variant, seed, prompts) for variant, seed in laboratory.runs(VARIANTS)]


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Half of the prompts empty should help control without a prompt, and not cost control with one."""
    shares = [share for share in SHARES if select(rows, empty=share)]
    means = {p: {s: float(np.mean(f1(rows, p, empty=s))) for s in shares} for p in ("none", "caption")}
    gain = means["none"][0.5] - means["none"][0.0]
    cost = means["caption"][0.0] - means["caption"][0.5]
    text = "; ".join(
        f"{name}: " + ", ".join(f"{share:.0%} empty {value:.2f}" for share, value in means[prompt].items())
        for prompt, name in (("none", "edge F1 without a prompt"), ("caption", "with the caption"))
    )
    claim = "Replacing half of the prompts by the empty string teaches the net to read the hint in place of a prompt"
    holds = "yes" if gain >= CLEAR and cost < CLEAR else "partly" if gain >= CLEAR else "no"
    return [Verdict(claim, f"{text[0].upper()}{text[1:]} ({seeds_of(rows)}).", holds)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Fidelity under each prompt, by fraction of empty prompts in training."""
    titles = {"none": "no prompt", "caption": "caption", "conflicting": "caption of another scene"}
    groups = {
        title: {f"{share:.0%} empty": f1(rows, prompt, empty=share) for share in SHARES if select(rows, empty=share)}
        for prompt, title in titles.items()
    }
    with page_at(path, 860, 350) as page:
        draw_groups(page, (64, 52, 600, 240), "edge F1 by prompt, and empty prompts in training", groups)


EXPERIMENT = Experiment(
    "empty_prompts", "Do empty prompts in training give control without a prompt?", "section 3.3", 0.2, VARIANTS,
    measure, judge, draw,
    setup="The same training with 0, 50 and 90 % of the captions emptied. It holds if half of them empty raises edge "
    "F1 without a prompt by at least 0.03, and costs less than that with the caption.",
    reading="A net that never saw an empty prompt follows its hint without one just as well. A likely reason: the "
    "captions of these scenes name objects and colours but hardly any places, so that a net has to read them from the "
    "hint in any case.",
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
