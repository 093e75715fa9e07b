"""How often intervals of a critical radius hold it: `python -m tests.simulation_crossing`.

Each patient has a strength, and each of the patient's images a radius at which it falls; the logs
of both are normal, and `icc` is the correlation of two images of a patient. The critical radius at
a level is then a quantile of the log-normal distribution. Two ladders are laid through it: a fine
one whose radii are so close that their width costs nothing, and the four radii of the suites.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from robustbench_med.stats import Estimate
from robustbench_med.stats.crossing import crossing
from robustbench_med.stats.intervals import cluster_mean, interval
from robustbench_med.stats.patients import resampled_patients, resamples

Floats = NDArray[np.float64]
FINE = tuple(np.exp(np.linspace(-2.2, 1.4, 120)).tolist())
COARSE = (0.25, 0.5, 1.0, 2.0)


class Rates(NamedTuple):
    """Shares of the intervals that hold the truth, and whose low or high end misses it."""

    inverted: float
    too_high: float
    too_low: float
    bootstrap: float


def study(
    rng: np.random.Generator, patients: int, icc: float, *, masks: bool, ladder: tuple[float, ...]
) -> tuple[Floats, NDArray[np.str_]]:
    """Return the scores `(images, 1 + radii)` and the patients of one study."""
    owner = np.repeat(np.arange(patients), rng.integers(1, 9, patients))
    normal = np.sqrt(icc) * rng.normal(size=patients)[owner]
    normal += np.sqrt(1 - icc) * rng.normal(size=len(owner))
    logs = np.log(np.asarray(ladder))
    if masks:  # a Dice that slides from 1 to 0 around the image's radius
        scores = 1 / (1 + np.exp(3 * (logs - normal[:, None])))
    else:
        scores = (normal[:, None] >= logs).astype(np.float64)
    return np.hstack([np.ones((len(owner), 1)), scores]), owner.astype(np.str_)


def true_radius(level: float, *, masks: bool) -> float:
    """Return the radius at which the mean score is the level."""
    if not masks:
        return float(np.exp(scipy_stats.norm.ppf(1 - level)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    low, high = -6.0, 6.0
    for _ in range(80):
        middle = (low + high) / 2
        mean = (weights / (1 + np.exp(3 * (middle - nodes)))).sum() / weights.sum()
        low, high = (middle, high) if mean >= level else (low, middle)
    return float(np.exp(low))


def rates(
    patients: int,
    level: float,
    *,
    icc: float,
    masks: bool = False,
    ladder: tuple[float, ...] = FINE,
    runs: int = 400,
    seed: int = 0,
) -> Rates:
    """Return how often intervals hold the critical radius.

    The bootstrap is the percentile interval of the first radius below the level.
    """
    rng, truth, radii = np.random.default_rng(seed), true_radius(level, masks=masks), (0.0, *ladder)
    high, low, held = 0, 0, 0
    for _ in range(runs):
        scores, owner = study(rng, patients, icc, masks=masks, ladder=ladder)
        weights = resamples(len(owner), owner, seed=int(rng.integers(2**31)), replicates=500)
        repeats = (weights @ scores) / weights.sum(axis=1, keepdims=True)
        found = crossing(radii, _estimates(scores, owner, weights, repeats, masks=masks), level)
        assert found is not None
        high += truth <= found.low
        low += truth > found.high
        below = np.hstack([repeats < level, np.ones((len(repeats), 1), dtype=bool)]).argmax(axis=1)
        first, last = np.quantile(below, [0.025, 0.975], method="inverted_cdf").astype(int)
        held += radii[max(first - 1, 0)] < truth <= (*radii, np.inf)[last]
    return Rates((runs - high - low) / runs, high / runs, low / runs, held / runs)


def _estimates(
    scores: Floats, owner: NDArray[np.str_], weights: Floats, repeats: Floats, *, masks: bool
) -> list[Estimate]:
    """Return the intervals that records use, see `worst_case.means`."""
    columns = range(scores.shape[1])
    if not masks:
        return [cluster_mean(scores[:, column], owner) for column in columns]
    count = resampled_patients(weights)
    return [
        interval(float(scores[:, column].mean()), repeats[:, column], n_patients=count)
        for column in columns
    ]


def main() -> None:
    """Print the table of docs/statistics.md."""
    print(
        "| score | patients | correlation | level | fine ladder | missed above, below "
        "| bootstrap | four radii |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for masks in (False, True):
        for patients in (12, 30, 100):
            for icc in (0.3, 0.7):
                for level in (0.5, 0.8):
                    r = rates(patients, level, icc=icc, masks=masks)
                    c = rates(patients, level, icc=icc, masks=masks, ladder=COARSE)
                    print(
                        f"| {'Dice' if masks else 'right or wrong'} | {patients} | {icc} | {level} "
                        f"| {r.inverted:.3f} | {r.too_high:.3f}, {r.too_low:.3f} "
                        f"| {r.bootstrap:.3f} | {c.inverted:.3f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
