"""The gate by subgroup: a drop of one subgroup fails that all images together do not show."""

from __future__ import annotations

import numpy as np
import pytest

from robustbench_med.bench.record import Stored
from robustbench_med.errors import ResultsError
from robustbench_med.gate.compare import compare
from tests.gate.test_compare import LADDER, N, ones, table


def grouped(stored: Stored, cells: list[str]) -> Stored:
    """Return a record with a column of subgroups."""
    named = np.tile(cells, len(LADDER) + 1)
    return stored._replace(samples=stored.samples.assign(**{"subgroup:sex": named}))


CELLS = ["F"] * 20 + ["M"] * 56 + ["X"] * 4


def test_a_drop_of_one_subgroup_is_found_and_named() -> None:
    scores, before = ones(), ones()
    before[2, 20:29] = 0  # what one subgroup gains hides what the other loses
    scores[2, :9] = 0
    first, now = grouped(table(before), CELLS), grouped(table(scores), CELLS)
    at = LADDER[2]
    assert compare(first, now, eps=at).holds
    found = compare(first, now, eps=at, by="sex")
    assert not found
    assert found.worst.part == "sex F"
    assert found.worst.p == pytest.approx(2 * 0.5**9)
    assert "of sex F dropped from 1.000 to 0.550 on 20 images" in found.message
    assert "corrected for 2 tests" in found.message
    assert found.left_out == ("sex X",)
    assert compare(first, first, eps=at, by=("sex",)).holds


def test_a_subgroup_that_could_not_fail_is_left_out() -> None:
    cells = ["F"] * 5 + ["M"] * (N - 5)
    found = compare(*[grouped(table(ones()), cells)] * 2, eps=LADDER[0], by="sex")
    assert found.left_out == ("sex F",)  # losing all five has p = 2 / 32


def test_what_cannot_be_compared_is_refused() -> None:
    bare, first = table(ones()), grouped(table(ones()), CELLS)
    with pytest.raises(ResultsError, match=r"expected a column of subgroups \(sex\), got 'age'"):
        compare(first, first, by="age")
    with pytest.raises(ResultsError, match="none: the data have no subgroups"):
        compare(bare, bare, by="sex")
    with pytest.raises(ResultsError, match="expected the subgroups of sex of the record"):
        compare(first, grouped(table(ones()), CELLS[::-1]), by="sex")
    small = grouped(table(ones()), ["F"] * 4 + [""] * (N - 4))
    with pytest.raises(ResultsError, match="expected a subgroup of 5 patients or images"):
        compare(small, small, by="sex")
