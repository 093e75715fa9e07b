"""Rows that share images and a radius meet on one board, and no row unranks the others."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest

import leaderboard
from leaderboard.boards.board import with_ids
from leaderboard.tables import beyond_words, terminal_title
from leaderboard.wording.records import comparison_words
from robustbench_med.bench.record import Stored
from robustbench_med.stats.intervals import wilson

Maker = Callable[..., Stored]
NAMES = [(f"net_{letter}", f"Net {letter.upper()}", "CNN") for letter in "abcd"]
NEW = ("new_net", "New net", "CNN")
SHORT, LONG = (1 / 255, 2 / 255, 4 / 255), (1 / 255, 2 / 255, 4 / 255, 8 / 255)


def only(records: list[Stored]) -> leaderboard.Board:
    (board,) = leaderboard.make_boards(records)
    return board


def standings(board: leaderboard.Board) -> dict[str, str]:
    return {row.key.victim: row.standing for row in board.rows}


def full(make: Maker, attacks: tuple[str, ...] = ("bim", "pgd")) -> list[Stored]:
    """Return four victims under two attacks, of which the second breaks more."""
    return [
        make([v + 1 + (attack == "bim")] * 20, victim=victim, attack=attack)
        for v, victim in enumerate(NAMES)
        for attack in attacks
    ]


@pytest.mark.parametrize(
    ("attacks", "lacks"),
    [
        (("bim",), "PGD-40"),
        (("fgsm",), "BIM, PGD-40"),
        (("bim", "fgsm"), "PGD-40"),
        (("bim", "noise"), "PGD-40"),
    ],
)
def test_a_new_row_that_lacks_attacks_leaves_the_others_ranked(
    make_stored: Maker, attacks: tuple[str, ...], lacks: str
) -> None:
    new = [make_stored([6] * 20, victim=NEW, attack=a, threat="white_box") for a in attacks]
    board = only([*full(make_stored), *new])
    assert standings(board) == {name: "ranked" for name, *_ in NAMES} | {"new_net": "incomplete"}
    reason = board.rows[-1].reasons[0]
    missing = re.match(r"not run: (.*?)\. To run it: ", reason)
    assert missing
    assert sorted(missing[1].split(", ")) == lacks.split(", ")
    commands = reason.partition("To run it: ")[2].split("; ")
    assert len(commands) == len(lacks.split(", "))
    for command in commands:
        words = shlex.split(command)
        assert words[:4] == ["python", "-m", "robustbench_med", "run"]
        assert words[words.index("--victim") + 1] == "new_net"
        assert words[words.index("--eps") + 1] == "0.5/255,1/255,2/255,4/255,8/255"


def test_an_attack_that_changes_nothing_for_others_costs_no_place(make_stored: Maker) -> None:
    # all are ranked by PGD-40, which they share: BIM breaks nothing more on those that met it
    new = make_stored([4] * 20, victim=NEW, attack="pgd")
    board = only([*full(make_stored), new])
    assert set(standings(board).values()) == {"ranked"}
    row = next(row for row in board.rows if row.key.victim == "new_net")
    (note,) = row.notes
    assert note.startswith("not run: BIM, which broke at most 1 image more in any row that ran it")
    assert "--victim new_net --attack" in note


def test_a_row_with_an_attack_of_its_own_leaves_the_others_ranked(make_stored: Maker) -> None:
    extra = make_stored([1] * 20, victim=NAMES[3], attack="fmn")
    board = only([*full(make_stored), extra])
    assert set(standings(board).values()) == {"ranked"}
    row = next(row for row in board.rows if row.key.victim == "net_d")
    # its worst case counts all it met, also what the others have not: never too high
    assert row.worst[2] == wilson(0, 20)
    (words,) = beyond_words(board)
    assert words.startswith("FMN counts in the worst case of the 1 of 4 rows on which it ran")
    assert "--attack" in words


def test_two_rows_without_an_attack_in_common_rank_nobody(make_stored: Maker) -> None:
    board = only(
        [
            make_stored([6] * 9, victim=NAMES[0], attack="bim"),
            make_stored([6] * 9, victim=NAMES[1], attack="pgd"),
        ]
    )
    assert set(standings(board).values()) == {"incomplete"}


def test_rows_of_two_ladders_meet_on_one_board(make_stored: Maker) -> None:
    short = [make_stored([3] * 20, victim=NAMES[0], ladder=SHORT)]
    long = [make_stored([2] * 20, victim=v, ladder=LONG) for v in NAMES[1:]]
    board = only([*short, *long])
    assert board.ladder == LONG
    assert board.at == "2/255"
    assert set(standings(board).values()) == {"ranked"}
    row = next(row for row in board.rows if row.key.victim == "net_a")
    assert [e.value for e in row.worst[:3]] == [1.0, 1.0, 0.0]
    assert math.isnan(row.worst[3].value)  # not run there: no number, and no place
    assert row.ranks == (1, 1, 1, None)
    assert all(r.ranks[3] == 1 for r in board.rows if r is not row)


def test_the_same_attack_on_two_ladders_is_one_column(make_stored: Maker) -> None:
    twice = [make_stored([2] * 20, ladder=SHORT), make_stored([5] * 20, ladder=LONG)]
    others = [make_stored([5] * 20, victim=v, ladder=LONG) for v in NAMES]
    board = only([*twice, *others])
    assert board.columns == ("PGD-40",)
    assert set(standings(board).values()) == {"ranked"}
    row = next(row for row in board.rows if row.key.victim == "resnet_narrow")
    assert set(row.runs) == {"PGD-40", "PGD-40 (ε ∈ {1, 2, 4}/255)"}
    assert row.scores["PGD-40"][1] == row.worst[1] == wilson(0, 20)  # the lower of the two


def test_one_seed_more_is_the_same_attack(make_stored: Maker) -> None:
    board = only(
        [
            make_stored([3] * 20, victim=NAMES[0]),
            make_stored([3] * 20, victim=NAMES[1], case={"seed": 1}),
        ]
    )
    assert board.columns == ("PGD-40",)
    assert set(standings(board).values()) == {"ranked"}


def test_a_row_without_the_radius_of_the_board_says_so(make_stored: Maker) -> None:
    apart = make_stored([1] * 20, victim=NEW, ladder=(8 / 255,))
    board = only([apart, *(make_stored([2] * 20, victim=v, ladder=LONG) for v in NAMES)])
    assert board.at == "2/255"
    assert standings(board) == {name: "ranked" for name, *_ in NAMES} | {"new_net": "incomplete"}
    reason = board.rows[-1].reasons[0]
    assert reason.startswith("not run at ε = 2/255: PGD-40. To run it: ")
    assert "--victim new_net" in reason
    assert "--eps 1/255,2/255,4/255,8/255" in reason


def changed(**case: object) -> dict[str, Any]:
    return {"case": case}


@pytest.mark.parametrize(
    "changes",
    [
        {"ladder": (16 / 255, 32 / 255)},
        {"breaks": [3] * 12, **changed(n=12)},
        {"breaks": [3] * 20, **changed(data_sha256="a" * 64)},
        changed(split="val"),
        changed(norm="l2"),
        changed(budget="mean_norm"),
        changed(objective="targeted(target=1)"),
        {"attack": "bim", "threat": "query"},
        changed(channels={"red": 1.0}),
    ],
)
def test_no_two_boards_are_called_the_same(make_stored: Maker, changes: dict[str, Any]) -> None:
    other = make_stored(**({"breaks": [3] * 20, "victim": NAMES[1]} | changes))
    made = leaderboard.make_boards([make_stored([4] * 20, victim=NAMES[0]), other])
    assert len(made) == 2
    assert len({board.setting for board in made}) == 2
    assert len({terminal_title(board) for board in made}) == 2
    assert len({ident for ident, _ in with_ids(made)}) == 2


def test_a_shared_place_does_not_read_as_a_win(make_stored: Maker) -> None:
    # the first beats the third, the second is told apart from neither: no line, one place
    strong, middle = [5] * 60, [5] * 52 + [1] * 8
    weak = [5] * 47 + [1] * 13
    breaks = {NAMES[0]: strong, NAMES[1]: middle, NAMES[2]: weak}
    rows = [make_stored(b, victim=v, ladder=(2 / 255,)) for v, b in breaks.items()]
    assert rows
    board = only(rows)
    for row in board.rows:
        for words in comparison_words(row, board.headline):
            rivals = [v for v in row.comparisons if v.title in words]
            same = [v for v in rivals if v.ranks[0] == row.ranks[0]]
            assert not (same and words.startswith("significantly"))
