"""Compare two records of the same images at every radius, and word the message of a failed test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.bench.verify.diff import written
from robustbench_med.cards import SEVERITY
from robustbench_med.errors import ResultsError, SpecError
from robustbench_med.gate.drop import Drop, drop_of
from robustbench_med.gate.parts import parts_of
from robustbench_med.spec import number
from robustbench_med.stats.paired_tests import LEVEL, fewest_changes, holm, one_sided_p

_WAYS: dict[str, tuple[int, ...]] = {"drop": (1,), "rise": (-1,), "either": (1, -1)}
_CALLED = {1: "dropped", -1: "rose"}


class Change(NamedTuple):
    """The change of the score at one radius, in one direction.

    Attributes:
        eps: the radius.
        way: 1 = the test looks for a drop of the score, -1 = for a rise.
        drop: the drop of the score, or of its negative.
        p: p value, corrected for the number of tested radii, directions and subgroups.
        part: the subgroup, as "sex F"; empty = all images.
    """

    eps: float
    way: int
    drop: Drop
    p: float
    part: str = ""


class Comparison(NamedTuple):
    """The result of comparing a model with its record.

    Attributes:
        holds: whether no change is significant.
        worst: the change with the smallest p value.
        identical: whether every image has the same outcome as in the record.
        message: the message of a failed test.
        left_out: subgroups that are too small to be compared.
    """

    holds: bool
    worst: Change
    identical: bool
    message: str
    left_out: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.holds


def compare(
    recorded: Stored,
    now: Stored,
    *,
    level: float = LEVEL,
    fails: str = "drop",
    eps: float | int | str | None = None,
    by: str | Sequence[str] = (),
) -> Comparison:
    """Test whether the scores of `now` differ significantly from those of the record.

    The clean images and every radius of the ladder are tested, and Holm's correction keeps the
    level over all tests.

    Args:
        recorded: the record.
        now: the same case, measured now.
        level: largest share of unchanged models that fail.
        fails: the direction that fails: a "drop" (a weaker model), a "rise" (a weaker attack), or
            "either".
        eps: the only radius to test, in image units or as "2/255"; 0 = clean.
        by: columns of subgroups: each subgroup is tested in place of all images together.

    Raises:
        ResultsError: the images or their subgroups differ, a record is invalid or has no such
            column, or no possible outcome could fail.
        SpecError: there is no such radius, level or direction.
    """
    check_choices(level=level, fails=fails)
    for record in (recorded.record, now.record):
        if record.status == "invalid":
            raise ResultsError(
                f"expected a case that was scored, got an invalid one: {record.reason}"
            )
    before, after = recorded.samples, now.samples
    if list(before["sample"]) != list(after["sample"]):
        raise ResultsError(
            f"expected the {before['sample'].nunique()} images of the record, got others "
            f"({after['sample'].nunique()})"
        )
    ladder = (0.0, *recorded.record.case.ladder)
    only = None if eps is None else number(eps)
    radii = [radius for radius in ladder if only is None or np.isclose(radius, only, rtol=1e-6)]
    if not radii:
        listed = ", ".join(map(written, ladder))
        raise SpecError(f"expected eps in the ladder of the record ({listed}), got {eps!r}")
    parts, left_out = parts_of(recorded, now, (by,) if isinstance(by, str) else tuple(by))
    directions = [(radius, way) for radius in radii for way in _WAYS[fails]]
    share = level / len(parts)
    largest = max(parts, key=lambda part: len(parts[part][0]))
    _check_able(parts[largest][0], directions, radii, share, fails)
    unable = [part for part in parts if _p_at_worst(parts[part][0], directions) > share]
    left_out = (*left_out, *unable)
    parts = {part: pair for part, pair in parts.items() if part not in unable}
    tests = [(part, *test) for part in parts for test in directions]
    drops = [_drop(*parts[part], radius, way, level / len(tests)) for part, radius, way in tests]
    corrected = holm(np.array([drop.p for drop in drops])).tolist()
    changes = [
        Change(radius, way, drop, p, part)
        for (part, radius, way), drop, p in zip(tests, drops, corrected, strict=True)
    ]
    worst = min(changes, key=lambda change: (change.p, change.drop.p, -change.drop.size))
    text = _message(recorded, worst, len(tests))
    return Comparison(worst.p > level, worst, identical(recorded, now), text, left_out)


def identical(recorded: Stored, now: Stored) -> bool:
    """Return whether every image has the same score in both, when clean and at every radius."""
    before, after = recorded.samples, now.samples
    ladder = (0.0, *recorded.record.case.ladder)
    return list(before["sample"]) == list(after["sample"]) and all(
        np.allclose(_scores(before, eps), _scores(after, eps)) for eps in ladder
    )


def check_choices(*, level: float = LEVEL, fails: str = "drop") -> None:
    """Raise SpecError if there is no such level or direction."""
    if fails not in _WAYS:
        raise SpecError(f"expected fails in {', '.join(_WAYS)}, got {fails!r}")
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise SpecError(f"expected level in (0,1), got {level!r}")


def _check_able(
    before: pd.DataFrame,
    tests: list[tuple[float, int]],
    radii: list[float],
    level: float,
    fails: str,
) -> None:
    """Raise ResultsError if not even the worst outcome would fail: every score lost, or gained.

    A comparison that cannot fail always passes and shows nothing.
    """
    if _p_at_worst(before, tests) <= level:
        return
    worst = np.array([_at_worst(before, *test) for test in tests])
    owners = before.loc[before["eps"] == 0, "patient"]
    owned = not owners.isna().any()
    count = owners.nunique() if owned else len(owners)
    noun = "patient" if owned else "image"
    outcome = {"drop": "lost", "rise": "gained", "either": "lost or gained"}[fails]
    narrower = []
    if len(_WAYS[fails]) > 1 and holm(worst[::2]).min() <= level:
        narrower.append("fails='drop'")
    able = [eps for eps in radii if min(_p_at(worst, tests, eps)) * len(_WAYS[fails]) <= level]
    if len(radii) > 1 and able:
        radius = written(able[0])
        narrower.append(f"at={radius if '/' in radius else repr(able[0])}")
    less = f", or ask less: {' or '.join(narrower)}" if narrower else ""
    enough = fewest_changes(level / len(tests))
    more = f"take {enough} {noun}s or more"
    if enough <= count:  # most of them have no score to lose, or to gain
        more = f"take more {noun}s, or a radius at which more of them can change"
    raise ResultsError(
        f"expected a comparison that some outcome fails, got {count} {noun}s where every score "
        f"{outcome} has p = {holm(worst).min():.2g}, above the level {level:g} ({len(tests)} "
        f"tests): {more}{less}"
    )


def _p_at_worst(before: pd.DataFrame, tests: list[tuple[float, int]]) -> float:
    """Return the smallest corrected p value if every score is lost, or gained, at all radii."""
    return float(holm(np.array([_at_worst(before, *test) for test in tests])).min())


def _p_at(worst: NDArray[np.float64], tests: list[tuple[float, int]], eps: float) -> list[float]:
    return [float(p) for p, (radius, _) in zip(worst, tests, strict=True) if radius == eps]


def _at_worst(before: pd.DataFrame, eps: float, way: int) -> float:
    """Return the p value of the worst outcome at a radius: every score is lost, or gained."""
    scores = _scores(before, eps)
    scores_of_both = (scores, np.zeros_like(scores)) if way > 0 else (np.ones_like(scores), scores)
    return one_sided_p(*scores_of_both, _owners(before, eps))


def _scores(samples: pd.DataFrame, eps: float) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = samples.loc[samples["eps"] == eps, "correct"].to_numpy(float)
    return scores


def _drop(before: pd.DataFrame, after: pd.DataFrame, eps: float, way: int, level: float) -> Drop:
    first, second = (_scores(before, eps), _scores(after, eps))[::way]
    return drop_of(first, second, _owners(before, eps), level=level)


def _owners(samples: pd.DataFrame, eps: float) -> NDArray[np.character] | None:
    """Return the patient of each image; None if images are treated as independent."""
    owners = samples.loc[samples["eps"] == eps, "patient"]
    return None if owners.isna().any() else owners.to_numpy(str)


def _message(recorded: Stored, change: Change, tests: int) -> str:
    record, drop = recorded.record, change.drop
    masks = record.dataset_card.task == "segmentation"
    score = "Dice" if masks else "accuracy"
    was, is_ = (drop.before, drop.now)[:: change.way]
    fell, rose = (drop.lost, drop.gained)[:: change.way]
    owned = f" of {drop.patients} patients" if drop.patients < drop.n else ""
    over = f", corrected for {tests} tests" if tests > 1 else ""
    exact = not masks and drop.patients == drop.n
    test = "exact McNemar, one-sided" if exact else "signs flipped by patient, one-sided"
    part = f" of {change.part}" if change.part else ""
    lines = [
        f"{score} {_where(change.eps, record.case)}{part} {_CALLED[change.way]} from {was:.3f} to "
        f"{is_:.3f} on {drop.n} images{owned}: {record.case.label}",
        f"{fell} images lost, {rose} gained: p = {change.p:.2g} ({test}{over})",
    ]
    if change.way < 0:
        what = "shift" if record.case.norm == SEVERITY else "attack"
        lines.append(f"a rising score means that the {what} is weaker or the model is stronger")
    lines += _power(drop, _CALLED[change.way].replace("dropped", "drop").replace("rose", "rise"))
    return "\n".join(lines)


def _where(eps: float, case: Case) -> str:
    if case.norm == SEVERITY:
        return f"at severity {eps:g}" if eps else "on the clean images"
    return f"at eps {written(eps)}" if eps else "without an attack"


def _power(drop: Drop, noun: str) -> list[str]:
    """Return lines on the changes that this number of images can show."""
    lines = []
    if drop.needed is not None:
        lines.append(
            f"a {noun} of {drop.size:.3f} takes {drop.needed} images to be seen with 80 % power"
        )
    if np.isnan(drop.smallest):
        lines.append(f"no {noun} is sure to be seen on {drop.n} images: take more")
        return lines
    half = "" if drop.half is None else f"; one of {drop.smallest / 2:.3f} takes {drop.half}"
    lines.append(
        f"the smallest {noun} that {drop.n} images show with 80 % power is "
        f"{drop.smallest:.3f}{half}"
    )
    return lines
