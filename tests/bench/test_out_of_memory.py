"""A whole case on a model that runs out of memory above a few images: the same record."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from robustbench_med.bench.execute import Outcome, execute
from robustbench_med.bench.setup import prepare_setup
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import MemoryLimitError
from robustbench_med.models.load import Loaded
from robustbench_med.victim import Victim
from tests.bench.toys import MODEL, dataset_of, planned_of
from tests.test_chunks import holding
from tests.toys import grey_images

CPU = torch.device("cpu")


def outcome_of(victim: Victim, attack: str, data: Dataset) -> Outcome:
    loaded = Loaded(victim, MODEL, "1" * 64)
    planned = planned_of(
        data,
        attack,
        parameters={"steps": 6},
        ladder=(0.02, 0.04, 0.08, 0.16),
        operating_point="argmax",
    )
    planned = planned._replace(loaded=loaded)
    return execute(planned, partial(prepare_setup, planned, CPU), command="", examples=1)


@pytest.mark.parametrize("attack", ["pgd", "deepfool"])
def test_a_case_goes_on_with_smaller_batches(attack: str) -> None:
    scarce, module, enough = holding(11, 5)
    x = grey_images(24)
    y = enough.logits(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    data = dataset_of(x, y, 3)
    few, many = outcome_of(scarce, attack, data), outcome_of(enough, attack, data)
    assert scarce.limit.most is not None
    assert scarce.limit.most <= 5
    assert max(module.sizes) == 24  # the first pass failed
    assert few.record.flags == many.record.flags
    costs = [outcome.record.cost for outcome in (few, many)]
    assert len({(cost.forward, cost.backward) for cost in costs if cost is not None}) == 1
    for name in ("success", "prediction", "correct", "attacked"):
        assert few.samples[name].tolist() == many.samples[name].tolist()
    assert many.samples["success"].sum() > 0
    distances = [outcome.samples["distance"].to_numpy() for outcome in (few, many)]
    np.testing.assert_allclose(distances[0], distances[1], rtol=1e-4)
    assert np.isfinite(distances[1]).any()


def test_a_model_too_large_for_one_image_says_so() -> None:
    scarce, _, enough = holding(3, 0)  # a gradient needs more than there is
    x = grey_images(8)
    data = dataset_of(x, enough.logits(x).argmax(1), 3)
    with pytest.raises(MemoryLimitError, match="out of memory with a single image"):
        outcome_of(replace(scarce, chunk=4), "pgd", data)
