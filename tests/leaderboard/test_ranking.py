"""Boards: per-sample worst case by hand, ranking rules, and what is never compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

import leaderboard
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.errors import ResultsError
from robustbench_med.stats.intervals import wilson
from robustbench_med.worst_case import lowest, standing_table

Maker = Callable[..., Stored]
RESNET = ("resnet_narrow", "ResNet-18 narrow", "ResNet")
VIT = ("vit_tiny", "ViT tiny", "ViT")
FLAG = Flag(name="zero_gradient", meaning="gradients are zero", value=0.4, threshold=0.1)


def only(records: list[Stored]) -> leaderboard.Board:
    (board,) = leaderboard.make_boards(records)
    return board


def test_worst_case_is_taken_per_image(make_stored: Maker) -> None:
    # the rung at which each image falls; 0 = wrong when clean, 6 = never
    bim = make_stored([0, 6, 1, 3, 6, 6], attack="bim")
    pgd = make_stored([6, 6, 6, 2, 1, 0], attack="pgd")
    row = only([bim, pgd]).rows[0]
    assert row.clean == wilson(4, 6)  # images 1, 2, 3, 4
    assert row.worst == tuple(wilson(k, 6) for k in (2, 1, 1, 1, 1))  # images 1 and 3, then 1
    assert row.scores["BIM"] == tuple(wilson(k, 6) for k in (4, 4, 3, 3, 3))


def test_the_order_of_records_changes_nothing(make_stored: Maker) -> None:
    # rows and attacks that do equally well too
    falls = [6, 6, 1, 3, 6, 6]
    records = [
        make_stored(falls, attack=attack, victim=victim)
        for victim in (VIT, RESNET, ("vit_base", "ViT base", "ViT"))
        for attack in ("pgd", "fgsm", "bim")
    ]
    boards = [only(order) for order in (records, records[::-1], records[4:] + records[:4])]
    orders = [[(row.title, list(row.runs), list(row.scores)) for row in b.rows] for b in boards]
    assert orders[0] == orders[1] == orders[2]
    assert all(list(row.scores) == list(boards[0].columns) for row in boards[0].rows)
    compared = [[[c.title for c in row.comparisons] for row in board.rows] for board in boards]
    titles = [row.title for row in boards[0].rows]
    assert compared == [[[t for t in titles if t != title] for title in titles]] * 3


def test_rows_that_differ_in_the_defense_alone_have_one_order(make_stored: Maker) -> None:
    records = [
        make_stored([6, 1, 3], case={"defense": defense, "defense_version": 1})
        for defense in ("jpeg(quality=50)", "jpeg(quality=60)")
    ]
    titles = [[row.title for row in only(order).rows] for order in (records, records[::-1])]
    assert titles[0] == titles[1]


def test_worst_case_joins_on_image_ids_not_on_order(make_stored: Maker) -> None:
    bim, pgd = make_stored([6, 1, 3], attack="bim"), make_stored([1, 6, 6], attack="pgd")
    shuffled = pgd._replace(samples=pgd.samples.sample(frac=1, random_state=3))
    straight, mixed = (
        lowest([standing_table(bim), standing_table(other)]) for other in (pgd, shuffled)
    )
    pd.testing.assert_frame_equal(straight, mixed)
    assert straight[0].to_list() == [True] * 3
    assert straight[1].to_list() == [False, False, True]
    assert straight[3].to_list() == [False] * 3


def test_an_image_wrong_when_clean_never_stands(make_stored: Maker) -> None:
    # a targeted attack may push an image onto its true class
    stored = make_stored([0, 6])
    lucky = stored.samples.assign(correct=stored.samples["correct"] | (stored.samples["eps"] > 0))
    table = lowest([standing_table(stored._replace(samples=lucky))])
    assert table.sum().to_list() == [1] * 6


def test_worst_case_is_never_above_any_attack(records: list[Stored]) -> None:
    for board in leaderboard.make_boards(records):
        for row in (row for row in board.rows if row.standing == "ranked"):
            for rung, worst in enumerate(row.worst):
                assert worst.low <= worst.value <= worst.high
                assert worst.value <= min(row.scores[c][rung].value for c in board.columns)


def test_rows_are_ranked_by_the_middle_rung_and_ties_share_a_place(make_stored: Maker) -> None:
    weak = make_stored([6] * 10 + [1] * 10, victim=RESNET)  # better at 8/255
    strong = make_stored([5] * 20, victim=VIT)  # better at 2/255
    equal = make_stored([4] * 19 + [1], victim=("a_third", "Third", "ViT"))
    board = only([weak, strong, equal])
    assert board.at == "2/255"
    assert [(row.model.name, row.ranks, row.sharing) for row in board.rows] == [
        ("vit_tiny", (1, 1, 1, 1, 2), (2, 2, 2, 1, 2)),
        ("a_third", (1, 1, 1, 3, 2), (2, 2, 2, 1, 2)),
        ("resnet_narrow", (3, 3, 3, 2, 1), (1, 1, 1, 1, 1)),
    ]


@pytest.mark.parametrize(
    ("changes", "standing", "reason"),
    [
        ({"record": {"flags": (FLAG,)}}, "flagged", "PGD-40: gradients are zero"),
        ({"over_budget": 3}, "flagged", "PGD-40: 3 images over their budget"),
        (
            {"record": {"status": "invalid", "reason": "NaN logits"}},
            "invalid",
            "PGD-40: NaN logits",
        ),
        (
            {"breaks": [6, 6]},
            "incomplete",
            "PGD-40: scored on other images than the board (2 images)",
        ),
        ({"attack": "bim"}, "incomplete", "not run: PGD-40"),
    ],
)
def test_what_may_not_be_compared_is_shown_but_not_ranked(
    make_stored: Maker, changes: dict[str, Any], standing: str, reason: str
) -> None:
    odd = make_stored(**({"breaks": [6, 6, 6], "victim": VIT} | changes))
    fine = [make_stored([2, 2, 1], victim=RESNET), make_stored([1, 2, 1], victim=("c", "C", "C"))]
    if changes.get("attack") == "bim":
        fine += [make_stored([2, 2, 2], attack="bim", victim=v) for v in (RESNET, ("c", "C", "C"))]
    board = only([odd, *fine])
    last = board.rows[-1]
    assert (last.model.name, last.standing, last.ranks) == ("vit_tiny", standing, (None,) * 5)
    assert any(found.startswith(reason) for found in last.reasons)
    assert [row.ranks[2] for row in board.rows[:-1]] == [1, 1]


def test_an_invalid_record_never_gives_a_worst_case(make_stored: Maker) -> None:
    ok = make_stored([6, 6], attack="bim")
    bad = make_stored([6, 6], record={"status": "invalid", "reason": "NaN"})
    row = only([ok, bad]).rows[0]
    assert all(worst.value != worst.value for worst in (row.clean, *row.worst))  # NaN
    assert row.scores["BIM"][0].value == 1.0


def test_threat_models_and_ladders_have_their_own_boards(make_stored: Maker) -> None:
    made = leaderboard.make_boards(
        [
            make_stored([6, 6]),
            make_stored([6, 6], attack="bim", threat="query"),
            make_stored([6, 6], ladder=(0.1, 0.2)),
            make_stored([6, 6], attack="noise"),
            make_stored([6, 6], surrogate=VIT),
            make_stored([6, 6], surrogate=VIT, threat="no_box"),
            make_stored([6, 6], ladder=(0.1, 0.2), case={"budget": "mean_norm"}),
        ]
    )
    assert [(board.threat, len(board.ladder), board.budget) for board in made] == [
        ("white_box", 5, "absolute"),
        ("white_box", 2, "absolute"),
        ("white_box", 2, "mean_norm"),
        ("transfer", 5, "absolute"),
        ("no_box", 5, "absolute"),
        ("query", 5, "absolute"),
        ("control", 5, "absolute"),
    ]
    assert {board.headline for board in made if len(board.ladder) == 2} == {0}


def test_a_board_of_controls_ranks_nobody_but_keeps_its_reasons(make_stored: Maker) -> None:
    fine = make_stored([6, 6], attack="noise", victim=RESNET)
    odd = make_stored([6, 6], attack="noise", victim=VIT, record={"flags": (FLAG,)})
    board = only([fine, odd])
    assert [(row.standing, row.ranks) for row in board.rows] == [
        ("control", (None,) * 5),
        ("flagged", (None,) * 5),
    ]
    assert board.rows[0].reasons == ()


def test_another_judge_is_another_row(make_stored: Maker) -> None:
    once, often = make_stored([6, 6]), make_stored([6, 1], case={"draws": 16})
    board = only([once, often])
    assert board.columns == ("PGD-40",)
    assert [row.title for row in board.rows] == [
        "ResNet-18 narrow",
        "ResNet-18 narrow, mean of 16 passes",
    ]
    assert [row.ranks[2] for row in board.rows] == [1, 1]  # two images tell nobody apart


def test_boards_do_not_depend_on_the_order_of_records(records: list[Stored]) -> None:
    def seen(made: list[leaderboard.Board]) -> list[tuple[Any, ...]]:
        return [
            (b.dataset.name, b.columns, [(r.model.name, r.worst) for r in b.rows]) for b in made
        ]

    forward = seen(leaderboard.make_boards(records))
    assert str(forward) == str(seen(leaderboard.make_boards(records[::-1])))
    assert [name for name, *_ in forward] == ["pneumoniamnist", "phantom_cxr", "phantom_fundus"]


def test_two_settings_of_one_attack_are_two_columns(make_stored: Maker) -> None:
    few = make_stored([6, 6], case={"parameters": {"steps": 10, "restarts": 1}})
    many = make_stored([6, 1], case={"parameters": {"steps": 100, "restarts": 1}})
    assert only([few, many]).columns == ("PGD-40 (steps=10)", "PGD-40 (steps=100)")


def test_intervals_are_by_patient_where_patients_are_known(make_stored: Maker) -> None:
    breaks = [6] * 30 + [
        1
    ] * 30  # patients agree with themselves: three images tell no more than one
    known = only([make_stored(breaks, patients=True)]).rows[0].worst[2]
    independent = only([make_stored(breaks)]).rows[0].worst[2]
    assert known.value == independent.value == 0.5
    assert known.high - known.low > 1.4 * (independent.high - independent.low)


def test_a_damaged_samples_table_is_refused(make_stored: Maker) -> None:
    stored = make_stored([6, 6, 1])
    for samples in (stored.samples.iloc[1:], pd.concat([stored.samples, stored.samples.iloc[:1]])):
        with pytest.raises(ResultsError, match=r"expected one row per \(sample, rung\).*--force"):
            leaderboard.make_boards([stored._replace(samples=samples)])


def test_no_records_make_no_boards() -> None:
    assert leaderboard.make_boards([]) == []
