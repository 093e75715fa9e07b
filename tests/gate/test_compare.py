"""Comparisons of two records: which radius fails, in which direction, at which rate."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from robustbench_med.bench import store
from robustbench_med.bench.record import Stored
from robustbench_med.errors import ResultsError, SpecError
from robustbench_med.gate.compare import compare
from robustbench_med.gate.measured_score import MeasuredScore
from robustbench_med.gate.records import home_of, recorded, rewrite
from robustbench_med.stats import Estimate
from tests.regression.test_shipped import QUICK, RECORDS

READ = store.read(RECORDS / "quick" / QUICK["chest_resnet deepfool"])
LADDER = READ.record.case.ladder
N = 80


def table(scores: NDArray[np.float64]) -> Stored:
    """Return a record of `(r, n)` scores, r = the rungs of the ladder, clean left as right."""
    parts = [
        pd.DataFrame(
            {
                "sample": [f"s{i}" for i in range(scores.shape[1])],
                "patient": None,
                "eps": eps,
                "correct": row,
            }
        )
        for eps, row in zip(
            (0.0, *LADDER), np.vstack([np.ones(scores.shape[1]), scores]), strict=True
        )
    ]
    return Stored(READ.record, pd.concat(parts, ignore_index=True), "")


def ones() -> NDArray[np.float64]:
    return np.ones((len(LADDER), N))


def test_the_same_record_holds() -> None:
    found = compare(READ, READ, fails="either")
    assert found
    assert found.identical
    assert found.worst.p == 1.0


@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_a_drop_at_any_radius_is_found_and_named(rung: int) -> None:
    scores = ones()
    scores[rung, :9] = 0
    found = compare(table(ones()), table(scores))
    assert not found
    assert found.worst.eps == LADDER[rung]
    assert found.worst.p == pytest.approx(6 * 0.5**9)
    assert "9 images lost, 0 gained" in found.message
    assert "exact McNemar, one-sided, corrected for 6 tests" in found.message
    back = compare(table(scores), table(ones()))
    assert back
    assert not compare(table(scores), table(ones()), fails="rise")
    either = compare(table(scores), table(ones()), fails="either")
    assert "rose from 0.887 to 1.000" in either.message
    assert "0 images lost, 9 gained" in either.message
    assert either.worst.p == pytest.approx(12 * 0.5**9)


def test_a_drop_too_small_for_the_sample_holds_and_a_single_radius_sees_more() -> None:
    scores = ones()
    scores[2, :6] = 0
    assert compare(table(ones()), table(scores)).holds
    assert not compare(table(ones()), table(scores), eps=LADDER[2]).holds
    assert compare(table(ones()), table(scores), eps=LADDER[2], level=0.01).holds
    assert compare(table(ones()), table(scores), eps=LADDER[1]).holds


def test_a_model_that_got_weaker_without_an_attack_is_found() -> None:
    now = table(ones())
    now.samples.loc[now.samples["eps"] == 0, "correct"] = np.r_[np.zeros(50), np.ones(N - 50)]
    for eps in (None, 0.0):
        found = compare(table(ones()), now, eps=eps)
        assert not found
        assert found.worst.eps == 0
        assert not found.identical
    assert "accuracy without an attack dropped from 1.000 to 0.375 on 80 images" in found.message
    assert compare(table(ones()), now, eps=LADDER[0])


def few(n: int, *, patients: int | None = None) -> Stored:
    """Return a record of so few images that all scores lost might be chance."""
    found = table(np.ones((len(LADDER), n)))
    if patients is not None:
        found.samples["patient"] = [
            f"p{int(one[1:]) % patients}" for one in found.samples["sample"]
        ]
    return found


def test_a_comparison_that_nothing_fails_is_refused_with_what_would_do() -> None:
    with pytest.raises(ResultsError) as refused:
        compare(few(6), few(6))
    assert str(refused.value) == (
        "expected a comparison that some outcome fails, got 6 images where every score lost has "
        "p = 0.094, above the level 0.05 (6 tests): take 7 images or more, or ask less: at=0.0"
    )
    assert compare(few(6), few(6), eps=0.0)
    assert compare(few(7), few(7))
    with pytest.raises(ResultsError, match=r"take 8 images or more, or ask less: fails='drop' or"):
        compare(few(7), few(7), fails="either")
    with pytest.raises(ResultsError, match=r"got 4 patients where .* p = 0.38, .* take 7 patients"):
        compare(few(40, patients=4), few(40, patients=4))
    with pytest.raises(
        ResultsError, match=r"got 4 patients .* \(1 tests\): take 5 patients or more$"
    ):
        compare(few(40, patients=4), few(40, patients=4), eps=LADDER[0])
    assert compare(few(40, patients=7), few(40, patients=7))
    # of a record where all is right already no rise can be seen, whatever its size
    with pytest.raises(
        ResultsError, match="every score gained has p = 1, .*: take more images, or a radius"
    ):
        compare(table(ones()), table(ones()), fails="rise")
    lost = few(6)._replace(samples=few(6).samples.assign(correct=0.0))
    with pytest.raises(ResultsError, match="expected a comparison that some outcome fails"):
        compare(few(6), lost)


def test_other_images_and_wrong_choices_are_refused() -> None:
    fewer = table(ones()[:, :-1])
    with pytest.raises(
        ResultsError, match=r"expected the 80 images of the record, got others \(79"
    ):
        compare(table(ones()), fewer)
    poisoned = READ.record.model_copy(update={"status": "invalid", "reason": "NaN"})
    with pytest.raises(
        ResultsError, match="expected a case that was scored, got an invalid one: N"
    ):
        compare(READ, READ._replace(record=poisoned))
    with pytest.raises(SpecError, match="expected fails in drop, rise, either, got 'up'"):
        compare(READ, READ, fails="up")
    with pytest.raises(SpecError, match=r"expected level in \(0,1\), got 2.0"):
        compare(READ, READ, level=2.0)
    with pytest.raises(
        SpecError, match=r"expected eps in the ladder of the record \(0, 0.5/255, 1/255"
    ):
        compare(READ, READ, eps=0.3)


@pytest.mark.slow
def test_the_level_is_kept_over_all_radii() -> None:
    rng = np.random.default_rng(0)
    alarms, trials = 0, 150
    for _ in range(trials):
        hard = rng.normal(0, 2, N)
        before, now = (
            (rng.normal(0, 1, (len(LADDER), N)) + hard < 1).astype(float) for _ in range(2)
        )
        alarms += not compare(table(before), table(now))
    assert alarms / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_a_share_explains_how_sure_it_is() -> None:
    near = MeasuredScore.of(Estimate(value=0.66, low=0.54, high=0.76), 64)
    assert repr(near) == "0.660 [0.540, 0.760]"
    assert near.explain(0.70) == [
        "measured on 64 images, 95 % interval 0.540 to 0.760",
        "0.7 lies inside it, so the difference may be chance; about 484 images would be needed to "
        "show it",
    ]
    assert near.explain(0.9)[1] == "0.9 lies outside it, so the difference is not chance"
    assert near.explain(0.66) == ["measured on 64 images, 95 % interval 0.540 to 0.760"]


def test_records_are_found_in_their_folder_or_above_it(tmp_path: object) -> None:
    from pathlib import Path

    place = Path(str(tmp_path)) / "mine"
    assert recorded(place) is None
    home = rewrite(place, READ)
    assert home.parent == place
    for named in (place, home, home / "record.json"):
        found = recorded(named)
        assert found is not None
        assert found.record.case_id == READ.record.case_id
    other = store.read(RECORDS / "quick" / QUICK["fundus_resnet fgsm"])
    assert home_of(home) == home_of(home / "record.json") == home_of(place) == place
    assert rewrite(home_of(home), other, home).parent == place
    assert [path.name for path in place.iterdir()] == [other.record.case_id]
    store.write(place, READ.record, READ.samples, {})
    with pytest.raises(ResultsError, match="expected one record in .*mine, got 2: name one"):
        recorded(place)


def test_a_radius_may_be_written_as_a_quotient() -> None:
    scores = ones()
    scores[-1, :9] = 0
    text = f"{round(255 * LADDER[-1], 3):g}/255"
    assert not compare(table(ones()), table(scores), eps=text)
    assert compare(table(ones()), table(scores), eps=0.0)
    with pytest.raises(SpecError, match="expected a number"):
        compare(table(ones()), table(scores), eps="much")
