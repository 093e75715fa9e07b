"""Certificates: steps that overstate nothing, the row's own colour, and what holds in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import leaderboard
from leaderboard.boards.charts import certified, certified_curves, certified_words
from robustbench_med.bench.record import Stored

from .planted_shields import (
    BARE,
    JPEG,
    SMOOTHING,
    WRAPPED,
    certificate,
    shield_field,
    wrapped,
)

Maker = Callable[..., Stored]


def smoothed(make: Maker, defense: str = SMOOTHING, **given: object) -> Stored:
    return wrapped(make, WRAPPED, defense, record={"certificate": certificate(), **given})


def test_the_curve_is_of_steps_that_overstate_nothing(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards([make_stored(BARE), smoothed(make_stored)])
    (place,) = certified(board).values()
    svg = certified_curves(board, "x")
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own figure
    (curve,) = [g for g in root.iter("g") if g.get("class") == f"curve n{place}"]
    (path,) = curve.iter("path")
    points = [
        tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d", ""))
    ]
    (x0, y0), (x1, y1), (x2, y2), (x3, y3), (x4, y4) = points
    # radii 0, 0.25, 0.5 with 0.9, 0.6, 0.2: between two radii the lower share is drawn
    assert x0 == x1 < x2 == x3 < x4
    assert y1 == y2
    assert y3 == y4
    assert x4 - x2 == pytest.approx(x2 - x0, rel=1e-3)
    assert (y3 - y2) / (y1 - y0) == pytest.approx(0.4 / 0.3, rel=1e-3)


def test_only_rows_with_a_certificate_have_a_line(make_stored: Maker) -> None:
    records = [make_stored(BARE), wrapped(make_stored, WRAPPED, JPEG), smoothed(make_stored)]
    (board,) = leaderboard.make_boards(records)
    found = certified(board)
    assert [row.key.defense for row in found] == [SMOOTHING]
    assert found == {row: board.rows.index(row) for row in found}
    (bare,) = leaderboard.make_boards(records[:2])
    assert certified(bare) == {}
    empty = smoothed(make_stored, certificate=certificate(()))
    assert certified(leaderboard.make_boards([empty])[0]) == {}


def test_the_words_name_the_noise_and_the_abstentions(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards([make_stored(BARE), smoothed(make_stored)])
    told = {row.key.defense: certified_words(row) for row in board.rows}
    assert told == {"none": "", SMOOTHING: "σ = 0.25, abstains on 4.0 % of images"}
    for defense in ("smoothing", "smoothing(draws=1", "own(draws=4)"):
        (row,) = leaderboard.make_boards([smoothed(make_stored, defense)])[0].rows
        assert certified_words(row) == "abstains on 4.0 % of images"


def test_a_certificate_is_shown_once_a_dataset(make_stored: Maker, tmp_path: Path) -> None:
    proof = {"certificate": certificate()}
    records = [
        wrapped(make_stored, WRAPPED, SMOOTHING, attack=attack, record=proof)
        for attack in ("pgd", "square")
    ]
    page = leaderboard.publish(records, tmp_path, title="t").read_text(encoding="utf-8")
    assert page.count('class="curves certified"') == 1
    assert page.index('class="curves certified"') < page.index(
        'id="phantom-cxr-linf-query-untargeted"'
    )
    assert (
        "with proof that no change within the radius alters that call, whatever the attack" in page
    )
    assert "holds for the vote, not for the model without noise" in page


def test_a_page_without_certificates_has_no_such_figure(make_stored: Maker, tmp_path: Path) -> None:
    proved, bare = shield_field(make_stored), [make_stored(BARE)]
    pages = [
        leaderboard.publish(records, tmp_path, title="t").read_text(encoding="utf-8")
        for records in (proved, bare)
    ]
    assert ["certified accuracy" in page.lower() for page in pages] == [True, False]
