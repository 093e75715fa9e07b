"""The worst case that a criterion is judged on: over attacks, ladders, goals and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.report.criteria import read_criteria
from leaderboard.report.document import Judged
from leaderboard.report.evaluate_criteria import evaluate_criteria
from leaderboard.report.evidence import evidence
from leaderboard.report.model_boards import boards_of_model
from leaderboard.report.pooled_metrics import balanced_accuracy, f1, of_findings, success
from robustbench_med.bench import store
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.cards import DatasetCard
from tests.leaderboard.planted import DATASETS, LADDER
from tests.leaderboard.planted_masks import HEART, make_masks
from tests.leaderboard.planted_shields import GUARD, WRAPPED, detecting, wrapped

from .planted import LAST, VICTIM, N, pair, wilson
from .test_recalls import only

Maker = Callable[..., Stored]
RESULTS = Path(__file__).parents[3] / "results"
EPS = 'eps = "2/255"\nbasis = "value"\n'
GRADES = DATASETS[0]
TARGETED = {"objective": "targeted(target=0)"}


def judged(
    records: list[Stored],
    folder: Path,
    table: str,
    victim: str = VICTIM,
    doubts: tuple[str, ...] = (),
) -> Judged:
    path = folder / "criteria.toml"
    path.write_text(f"[[criteria]]\n{table}\n")
    return evaluate_criteria(read_criteria(path), boards_of_model(records, victim), doubts).judged[
        0
    ]


def halves(make: Maker, **changes: Any) -> list[Stored]:  # noqa: ANN401
    """Return two attacks of many steps that break a half of the images each, from rung 1 on."""
    first = [1 if i < N // 2 else LAST for i in range(N)]
    second = [LAST if i < N // 2 else 1 for i in range(N)]
    return [make(first, attack="bim", **changes), make(second, attack="pgd", **changes)]


@pytest.mark.parametrize(
    ("metric", "way", "limit", "worst"),
    [
        ("accuracy", "at_least", 0.4, 0.0),
        ("balanced_accuracy", "at_least", 0.4, 0.0),
        ("f1", "at_least", 0.4, 0.0),
        ("sensitivity", "at_least", 0.4, 0.0),
        ("attack_success", "at_most", 0.6, 1.0),
        ("flips_to_disease", "at_most", 0.6, 1.0),
    ],
)
def test_attacks_that_break_a_half_each_break_all(
    make_stored: Maker, tmp_path: Path, metric: str, way: str, limit: float, worst: float
) -> None:
    result = judged(halves(make_stored), tmp_path, f'metric = "{metric}"\n{way} = {limit}\n{EPS}')
    assert result.verdict == "not met"
    assert result.outcomes[0].judged == pytest.approx(worst)
    assert "under the worst case of all attacks at" in result.words
    assert len(result.outcomes[0].records) == 2


def test_the_union_has_the_interval_of_its_images(make_stored: Maker) -> None:
    # bim breaks 3 images, pgd 4 others, one is wrong when clean: 7 of the 19 attacked
    first = [0, *[1] * 3, *[LAST] * 16]
    second = [0, *[LAST] * 3, *[1] * 4, *[LAST] * 12]
    records = [make_stored(first, attack="bim"), make_stored(second, attack="pgd")]
    result = success(only(records))[1]
    assert result.value == pytest.approx(7 / 19)
    assert (result.low, result.high) == pytest.approx(wilson(7, 19))
    clean = success(only(records))[0]
    assert clean.value == 0


def test_scores_of_all_calls_in_closed_form(make_stored: Maker) -> None:
    """Of two classes of unlike size: 4 of 10 diseased and 8 of 10 healthy stand."""
    breaks = [LAST] * N
    for i in (1, 3, 5, 7, 9, 11, 0, 2):
        breaks[i] = 1
    pool = only([make_stored(breaks)])
    balanced, score = balanced_accuracy(pool), f1(pool)
    assert balanced[0].value == score[0].value == 1
    assert balanced[1].value == pytest.approx((0.4 + 0.8) / 2)
    assert score[1].value == pytest.approx(2 * 4 / (2 * 4 + 6 + 2))
    for result in (balanced[1], score[1]):
        assert result.low < result.value < result.high


@pytest.mark.slow
def test_of_one_attack_they_are_the_metrics_of_its_record() -> None:
    compared = 0
    for stored in store.read_all(RESULTS / "attacks")[0]:
        record, card = stored.record, stored.record.dataset_card
        if card.task == "segmentation":
            continue
        pool = only([stored])
        result = {"balanced_accuracy": balanced_accuracy(pool), "f1": f1(pool)}
        result["attack_success"] = success(pool)
        if card.task == "multi_label":
            result |= {"sensitivity": of_findings(pool, 1), "specificity": of_findings(pool, 0)}
        for name, estimates in result.items():
            recorded = [rung.metrics[name].value for rung in record.rungs]
            falls = np.minimum.accumulate if name != "attack_success" else np.maximum.accumulate
            mine = [e.value for e in estimates]
            # an image may be repaired, never in a worst case
            if np.array_equal(recorded, falls(recorded)):
                worse = 1 if name == "attack_success" else -1
                assert all(worse * (m - o) > -1e-12 for m, o in zip(mine, recorded, strict=True)), (
                    name
                )
            np.testing.assert_allclose(mine[0], recorded[0], atol=1e-12)
            compared += np.allclose(mine, recorded, atol=1e-12)
    assert compared > 100


def test_auc_has_no_worst_case(make_stored: Maker, tmp_path: Path) -> None:
    table = f'metric = "auc"\nat_least = 0.1\n{EPS}'
    result = judged(pair(make_stored), tmp_path, table)
    assert result.verdict == "not tested"
    assert "the AUC under it is not a worst case" in result.outcomes[0].why
    result = judged(pair(make_stored), tmp_path, table + 'attack = "pgd"')
    assert (result.verdict, result.doubted) == ("met", True)
    assert "so this AUC is not a worst case" in result.outcomes[0].doubts[0]
    clean = judged(pair(make_stored), tmp_path, 'metric = "auc"\nat_least = 0.1\nattack = "clean"')
    assert (clean.verdict, clean.doubted) == ("met", False)


def test_what_only_records_hold_is_called_the_worst_single_attack(
    make_stored: Maker, tmp_path: Path
) -> None:
    records = [
        make_masks(make_stored, [[0.9, 0.8, 0.7]] * 3 + [[0.9, 0.4, 0.7]] * 3, attack="pgd"),
        make_masks(make_stored, [[0.9, 0.4, 0.7]] * 3 + [[0.9, 0.8, 0.7]] * 3, attack="segpgd"),
    ]
    eps = 'eps = "1/255"\nbasis = "value"\n'
    hd95 = judged(records, tmp_path, f'metric = "hd95"\nat_most = 90.0\n{eps}', "unet_narrow")
    assert "under the worst single attack at ε = 1/255" in hd95.words
    assert hd95.outcomes[0].single
    absent = judged(records, tmp_path, 'metric = "nsd"\nat_least = 0.1\neps = 1.0', "unet_narrow")
    assert absent.verdict == "not tested"
    assert "under the worst single attack at" in absent.words
    iou = judged(records, tmp_path, f'metric = "iou"\nat_least = 0.3\n{eps}', "unet_narrow")
    assert "under the worst case of all attacks at ε = 1/255" in iou.words
    assert iou.verdict == "not met"
    assert iou.outcomes[0].judged == pytest.approx(0.4 / 1.6)
    dice = judged(records, tmp_path, f'metric = "dice"\nat_least = 0.4\n{eps}', "unet_narrow")
    assert dice.verdict == "met"
    assert dice.outcomes[0].judged == pytest.approx(0.4)


def test_a_region_no_attack_aimed_at_is_doubted(make_stored: Maker, tmp_path: Path) -> None:
    spared = np.full((6, 2, 3), 0.9)
    hit = spared.copy()
    hit[:, 1, 1] = 0.1
    name = "tumour core"
    table = f'metric = "dice[{name}]"\nat_least = 0.5\neps = "1/255"\nbasis = "value"'
    plain = make_masks(make_stored, spared)
    result = judged([plain], tmp_path, table, "unet_narrow")
    assert (result.verdict, result.doubted) == ("met", True)
    assert f"region(name='{name}')" in result.outcomes[0].doubts[0]
    aimed = make_masks(make_stored, hit, objective=f"region(name='{name}')")
    result = judged([plain, aimed], tmp_path, table, "unet_narrow")
    assert (result.verdict, result.doubted) == ("not met", False)
    assert result.outcomes[0].judged == pytest.approx(0.1)


def test_what_is_drawn_is_the_most_of_any_attack(make_stored: Maker, tmp_path: Path) -> None:
    drawn = [np.tile([0.0, 0.2], (6, 1)), np.tile([0.0, 0.2], (6, 1))]
    drawn[0][:3, 1] = drawn[1][3:, 1] = 0.6
    records = [
        make_masks(make_stored, [[0.9, 0.8]] * 6, attack=attack, objective=HEART, target=target)
        for attack, target in zip(("pgd", "segpgd"), drawn, strict=True)
    ]
    table = f'metric = "target_dice"\nat_most = 0.5\neps = "1/255"\nobjective = "{HEART}"'
    result = judged(records, tmp_path, table + '\nbasis = "value"', "unet_narrow")
    assert result.verdict == "not met"
    assert result.outcomes[0].judged == pytest.approx(0.6)
    assert "draw a heart" in result.words


def graded(make: Maker, calls: int, *, rung: int = 1, **changes: Any) -> Stored:  # noqa: ANN401
    """Return a record of 3 grades: image i is of grade i % 3, ill ones are called `calls`."""
    stored = make([rung if i % 3 else LAST for i in range(N)], dataset=GRADES, **changes)
    samples = stored.samples.copy()
    truth = samples["sample"].str[1:].astype(int) % 3
    fell = (samples["eps"] > 0) & (truth > 0) & (samples["eps"] >= LADDER[rung - 1] - 1e-9)
    second = 3 - truth if calls else 0 * truth
    samples["truth"], samples["prediction"] = truth, truth.where(~fell, second)
    samples["correct"] = samples["truth"] == samples["prediction"]
    samples["attacked"] = truth > 0 if changes.get("case") else True
    samples["success"] = fell
    return stored._replace(samples=samples)


def test_another_grade_is_no_missed_disease(make_stored: Maker, tmp_path: Path) -> None:
    """An untargeted attack that stops at another grade leaves the sensitivity as it was."""
    lax = graded(make_stored, 1)
    sensitivity = f'metric = "sensitivity"\nat_least = 0.6\n{EPS}'
    flips = f'metric = "flips_to_normal"\nat_most = 0.4\n{EPS}'
    for table in (sensitivity, flips):
        result = judged([lax], tmp_path, table)
        assert result.verdict == "not tested"
        why = result.outcomes[0].why
        assert "stops at the first one" in why
        assert "a wrong call of “none” (targeted(target=0)). Run: python -m robustbench_med" in why
        assert why.endswith("--objective 'targeted(target=0)'")
    aimed = graded(make_stored, 0, case=TARGETED)
    for table, worst in ((sensitivity, 0.0), (flips, 1.0)):
        result = judged([lax, aimed], tmp_path, table)
        assert (result.verdict, result.doubted) == ("not met", False)
        assert result.outcomes[0].judged == pytest.approx(worst)
        assert "every objective" in result.words
        assert len(result.outcomes[0].records) == 2
    # any wrong call loses a recall, a specificity and an accuracy
    for metric in ("recall[moderate]", "accuracy", "balanced_accuracy"):
        result = judged([lax], tmp_path, f'metric = "{metric}"\nat_least = 0.6\n{EPS}')
        assert result.verdict == "not met", metric
    assert (
        judged([lax], tmp_path, sensitivity.replace("sensitivity", "specificity")).verdict == "met"
    )


def test_an_aim_at_other_radii_or_images_is_none(make_stored: Maker, tmp_path: Path) -> None:
    lax = graded(make_stored, 1)
    table = f'metric = "sensitivity"\nat_least = 0.6\n{EPS}'
    for second in (
        graded(make_stored, 0, case=TARGETED, ladder=LADDER[:2]),
        graded(make_stored, 0, case=TARGETED | {"threat": "query"}),
        graded(make_stored, 0, case=TARGETED | {"data_sha256": "f" * 64}),
    ):
        result = judged([lax, second], tmp_path, table)
        outcomes = [o for o in result.outcomes if lax.record.case_id in o.records]
        assert [outcome.verdict for outcome in outcomes] == ["not tested"]
    # on the board, too, it is one only where it is of every radius shown
    model_boards = boards_of_model(
        [lax, graded(make_stored, 0, case=TARGETED, ladder=LADDER[:2])], VICTIM
    )
    by_objective = {first.board.objective: evidence(first, model_boards) for first in model_boards}
    assert by_objective["untargeted"].unaimed
    assert not by_objective["targeted(target=0)"].unaimed


def test_accuracy_is_of_every_wrong_call(make_stored: Maker, tmp_path: Path) -> None:
    """An attack on one call breaks what those on any call missed; alone it is no worst case."""
    table = f'metric = "accuracy"\nat_least = 0.6\n{EPS}'
    lax, aimed = graded(make_stored, 0, rung=5), graded(make_stored, 0, case=TARGETED)
    assert judged([lax], tmp_path, table).verdict == "met"
    assert judged([lax, aimed], tmp_path, table).verdict == "not met"
    alone = judged([aimed], tmp_path, table)
    assert alone.verdict == "not tested"
    assert "attacker who wants any wrong call (untargeted)" in alone.outcomes[0].why


def test_a_control_has_no_aim_to_lack(make_stored: Maker) -> None:
    model_boards = boards_of_model([graded(make_stored, 1, attack="noise")], VICTIM)
    result = evidence(model_boards[0], model_boards)
    assert result.unaimed == ()
    assert all(line.aimed for line in (*result.calls, *result.flips))


def test_recalls_of_findings_need_an_attack_on_each(make_stored: Maker, tmp_path: Path) -> None:
    card = DATASETS[1].model_copy(
        update={"task": "multi_label", "classes": ("nodule", "effusion"), "normal": None}
    )
    records = [findings(make_stored, card, "untargeted", hidden=None)]
    nodule = f'metric = "recall[nodule]"\nat_least = 0.5\n{EPS}'
    every = f'metric = "sensitivity"\nat_least = 0.5\n{EPS}'
    assert "finding(index=0)" in judged(records, tmp_path, nodule).outcomes[0].why
    records.append(findings(make_stored, card, "finding(index=0)", hidden=0))
    result = judged(records, tmp_path, nodule)
    assert (result.verdict, result.outcomes[0].judged) == ("not met", 0.0)
    why = judged(records, tmp_path, every).outcomes[0].why
    assert "finding(index=1)" in why
    assert "finding(index=0)" not in why
    records.append(findings(make_stored, card, "finding(index=1)", hidden=1))
    for metric, way in (("sensitivity", "at_least"), ("f1", "at_least")):
        result = judged(records, tmp_path, f'metric = "{metric}"\n{way} = 0.1\n{EPS}')
        assert (result.verdict, result.outcomes[0].judged) == ("not met", 0.0)
    result = judged(records, tmp_path, f'metric = "balanced_accuracy"\nat_least = 0.4\n{EPS}')
    assert result.outcomes[0].judged == pytest.approx(0.5)  # nothing is planted


def findings(make: Maker, card: DatasetCard, objective: str, *, hidden: int | None) -> Stored:
    """Return a record of two findings, both on every even image; one of them is hidden."""
    stored = make([LAST] * N, dataset=card, case={"objective": objective})
    samples = stored.samples.copy()
    has = [int(name[1:]) % 2 == 0 for name in samples["sample"]]
    samples["truth"] = [[int(there)] * 2 for there in has]
    samples["prediction"] = [
        [int(there and not (eps > 0 and j == hidden)) for j in range(2)]
        for there, eps in zip(has, samples["eps"], strict=True)
    ]
    return stored._replace(samples=samples)


def test_boards_that_share_a_radius_are_taken_together(make_stored: Maker, tmp_path: Path) -> None:
    quarter = [1 if i % 4 == 0 else LAST for i in range(N)]
    second = [1 if i % 4 == 1 else LAST for i in range(N)]
    records = [
        make_stored(quarter, attack="bim", ladder=LADDER[:3]),
        make_stored(second, attack="pgd", ladder=LADDER[2:]),
    ]
    result = judged(records, tmp_path, f'metric = "accuracy"\nat_least = 0.6\n{EPS}')
    (outcome,) = result.outcomes
    assert (result.verdict, outcome.images) == ("not met", N)
    assert outcome.judged == pytest.approx(0.5)
    assert len(outcome.records) == 2
    alone = judged(
        records, tmp_path, 'metric = "accuracy"\nat_least = 0.6\neps = "1/255"\nbasis = "value"'
    )
    assert alone.outcomes[0].judged == pytest.approx(0.75)


def test_other_images_are_an_outcome_of_their_own(make_stored: Maker, tmp_path: Path) -> None:
    """Of the images that both saw each keeps the worst."""
    few = make_stored([1] * 6, attack="bim", case={"n": 6})
    all_ = make_stored([LAST] * N, attack="pgd")
    result = judged([few, all_], tmp_path, f'metric = "accuracy"\nat_least = 0.6\n{EPS}')
    outcomes = {outcome.images: outcome for outcome in result.outcomes}
    assert (outcomes[6].judged, outcomes[6].verdict) == (0.0, "not met")
    assert outcomes[N].verdict == "met"
    assert outcomes[N].judged == pytest.approx(14 / N)
    assert result.verdict == "not met"


def test_a_single_step_is_no_worst_case(make_stored: Maker, tmp_path: Path) -> None:
    weak = make_stored([LAST] * N, attack="fgsm")
    table = f'metric = "accuracy"\nat_least = 0.6\n{EPS}'
    result = judged([weak], tmp_path, table)
    assert (result.verdict, result.doubted) == ("met", True)
    assert "no attack of many steps was run, only FGSM" in result.outcomes[0].doubts[-1]
    assert not judged([weak], tmp_path, table + 'attack = "fgsm"').doubted
    assert not judged([weak, make_stored([LAST] * N)], tmp_path, table).doubted
    # an attack of many steps on other images or at other radii says nothing of these
    elsewhere = make_stored([LAST] * 6, attack="pgd", case={"n": 6})
    result = judged([weak, elsewhere], tmp_path, table)
    assert [any("many steps" in d for d in o.doubts) for o in result.outcomes].count(True) == 1
    # nor does one with another goal
    aimed = graded(make_stored, 0, attack="fgsm", case=TARGETED)
    lax = graded(make_stored, 1, attack="pgd")
    result = judged([aimed, lax], tmp_path, f'metric = "sensitivity"\nat_least = 0.0\n{EPS}')
    assert "many steps" in result.outcomes[0].doubts[-1]


def test_every_dataset_means_every_one_of_the_model(make_stored: Maker, tmp_path: Path) -> None:
    table = f'metric = "accuracy"\nat_least = 0.5\n{EPS}'
    strong = make_stored([LAST] * N)
    elsewhere = make_stored([LAST] * N, dataset=DATASETS[2], ladder=LADDER[:1])
    result = judged([strong, elsewhere], tmp_path, table)
    assert result.verdict == "not tested"
    outcomes = {outcome.heading: outcome.verdict for outcome in result.outcomes}
    assert outcomes == {"Chest X-ray (synthetic phantom)": "met", "PneumoniaMNIST": "not tested"}
    named = judged([strong, elsewhere], tmp_path, table + 'dataset = "phantom_cxr"')
    assert (named.verdict, len(named.outcomes)) == ("met", 1)
    second = make_stored([LAST] * N, ladder=LADDER[:1], case={"victim_sha256": "a" * 64})
    assert judged([strong, second], tmp_path, table).verdict == "not tested"


def test_accuracy_is_not_that_a_goal_was_missed(make_stored: Maker, tmp_path: Path) -> None:
    """On a board of a goal 12 of 20 images are wrong, and the goal is reached on none."""
    stored = make_stored([LAST] * N, case={"objective": "targeted(target=1)"})
    samples = stored.samples.assign(success=False)
    samples["correct"] = samples["sample"].str[1:].astype(int) >= 12
    records = [stored._replace(samples=samples)]
    goal = 'objective = "targeted(target = 1)"\n'
    result = judged(records, tmp_path, f'metric = "accuracy"\nat_least = 0.8\n{goal}{EPS}')
    assert result.verdict == "not tested"
    assert "which is not an accuracy: use attack_success" in result.outcomes[0].why
    assert "targeted(target = 1))" in result.words
    result = judged(records, tmp_path, f'metric = "attack_success"\nat_most = 0.1\n{goal}{EPS}')
    assert (result.verdict, result.outcomes[0].judged) == ("met", 0.0)
    assert "targeted(target = 1))" in result.words
    for added in ("", goal):
        clean = f'metric = "accuracy"\nat_least = 0.8\nattack = "clean"\nbasis = "value"\n{added}'
        result = judged(records, tmp_path, clean)
        assert result.verdict == "not met"
        assert result.outcomes[0].judged == pytest.approx(0.4)


def test_clean_images_have_no_attack_to_judge(make_stored: Maker, tmp_path: Path) -> None:
    for metric in ("attack_success", "flips_to_normal"):
        table = f'metric = "{metric}"\nat_most = 0.5\nattack = "clean"'
        result = judged(pair(make_stored), tmp_path, table)
        assert result.verdict == "not tested"
        assert f"{metric} needs an attack" in result.outcomes[0].why


def test_clean_images_are_judged_whatever_an_attack_was_flagged_for(
    make_stored: Maker, tmp_path: Path
) -> None:
    table = 'metric = "accuracy"\nat_least = 0.5\nattack = "clean"'
    flag = Flag(name="zero_gradients", meaning="blind", value=0.4, threshold=0.1)
    flagged = make_stored([LAST] * 6, case={"n": 6}, record={"flags": (flag,)})
    whole = make_stored([LAST] * N, attack="bim", ladder=LADDER[:2])
    result = judged([whole, flagged], tmp_path, table)
    assert (result.verdict, result.doubted) == ("met", False)
    assert [outcome.images for outcome in result.outcomes] == [N]
    broken = {"status": "invalid", "reason": "NaN logits", "rungs": (), "audit": None}
    invalid = make_stored([LAST] * N, ladder=LADDER[2:], record=broken)
    result = judged([whole, invalid], tmp_path, table)
    assert (result.verdict, result.doubted) == ("met", True)
    assert "NaN logits" in result.outcomes[0].doubts[0]


def test_what_could_not_be_read_doubts_every_verdict(make_stored: Maker, tmp_path: Path) -> None:
    for metric in ("accuracy", "auc"):
        table = f'metric = "{metric}"\nat_least = 0.1\n{EPS}'
        result = judged(pair(make_stored), tmp_path, table, doubts=("1 record lost",))
        assert result.doubted
        assert result.outcomes[0].doubts[0] == "1 record lost"


def test_why_something_is_not_tested_drives_no_terminal(make_stored: Maker, tmp_path: Path) -> None:
    table = 'metric = "recall[\\u001b[2Jx]"\nat_least = 0.5\neps = "2/255"'
    result = judged(pair(make_stored), tmp_path, table)
    assert result.outcomes[0].why == ("Chest X-ray has no class '[2Jx'; it has clear, opacity")
    command = "python -m robustbench_med run quick --data '\x1b[2J' --case 1"
    written_report = pair(make_stored)[0].record.provenance.model_copy(update={"command": command})
    lax = graded(make_stored, 1, record={"provenance": written_report})
    result = judged([lax], tmp_path, f'metric = "sensitivity"\nat_least = 0.6\n{EPS}')
    assert "Run: python -m robustbench_med run quick --data" in result.outcomes[0].why
    assert "\x1b" not in result.outcomes[0].why


@pytest.mark.parametrize("eps", ["1.5/255", "3/255", "0.3/255", "16/255"])
def test_a_radius_off_the_ladder_is_not_tested(
    make_stored: Maker, tmp_path: Path, eps: str
) -> None:
    table = f'metric = "accuracy"\nat_least = 0.0\neps = "{eps}"'
    assert judged([make_stored([LAST] * N)], tmp_path, table).verdict == "not tested"


def test_flags_of_any_board_taken_together_are_doubts(make_stored: Maker, tmp_path: Path) -> None:
    flag = Flag(name="zero_gradients", meaning="blind", value=0.4, threshold=0.1)
    records = [
        make_stored([LAST] * N, attack="bim"),
        make_stored([LAST] * N, ladder=LADDER[1:], record={"flags": (flag,)}),
    ]
    result = judged(records, tmp_path, f'metric = "accuracy"\nat_least = 0.5\n{EPS}')
    assert (result.verdict, result.doubted) == ("met", True)
    assert "blind" in result.outcomes[0].doubts[0]


def test_oblivious_attackers_alone_test_nothing(make_stored: Maker, tmp_path: Path) -> None:
    blind = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.9, 0.8), knowledge="oblivious")
    table = f'metric = "accuracy"\nat_least = 0.1\ndefense = "{GUARD}"\n{EPS}'
    result = judged([blind], tmp_path, table)
    assert (result.verdict, result.doubted) == ("not tested", True)
    named = judged([blind], tmp_path, table + 'attack = "pgd"')
    assert named.verdict == "not tested"
    clean = f'metric = "accuracy"\nat_least = 0.1\ndefense = "{GUARD}"\nattack = "clean"'
    assert judged([blind], tmp_path, clean).verdict == "met"
