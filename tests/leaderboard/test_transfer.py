"""Transfer matrices: who stands where, the diagonal, and names that try to be code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import leaderboard
from leaderboard.boards.transfer import Matrix, matrices
from leaderboard.tables import markdown
from robustbench_med.bench.record import Stored
from robustbench_med.stats.intervals import wilson

from .field import QUERIES, field, raised
from .planted import HOSTILE, VICTIMS

Maker = Callable[..., Stored]
RESNET, VIT, DENSE, MOBILE = VICTIMS


def only(records: list[Stored]) -> Matrix:
    (matrix,) = matrices(leaderboard.make_boards(records))
    return matrix


def headline(matrix: Matrix) -> dict[tuple[int, int], float]:
    return {pair: cell.success[2].value for pair, cell in matrix.cells.items()}


def test_rows_are_surrogates_columns_victims_and_the_diagonal_is_white_box(
    make_stored: Maker,
) -> None:
    matrix = only(
        [
            make_stored([1, 1, 1, 6], victim=RESNET),
            make_stored([1, 1, 6, 6], victim=VIT),
            make_stored([1, 6, 6, 6], victim=VIT, surrogate=RESNET),
            make_stored([6, 6, 6, 0], victim=RESNET, surrogate=VIT),
            make_stored([1, 1, 6, 6], victim=MOBILE, surrogate=VIT),
        ]
    )
    assert matrix.attack == "PGD-40"
    assert [model.title for model in matrix.surrogates] == ["resnet_narrow", "vit_tiny"]
    assert [model.title for model in matrix.victims][:2] == ["resnet_narrow", "vit_tiny"]
    # from ResNet on MobileNet was not run
    assert headline(matrix) == {
        (0, 0): 0.75,
        (1, 1): 0.5,
        (0, 1): 0.25,
        (1, 0): 0.0,
        (1, 2): 0.5,
    }
    assert [pair for pair, cell in sorted(matrix.cells.items()) if cell.white_box] == [
        (0, 0),
        (1, 1),
    ]


def test_success_is_of_the_images_attacked_at_every_radius(make_stored: Maker) -> None:
    stored = make_stored([1, 3, 6, 0], victim=RESNET, surrogate=VIT)
    cell = only([stored]).cells[0, 0]
    assert cell.attacked == 3
    # conftest's rungs divide by all images; the cell shows what the record says
    assert cell.success == tuple(wilson(k, 4) for k in (1, 1, 2, 2, 2))


@pytest.mark.parametrize(
    "other",
    [
        {"case": {"defense": "jpeg"}},
        {"case": {"victim_sha256": "f" * 64}},
        {"case": {"parameters": {"steps": 10}}},
        {"case": {"norm": "l2"}},
        {"case": {"split": "val"}},
        {"attack": "bim"},
    ],
)
def test_the_diagonal_is_the_same_attack_on_the_very_surrogate(
    make_stored: Maker, other: dict[str, Any]
) -> None:
    moved = make_stored([1, 6], victim=RESNET, surrogate=VIT)
    matrix = only([moved, make_stored([1, 1], **({"victim": VIT} | other))])
    assert not any(cell.white_box for cell in matrix.cells.values())
    assert [model.title for model in matrix.victims] == ["resnet_narrow"]


def test_a_model_is_not_asked_to_stand_its_own_images(make_stored: Maker) -> None:
    pairs = [(RESNET, VIT), (VIT, RESNET), (MOBILE, RESNET), (MOBILE, VIT)]
    records = [make_stored([6, 1], victim=v, surrogate=s) for v, s in pairs]
    (board,) = leaderboard.make_boards(records)
    assert board.columns == ("PGD-40 from resnet_narrow", "PGD-40 from vit_tiny")
    assert {row.standing for row in board.rows} == {"ranked"}
    (board,) = leaderboard.make_boards(records[:-1])  # but the third must stand all of them
    assert [row.standing for row in board.rows] == ["ranked", "ranked", "incomplete"]


def test_no_box_shares_the_matrix_and_two_attacks_have_two(make_stored: Maker) -> None:
    moved = make_stored([1, 6], victim=RESNET, surrogate=VIT)
    other = make_stored([6, 6], victim=RESNET, surrogate=DENSE, threat="no_box")
    bim = make_stored([6, 6], victim=RESNET, surrogate=VIT, attack="bim")
    made = leaderboard.make_boards([moved, other, bim])
    found = matrices(made)
    assert [(m.attack, len(m.surrogates)) for m in found] == [("BIM", 1), ("PGD-40", 2)]
    assert [m.other_data for m in found[1].surrogates] == [False, True]
    assert found[1].board.threat == "transfer"
    steps = make_stored([6, 6], victim=RESNET, surrogate=VIT, case={"parameters": {"steps": 9}})
    names = [m.attack for m in matrices(leaderboard.make_boards([moved, steps]))]
    assert names == ["PGD-40 (steps=40, step_size=eps/4, restarts=1)", "PGD-40 (steps=9)"]


def test_flags_and_failures_are_marked(make_stored: Maker) -> None:
    flagged = make_stored([1, 6], victim=RESNET, surrogate=VIT, record=raised(QUERIES))
    failed = make_stored(
        [6, 6],
        victim=MOBILE,
        surrogate=VIT,
        record={"status": "invalid", "reason": "NaN", "rungs": (), "audit": None},
    )
    notes = {cell.note for cell in only([flagged, failed]).cells.values()}
    assert notes == {"flagged", "invalid"}
    assert "50.0 †" in markdown(leaderboard.make_boards([flagged, failed]), title="t")


def test_no_surrogate_no_matrix(records: list[Stored]) -> None:
    assert matrices(leaderboard.make_boards(records)) == []


def test_markdown_shows_the_matrix_with_names_escaped(make_stored: Maker) -> None:
    text = markdown(leaderboard.make_boards(field(make_stored)), title="t")
    lines = text[text.index("made on one model, success on others") :].splitlines()
    key, head = lines[2], lines[4]
    assert "= attacker and victim are one model" in key
    assert "\\* trained on other data" in key
    assert head.count("|") == 6
    assert HOSTILE not in text
    assert "| vit\\_tiny | 5.6 | 41.1 | = 73.3 | 5.6 |" in text
