"""PGD on models of full size against raw passes and the peers: `python -m benchmarks.large`.

All contenders take the same number of passes on the same images, at a radius at which no image
falls, and take turns. Seconds are those of the processor: they hardly depend on what else runs.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable

import torch

from benchmarks import contest
from benchmarks.contest import Arena, Attack

CONTENDERS: dict[str, Callable[[Arena, int], Attack]] = {
    "raw passes": contest.raw,
    "ours": contest.ours,
    "ours, channels last": contest.ours_channels_last,
    "ours, bfloat16 guide": contest.ours_bfloat16,
    "torchattacks": contest.torchattacks,
    "foolbox": contest.foolbox,
    "ART": contest.art,
}
_PEERS = ("torchattacks", "foolbox", "ART")  # they have no masks


def main() -> None:
    """Print one line for every contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50", choices=contest.MODELS)
    parser.add_argument("-n", "--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=0, help="pixels along each axis")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--overhead", action="store_true", help="only what PGD itself costs")
    given = parser.parse_args()
    side = given.side or (96 if given.model == "unet3d" else 224)
    device = torch.device("cpu")
    arena = contest.arena(given.model, given.images, side, device)
    if given.overhead:
        contest.ours(arena, 1)()
        print(f"{given.model}: {contest.overhead(arena, given.steps):.1%} over its own passes")
        return
    names = [name for name in given.only if given.model != "unet3d" or name not in _PEERS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        contenders = {name: CONTENDERS[name](arena, given.steps) for name in names}
        times = contest.contest(contenders, given.rounds, device)
    size = " x ".join([str(side)] * (arena.x.ndim - 2))
    print(f"{given.model}, {given.images} images of {size}, PGD-{given.steps}")
    print("| contender | seconds of the processor, each round | median ratio to the first |")
    print("|---|---|---|")
    first = times[names[0]]
    for name in names:
        ratios = [
            own.processor / raw.processor for own, raw in zip(times[name], first, strict=True)
        ]
        seconds = ", ".join(f"{time.processor:.1f}" for time in times[name])
        print(f"| {name} | {seconds} | {statistics.median(ratios):.3f} |", flush=True)


if __name__ == "__main__":
    main()
