"""Certified masks on boards, page, tables and report: beside the attacks within the radius."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import leaderboard
from leaderboard.boards.board import Board
from leaderboard.boards.certified_masks import mask_words, proved_masks
from robustbench_med.bench.record import Flag, MaskCertificate, Stored
from robustbench_med.cards import DefenseCard
from robustbench_med.stats import Estimate

from .planted_masks import UNET, make_masks
from .report.planted import page, rows, written_report
from .report.test_report import plain_text

Maker = Callable[..., Stored]
DEFENSE = "mask_smoothing(sigma=0.25, tau=0.75, n=100)"
DICE = [[0.9, 0.8, 0.7, 0.6], [0.8, 0.7, 0.6, 0.5]]
CARD = DefenseCard(
    name="mask_smoothing",
    title="Mask smoothing",
    function="mask_smoothing:mask_smoothing",
    version=1,
    kind="smoothing",
    parameters={"sigma": 0.1, "tau": 0.75, "alpha": 0.001},
)


def around(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.05, high=value + 0.05)


def proof(radius: float = 0.01) -> MaskCertificate:
    regions = {"whole tumour": around(0.41), "tumour core": around(0.31)}
    return MaskCertificate(
        radius=radius,
        alpha=0.002,
        dice=around(0.36),
        regions=regions,
        certified=around(0.87),
        inside=around(0.64),
    )


def proved(make: Maker, *, flagged: bool = False, radius: float = 0.01, **given: Any) -> Stored:  # noqa: ANN401
    meaning = "The attack brought the Dice of some images below the certified one"
    flag = Flag(name="certificate_above_attack", meaning=meaning, value=2, threshold=0)
    fields = {
        "mask_certificate": proof(radius),
        "defense_card": CARD,
        "flags": (flag,) if flagged else (),
    }
    case = {"norm": "l2", "defense": DEFENSE, **given.pop("case", {})}
    return make_masks(make, DICE, case=case, record=fields, **given)


def board_of(*records: Stored) -> Board:
    (board,) = leaderboard.make_boards(list(records))
    return board


def test_a_certificate_stands_beside_the_largest_attacked_radius_within(make_stored: Maker) -> None:
    """The radii are 1, 2 and 4 parts in 255: 0.0039, 0.0078, 0.0157."""
    board = board_of(proved(make_stored))
    ((row, found),) = proved_masks(board).items()
    assert found.eps == pytest.approx(2 / 255)
    assert found.attacked == row.worst[1]
    assert found.attacked is not None
    assert found.attacked.value == pytest.approx(0.65)
    assert mask_words(found) == "σ = 0.25, τ = 0.75, α = 0.002"
    assert not found.broken
    (small,) = proved_masks(board_of(proved(make_stored, radius=0.003))).values()
    assert small.attacked is None
    (linf,) = proved_masks(board_of(proved(make_stored, case={"norm": "linf"}))).values()
    assert linf.attacked is None  # a radius of L-inf is none of L2
    assert proved_masks(board_of(make_masks(make_stored, DICE, victim=UNET))) == {}


def test_the_page_shows_both_and_a_fault_in_words(make_stored: Maker, tmp_path: Path) -> None:
    text = leaderboard.publish([proved(make_stored)], tmp_path, title="t").read_text("utf-8")
    assert "<strong>Certified masks.</strong>" in text
    assert "the true worst case is between the two" in text
    for figure in ("0.360", "0.310–0.410", "0.650", "at 0.00784", "87.0", "64.0"):
        assert figure in text
    assert "an attack went below the certificate" not in text
    faulty = [proved(make_stored, flagged=True)]
    text = leaderboard.publish(faulty, tmp_path, title="t").read_text("utf-8")
    assert (
        "an attack went below the certificate: too few deployed votes, or a wrong certificate"
        in text
    )
    (row,) = board_of(*faulty).rows
    assert row.standing == "flagged"
    plain = leaderboard.publish([make_masks(make_stored, DICE)], tmp_path, title="t")
    assert "Certified masks" not in plain.read_text("utf-8")


def test_tables_have_columns_of_it_only_where_some_row_has_one(
    make_stored: Maker, tmp_path: Path
) -> None:
    bare = make_masks(make_stored, DICE, case={"norm": "l2"})
    leaderboard.publish([proved(make_stored), bare], tmp_path, title="t")
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    found = table.drop_duplicates("defense").set_index("defense")
    assert found.loc[DEFENSE, "certified_dice"] == pytest.approx(0.36)
    assert found.loc[DEFENSE, "certified_radius"] == pytest.approx(0.01)
    assert found.loc[DEFENSE, "certified_pixels"] == pytest.approx(0.87)
    assert found.drop(DEFENSE)["certified_dice"].isna().all()
    leaderboard.publish([bare], tmp_path, title="t")
    assert "certified_dice" not in pd.read_csv(tmp_path / "leaderboard.csv")


def test_the_report_has_a_table_of_it(make_stored: Maker, tmp_path: Path) -> None:
    written = written_report([proved(make_stored)], tmp_path, UNET[0])
    (board,) = written.document.boards
    assert board.proved_masks is not None
    assert board.proved_masks.regions["tumour core"].value == 0.31
    ((head, *cells),) = rows(page(written), "board-1-certified-masks")
    assert head == "L2 radius 0.01"
    assert [cell.split()[0] for cell in cells[:-1]] == ["0.360", "0.410", "0.310", "0.650", "87.0"]
    text = plain_text(written)
    assert "the true worst case is between the two" in text
    assert "went below the certificate" not in text
    faulty = plain_text(written_report([proved(make_stored, flagged=True)], tmp_path, UNET[0]))
    assert (
        "An attack went below the certificate: too few deployed votes, or a wrong certificate"
        in faulty
    )
