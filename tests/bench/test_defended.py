"""Defended victims in the bench: cases, who knows what, what is attacked, and what counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.pgd import pgd
from robustbench_med import registry, spec
from robustbench_med.ball import Ball
from robustbench_med.bench import attack_run, scoring
from robustbench_med.bench.certificates import certificate
from robustbench_med.bench.check_context import CheckContext, RecordingVictim
from robustbench_med.bench.defense_spec import resolve_defense
from robustbench_med.bench.plan import plan
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.sample_metrics import UnattackedImages
from robustbench_med.bench.setup import AttackSetup, attacker_view, crafting_key, prepare_setup
from robustbench_med.bench.suite import Suite, find_suite
from robustbench_med.bench.transfer import Surrogate
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.defense import Certified, Fitting, guarded, threshold_of
from robustbench_med.errors import SpecError
from robustbench_med.models.guide import through
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.objectives.evade_detector import EvadeDetector
from robustbench_med.problem import Problem
from robustbench_med.types import Batch, Images, Logits
from robustbench_med.victim import frozen
from tests.bench.toys import dataset_of, planned_of, prepared_of
from tests.toys import Linear, victim_of


def planned_with(**fields: Any) -> list[ResolvedCase]:  # noqa: ANN401
    grid = {
        "datasets": ["phantom_fundus"],
        "victims": ["fundus_resnet"],
        "attacks": ["pgd(steps=2)"],
        "ladder": ["2/255"],
        "n": 4,
    }
    values = {"name": "s", "title": "S", "seed": 0, "grids": [{**grid, **fields}]}
    planned, broken = plan(Suite.model_validate(values))
    assert not broken
    return planned


def test_a_defense_is_a_case_for_each_attacker() -> None:
    planned = planned_with(
        defenses=["none", "bit_depth", "mahalanobis"],
        knowledge=["adaptive", "oblivious"],
        attacks=["pgd(steps=2)", "square(queries=5)"],
    )
    found = [(p.case.defense.split("(")[0], p.case.knowledge, p.case.attack) for p in planned]
    both = [("adaptive", "pgd"), ("adaptive", "square"), ("oblivious", "pgd")]
    alone = [("none", "adaptive", "pgd"), ("none", "adaptive", "square")]
    wrapped = [(name, *rest) for name in ("bit_depth", "mahalanobis") for rest in both]
    assert sorted(found) == sorted(alone + wrapped)
    assert len({p.case.id for p in planned}) == len(planned)
    assert planned[0].case.defense == "none"
    assert {p.case.defense for p in planned if "bit" in p.case.defense} == {"bit_depth(bits=4)"}


def test_another_detector_is_evaded_in_the_place_of_the_one_deployed() -> None:
    fields: dict[str, Any] = {"defenses": ["lid"], "attacks": ["pgd(steps=2)", "square(queries=5)"]}
    (planned,) = planned_with(knowledge=["feature_mixture"], **fields)
    assert planned.case.evaded_detector == "feature_mixture(fpr=0.05, components=2, fit=512)"
    mixture = planned_with(defenses=["feature_mixture"], attacks=["pgd(steps=2)"])[0]
    cpu = torch.device("cpu")
    setup, own = (prepare_setup(one, cpu) for one in (planned, mixture))
    seen = attacker_view(setup, planned)
    assert setup.surrogate is None
    assert setup.undefended is not None
    oblivious = planned._replace(defense=planned.defense._replace(evaded=None))
    assert attacker_view(setup, oblivious) is setup.undefended
    with frozen(seen.module):
        found = seen.outputs(setup.batch.x).suspicion
    torch.testing.assert_close(found, own.suspicion)
    goal = EvadeDetector(Untargeted())
    posed = Surrogate(seen, planned.data.card, "white_box").view(
        Problem(setup.batch.x, setup.batch.y, Ball("linf", EPS), goal, setup.victim),
        use_all_steps=False,
    )
    assert posed.judge is not setup.victim  # the detector deployed is asked nothing
    assert isinstance(posed.objective, EvadeDetector)
    assert (posed.objective.base, posed.objective.loss) == (goal.base, "both")


@pytest.mark.parametrize(
    ("defense", "knowledge", "got"),
    [
        ("lid", "both", "got 'both'"),
        ("lid", "jpeg", r"got 'jpeg' before lid\("),
        ("jpeg", "lid", r"got 'lid' before jpeg\(quality=75\)"),
    ],
)
def test_knowledge_that_nobody_can_have(defense: str, knowledge: str, got: str) -> None:
    with pytest.raises(SpecError, match=f"expected knowledge adaptive, oblivious, .*{got}"):
        planned_with(defenses=[defense], knowledge=[knowledge])


def test_only_a_fitted_defense_hangs_on_the_training_images() -> None:
    planned = planned_with(defenses=["bit_depth", "mahalanobis"])
    assert [bool(p.case.train_sha256) for p in planned] == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pgd_at", "wraps a victim, got one that retrains it: run `train CARD --defense pgd_at`"),
        ("bit_depth(bit=3)", r"expected a known parameter \(bits\), got 'bit'"),
        ("bit_depth(bits=9)", "bit_depth: expected bits in 1..8, got 9"),
        ("feature_squeezing(bits=0)", "feature_squeezing: expected bits > 0, got 0"),
        ("feature_squeezing(window=-1)", "feature_squeezing: expected window > 0, got -1"),
        ("jpeg(quality='a')", "expected quality to be of type int"),
        ("mahalanobis(fpr=1.5)", r"expected fpr in \(0,1\), got 1.5"),
        ("nothing", "expected a known defense, got 'nothing'"),
    ],
)
def test_a_defense_that_cannot_be_put_on_is_told_before_any_work(text: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        planned_with(defenses=[text])


def test_a_defense_says_which_tasks_it_takes() -> None:
    with pytest.raises(SpecError, match="expected single_label or multi_label data, got segment"):
        planned_with(
            datasets=["phantom_vessels"], victims=["vessels_fcn"], defenses=["mahalanobis"]
        )


def test_no_defense_is_spelled_none() -> None:
    assert resolve_defense("none").text == "none"


def test_the_threshold_rejects_no_more_than_its_share() -> None:
    scores = torch.randn(997, generator=torch.Generator().manual_seed(0))
    for fpr in (0.01, 0.05, 0.5):
        threshold, _ = threshold_of(scores, fpr=fpr)
        rejected = float((scores > threshold).float().mean())
        assert fpr - 1 / 997 < rejected <= fpr
    assert threshold_of(torch.zeros(20), fpr=0.05)[0] == 0.0  # ties: nobody is rejected


# --- a linear victim on two pixels: both decide, the second is what a detector looks at ---


def suspect(x: Images, _: Logits) -> Tensor:
    """Suspicious as the second pixel."""
    return x.flatten(1)[:, 1]


EPS = 0.25


def posed() -> tuple[Dataset, AttackSetup]:
    """Return images of class 0, of which the first three are rejected when clean."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(24, 2, generator=generator) * 0.1 + torch.tensor([0.5, 0.25])
    pixels[:3, 1] = 0.4
    x = pixels.view(24, 1, 1, 2)
    w, b = torch.tensor([[0.0, 0.0], [20.0, 20.0]]), torch.tensor([0.0, -20.0])
    victim = victim_of(Linear(w, b), size=(1, 2))
    data = dataset_of(x, torch.zeros(24, dtype=torch.int64), 2)
    bare = prepared_of(victim, data)
    batch = data.batch("test")
    val = Batch(batch.x[3:], batch.y[3:], batch.ids[3:], None)
    fitting = Fitting(val, val, data.card, 0, attacked=lambda b: b.x)
    judge = guarded(victim, suspect, fitting=fitting, fpr=0.05).judge
    seen = judge.outputs(batch.x).suspicion
    return data, replace(bare, victim=judge, undefended=victim, suspicion=seen)


def walked(
    knowledge: str,
    **parameters: Any,  # noqa: ANN401
) -> tuple[ResolvedCase, AttackSetup, attack_run.AttackRun]:
    data, setup = posed()
    planned = planned_of(
        data, "pgd", knowledge=knowledge, defense="d", ladder=(EPS,), parameters=parameters
    )
    if knowledge == "oblivious":
        assert setup.undefended is not None
        setup = replace(setup, surrogate=Surrogate(setup.undefended, data.card, "white_box"))
    return planned, setup, attack_run.run_attack(planned, setup)


def test_what_is_rejected_when_clean_is_lost_and_not_attacked() -> None:
    planned, setup, run = walked("adaptive")
    assert setup.suspicion is not None
    rejected = setup.suspicion > 0
    assert rejected[:3].all()
    assert int(rejected.sum()) == 4  # and the one of 21 that the threshold gives up
    assert not run.attacked[rejected].any()
    assert run.attacked[~rejected].all()
    samples = scoring.score_run(planned, setup, run).samples
    clean = samples[samples["eps"] == 0]
    np.testing.assert_array_equal(clean["correct"], ~rejected.numpy())
    np.testing.assert_array_equal(clean["rejected"], rejected.numpy())


def test_who_does_not_know_the_detector_is_caught_and_who_knows_it_is_not() -> None:
    _, _, blind = walked("oblivious")
    _, _, knowing = walked("adaptive")
    assert (blind.rungs["suspicion"] > 0).all()  # the sign of the gradient raises both pixels
    assert not blind.rungs["success"].any()
    assert knowing.rungs["success"].all()
    assert (knowing.rungs["suspicion"] <= 0).all()


def test_who_knows_the_detector_goes_on_where_it_lets_him_pass() -> None:
    """The search that stops ends at the threshold, which 95 % of clean images lie below."""
    planned, setup, blind = walked("oblivious")
    # equal steps: one of the whole radius jumps far beyond the threshold by itself
    _, _, knowing = walked("adaptive", loss="selective", total_step=2.5)
    stopped = pgd(knowing.problem.bind(), rng=knowing.rng, loss="selective", total_step=2.5)
    calm = knowing.problem.outputs(stopped).suspicion
    assert calm is not None
    assert knowing.rungs["suspicion"].mean() < calm.mean() - 0.1
    areas = [
        scoring.score_run(planned, setup, run).rungs[1].metrics["auroc"].value
        for run in (knowing, blind)
    ]
    assert areas[0] < areas[1] - 0.2


def test_an_image_that_is_rejected_is_no_success_passed_over() -> None:
    _, setup, run = walked("adaptive")
    watch = RecordingVictim(run.problem)
    x = run.problem.x
    high = x + torch.tensor([0.0, EPS])  # called wrong, and suspicious
    assert (run.problem.judge(high).logits.argmax(1) == 1).all()
    watch(high)
    assert not watch.ever.any()
    low = x + torch.tensor([EPS, 0.0])
    watch(low)
    assert watch.ever.all()


def test_clean_images_that_nobody_attacked_are_told_from_all_that_were() -> None:
    planned, setup, run = walked("oblivious")
    rest = UnattackedImages(np.linspace(-1, -0.5, 120), None)
    halves = scoring.score_run(planned, setup, run).rungs[1].metrics
    whole = scoring.score_run(planned, replace(setup, unattacked=rest), run).rungs[1].metrics
    assert whole["positives"].value == 20
    assert halves["positives"].value < 20
    assert np.isnan(halves["tpr_at_1"].value)
    assert whole["tpr_at_1"].value == 1
    assert whole["false_alarms"].value == pytest.approx(1000 * 4 / 144)
    few = replace(setup, unattacked=UnattackedImages(rest.suspicion[:10], None))
    assert scoring.score_run(planned, few, run).rungs[1].metrics["positives"] == halves["positives"]


def test_no_metric_stands_beside_an_accuracy_that_counts_rejections_and_does_not() -> None:
    planned, setup, run = walked("oblivious")
    names = set(scoring.score_run(planned, setup, run).rungs[1].metrics)
    assert (
        "balanced_accuracy"
        in scoring.score_run(planned, replace(setup, suspicion=None), run).rungs[1].metrics
    )
    assert not {name for name in names if "balanced" in name or name.startswith("flip")}


def test_every_board_of_detectors_has_attacks_that_do_not_only_climb_both_losses_at_once() -> None:
    """Joint PGD breaks no image behind feature squeezing where the others break 20 of 35."""
    grids = find_suite("defenses").grids
    boards: dict[tuple[str, str], set[str]] = {}
    for grid in grids:
        for text in grid.defenses:
            if (
                grid.norm == "linf"
                and "adaptive" in grid.knowledge
                and resolve_defense(text).guards
            ):
                for name in grid.datasets:
                    attacks = {spec.parse(attack).name for attack in grid.attacks}
                    boards.setdefault((name, text), set()).update(attacks)
    assert len(boards) == 3 * 4 + 4
    assert all({"pgd", "apgd", "orthogonal_pgd"} <= attacks for attacks in boards.values())


def test_an_oblivious_attacker_wants_what_he_wants_of_the_bare_victim() -> None:
    _, setup, run = walked("oblivious")
    assert setup.surrogate is not None
    seen = setup.surrogate.view(run.problem, use_all_steps=False)
    assert isinstance(run.problem.objective, EvadeDetector)
    assert isinstance(seen.objective, Untargeted)


def test_a_watched_attack_climbs_the_guide_and_is_judged_by_the_judge() -> None:
    data, setup = posed()
    assert setup.undefended is not None
    judge = replace(setup.undefended, before=lambda x: (x * 4).round() / 4)  # no slope anywhere
    view = replace(setup.undefended, before=through(judge.before or torch.round))
    planned = planned_of(data, "pgd", parameters={"steps": 5}, ladder=(0.05,))
    setup = replace(prepared_of(judge, data), guide=view)
    run = attack_run.run_attack(planned, setup)
    audit = scoring.score_run(planned, setup, run).audit
    found = CheckContext(planned, setup, run, audit, registry.find("attacks", "pgd"))
    assert found.watched is not None
    watch, verdict = found.watched
    assert run.counter.zero == 0
    assert watch.climbed[-1].mean() > watch.climbed[0].mean()
    assert not (watch.ever & ~verdict.success).any()


def test_a_caught_image_counts_as_right_though_it_is_called_wrong() -> None:
    planned, setup, run = walked("oblivious")
    found = scoring.score_run(planned, setup, run)
    attacked = found.samples[(found.samples["eps"] > 0) & found.samples["attacked"]]
    assert (attacked["prediction"] == 1).all()
    assert attacked["rejected"].all()
    assert attacked["correct"].all()
    metrics = found.rungs[1].metrics
    assert metrics["accuracy"].value == pytest.approx(20 / 24)
    assert metrics["attack_success"].value == 0
    assert metrics["auroc"].value > 0.9
    assert metrics["detected"].value == 1
    assert metrics["false_alarms"].value == pytest.approx(1000 * 4 / 24)


def test_candidates_of_an_oblivious_attacker_are_shared_by_the_defenses_of_one_victim() -> None:
    data, _ = posed()
    one, other, trained_anew = (
        planned_of(data, "pgd", knowledge="oblivious", defense=text, victim_sha256=weights).case
        for text, weights in (("d", "1" * 64), ("e", "1" * 64), ("d", "2" * 64))
    )
    assert crafting_key(one) == crafting_key(other)
    assert crafting_key(one) != crafting_key(trained_anew)


def test_the_curve_of_a_certificate() -> None:
    data, setup = posed()
    label = torch.zeros(24, dtype=torch.int64)
    label[:6], label[6:12] = -1, 1
    radius = torch.where(label < 0, 0.0, torch.linspace(0.5, 1.0, 24))
    found = certificate(replace(setup, certified=Certified(label, radius)))
    assert found is not None
    assert found.radii[0] == 0
    assert found.radii[-1] == 1
    assert found.abstained.value == 0.25
    assert found.correct[0].value == 0.5
    assert found.correct[-1].value == pytest.approx(1 / 24)
    assert certificate(setup) is None
