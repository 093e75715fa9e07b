"""Least L2 distances on every shipped hardened classifier, beside foolbox's DDN at equal passes.

python -m benchmarks.hardened -n 12
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.optimality import attack_on, right_when_clean
from robustbench_med import registry
from robustbench_med.cards import DatasetCard

# ours, and foolbox's DDN with as many forward and backward passes
PAIRS = {
    "fmn": "foolbox:DDNAttack(steps=104)",
    "carlini_wagner": "foolbox:DDNAttack(steps=180)",
}


def hardened() -> list[str]:
    """Return the retrained classifiers of the zoo that tell single labels apart."""
    names = []
    for name, card in registry.load("models").items():
        data: DatasetCard = registry.find("datasets", card.dataset)
        if card.undefended and data.task == "single_label":
            names.append(name)
    return names


def main() -> None:
    """Print a line of a Markdown table for each victim and attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=12, help="images of each victim")
    given = parser.parse_args()
    print("| victim | attack | ratio of medians | mean ratio | worst image | passes, ours / DDN |")  # noqa: T201
    print("|---|---|---|---|---|---|")  # noqa: T201
    for name in hardened():
        for ours, peer in PAIRS.items():
            with right_when_clean(name, "l2", given.n) as posed:
                mine, theirs = attack_on(ours, posed), attack_on(peer, posed)
            ratio = mine.distance / theirs.distance
            ratio = ratio[torch.isfinite(ratio)]
            median = mine.distance.median() / theirs.distance.median()
            numbers = f"{float(median):.3f} | {float(ratio.mean()):.3f} | {float(ratio.max()):.2f}"
            passes = f"{mine.passes:.0f} / {theirs.passes:.0f}"
            print(f"| {name} | {ours} | {numbers} | {passes} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
