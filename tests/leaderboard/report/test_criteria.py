"""Acceptance criteria: what a file may say, and when one is met."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard.report.criteria import METRICS, CriteriaFile, read_criteria
from leaderboard.report.document import Judged
from leaderboard.report.evaluate_criteria import evaluate_criteria
from leaderboard.report.model_boards import boards_of_model
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.cards import DatasetCard
from robustbench_med.errors import SpecError
from tests.leaderboard.planted_masks import BRAIN, CHEST, make_masks

from .planted import ACCURACY, VICTIM, N, page, pair, wilson, written_report

Maker = Callable[..., Stored]
GOOD = 'metric = "accuracy"\nat_least = 0.5\neps = "2/255"\n'


def written(folder: Path, *tables: str) -> Path:
    path = folder / "criteria.toml"
    path.write_text("".join(f"[[criteria]]\n{table}\n" for table in tables))
    return path


def criteria_file(folder: Path, *tables: str) -> CriteriaFile:
    return read_criteria(written(folder, *tables))


def judged(records: list[Stored], folder: Path, table: str, victim: str = VICTIM) -> Judged:
    result = evaluate_criteria(criteria_file(folder, table), boards_of_model(records, victim))
    return result.judged[0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (GOOD + "at_leest = 1", "criterion 1: expected a known key, got 'at_leest': did you mean"),
        (GOOD.replace("accuracy", "acuracy"), "expected a known metric, got 'acuracy': did you"),
        (GOOD.replace("0.5", '"0.5"'), "at_least: Input should be a valid number, got '0.5'"),
        (GOOD.replace("0.5", "nan"), "at_least: Input should be a finite number, got nan"),
        (GOOD.replace("0.5", "true"), "at_least: Input should be a valid number, got True"),
        (GOOD.replace("0.5", "70"), "expected at_least in [0, 1] with accuracy, got 70"),
        (GOOD + "at_most = 1.0", "expected either at_least or at_most, got both or none"),
        (GOOD.replace("at_least", "at_most"), "expected at_least with accuracy (higher is better)"),
        ('metric = "hd95"\nat_least = 3.0\neps = 1', "expected at_most with hd95 (lower is better"),
        (GOOD + 'basis = "high"', "expected basis 'low' or 'value' with at_least, got 'high'"),
        (GOOD + 'basis = "mean"', "basis: Input should be 'low', 'value' or 'high'"),
        (GOOD + 'attack = "clean"', "expected eps with every attack but 'clean', got one"),
        (GOOD.replace('eps = "2/255"', ""), "expected eps with every attack but 'clean', got none"),
        (GOOD.replace("2/255", "two"), "eps: expected a number such as 0.01 or 2/255, got 'two'"),
        (GOOD.replace("2/255", "0"), "expected eps > 0, got '0'"),
        (GOOD.replace('"2/255"', "2"), "expected eps <= 1 with linf (white is 1), got 2: perhaps"),
        (GOOD + "images = 100", "criterion 1: expected a known key, got 'images'"),
        (GOOD + 'norm = "l7"', "norm: Input should be"),
        (GOOD + 'threat = "magic"', "threat: Input should be"),
        ('at_least = 0.5\neps = "2/255"', "expected metric, got none"),
        (GOOD.replace("accuracy", "accuracy[lung]"), "expected metric accuracy, got 'accuracy["),
        (GOOD.replace("accuracy", "recall"), "expected metric recall[CLASS], got 'recall'"),
        (GOOD.replace("accuracy", "dice[x"), "expected metric dice, got 'dice[x'"),
    ],
)
def test_a_mistake_in_a_criterion_is_named(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        criteria_file(tmp_path, table)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[[criteria]\n", "expected TOML in"),
        (b"\xff\xfe", "expected TOML in"),
        (b"", "expected only [[criteria]] tables in"),
        (b"criteria = 3", "expected only [[criteria]] tables in"),
        (b"criteria = []", "expected only [[criteria]] tables in"),
        (b"[[criteria]]\n[other]\n", "got criteria, other"),
    ],
)
def test_a_file_that_is_no_criteria_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "criteria.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read_criteria(path)
    assert words in str(caught.value)
    with pytest.raises(SpecError, match="expected criteria in .*gone.toml, got: No such file"):
        read_criteria(tmp_path / "gone.toml")


def test_the_file_is_known_by_its_hash(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    os.utime(path, (0, 0))
    result = read_criteria(path)
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.modified == "1970-01-01T00:00:00+00:00"
    assert result.criteria[0].judged_on == "low"
    assert result.criteria[0].radius == pytest.approx(2 / 255)


@pytest.mark.parametrize("rung", [1, 2, 3])
@pytest.mark.parametrize("basis", ["value", "low"])
def test_a_limit_is_met_at_the_boundary_and_not_above(
    make_stored: Maker, tmp_path: Path, rung: int, basis: str
) -> None:
    k = ACCURACY[rung]
    limit = k / N if basis == "value" else wilson(k, N)[0]
    eps = {1: "0.5/255", 2: "1/255", 3: "2/255"}[rung]
    for added, verdict in ((0.0, "met"), (1e-6, "not met"), (-1e-6, "met")):
        table = f'metric = "accuracy"\nat_least = {limit + added!r}\neps = "{eps}"\n'
        result = judged(pair(make_stored), tmp_path, table + f'basis = "{basis}"')
        assert result.verdict == verdict
        assert result.outcomes[0].judged == pytest.approx(limit)


def test_low_is_judged_unless_the_file_says_value(make_stored: Maker, tmp_path: Path) -> None:
    table = f'metric = "accuracy"\nat_least = {ACCURACY[3] / N}\neps = "2/255"'
    assert judged(pair(make_stored), tmp_path, table).verdict == "not met"
    assert judged(pair(make_stored), tmp_path, table + '\nbasis = "value"').verdict == "met"


@pytest.mark.parametrize(
    ("metric", "eps", "attack", "value"),
    [
        ("sensitivity", "0.5/255", "worst_case", 0.8),
        ("sensitivity", "0.5/255", "pgd", 0.9),
        ("specificity", "2/255", "worst_case", 0.7),
        ("recall[opacity]", "1/255", "worst_case", 0.7),
        ("accuracy", "1/255", "bim", 17 / 20),
        ("accuracy", "1/255", "worst_case", 16 / 20),
        ("accuracy", "", "clean", 19 / 20),
        ("balanced_accuracy", "1/255", "pgd", 17 / 20),  # the record's own, not image by image
    ],
)
def test_a_metric_is_of_the_attack_named(
    make_stored: Maker, tmp_path: Path, metric: str, eps: str, attack: str, value: float
) -> None:
    table = f'metric = "{metric}"\nattack = "{attack}"\nat_least = {value!r}\nbasis = "value"\n'
    result = judged(pair(make_stored), tmp_path, table + (f'eps = "{eps}"' if eps else ""))
    assert result.verdict == "met"
    assert result.outcomes[0].judged == pytest.approx(value)
    above = table.replace(repr(value), repr(value + 1e-6))
    result = judged(pair(make_stored), tmp_path, above + (f'eps = "{eps}"' if eps else ""))
    assert result.verdict == "not met"


def test_flips_are_judged_on_the_upper_end(make_stored: Maker, tmp_path: Path) -> None:
    high = wilson(3, 10)[1]
    for added, verdict in ((1e-6, "met"), (-1e-6, "not met")):
        table = f'metric = "flips_to_normal"\nat_most = {high + added!r}\neps = "1/255"'
        result = judged(pair(make_stored), tmp_path, table)
        assert (result.basis, result.verdict) == ("high", verdict)


def test_masks_are_judged_on_the_least_favourable_attack(
    make_stored: Maker, tmp_path: Path
) -> None:
    records = [
        make_masks(make_stored, [[0.9, 0.8, 0.7]] * 6, attack="pgd"),
        make_masks(make_stored, [[0.9, 0.6, 0.7]] * 6, attack="segpgd"),
    ]
    eps = '\neps = "1/255"\nbasis = "value"\n'
    limit = 8.125 * (1 - 0.6)  # volume error of the planted record with the lower Dice
    for metric, way, value in (
        ("dice", "at_least", 0.6),
        ("dice[tumour core]", "at_least", 0.6),
        ("volume_error", "at_most", limit),
        ("lesion_miss", "at_most", 0.2),
    ):
        table = f'metric = "{metric}"\n{way} = {value!r}' + eps
        result = judged(records, tmp_path, table, "unet_narrow")
        assert result.verdict == "met", metric
        assert result.outcomes[0].judged == pytest.approx(value)
        assert result.outcomes[0].records == (
            (records[1].record.case_id,)
            if way == "at_most"
            else tuple(record.record.case_id for record in records)
        )


@pytest.mark.parametrize(
    "changed",
    [
        'dataset = "elsewhere"',
        'attack = "apgd"',
        'eps = "3/255"',
        'threat = "query"',
        'norm = "l2"',
        'defense = "jpeg(quality=75)"',
        'objective = "targeted(target=1)"',
    ],
)
def test_what_was_not_run_is_not_tested(make_stored: Maker, tmp_path: Path, changed: str) -> None:
    key = changed.partition(" ")[0]
    lines = [line for line in GOOD.splitlines() if not line.startswith(key)]
    result = judged(pair(make_stored), tmp_path, "\n".join([*lines, changed]))
    assert result.verdict == "not tested"
    (key, _, value) = changed.split(maxsplit=2)
    named = {"dataset": "elsewhere", "attack": "apgd", "defense": "jpeg(quality=75)"}
    why = "no record of this dataset, attack, radius"
    if key in named:
        why = f"no record is of {key} {named[key]!r}"
    assert why in result.outcomes[0].why, value
    assert "there are records of phantom_cxr, white box" in result.outcomes[0].why


def test_a_metric_the_records_do_not_hold_is_not_tested(make_stored: Maker, tmp_path: Path) -> None:
    result = judged(pair(make_stored), tmp_path, 'metric = "dice"\nat_least = 0.5\neps = "2/255"')
    assert (result.verdict, result.outcomes[0].why) == (
        "not tested",
        "the records have no dice for Chest X-ray",
    )
    nothing = 'metric = "auc"\nat_least = 0.5\neps = "8/255"'  # NaN at the last rung
    assert judged(pair(make_stored), tmp_path, nothing).verdict == "not tested"


def test_an_invalid_record_meets_nothing(make_stored: Maker, tmp_path: Path) -> None:
    broken = {"status": "invalid", "reason": "NaN logits", "rungs": (), "audit": None}
    records = [*pair(make_stored)[:1], make_stored([6] * N, attack="pgd", record=broken)]
    result = judged(records, tmp_path, GOOD)
    assert result.verdict == "not tested"
    assert result.doubted


def test_a_flag_marks_a_met_criterion_as_doubted(make_stored: Maker, tmp_path: Path) -> None:
    flag = Flag(name="zero_gradients", meaning="blind", value=0.4, threshold=0.1)
    records = [pair(make_stored)[0], make_stored([6] * N, attack="pgd", record={"flags": (flag,)})]
    result = judged(records, tmp_path, GOOD.replace("0.5", "0.1"))
    assert (result.verdict, result.doubted) == ("met", True)
    assert any("blind" in doubt for doubt in result.outcomes[0].doubts)
    assert not judged(pair(make_stored), tmp_path, GOOD).doubted


def test_a_criterion_is_met_only_on_every_board_it_fits(make_stored: Maker, tmp_path: Path) -> None:
    weak = make_stored([1] * N, attack="pgd", case={"victim_sha256": "a" * 64})
    result = judged([*pair(make_stored), weak], tmp_path, GOOD.replace("0.5", "0.4"))
    assert {outcome.verdict for outcome in result.outcomes} == {"met", "not met"}
    assert result.verdict == "not met"
    clean = 'metric = "accuracy"\nat_least = 0.5\nattack = "clean"'
    blurred = make_stored([6] * N, attack="square")
    fewer = make_stored([6] * 6, attack="square", case={"n": 6})
    (outcome,) = judged([fewer, *pair(make_stored), blurred], tmp_path, clean).outcomes
    assert outcome.estimate is not None
    assert outcome.estimate.value in (19 / N, 1.0)
    (alone,) = judged([*pair(make_stored), fewer], tmp_path, clean).outcomes
    assert alone.judged == pytest.approx(wilson(19, N)[0])  # of all images, not of six


@pytest.mark.parametrize(("second", "after"), [(1, True), (0, False), (-1, False)])
def test_criteria_younger_than_the_first_record_are_said_to_be(
    make_stored: Maker, tmp_path: Path, second: int, after: bool
) -> None:
    path = written(tmp_path, GOOD)
    started = 1_768_471_920  # 2026-01-15T10:12:00Z, when the planted records were started
    os.utime(path, (started + second, started + second))
    result = evaluate_criteria(read_criteria(path), boards_of_model(pair(make_stored), VICTIM))
    assert result.first_record == "2026-01-15T10:12:00Z"
    assert result.written_after is after


def test_every_metric_of_a_record_can_be_judged(make_stored: Maker) -> None:
    labels = {name for rung in pair(make_stored)[0].record.rungs for name in rung.metrics}
    masks = make_masks(make_stored, [[0.9, 0.8]] * 4).record
    every = labels | {name.partition("[")[0] for rung in masks.rungs for name in rung.metrics}
    assert every - {"psnr", "ssim", "linf", "l2"} <= set(METRICS)


def of_masks(make: Maker, card: DatasetCard) -> Stored:
    return make_masks(make, [[0.9, 0.8, 0.7]] * 6, attack="pgd", dataset=card)


@pytest.mark.parametrize(
    ("metric", "way", "spacing", "unit"),
    [
        ("hd95", "at_most", (1.5, 1.5), "mm"),
        ("hd95", "at_most", None, "px"),
        ("hd95[tumour core]", "at_most", None, "px"),
        ("volume_error", "at_most", (1.5, 1.5), "mm²"),
        ("volume_error", "at_most", None, "px"),
        ("dice", "at_least", (1.5, 1.5), ""),
    ],
)
def test_a_length_is_judged_with_its_unit(
    make_stored: Maker,
    tmp_path: Path,
    metric: str,
    way: str,
    spacing: tuple[float, float] | None,
    unit: str,
) -> None:
    card = BRAIN.model_copy(update={"spacing": spacing})
    table = f'metric = "{metric}"\n{way} = 0.5\neps = "1/255"\n'
    result = judged([of_masks(make_stored, card)], tmp_path, table, "unet_narrow")
    assert f"{metric} {way.replace('_', ' ')} 0.5{' ' + unit if unit else ''} under" in result.words
    assert result.outcomes[0].unit == unit


def test_one_limit_of_two_units_names_both(make_stored: Maker, tmp_path: Path) -> None:
    known = BRAIN.model_copy(update={"spacing": (1.5, 1.5)})
    records = [
        of_masks(make_stored, known),
        of_masks(make_stored, CHEST.model_copy(update={"spacing": None})),
    ]
    table = 'metric = "hd95"\nat_most = 30.0\neps = "1/255"\n'
    result = judged(records, tmp_path, table, "unet_narrow")
    assert "at most 30 (in the unit of each dataset: px, mm)" in result.words
    assert sorted(outcome.unit for outcome in result.outcomes) == ["mm", "px"]
    path = tmp_path / "criteria.toml"
    done = written_report(records, tmp_path, victim="unet_narrow", criteria=read_criteria(path))
    html = page(done)
    for outcome in result.outcomes:
        assert outcome.estimate is not None
        assert f"{outcome.estimate.value:.1f} {outcome.unit}<small>" in html
