"""A case walked and scored: batch independence, the budget audit, the samples table, pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attacks.fgsm import fgsm
from robustbench_med.bench.attack_run import AttackRun, run_attack
from robustbench_med.bench.execute import execute
from robustbench_med.bench.gallery import make_pictures, png, words
from robustbench_med.bench.scoring import Scores, score_run
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.errors import InvalidOutputError, VictimError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images
from robustbench_med.victim import Victim
from tests.bench.conftest import Plant
from tests.bench.toys import LADDER, dataset_of, planned_of, prepared_of
from tests.toys import generic_victim, grey_images, linear_victim, small_victim, victim_of

N = 64


def ready_for(victim: Victim, n: int = N, *, seed: int = 1, **fields: Any) -> AttackSetup:  # noqa: ANN401
    """Return images of which the victim calls one in eight wrong."""
    x = grey_images(n, seed=seed)
    logits = victim.logits(x)
    k = logits.shape[1]
    y = logits.argmax(1) if k > 1 else (logits[:, 0] > 0).long()
    y[::8] = (y[::8] + 1) % max(k, 2)
    return prepared_of(victim, dataset_of(x, y, max(k, 2), **fields))


def rows_of(setup: AttackSetup, rows: Tensor) -> AttackSetup:
    b = setup.batch
    patients = None if b.patients is None else b.patients[rows.numpy()]
    batch = replace(b, x=b.x[rows], y=b.y[rows], ids=b.ids[rows.numpy()], patients=patients)
    return replace(setup, batch=batch, clean=setup.clean[rows])


def verdicts(run: AttackRun, setup: AttackSetup) -> dict[str, list[bool]]:
    ids = setup.batch.ids[run.attacked.numpy()]
    return {str(i): run.rungs["success"][:, j].tolist() for j, i in enumerate(ids)}


def scored(setup: AttackSetup, attack: str = "pgd", **fields: Any) -> tuple[AttackRun, Scores]:  # noqa: ANN401
    planned = planned_of(setup.data, attack, **fields)
    run = run_attack(planned, setup)
    return run, score_run(planned, setup, run)


# --- walk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_verdicts_depend_on_neither_batch_nor_order(attack: str) -> None:
    setup = ready_for(generic_victim(3))
    # steps too few to reach every boundary: here the random start decides some verdicts
    given = {"parameters": {"steps": 3, "total_step": 1.0}} if attack == "pgd" else {}
    planned = planned_of(setup.data, attack, ladder=(0.02, 0.04, 0.08, 0.16), **given)
    expected = verdicts(run_attack(planned, setup), setup)
    assert 0.1 < np.mean(list(expected.values())) < 0.9
    for size in (1, 7, 64):
        found: dict[str, list[bool]] = {}
        order = torch.randperm(N, generator=torch.Generator().manual_seed(size))
        for rows in order.split(size):
            part = rows_of(setup, rows)
            part = replace(part, victim=replace(part.victim, chunk=size))
            found |= verdicts(run_attack(planned, part), part)
        assert found == expected, size


def test_the_seed_reaches_the_attack() -> None:
    setup = ready_for(generic_victim(3))
    given = {"steps": 1, "total_step": 0.1}
    a, b = (
        run_attack(planned_of(setup.data, seed=seed, parameters=given), setup).rungs["answer"]
        for seed in (0, 1)
    )
    assert not torch.equal(a, b)


def test_only_what_the_victim_calls_right_is_attacked() -> None:
    setup = ready_for(generic_victim(3))
    run = run_attack(planned_of(setup.data), setup)
    assert torch.equal(run.attacked, setup.clean.argmax(1) == setup.batch.y)
    assert int((~run.attacked).sum()) == N // 8
    assert run.counter.forward > N
    assert run.ladder is not None
    assert run_attack(planned_of(setup.data, "fgsm"), setup).ladder is None


@pytest.mark.parametrize("k", [1, 2, 3])
def test_unlabelled_images_are_neither_attacked_nor_scored(k: int) -> None:
    victim = generic_victim(k)
    setup = ready_for(victim)
    y = setup.batch.y.clone()
    y[1:4] = -1
    setup = prepared_of(victim, dataset_of(setup.batch.x, y, max(k, 2)))
    run, scores = scored(setup, "fgsm")
    assert len(setup.batch) == N - 3
    assert not {"s001", "s002", "s003"} & set(scores.samples["sample"])
    assert int((~run.attacked).sum()) == N // 8
    assert scores.rungs[0].metrics["accuracy"].value == pytest.approx(1 - 8 / (N - 3))


def test_the_victim_is_as_it_was_after_an_attack_and_frozen_during_it(
    plant: Plant,
) -> None:
    victim = small_victim(2)
    setup = ready_for(victim, 16)
    victim.module.train()
    first = next(victim.module.parameters()).requires_grad_(False)
    seen: list[bool] = []

    def watching(problem: Problem, *, rng: Draws) -> Images:
        seen.append(any(part.training for part in victim.module.modules()))
        seen.append(any(p.requires_grad for p in victim.module.parameters()))
        return fgsm(problem, rng=rng)

    run_attack(planned_of(setup.data, plant(watching)), setup)
    assert seen
    assert not any(seen)
    assert all(part.training for part in victim.module.modules())
    assert not first.requires_grad
    assert all(p.requires_grad for p in list(victim.module.parameters())[1:])


def test_a_targeted_objective_attacks_the_other_classes() -> None:
    setup = ready_for(generic_victim(3))
    run, scores = scored(setup, objective="targeted(target=1)")
    assert not run.attacked[setup.batch.y == 1].any()
    broken = scores.samples["success"].to_numpy()
    assert broken.any()
    assert (scores.samples["prediction"].to_numpy()[broken] == 1).all()


# --- the table and the metrics -------------------------------------------------------------------


def test_the_samples_table() -> None:
    setup = ready_for(generic_victim(3))
    run, scores = scored(setup)
    table = scores.samples
    assert len(table) == N * (1 + len(LADDER))
    assert sorted(table["eps"].unique()) == [0.0, *LADDER]
    for i, eps in enumerate((0.0, *LADDER)):
        part = table[table["eps"] == eps]
        assert part["sample"].tolist() == setup.batch.ids.tolist()
        assert (part["attacked"].to_numpy() == run.attacked.numpy()).all()
        assert (part["correct"] == (part["prediction"] == part["truth"])).all()
        chances = np.stack(part["scores"].to_list())
        assert chances.sum(1) == pytest.approx(np.ones(N))
        assert (chances.argmax(1) == part["prediction"]).all()
        if eps == 0:
            assert not part["success"].any()
            assert part["linf"].isna().all()
        else:
            assert (
                part["success"].to_numpy()[run.attacked] == run.rungs["success"][i - 1].numpy()
            ).all()
            assert (part["success"] == (part["attacked"] & ~part["correct"])).all()
            assert (part["linf"].to_numpy()[run.attacked] <= eps * (1 + 1e-5) + 1e-6).all()
        # what was not attacked keeps its clean prediction at every rung
        clean = table[table["eps"] == 0]["prediction"].to_numpy()
        left = ~part["attacked"].to_numpy()
        assert (part["prediction"].to_numpy()[left] == clean[left]).all()


def test_the_rungs() -> None:
    setup = ready_for(generic_victim(3))
    run, scores = scored(setup)
    assert [rung.eps for rung in scores.rungs] == [0.0, *LADDER]
    clean, *rest = scores.rungs
    assert clean.metrics["accuracy"].value == 1 - 8 / N
    assert clean.metrics["attack_success"].value == 0
    accuracies = [rung.metrics["accuracy"].value for rung in scores.rungs]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] < accuracies[0]
    for i, rung in enumerate(rest):
        success = float(run.rungs["success"][i].float().mean())
        assert rung.metrics["attack_success"].value == pytest.approx(success)
        expected = clean.metrics["accuracy"].value * (1 - success)
        assert rung.metrics["accuracy"].value == pytest.approx(expected)
        for name, found in rung.metrics.items():
            assert np.isnan(found.value) or found.low <= found.value <= found.high, name
    table = scores.samples
    top = table[(table["eps"] == LADDER[-1]) & table["success"]]
    for name in ("linf", "l2", "psnr"):  # of those that broke
        assert rest[-1].metrics[name].value == pytest.approx(top[name].mean(), rel=1e-6), name
    assert np.isnan(clean.metrics["linf"].value)
    assert np.isnan(rest[-1].metrics["ssim"].value)  # 8 x 8 is smaller than its window


def test_intervals_are_by_patient_where_patients_are_known() -> None:
    victim = generic_victim(2)
    patients = [f"p{i // 16}" for i in range(N)]
    alone, grouped = ready_for(victim), ready_for(victim, patients=patients)
    narrow, wide = (scored(r)[1].rungs[2].metrics["auc"] for r in (alone, grouped))
    assert narrow.value == wide.value
    assert (narrow.low, narrow.high) != (wide.low, wide.high)


def test_a_threshold_is_told_as_a_probability() -> None:
    victim = generic_victim(2)
    setup = ready_for(victim.at(torch.tensor([0.0, -torch.log(torch.tensor(3.0)).item()])))
    assert scored(setup, "fgsm")[1].threshold == pytest.approx((0.75,))
    assert scored(ready_for(victim), "fgsm")[1].threshold == ()
    one = generic_victim(1)
    assert scored(ready_for(one.at(torch.tensor([0.0]))), "fgsm")[1].threshold == (0.5,)


def test_every_finding_has_its_threshold() -> None:
    """Though the first is at the model's own: an offset of 0 is one too."""
    victim = generic_victim(2).at(torch.tensor([0.0, -1.0]))
    x = grey_images(16)
    y = (victim.logits(x) > 0).long()
    setup = prepared_of(victim, dataset_of(x, y, 2, task="multi_label", normal=None))
    found = scored(setup, "fgsm")[1].threshold
    assert found == pytest.approx((0.5, 1 / (1 + np.exp(-1))))


# --- the budget audit ----------------------------------------------------------------------------


def test_an_honest_attack_keeps_its_budget() -> None:
    for norm in ("linf", "l2"):
        setup = ready_for(generic_victim(2))
        _, scores = scored(setup, norm=norm, ladder=(0.01, 0.1, 0.3))
        audit = scores.audit
        assert audit.over_budget == 0
        assert audit.norm == norm
        assert len(audit.max_size) == 3
        for eps, largest in zip((0.01, 0.1, 0.3), audit.max_size, strict=True):
            assert largest <= eps * (1 + 1e-5) + 1e-6
        assert audit.min_value >= 0
        assert audit.max_value <= 1


def cheating(problem: Problem, *, rng: Draws) -> Images:
    """Ignore the ball: move twice as far as allowed."""
    return (problem.x + 2 * (fgsm(problem, rng=rng) - problem.x)).clamp(0, 1)


def leaving(problem: Problem, *, rng: Draws) -> Images:
    """Keep the ball and leave [0,1]."""
    return problem.x + 1e-3


@pytest.mark.parametrize("rungs", ["ascend", "descend"])
def test_an_attack_that_ignores_the_ball_is_counted_and_flagged(rungs: str, plant: Plant) -> None:
    setup = ready_for(linear_victim(2))
    name = plant(cheating, schedule=rungs)
    planned = planned_of(setup.data, name)
    outcome = execute(planned, lambda: setup, command="c", examples=0)
    audit = outcome.record.audit
    assert audit is not None
    assert audit.over_budget == int((setup.clean.argmax(1) == setup.batch.y).sum())
    assert max(audit.max_size) == pytest.approx(2 * LADDER[-1], rel=1e-4)
    flags = {flag.name: flag for flag in outcome.record.flags}
    assert flags["over_budget"].value == audit.over_budget


def test_an_image_outside_of_0_and_1_is_over_budget(plant: Plant) -> None:
    victim = linear_victim(2)
    x = grey_images(8)
    x[0] = 1.0
    setup = prepared_of(victim, dataset_of(x, victim.logits(x).argmax(1), 2))
    _, scores = scored(setup, plant(leaving))
    assert scores.audit.over_budget == 1
    assert scores.audit.max_value == pytest.approx(1.001)


def test_survival_of_rounding_counts_each_image_once() -> None:
    """A broken image is carried up the ladder: its copies are no further evidence."""
    setup = ready_for(linear_victim(2))
    run, scores = scored(setup, ladder=(0.05, 0.1, 0.2, 0.4))
    assert run.rungs["success"].all()
    alone = scored(setup, ladder=(0.05,))[1].audit.survives_rounding
    found = scores.audit.survives_rounding
    assert found.value == alone.value
    assert found.low == pytest.approx(alone.low)


def test_nobody_to_attack_still_makes_a_record() -> None:
    victim = generic_victim(2)
    x = grey_images(6)
    y = 1 - victim.logits(x).argmax(1)
    setup = prepared_of(victim, dataset_of(x, y, 2))
    for attack in ("fgsm", "pgd"):
        outcome = execute(planned_of(setup.data, attack), lambda: setup, command="c")
        record = outcome.record
        assert record.status == "ok"
        assert record.rungs[1].metrics["accuracy"].value == 0
        assert np.isnan(record.rungs[1].metrics["attack_success"].value)
        assert record.audit is not None
        assert record.audit.over_budget == 0
        assert outcome.files == {}


# --- invalid and flags ---------------------------------------------------------------------------


class FrailAt(nn.Module):
    """Answers NaN on images brighter than any clean one."""

    def __init__(self, inner: nn.Module, limit: float) -> None:
        super().__init__()
        self.inner, self.limit = inner, limit

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out.masked_fill((x.flatten(1).amax(1) > self.limit)[:, None], torch.nan)


def test_nan_on_attacked_images_makes_the_case_invalid() -> None:
    inner = generic_victim(2)
    setup = ready_for(victim_of(FrailAt(inner.module, 0.605)))
    outcome = execute(planned_of(setup.data), lambda: setup, command="c")
    assert outcome.record.status == "invalid"
    assert "NaN or Inf" in outcome.record.reason
    assert outcome.record.rungs == ()
    assert outcome.record.audit is None
    assert len(outcome.samples) == 0


def test_nan_on_clean_images_makes_the_case_invalid() -> None:
    setup = ready_for(generic_victim(2))

    def failing() -> AttackSetup:
        raise InvalidOutputError("expected finite logits, got NaN or Inf on 3 of 9 images")

    outcome = execute(planned_of(setup.data), failing, command="c")
    assert (outcome.record.status, outcome.record.n) == ("invalid", 0)
    assert outcome.record.reason.endswith("3 of 9 images")


def test_flags_and_notes() -> None:
    setup = ready_for(generic_victim(2))
    planned = planned_of(setup.data)
    outcome = execute(planned, lambda: replace(setup, probabilities=True), command="again")
    record = outcome.record
    assert [flag.name for flag in record.flags] == ["probabilities"]
    assert "the patients are unknown: images are treated as independent" in record.notes
    assert any("user's own" in note for note in record.notes)
    assert record.patients is None
    assert record.provenance.command == "again"
    assert record.cost is not None
    assert record.cost.backward > 0
    assert all(flag.meaning and flag.value > flag.threshold for flag in record.flags)
    grouped = ready_for(generic_victim(2), patients=[f"p{i // 4}" for i in range(N)])
    record = execute(planned_of(grouped.data), lambda: grouped, command="c").record
    assert record.patients == N // 4
    assert "the patients are unknown: images are treated as independent" not in record.notes


# --- examples ------------------------------------------------------------------------------------


def test_pictures_are_of_broken_images_each_class_in_turn() -> None:
    setup = ready_for(generic_victim(3), 96)
    planned = planned_of(setup.data)
    run = run_attack(planned, setup)
    found = make_pictures(planned, setup, run, 5)
    assert len(found.examples) == 5
    there = {words(y.numpy(), setup.data.card) for y in setup.batch.y[run.attacked]}
    first = [example.truth for example in found.examples[: len(there)]]
    assert len(set(first)) == len(first)  # none twice before every class had its turn
    assert len(found.files) == 15
    for example in found.examples:
        assert example.adversarial_prediction != example.truth
        assert example.clean_prediction == example.truth
        assert example.eps in LADDER
        assert example.amplification >= 1
        sizes = set()
        for name in (example.clean, example.perturbation, example.adversarial):
            with Image.open(io.BytesIO(found.files[name])) as image:
                assert image.format == "PNG"
                sizes.add((image.size, image.mode))
        assert sizes == {((8, 8), "L")}
        row = setup.batch.ids.tolist().index(example.sample)
        with Image.open(io.BytesIO(found.files[example.clean])) as image:
            stored = np.asarray(image)
        assert (stored == (setup.batch.x[row, 0] * 255).round().numpy()).all()
    assert make_pictures(planned, setup, run, 0).files == {}


def test_a_picture_shows_an_image_that_breaks_though_the_ladder_found_it_otherwise(
    plant: Plant,
) -> None:
    """Broken at the small radius by an image pulled in; run there, the attack fails."""

    def coarse(problem: Problem, *, rng: Draws) -> Images:
        z = fgsm(problem, rng=rng)
        eps = torch.as_tensor(problem.ball.eps).expand(len(problem))
        return torch.where((eps > 0.1).view(-1, 1, 1, 1), z, problem.x)

    setup = ready_for(linear_victim(2))
    planned = planned_of(setup.data, plant(coarse, schedule="descend"), ladder=(0.05, 0.2))
    run = run_attack(planned, setup)
    found = make_pictures(planned, setup, run, 4)
    assert found.examples
    for example in found.examples:
        assert example.adversarial_prediction != example.truth


def test_a_black_box_attack_never_asks_for_a_gradient() -> None:
    victim = generic_victim(3)

    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = victim.module(x).detach()
            return found

    setup = ready_for(replace(victim, module=Closed()))
    parameters = {"queries": 30, "p_init": 0.8}
    planned = planned_of(setup.data, "square", parameters=parameters, ladder=(0.02, 0.1, 0.5))
    run = run_attack(planned, setup)
    assert run.counter.backward == 0
    assert run.rungs["success"][-1].float().mean() > 0.5
    with pytest.raises(VictimError, match="expected a victim with gradients"):
        run_attack(planned_of(setup.data, "pgd", ladder=(0.02, 0.1, 0.5)), setup)


def test_pictures_do_not_count_as_cost() -> None:
    setup = ready_for(generic_victim(2))
    planned = planned_of(setup.data)
    run = run_attack(planned, setup)
    before = (run.counter.forward, run.counter.backward)
    make_pictures(planned, setup, run, 4)
    assert (run.counter.forward, run.counter.backward) == before


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "L")])
def test_png_sizes_and_levels(channels: int, mode: str) -> None:
    x = torch.linspace(-0.2, 1.2, channels * 12).view(channels, 3, 4)
    with Image.open(io.BytesIO(png(x))) as image:
        assert image.size == (4, 3)  # width, height
        assert image.mode == mode
        levels = np.asarray(image)
    expected = (x.clamp(0, 1) * 255).round().byte().numpy()
    assert (levels == (np.moveaxis(expected, 0, -1) if mode == "RGB" else expected[0])).all()


def test_words_of_findings() -> None:
    card = dataset_of(grey_images(2), torch.zeros(2, 3), 3, task="multi_label", normal=None).card
    assert words(np.array([1, 0, 1]), card) == "c0, c2"
    assert words(np.array([0, -1, 0]), card) == "no finding"
