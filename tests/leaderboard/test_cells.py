"""Cells: no record is lost to another, and records of other images have boards of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import leaderboard
from leaderboard.boards.board import with_ids
from leaderboard.exports import long_frame
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored

from .planted import PROVENANCE, VICTIMS
from .planted_shields import GUARD, WRAPPED, card, wrapped

Maker = Callable[..., Stored]
OTHER = VICTIMS[1]


def runs(made: list[leaderboard.Board]) -> list[str]:
    """Return the case ids that boards hold."""
    return sorted(
        run.record.case_id for board in made for row in board.rows for run in row.runs.values()
    )


def alike(make: Maker, *cases: dict[str, Any], **given: Any) -> list[Stored]:  # noqa: ANN401
    """Return records that differ in these fields of their cases alone."""
    return [make([6, 6, 1], case=case, **given) for case in cases]


PAIRS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("rivals", {}, {"knowledge": "lid(k=20)"}, {"knowledge": "lid(k=5)"}),
    ("unread rivals", {}, {"knowledge": "lid(k="}, {"knowledge": "lid(k=5"}),
    ("versions", {"defense": "jpeg"}, {"defense_version": 1}, {"defense_version": 2}),
    ("fitted", {"defense": GUARD}, {"train_sha256": "a" * 64}, {"train_sha256": "b" * 64}),
    ("trained", {"n_fit": 9}, {"train_sha256": "a" * 64}, {"train_sha256": "b" * 64}),
    ("ratios", {"budget": "mean_norm"}, {"train_sha256": "a" * 64}, {"train_sha256": "b" * 64}),
    ("points", {}, {"operating_point": "youden"}, {"operating_point": "argmax"}),
    ("weights", {}, {"victim_sha256": "a" * 64}, {"victim_sha256": "b" * 64}),
    ("seed of the attack", {}, {"parameters": {"seed": 1}}, {"parameters": {"seed": 2}}),
    # nothing a heading tells apart: the same to eight digits, and one that equals the other
    (
        "digits",
        {"surrogate": "s"},
        {"surrogate_sha256": "a" * 60 + "b" * 4},
        {"surrogate_sha256": "a" * 60 + "c" * 4},
    ),
    ("one and true", {}, {"parameters": {"steps": 1}}, {"parameters": {"steps": True}}),
]


@pytest.mark.parametrize(
    ("shared", "one", "two"), [pair[1:] for pair in PAIRS], ids=[pair[0] for pair in PAIRS]
)
def test_no_record_is_lost_to_another(
    make_stored: Maker, shared: dict[str, Any], one: dict[str, Any], two: dict[str, Any]
) -> None:
    attack = "uap" if "n_fit" in shared else "pgd"
    records = alike(make_stored, shared | one, shared | two, attack=attack)
    assert records[0].record.case_id != records[1].record.case_id
    made = leaderboard.make_boards(records)
    assert runs(made) == sorted(stored.record.case_id for stored in records)
    for board in made:
        titles = [row.title for row in board.rows]
        assert len(set(titles)) == len(titles)
        assert len(board.rows) * len(board.columns) >= 2


def test_a_case_that_stands_in_two_suites_counts_once(make_stored: Maker) -> None:
    stored = make_stored([6, 1])
    (board,) = leaderboard.make_boards([stored, stored._replace(folder="elsewhere")])
    assert runs([board]) == [stored.record.case_id]
    assert board.columns == ("PGD-40",)


def test_rival_detectors_of_one_kind_are_two_columns(make_stored: Maker) -> None:
    known = [{"knowledge": f"lid(fpr=0.05, k={k})", "defense": GUARD} for k in (5, 20)]
    (board,) = leaderboard.make_boards(alike(make_stored, *known))
    assert board.columns == ("PGD-40, evading lid (lid k=20)", "PGD-40, evading lid (lid k=5)")


def test_a_detector_fitted_on_other_images_is_another_row(make_stored: Maker) -> None:
    learned = card("mahalanobis", "M", "detector").model_copy(update={"fitted": True})
    fitted = {"defense_card": learned}
    records = []
    for digit in "ab":
        own: dict[str, Any] = {"case": {"train_sha256": digit * 64}, "record": fitted}
        records.append(wrapped(make_stored, WRAPPED, GUARD, **own))
        # what an attack is fitted on beside it does not make a third row
        records.append(wrapped(make_stored, WRAPPED, GUARD, attack="uap", **own))
    made = leaderboard.make_boards([*records, make_stored(WRAPPED)])
    white = next(board for board in made if board.threat == "white_box")
    assert white.columns == ("PGD-40",)
    assert {row.distinction for row in white.rows} == {
        "",
        "fitted on aaaaaaaa",
        "fitted on bbbbbbbb",
    }
    assert {len(board.rows) for board in made if board.threat == "universal"} == {2}


def test_an_attack_fitted_on_images_keeps_the_row_of_its_victim(make_stored: Maker) -> None:
    ratio = {"budget": "mean_norm", "train_sha256": "a" * 64}
    jpeg = {"defense": "jpeg(quality=75)"}
    plain, one = make_stored([6, 1], case=jpeg), make_stored([6, 1], case=jpeg | ratio)
    rows = [board.rows[0].key for board in leaderboard.make_boards([plain, one])]
    assert rows[0] == rows[1]


def test_operating_points_are_told_apart_everywhere(make_stored: Maker) -> None:
    points = [{"operating_point": point} for point in ("youden", "argmax")]
    made = leaderboard.make_boards(alike(make_stored, *points))
    assert {row.title for row in made[0].rows} == {
        "ResNet-18 narrow (operating point argmax)",
        "ResNet-18 narrow (operating point youden)",
    }
    frame = long_frame(made)
    assert frame.groupby("operating_point").size().to_dict().keys() == {"argmax", "youden"}


def test_other_images_have_their_own_board(make_stored: Maker) -> None:
    def drawn(suite: str, size: int, **case: Any) -> list[Stored]:  # noqa: ANN401
        source = PROVENANCE.model_copy(update={"command": f"python -m x run {suite} --case 1"})
        made = []
        for attack in ("pgd", "bim"):
            for victim in VICTIMS[:2]:
                one = make_stored(
                    [6, 1] * (size // 2),
                    attack=attack,
                    victim=victim,
                    case={"n": size, **case},
                    record={"provenance": source},
                )
                made.append(one)
        return made

    both = [*drawn("quick", 6), *drawn("attacks", 4)]
    made = leaderboard.make_boards(both)
    words = ["6 images of suite quick", "4 images of suite attacks"]
    assert [board.image_set for board in made] == words
    assert {row.standing for board in made for row in board.rows} == {"ranked"}
    idents = [ident for ident, _ in with_ids(made)]
    assert [ident.partition("untargeted-")[2] for ident in idents] == [
        "6-images-of-suite-quick",
        "4-images-of-suite-attacks",
    ]
    assert made[0].setting.endswith(" · 6 images of suite quick")
    assert [board.image_set for board in leaderboard.make_boards(both[:4])] == [""]
    # another split, seed or file is told apart too, and "all" is a number like another
    more = [*drawn("quick", 6), *drawn("quick", 6, split="val"), *drawn("quick", 6, n=None)]
    assert {board.image_set for board in leaderboard.make_boards(more)} == {
        "6 images of suite quick, test split",
        "6 images of suite quick, val split",
    }
    files = [*drawn("quick", 6), *drawn("quick", 6, data_sha256="c" * 64)]
    assert {board.image_set.rpartition(", ")[2] for board in leaderboard.make_boards(files)} == {
        "data dddddddd",
        "data cccccccc",
    }


def test_a_case_without_a_record_leaves_its_row_incomplete(make_stored: Maker) -> None:
    fine, missing = make_stored([6, 6], attack="bim"), make_stored([6, 1]).record
    failure = Failure(
        label="a",
        reason="RuntimeError: out of memory",
        case=missing.case,
        attack=missing.attack_card,
    )
    other = Failure(label="b", reason="no case known")
    (board,) = leaderboard.make_boards([fine], [failure, other])
    assert board.columns == ("BIM", "PGD-40")
    assert board.rows[0].standing == "incomplete"
    assert board.rows[0].reasons == ("failed or not readable: PGD-40",)
    # and no other row: the second victim did not lose it, but was not asked for it either
    second = make_stored([6, 6], attack="bim", victim=OTHER)
    (board,) = leaderboard.make_boards([fine, second], [failure])
    assert {row.reasons for row in board.rows} == {
        ("failed or not readable: PGD-40",),
        ("not run: PGD-40",),
    }
    # of a row that is not on the board, nothing is asked of the others
    (board,) = leaderboard.make_boards([second], [failure])
    assert board.rows[0].standing == "ranked"
    elsewhere = missing.case.model_copy(update={"n": 7})
    (board,) = leaderboard.make_boards([fine], [failure.model_copy(update={"case": elsewhere})])
    assert board.columns == ("BIM",)
