"""The probes of a finished attack fire where it was too weak, and stay silent where it was not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_med.api import evaluate
from robustbench_med.bench.execute import execute
from robustbench_med.bench.record import Check, Record
from robustbench_med.bench.setup import AttackSetup
from tests.bench.test_checks import Honest, Resizing, record_of, trained
from tests.bench.test_checks import images as three_patterns
from tests.bench.test_gradient_check import DISAGREE, score_of
from tests.bench.toys import dataset_of, planned_of, prepared_of
from tests.toys import Linear, grey_images, victim_of


def check_of(record: Record, name: str) -> Check | None:
    return next((check for check in record.checks if check.name == name), None)


def raised(record: Record) -> set[str]:
    return {flag.name for flag in record.flags}


# --- findings: PGD toward the nearest -------------------------------------------------------------

EPS = 0.02


def small_logits() -> tuple[AttackSetup, float]:
    """Return six findings of small logits, of which only the flattest can be reached.

    Each image's distance to the plane of the first finding is known; those of the other five are
    steeper, and too far away for the radius.

    Returns:
        The findings, and the share of the images that stand whatever the attack.
    """
    x = grey_images(32, seed=5)
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    slopes = torch.tensor([0.05, *[0.5] * 5])
    w *= (slopes / w.abs().sum(1))[:, None]  # of a change of 1 in L-inf
    logits = x.flatten(1) @ w.T
    b = -logits.median(0).values
    b[1:] += torch.tensor([0.05, -0.05, 0.05, -0.05, 0.05])
    victim = victim_of(Linear(w, b))
    data = dataset_of(x, (logits + b > 0).long(), 6, task="multi_label")
    setup = prepared_of(victim, data)
    with torch.no_grad():
        away = (victim(setup.batch.x).logits.abs() / slopes).amin(1)
    return setup, float((away > EPS).float().mean())


@pytest.mark.parametrize("attack", ["pgd", "bim"])
def test_an_attack_on_the_sum_of_findings_out_of_reach_is_beaten_by_margin(attack: str) -> None:
    setup, stands = small_logits()

    def record(loss: str) -> Record:
        steps = {"steps": 40, "loss": loss}
        planned = planned_of(setup.data, attack, ladder=(EPS,), parameters=steps)
        return execute(planned, lambda: setup, command="", examples=0).record

    weak = record("summed")
    found = check_of(weak, "margin_beats_attack")
    assert found is not None
    assert found.value > 1
    assert "margin_beats_attack" in raised(weak)
    assert score_of(weak) > stands + 0.1
    for loss in ("cross_entropy", "margin"):  # the default is the nearest finding
        strong = record(loss)
        assert score_of(strong) == pytest.approx(stands, abs=0.05)
        assert "margin_beats_attack" not in raised(strong)


def test_an_ensemble_whose_members_follow_each_finding_is_not_asked() -> None:
    setup, _ = small_logits()
    given = {"steps": 5, "queries": 5, "targets": 2}
    planned = planned_of(setup.data, "ensemble", parameters=given, ladder=(EPS,))
    record = execute(planned, lambda: setup, command="c", examples=0).record
    assert check_of(record, "margin_beats_attack") is None


def test_classes_have_no_nearest_finding() -> None:
    assert check_of(record_of(trained(Honest)), "margin_beats_attack") is None


# --- steps that do not suit the model -------------------------------------------------------------

RADII: dict[str, tuple[float, ...]] = {"l2": (0.2, 0.4, 0.6), "linf": (0.03, 0.06, 0.1)}
WRONG = [{"total_step": 0.1}, {"total_step": 0.5}, {"total_step": 0.5, "random_start": False}]
RIGHT: list[dict[str, Any]] = [{}, {"total_step": 2.5}, {"total_step": 2.5, "restarts": 2}]


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("given", WRONG)
def test_steps_too_short_are_beaten_by_a_short_apgd(norm: str, given: dict[str, Any]) -> None:
    parameters = {"steps": 40} | given
    record = record_of(trained(Honest), norm=norm, ladder=RADII[norm], parameters=parameters)
    assert "apgd_beats_attack" in raised(record)
    (flag,) = (flag for flag in record.flags if flag.name == "apgd_beats_attack")
    assert "step size does not suit this model" in flag.meaning


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("given", RIGHT)
def test_steps_that_arrive_are_not(norm: str, given: dict[str, Any]) -> None:
    parameters = {"steps": 40} | given
    record = record_of(trained(Honest), norm=norm, ladder=RADII[norm], parameters=parameters)
    assert check_of(record, "apgd_beats_attack") is not None
    assert raised(record) == set()


@pytest.mark.parametrize("attack", ["apgd", "ensemble", "deepfool", "fgsm"])
def test_attacks_without_such_steps_are_not_asked(attack: str) -> None:
    given = {"steps": 5, "queries": 20} if attack == "ensemble" else {}
    record = record_of(trained(Honest), attack, ladder=(0.06,), parameters=given)
    assert check_of(record, "apgd_beats_attack") is None


# --- honest victims whose gradients are not those of one answer -----------------------------------


class Noisy(Honest):
    def before(self, x: Tensor) -> Tensor:
        return x + 0.05 * torch.randn_like(x)


def evaluated(
    kind: type[Honest],
    defense: str = "none",
    attack: str = "pgd",
    **given: Any,  # noqa: ANN401
) -> Record:
    """Return the record of a module behind a defense."""
    x, y = three_patterns()
    module = trained(kind).module
    spec = "apgd(eps=0.03, steps=8)" if attack == "apgd" else f"{attack}(eps=0.03)"
    found = evaluate(module, dataset_of(x, y, 3), spec, defense=defense, **given)
    return found.records[0].record


@pytest.mark.parametrize("attack", ["pgd", "fgsm", "apgd"])
@pytest.mark.parametrize(
    ("kind", "defense", "given"),
    [
        (Noisy, "none", {"draws": 8}),
        (Resizing, "none", {"draws": 8}),
        (Honest, "random_resize_pad(draws=4)", {}),
        (Honest, "smoothing(sigma=0.05, draws=4, n=20)", {}),
        (Honest, "jpeg", {}),
        (Honest, "bit_depth", {}),
        (Honest, "bit_depth(bits=2)", {}),
        (Honest, "median_filter", {}),
        (Honest, "total_variation(steps=5)", {}),
    ],
)
def test_draws_and_gradients_around_a_defense_are_no_lies(
    kind: type[Honest], defense: str, given: dict[str, Any], attack: str
) -> None:
    record = evaluated(kind, defense, attack, **given)
    assert record.status == "ok"
    assert not DISAGREE & raised(record)


class Opposite(Noisy):
    """Draws, and lies."""

    def before(self, x: Tensor) -> Tensor:
        noisy = super().before(x)
        # the value of `noisy`, the gradient of `-noisy`
        turned: Tensor = noisy.detach() * 2 - noisy
        return turned


@pytest.mark.parametrize(
    ("defense", "given"),
    [
        ("none", {"draws": 8}),
        pytest.param("jpeg", {"draws": 8, "n": 12}, marks=pytest.mark.slow),
        ("bit_depth", {"draws": 8}),
    ],
)
def test_a_victim_that_draws_and_lies_is_caught(defense: str, given: dict[str, Any]) -> None:
    assert DISAGREE & raised(evaluated(Opposite, defense, **given))
