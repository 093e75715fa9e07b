"""Universal attacks: fitted on the training split, applied to the test split, two counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from robustbench_med.ball import Ball
from robustbench_med.bench.execute import Outcome, execute
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.universal_run import PATTERNS
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.errors import DataError
from tests.bench.toys import card_of, planned_of, prepared_of
from tests.toys import grey_images, linear_victim

N = 60
LADDER = (0.002, 0.02, 0.08)


def split_data(*, train: bool = True) -> tuple[Dataset, list[str]]:
    """Return data whose splits hold other images; every split asked for is noted."""
    victim = linear_victim(2, scale=3.0)
    asked: list[str] = []

    def read(split: SplitName) -> Arrays:
        if split == "train" and not train:
            raise DataError("toy: expected a train split, got none")
        asked.append(split)
        x = grey_images(N, seed={"train": 1, "val": 2, "test": 3}[split])
        y = victim.logits(x).argmax(1)
        y[::10] = 1 - y[::10]
        ids = np.array([f"{split}{i}" for i in range(N)])
        return Arrays(x[:, 0].numpy(), y.numpy(), ids, None)

    return Dataset(card_of(grey_images(1), 2), read), asked


def outcome_of(attack: str, **fields: Any) -> tuple[Outcome, AttackSetup]:  # noqa: ANN401
    data, _ = split_data()
    setup = prepared_of(linear_victim(2, scale=3.0), data)
    planned = planned_of(data, attack, **{"ladder": LADDER, "n_fit": 40, **fields})
    return execute(planned, lambda: setup, command="", examples=1), setup


def test_both_counts_and_the_control_are_those_of_all_images() -> None:
    outcome, setup = outcome_of("uap_gradient")
    spread = outcome.record.universal
    assert spread is not None
    assert spread.n_fit == 40
    patterns = load(outcome.files[PATTERNS])
    x, y = setup.batch.x, setup.batch.y
    clean = setup.clean.argmax(1)
    for i, (rung, eps) in enumerate(zip(spread.rungs, LADDER, strict=True)):
        pattern: Tensor = patterns[f"rung_{i}"]
        z = Ball("linf", eps).project(x + pattern, x)
        called = setup.victim.logits(z).argmax(1)
        assert rung.changed.value == pytest.approx(float((called != clean).float().mean()))
        assert rung.wrong.value == pytest.approx(float((called != y).float().mean()))
        assert rung.linf <= eps * (1 + 1e-5)
    last = spread.rungs[-1]
    assert last.wrong.value != last.changed.value  # some start out wrong
    assert last.changed.value > last.control_changed.value + 0.2


def test_success_is_that_of_the_one_pattern_at_each_radius() -> None:
    outcome, setup = outcome_of("uap")
    patterns = load(outcome.files[PATTERNS])
    samples = outcome.samples
    for i, eps in enumerate(LADDER):
        z = Ball("linf", eps).project(setup.batch.x + patterns[f"rung_{i}"], setup.batch.x)
        wrong = (setup.victim.logits(z).argmax(1) != setup.batch.y).numpy()
        rows = samples[samples["eps"] == eps]
        attacked = rows["attacked"].to_numpy()
        assert (rows["success"].to_numpy()[attacked] == wrong[attacked]).all()
        assert len(attacked) == N


def test_it_is_fitted_on_training_images_only() -> None:
    data, asked = split_data()
    setup = prepared_of(linear_victim(2, scale=3.0), data)
    asked.clear()
    execute(planned_of(data, "uap", ladder=LADDER, n_fit=10), lambda: setup, command="", examples=0)
    assert set(asked) <= {"train"}


def test_a_ratio_of_the_mean_norm_is_a_radius() -> None:
    outcome, _ = outcome_of("uap_gradient", norm="l2", ladder=(0.01, 0.05), budget="mean_norm")
    train = split_data()[0].batch("train").x
    unit = float(train.flatten(1).norm(dim=1).mean())
    assert outcome.record.radii == pytest.approx((0.01 * unit, 0.05 * unit))
    assert [rung.eps for rung in outcome.record.rungs] == [0.0, 0.01, 0.05]
    audit = outcome.record.audit
    assert audit is not None
    assert audit.over_budget == 0
    assert math.isclose(audit.max_size[1], 0.05 * unit, rel_tol=0.05)


def test_a_picture_shows_the_fitted_pattern() -> None:
    outcome, _ = outcome_of("uap_gradient")
    assert outcome.record.examples
    assert torch.isfinite(load(outcome.files[PATTERNS])["rung_2"]).all()


def test_nothing_to_attack_is_no_crash() -> None:
    data, _ = split_data()
    setup = prepared_of(linear_victim(2, scale=3.0), data)
    objective = "targeted(target=1)"
    rows = np.flatnonzero(setup.batch.y.numpy() == 1)[:3]
    few = replace(
        setup.batch, x=setup.batch.x[rows], y=setup.batch.y[rows], ids=setup.batch.ids[rows]
    )
    setup = replace(setup, batch=few, clean=setup.clean[rows])
    planned = planned_of(data, "uap_gradient", ladder=LADDER, n_fit=20, objective=objective)
    record = execute(planned, lambda: setup, command="", examples=1).record
    assert record.status == "ok"
    assert record.universal is not None
    assert np.isnan(record.universal.rungs[0].success.value)


def test_a_pattern_is_better_than_a_random_one_of_its_size() -> None:
    for attack in ("uap", "uap_gradient"):
        outcome, _ = outcome_of(attack)
        checks = {check.name: check for check in outcome.record.checks}
        assert checks["universal_below_control"].value < 0
        spread = outcome.record.universal
        assert spread is not None
        assert spread.rungs[-1].success.value > spread.rungs[-1].control_success.value
