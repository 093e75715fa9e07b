"""The committed records bear out themselves: a new way to count asks for new records."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_med.bench import store
from robustbench_med.bench.verify.consistency import contradictions, layout_errors

RECORDS = Path(__file__).parents[2] / "results"
SUITES = ("quick", "attacks", "medmnist", "segmentation", "defenses", "studies")
SOME = 8  # every eighth is counted anew in full


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite", ["quick", "attacks", "medmnist", "segmentation", "defenses", "studies"]
)
def test_committed_records_say_what_their_samples_say(suite: str) -> None:
    found, damaged = store.read_each(RECORDS / suite)
    assert found
    assert not damaged
    assert not [one for one in found if one.record.provenance.git_dirty]
    for one in found[::SOME]:
        if one.record.status == "ok":
            assert [*layout_errors(one), *contradictions(one)] == []
