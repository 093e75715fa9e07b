"""Masks on the bench: worst case per image, channels, targets, ignored pixels, pictures, notes.

The victim is a threshold: a pixel is called lesion where its grey level is above 1/2. Its distance
to flipping is |x - 1/2|, so the worst mask at each radius is known.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustbench_med import registry
from robustbench_med.bench.attack_run import AttackRun, run_attack
from robustbench_med.bench.attack_spec import resolve_channels
from robustbench_med.bench.check_context import CheckContext
from robustbench_med.bench.checks import run_checks
from robustbench_med.bench.execute import execute
from robustbench_med.bench.gallery import make_pictures
from robustbench_med.bench.plan import data_sha256
from robustbench_med.bench.record import Flag
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.schedules import schedule_of
from robustbench_med.bench.scoring import Scores, score_run
from robustbench_med.bench.setup import AttackSetup, crafting_key
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import AttackCard
from robustbench_med.errors import SpecError
from robustbench_med.objectives.decide import answer_of
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images
from robustbench_med.victim import InputContract, Victim
from tests.bench.conftest import Plant
from tests.bench.toys import MODEL, dataset_of, planned_of

LADDER = (0.05, 0.1, 0.2)
SLOPE = 20.0


class Threshold(nn.Module):
    """Logits `(b, 1, *s)` of a lesion: how far the last channel is above 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        return SLOPE * (x[:, -1:] - 0.5)


def images(n: int = 6, channels: int = 1, size: tuple[int, ...] = (8, 8), seed: int = 0) -> Tensor:
    """Return noise in whose middle a block is bright."""
    x = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(seed)) * 0.48
    block = (slice(None), slice(None), *[slice(2, 6)] * len(size))
    x[block] += 0.52
    return x


def ready_for(x: Tensor, y: Tensor | None = None, **fields: Any) -> AttackSetup:  # noqa: ANN401
    size = tuple(x.shape[2:])
    victim = Victim(Threshold(), InputContract(channels=x.shape[1], size=size), chunk=4)
    truth = (x[:, -1] > 0.5).long() if y is None else y
    given = {"classes": ("background", "lesion"), "normal": None, "task": "segmentation"} | fields
    data = dataset_of(x, truth, 2, **given)
    batch = data.batch("test")
    return AttackSetup(batch, victim, MODEL, data, answer_of(victim.logits(batch.x)), False)


def plan(setup: AttackSetup, attack: str = "pgd", **fields: Any) -> ResolvedCase:  # noqa: ANN401
    few = {"parameters": {"steps": 5}} if attack in ("pgd", "segpgd") else {}
    return planned_of(setup.data, attack, **({"ladder": LADDER} | few | fields))


def scored(setup: AttackSetup, attack: str = "pgd", **fields: Any) -> tuple[AttackRun, Scores]:  # noqa: ANN401
    planned = plan(setup, attack, **fields)
    run = run_attack(planned, setup)
    return run, score_run(planned, setup, run)


def flags_of(setup: AttackSetup, attack: str = "pgd", **fields: Any) -> list[str]:  # noqa: ANN401
    planned = plan(setup, attack, **fields)
    run = run_attack(planned, setup)
    card: AttackCard = registry.find("attacks", attack)
    audit = score_run(planned, setup, run).audit
    flags: tuple[Flag, ...] = run_checks(CheckContext(planned, setup, run, audit, card))[1]
    return [flag.name for flag in flags]


def least_dice(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Return the Dice of each image when every pixel within `eps` of 1/2 has flipped."""
    counted = y >= 0
    called = x[:, -1] > 0.5
    called = called ^ ((x[:, -1] - 0.5).abs() < eps)
    both = (called & (y == 1) & counted).flatten(1).sum(1)
    sizes = ((called & counted).flatten(1).sum(1) + (y == 1).flatten(1).sum(1)).clamp_min(1)
    return torch.where(sizes > 0, 2 * both / sizes, 1.0)


@pytest.mark.parametrize("size", [(8, 8), (6, 8, 7)])
@pytest.mark.parametrize("attack", ["pgd", "segpgd", "fgsm"])
def test_every_rung_has_the_worst_dice_of_each_image(attack: str, size: tuple[int, ...]) -> None:
    x = images(size=size)
    setup = ready_for(x)
    run, scores = scored(setup, attack)
    for i, eps in enumerate(LADDER):
        worst = least_dice(x, setup.batch.y, eps)
        table = scores.samples[np.isclose(scores.samples["eps"], eps)]
        np.testing.assert_allclose(table["correct"].to_numpy(), worst.numpy(), atol=1e-6)
        np.testing.assert_allclose(0.5 - run.rungs["harm"][i].numpy(), worst.numpy(), atol=1e-6)
        rung = scores.rungs[i + 1]
        assert rung.metrics["dice"].value == pytest.approx(float(worst.mean()), abs=1e-6)
        assert rung.metrics["dice[lesion]"].value == rung.metrics["dice"].value
        assert rung.metrics["attack_success"].value == pytest.approx((worst < 0.5).float().mean())
    assert scores.rungs[0].metrics["dice"].value == 1
    assert scores.rungs[0].metrics["hd95"].value == 0


def test_a_batch_of_one_reaches_what_it_reaches_among_others() -> None:
    x = images()
    whole, alone = scored(ready_for(x))[1], scored(ready_for(x[:1]))[1]
    first = whole.samples[whole.samples["sample"] == "s000"]["correct"].to_numpy()
    np.testing.assert_array_equal(first, alone.samples["correct"].to_numpy())


def test_an_attack_that_repairs_the_mask_leaves_the_clean_image(
    plant: Plant,
) -> None:
    x = images()
    y = torch.zeros_like(x[:, 0]).long()
    y[:, 2:6, 2:7] = 1  # one column of the lesion is not called

    def mend(problem: Problem, *, rng: Draws) -> Images:  # noqa: ARG001
        z = problem.x.clone()
        z[:, :, 2:6, 6] = 0.51
        return problem.ball.project(z, problem.x)

    setup = ready_for(x, y)
    run, scores = scored(setup, plant(mend), ladder=(0.5,))
    clean, attacked = (scores.samples[scores.samples["eps"] == e]["correct"] for e in (0, 0.5))
    assert (clean < 0.9).all()
    np.testing.assert_array_equal(clean.to_numpy(), attacked.to_numpy())
    assert (run.rungs["size"] == 0).all()


def test_a_larger_radius_is_never_better(plant: Plant) -> None:
    def only_small(problem: Problem, *, rng: Draws) -> Images:  # noqa: ARG001
        if float(torch.as_tensor(problem.ball.eps).max()) > 0.15:
            return problem.x
        return problem.ball.project(1 - problem.x, problem.x)

    _, scores = scored(ready_for(images()), plant(only_small))
    dice = [rung.metrics["dice"].value for rung in scores.rungs]
    assert dice[1] > dice[2] == dice[3]


def test_ignored_pixels_are_neither_climbed_nor_scored() -> None:
    x = images()
    y = (x[:, 0] > 0.5).long()
    y[:, :, 4:] = -1
    setup = ready_for(x, y)
    run, scores = scored(setup)
    for eps in LADDER:
        worst = least_dice(x, y, eps)
        table = scores.samples[np.isclose(scores.samples["eps"], eps)]
        np.testing.assert_allclose(table["correct"].to_numpy(), worst.numpy(), atol=1e-6)
    everything = torch.full_like(y, -1)
    everything[0] = y[0]
    run, scores = scored(ready_for(x, everything))
    assert run.attacked.sum() == 1


def test_an_image_without_lesion_is_lost_by_one_false_alarm() -> None:
    x = images() * 0.4
    x[:, 0, 0, 0] = 0.47
    _, scores = scored(ready_for(x))
    clean, small = scores.rungs[0].metrics, scores.rungs[1].metrics
    assert (clean["dice"].value, small["dice"].value) == (1, 0)
    assert (clean["false_alarm"].value, small["false_alarm"].value) == (0, 1)
    assert np.isnan(small["lesion_miss"].value)


# --- channels ------------------------------------------------------------------------------------


def two_channels() -> AttackSetup:
    return ready_for(images(channels=2), channel_names=("T1", "FLAIR"))


def test_a_channel_the_victim_does_not_read_harms_nothing() -> None:
    _, scores = scored(two_channels(), channels={"T1": 1.0})
    assert [rung.metrics["dice"].value for rung in scores.rungs] == [1] * 4
    assert scores.audit.over_budget == 0


def test_the_channel_it_reads_does_all_the_harm_and_half_the_radius_less() -> None:
    setup = two_channels()
    every, one, half = (
        [r.metrics["dice"].value for r in scored(setup, channels=channels)[1].rungs]
        for channels in ({}, {"FLAIR": 1.0}, {"FLAIR": 0.5})
    )
    assert every == one
    assert half[2] == one[1] > one[2]
    run, scores = scored(setup, channels={"FLAIR": 0.5})
    assert scores.audit.over_budget == 0
    assert float(run.rungs["linf"][2].max()) == pytest.approx(0.1, abs=1e-6)


def test_an_attack_that_strays_to_a_forbidden_channel_is_flagged(
    plant: Plant,
) -> None:
    def stray(problem: Problem, *, rng: Draws) -> Images:  # noqa: ARG001
        return (problem.x + 0.03).clamp(0, 1)

    name = plant(stray)
    assert "over_budget" in flags_of(two_channels(), name, channels={"FLAIR": 1.0})
    assert "over_budget" not in flags_of(two_channels(), name)


def test_names_of_channels() -> None:
    card = two_channels().data.card
    assert resolve_channels("all", card, "linf") == resolve_channels("T1+FLAIR", card, "linf") == {}
    assert resolve_channels("FLAIR=0.5 + T1", card, "linf") == {"T1": 1.0, "FLAIR": 0.5}
    unnamed = card.model_copy(update={"channel_names": ()})
    assert resolve_channels("1", unnamed, "l2") == {"1": 1.0}
    for text, norm, match in (
        ("T2", "linf", "expected channels in T1, FLAIR, got 'T2'"),
        ("T1+T1", "linf", "once each"),
        ("T1=2", "linf", r"fraction of the radius in \(0, 1\], got 'T1=2'"),
        ("T1=x", "linf", "expected a number"),
        ("T1=", "linf", "expected a number .* got ''"),
        ("T1=0.5", "l2", "expected norm linf"),
    ):
        with pytest.raises(SpecError, match=match):
            resolve_channels(text, card, norm)  # type: ignore[arg-type]


# --- targets, universal perturbations, checks, pictures ------------------------------------------


def test_a_target_is_drawn_and_scored() -> None:
    x = torch.full((2, 1, 16, 16), 0.45)
    x[:, :, 6:10, 6:10] = 0.55
    spec = "targeted(mask='cross', label=1, size=0.8)"
    run, scores = scored(ready_for(x), objective=spec, ladder=(0.02, 0.2))
    drawn = [rung.metrics["target_dice"].value for rung in scores.rungs]
    assert drawn[0] == drawn[1] < 0.75
    assert drawn[2] == 1
    assert run.rungs["success"].tolist() == [[False, False], [True, True]]
    assert set(scores.samples["target_dice"]) == set(drawn)


def test_one_perturbation_for_all_masks_counts_pixels() -> None:
    x = images(12)
    setup = ready_for(x)
    planned = plan(setup, "uap_gradient", threat="universal", n_fit=12)
    outcome = execute(planned, lambda: setup, command="")
    spread = outcome.record.universal
    assert spread is not None
    last = spread.rungs[-1]
    changed = 1 - outcome.record.rungs[-1].metrics["pixel_accuracy"].value
    assert last.wrong.value == pytest.approx(changed)
    assert 0 < last.control_wrong.value < last.wrong.value < 1


def test_an_attack_weaker_than_one_step_is_flagged(plant: Plant) -> None:
    def lazy(problem: Problem, *, rng: Draws, steps: int = 2) -> Images:  # noqa: ARG001
        for _ in range(steps):
            problem.gradient(problem.x)
        return problem.ball.at(0.01).project(1 - problem.x, problem.x)

    name = plant(lazy, cost=lambda steps: steps, effort=("steps",))
    assert "one_step_beats_iterative" in flags_of(ready_for(images(16)), name)
    assert "one_step_beats_iterative" not in flags_of(ready_for(images(16)))


@pytest.mark.parametrize("size", [(8, 8), (6, 8, 7)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_show_truth_and_predictions(channels: int, size: tuple[int, ...]) -> None:
    setup = ready_for(images(channels=channels, size=size))
    planned = plan(setup)
    run = run_attack(planned, setup)
    found = make_pictures(planned, setup, run, 2)
    assert len(found.examples) == 2
    shown = found.examples[0].masks
    assert shown is not None
    assert shown.dice_before == 1 > shown.dice_after
    assert shown.target == ""
    assert shown.target_after is None
    assert ("slice" in shown.view) == (len(size) == 3)
    assert shown.view.startswith("3") == (channels == 4)
    assert set(found.files) == {
        name
        for e in found.examples
        if e.masks
        for name in (e.clean, e.perturbation, e.adversarial)
        + (e.masks.truth, e.masks.before, e.masks.after)
    }
    truth, after = (
        np.asarray(Image.open(io.BytesIO(found.files[name])), dtype=int)
        for name in (shown.truth, shown.after)
    )
    coloured = [np.ptp(picture, axis=2) > 60 for picture in (truth, after)]
    assert 0 < coloured[0].mean() < 0.9
    assert (coloured[0] != coloured[1]).any() or shown.dice_after == 0


def test_a_target_has_a_picture_of_its_own() -> None:
    setup = ready_for(images(size=(16, 16)))
    spec = "targeted(mask='move', label=1, by=2)"
    planned = plan(setup, objective=spec, ladder=(0.6,))
    found = make_pictures(planned, setup, run_attack(planned, setup), 1)
    shown = found.examples[0].masks
    assert shown is not None
    assert shown.target in found.files
    assert shown.target_before is not None
    assert shown.target_after is not None
    assert shown.target_before < 0.75 <= shown.target_after


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0)])
def test_a_record_says_when_lengths_are_in_pixels(spacing: tuple[float, ...] | None) -> None:
    setup = ready_for(images(), spacing=spacing)
    record = execute(plan(setup), lambda: setup, command="").record
    assert any("in pixels" in note for note in record.notes) == (spacing is None)
    assert record.cost is not None
    assert record.cost.peak_memory_mib > 0
    assert not record.flags


def test_lengths_follow_the_spacing() -> None:
    x = images()
    near, far = (
        scored(ready_for(x, spacing=mm))[1].rungs[2].metrics for mm in ((1.0, 1.0), (3.0, 3.0))
    )
    assert near["hd95"].value > 0
    assert far["hd95"].value == pytest.approx(3 * near["hd95"].value)
    assert far["volume_error"].value == pytest.approx(9 * near["volume_error"].value)


def test_patients_widen_the_interval() -> None:
    x = images(8)
    x[4:] = (x[4:] - 0.5) * 0.2 + 0.5  # half of the images are weak
    x = x.repeat(4, 1, 1, 1)
    alone = ready_for(x)
    owners = np.array(["weak" if i % 8 >= 4 else "strong" for i in range(32)])
    together = replace(alone, batch=replace(alone.batch, patients=owners))
    narrow, wide = (scored(one)[1].rungs[1].metrics["dice"] for one in (alone, together))
    assert narrow.value == wide.value
    assert wide.high - wide.low > narrow.high - narrow.low > 0


def test_a_mask_lost_at_rest_is_no_success_of_the_attack() -> None:
    x = images()
    y = (x[:, 0] > 0.5).long()
    y[0] = 1 - y[0]  # Dice 0: nothing to attack
    y[1, :, 3:] = 1 - y[1, :, 3:]  # below 1/2, not 0
    run, scores = scored(ready_for(x, y))
    assert run.attacked.tolist() == [False] + [True] * 5
    assert run.aimed.tolist() == [False] * 2 + [True] * 4
    rows = scores.samples[scores.samples["sample"] == "s001"]
    assert not rows["attacked"].any()
    assert not rows["success"].any()
    assert rows["distance"].isna().all()
    assert rows["correct"].is_monotonic_decreasing
    assert rows["correct"].iloc[-1] < rows["correct"].iloc[0] < 0.5
    worst = least_dice(x, y, LADDER[1])[2:]
    success = scores.rungs[2].metrics["attack_success"].value
    assert success == pytest.approx(float((worst < 0.5).float().mean()))


def test_a_universal_perturbation_is_not_counted_on_ignored_pixels() -> None:
    x = images(12)
    y = (x[:, 0] > 0.5).long()
    y[:, :, 4:] = -1
    setup = ready_for(x, y)
    record = execute(
        plan(setup, "uap_gradient", threat="universal", n_fit=12), lambda: setup, command=""
    ).record
    assert record.universal is not None
    for rung, wrong in zip(record.rungs[1:], record.universal.rungs, strict=True):
        right = rung.metrics["pixel_accuracy"].value
        assert wrong.wrong.value == wrong.changed.value == pytest.approx(1 - right)


def test_what_is_crafted_for_one_channel_is_not_used_for_another() -> None:
    data = two_channels().data
    one, other = (
        plan(two_channels(), channels=channels).case for channels in ({"T1": 1.0}, {"FLAIR": 1.0})
    )
    assert crafting_key(one) != crafting_key(other)
    swapped = replace(data, card=data.card.model_copy(update={"channel_names": ("FLAIR", "T1")}))
    grid = Grid(datasets=("toy",), attacks=("pgd",), ladder=(0.1,))
    assert data_sha256(data, grid) != data_sha256(swapped, grid)


def test_a_small_share_of_the_radius_is_audited_in_its_own_rounding() -> None:
    x = images(64, channels=2)
    planned = plan(ready_for(x, channel_names=("T1", "FLAIR")), channels={"FLAIR": 0.01})
    setup = ready_for(x, channel_names=("T1", "FLAIR"))
    assert score_run(planned, setup, run_attack(planned, setup)).audit.over_budget == 0
    assert flags_of(setup, channels={"FLAIR": 0.1}, ladder=(0.01, 0.02)) == []


@pytest.mark.parametrize("attack", ["rays", "hop_skip_jump"])
def test_an_attack_by_labels_fills_the_ladder_by_its_distance(attack: str) -> None:
    x = images(4)
    truth = (x[:, -1] > 0.5).long()
    truth[0, 3:] = 0  # the Dice of this mask is 0.4 when clean: no attack may claim it
    setup = ready_for(x, truth)
    assert schedule_of(registry.find("attacks", attack), "segmentation").name == "distance"
    run, scores = scored(setup, attack, parameters={"queries": 250}, ladder=(0.05, 0.2, 0.5))
    success = run.rungs["success"]
    fallen = run.clean["success"]
    assert fallen.any()
    assert not success[:, fallen].any()
    assert success[-1][~fallen].all()
    assert not success[0].any()  # half of the lesion is farther from 1/2 than that
    found = run.distance[~fallen]
    assert torch.equal(success[1][~fallen], found <= 0.2)
    harm = run.rungs["harm"][-1][~fallen]
    assert ((harm > 0) & (harm < 0.2)).all()
    assert scores.audit.over_budget == 0
    assert run.counter.forward <= (250 + 4) * len(run.problem) + 2 * 4
    assert run.counter.backward == 0
