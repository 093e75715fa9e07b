"""Certified masks on the bench: the record, and a flag where an attack goes below a certificate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from defenses.mask_smoothing import mask_smoothing
from robustbench_med import registry
from robustbench_med.bench.attack_run import run_attack
from robustbench_med.bench.certificates import CERTIFIED_DICE, lowest_dice, mask_certificate
from robustbench_med.bench.check_context import CheckContext
from robustbench_med.bench.check_functions import certificate_above
from robustbench_med.bench.checks import run_checks
from robustbench_med.bench.execute import execute
from robustbench_med.bench.plan import plan
from robustbench_med.bench.record import Record, Stored
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.scoring import score_run
from robustbench_med.bench.setup import AttackSetup, prepare_setup
from robustbench_med.bench.suite import Suite
from robustbench_med.bench.verify.consistency import score_errors
from robustbench_med.cards import AttackCard
from robustbench_med.defense import CertifiedMasks
from robustbench_med.metrics.segmentation import overlap
from robustbench_med.objectives.decide import answer_of
from robustbench_med.rng import seeded
from robustbench_med.shift import MOVED
from robustbench_med.stats import Estimate
from robustbench_med.victim import Victim, frozen
from tests.bench.toys import MODEL, dataset_of, planned_of
from tests.toys import draws, pixel_victim, small_mask_victim

SIGMA = 0.2
RADIUS = 0.134898


def images(n: int, seed: int = 0) -> Tensor:
    """Return noise in whose middle a block is bright; many pixels are near one half."""
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.6
    x[:, :, 2:6, 2:6] += 0.4
    return x


def ready(n: int = 6, victim: Victim | None = None, **fields: Any) -> AttackSetup:  # noqa: ANN401
    victim = pixel_victim() if victim is None else victim
    x = images(n)
    truth = torch.zeros(n, 8, 8, dtype=torch.long)
    truth[:, 2:6, 2:6] = 1
    given = {"classes": ("background", "lesion"), "normal": None, "task": "segmentation"} | fields
    data = dataset_of(x, truth, 2, patients=[f"p{i // 2}" for i in range(n)], **given)
    batch = data.batch("test")
    defended = mask_smoothing(victim, sigma=SIGMA, votes=32, draws=2, n=80)
    assert defended.certify is not None
    with seeded("ready"), frozen(victim.module):
        certified = defended.certify(victim, batch.x, draws(n))
        clean = answer_of(defended.judge.logits(batch.x))
    return AttackSetup(
        batch,
        defended.judge,
        MODEL,
        data,
        clean,
        False,
        guide=defended.guide,
        undefended=victim,
        certified=certified,
    )


def case_of(setup: AttackSetup, **fields: Any) -> ResolvedCase:  # noqa: ANN401
    given = {"norm": "l2", "ladder": (RADIUS / 2, RADIUS), "parameters": {"steps": 10}}
    return planned_of(setup.data, "segpgd", **(given | fields))


def context_of(setup: AttackSetup, planned: ResolvedCase) -> CheckContext:
    run = run_attack(planned, setup)
    card: AttackCard = registry.find("attacks", planned.case.attack)
    return CheckContext(planned, setup, run, score_run(planned, setup, run).audit, card)


def below(context: CheckContext) -> float:
    measured = certificate_above(context)
    assert measured is not None
    return measured.value


def test_the_record_holds_the_certificate_and_each_image_its_part() -> None:
    setup = ready()
    planned = case_of(setup)
    outcome = execute(planned, lambda: setup, command="c", examples=0)
    record, samples = outcome.record, outcome.samples
    proved = record.mask_certificate
    assert proved is not None
    assert record.certificate is None
    assert proved.radius == pytest.approx(RADIUS, abs=1e-5)
    assert proved.alpha == 0.001
    column = samples.loc[samples["eps"] == 0, CERTIFIED_DICE].to_numpy()
    np.testing.assert_array_equal(column, lowest_dice(setup).mean(1))
    assert proved.dice.value == pytest.approx(column.mean())
    assert 0 < proved.dice.low <= proved.dice.value <= proved.dice.high < 1
    assert proved.regions["lesion"] == proved.dice
    assert isinstance(setup.certified, CertifiedMasks)
    sure = setup.certified.label >= 0
    assert proved.certified.value == pytest.approx(float(sure.float().mean()))
    assert proved.inside.value == pytest.approx(float(sure[:, 2:6, 2:6].float().mean()))
    # never above what the attack leaves, image by image
    assert bool((samples["correct"] >= samples[CERTIFIED_DICE] - 1e-9).all())
    assert samples.loc[samples["eps"] > 0, "success"].any() | (samples["correct"] < 1).any()
    assert "certificate_above_attack" not in {flag.name for flag in record.flags}
    checks = {check.name: check.value for check in record.checks}
    assert checks["certificate_above_attack"] == 0
    assert checks["probabilities"] == 0  # shares of votes are not a module's probabilities
    again = Record.model_validate_json(record.model_dump_json())
    assert again.mask_certificate == proved
    assert score_errors(Stored(record, samples, "")) == []
    plain = replace(setup, certified=None)
    other = execute(planned, lambda: plain, command="c", examples=0)
    assert "mask_certificate" not in other.record.model_dump_json()
    assert "certificate_above_attack" not in {check.name for check in other.record.checks}
    assert CERTIFIED_DICE not in other.samples


def test_a_record_cannot_claim_more_than_its_samples() -> None:
    setup = ready(4)
    outcome = execute(case_of(setup), lambda: setup, command="c", examples=0)
    record, samples = outcome.record, outcome.samples
    proved = record.mask_certificate
    assert proved is not None
    better = proved.model_copy(update={"dice": Estimate(value=1.0, low=1.0, high=1.0)})
    claims = record.model_copy(update={"mask_certificate": better})
    assert score_errors(Stored(claims, samples, "")) == [
        f"certified Dice 1.000, of samples that say {proved.dice.value:.3f}"
    ]
    (error,) = score_errors(Stored(claims, samples.assign(**{CERTIFIED_DICE: 1.0}), ""))
    assert error == "a Dice below the certified one on 4 images within its radius, and no flag"
    near = replace_radius(claims, -1.0)  # then nothing is within it
    assert score_errors(Stored(near, samples.assign(**{CERTIFIED_DICE: 1.0}), "")) == []
    (error,) = score_errors(Stored(record, samples.drop(columns=CERTIFIED_DICE), ""))
    assert error == "a certificate of masks, and no column certified_dice in the samples"


def replace_radius(record: Record, radius: float) -> Record:
    assert record.mask_certificate is not None
    proved = record.mask_certificate.model_copy(update={"radius": radius})
    return record.model_copy(update={"mask_certificate": proved})


def test_its_interval_is_by_patient() -> None:
    """Patients with two alike images each: half of the images say as little as half of them."""
    setup = ready(12)
    one = mask_certificate(setup, 0)
    alone = mask_certificate(replace(setup, batch=replace(setup.batch, patients=None)), 0)
    assert one is not None
    assert alone is not None
    assert one.dice.value == alone.dice.value
    assert one.dice.low != alone.dice.low


def test_a_certificate_that_an_attack_goes_below_is_flagged() -> None:
    """The planted fault: a certificate of the truth itself, with a radius that nobody tested."""
    setup = ready()
    assert isinstance(setup.certified, CertifiedMasks)
    planned = case_of(setup, ladder=(0.5, 1.0))
    too_far = setup.certified._replace(label=setup.clean.short(), radius=1.0)
    faulty = context_of(replace(setup, certified=too_far), planned)
    assert below(faulty) >= 4
    flags = run_checks(faulty)[1]
    (flag,) = [flag for flag in flags if flag.name == "certificate_above_attack"]
    assert "below the certified one" in flag.meaning
    # the same attack beyond the radius contradicts nothing
    short = setup.certified._replace(label=setup.clean.short(), radius=0.0)
    assert below(replace(faulty, setup=replace(setup, certified=short))) == 0
    # nor do masks that moved along with the anatomy
    run = faulty.run._replace(rungs=faulty.run.rungs | {MOVED: setup.batch.y[None]})
    assert certificate_above(replace(faulty, run=run)) is None


def test_the_clean_vote_is_held_against_the_certificate_too() -> None:
    setup = ready()
    assert isinstance(setup.certified, CertifiedMasks)
    wrong = setup.certified._replace(label=setup.batch.y.short())
    planned = case_of(setup, ladder=(1e-6,))
    voted = overlap(setup.clean.numpy(), setup.batch.y.numpy(), regions=setup.data.card.parts).mean(
        1
    )
    expected = int((voted < 1).sum())
    assert expected > 3
    assert below(context_of(replace(setup, certified=wrong), planned)) == expected


@pytest.mark.slow
def test_no_attack_goes_below_the_certificate_on_200_images() -> None:
    """A network of random weights on 200 images; an attack at four times the radius does."""
    setup = ready(200, small_mask_victim(2))
    assert isinstance(setup.certified, CertifiedMasks)
    planned = case_of(setup, ladder=(RADIUS / 2, RADIUS), parameters={"steps": 20})
    context = context_of(setup, planned)
    assert below(context) == 0
    assert 0.05 < float((setup.certified.label >= 0).float().mean()) < 1
    far = context_of(setup, case_of(setup, ladder=(4 * RADIUS,), parameters={"steps": 20}))
    reckless = setup.certified._replace(radius=10.0, label=setup.clean.short())
    assert below(replace(far, setup=replace(setup, certified=reckless))) > 20


def test_a_shipped_victim_stays_above_its_certificate() -> None:
    """Eight phantoms from plan to flag; docs/certificates.md has 200 with more votes."""
    grid = {
        "datasets": ["phantom_chest_organs"],
        "victims": ["organs_unet"],
        "defenses": ["mask_smoothing(sigma=0.05, votes=8, draws=1, n0=4, n=60)"],
        "attacks": ["segpgd(steps=4)"],
        "norm": "l2",
        "ladder": [0.033],
        "n": 8,
    }
    suite = Suite.model_validate({"name": "s", "title": "S", "seed": 0, "grids": [grid]})
    (planned,), broken = plan(suite)
    assert not broken
    setup = prepare_setup(planned, torch.device("cpu"))
    proved = mask_certificate(setup, 0)
    assert proved is not None
    context = context_of(setup, planned)
    assert below(context) == 0
    attacked = score_run(planned, setup, context.run).rungs[1].metrics["dice"]
    assert 0.5 < proved.dice.value < attacked.value < 1
    assert set(proved.regions) == {"right lung", "left lung", "heart"}
