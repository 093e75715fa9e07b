"""What a record at an operating point implies of argmax is what a run by argmax measures."""

from __future__ import annotations

import pytest

from robustbench_med import evaluate
from robustbench_med.bench.decision import argmax_score


@pytest.mark.parametrize(
    ("victim", "dataset"),
    [("chest_densenet", "phantom_chest"), ("chest_findings_resnet", "phantom_chest_findings")],
)
def test_argmax_is_read_off_the_samples(victim: str, dataset: str) -> None:
    found = [
        evaluate(victim, dataset, "fgsm", eps="1/255", n=40, operating_point=decided)
        for decided in ("youden", "argmax")
    ]
    youden, plain = (one.records[0] for one in found)
    moved = argmax_score(youden)
    assert moved == plain.record.rungs[0].metrics["accuracy"]
    assert moved is not None
    assert argmax_score(plain) is None  # decided so already
