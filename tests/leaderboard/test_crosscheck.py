"""Cross-checks: what a weaker attacker breaks must not stand against one that knows the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import leaderboard
from robustbench_med.bench.record import Stored

from .field import field
from .planted import LADDER, VICTIMS
from .planted_shields import JPEG, wrapped

Maker = Callable[..., Stored]
WHITE = [6, 6, 6, 6, 2, 0]  # the rung at which each image falls; 6 = never, 0 = wrong when clean


def white_row(records: list[Stored]) -> leaderboard.Board:
    """Return the white-box board."""
    (board,) = [b for b in leaderboard.make_boards(records) if b.threat == "white_box"]
    return board


@pytest.mark.parametrize(
    ("attack", "given", "says"),
    [
        ("square", {}, "but not against Square, which only queries the model's outputs"),
        ("noise", {}, "but not against Noise (control), which is no attack at all"),
        (
            "pgd",
            {"surrogate": VICTIMS[1]},
            "but not against PGD-40 from vit_tiny, which was crafted on another model",
        ),
        (
            "pgd",
            {"surrogate": VICTIMS[1], "threat": "no_box"},
            "but not against PGD-40 from vit_tiny, which was crafted on a model trained on other "
            "data",
        ),
    ],
)
def test_an_attacker_who_knows_less_and_wins_flags_the_row(
    make_stored: Maker, attack: str, given: dict[str, Any], says: str
) -> None:
    white = make_stored(WHITE)
    two = white_row([white, make_stored([6, 3, 4, 6, 6, 0], attack=attack, **given)]).rows[0]
    assert two.standing == "flagged"
    (reason,) = two.reasons
    assert reason.startswith("2 of 4 images are robust at ε = 4/255 against attacks")
    assert says in reason
    assert two.crosscheck.endswith("see above")
    # one image may be luck; what is wrong when clean, or broken by both, is no evidence
    one = white_row([white, make_stored([6, 1, 6, 6, 2, 0], attack=attack, **given)]).rows[0]
    assert one.standing == "ranked"
    assert one.crosscheck.endswith("none succeeds on more than 1 robust image")


def test_an_oblivious_attacker_who_beats_those_who_know_the_defense_flags_the_row(
    make_stored: Maker,
) -> None:
    def board_of(blind: list[int]) -> leaderboard.Board:
        known = wrapped(make_stored, WHITE, JPEG)
        return white_row([known, wrapped(make_stored, blind, JPEG, knowledge="oblivious")])

    (two,) = board_of([6, 3, 4, 6, 6, 0]).rows
    assert two.standing == "flagged"
    (reason,) = two.reasons
    assert "but not against PGD-40, oblivious, which does not know the defense" in reason
    assert two.worst == board_of([6] * 6).rows[0].worst  # told, never counted
    (one,) = board_of([6, 1, 6, 6, 2, 0]).rows
    assert one.standing == "ranked"


def test_no_rival_is_said_too(make_stored: Maker) -> None:
    row = white_row([make_stored(WHITE)]).rows[0]
    assert row.standing == "ranked"
    assert row.crosscheck.startswith("no attack with less knowledge was run")


@pytest.mark.parametrize(
    "given",
    [
        {"case": {"victim_sha256": "f" * 64}},
        {"case": {"data_sha256": "c" * 64}},
        {"case": {"split": "val"}},
        {"case": {"draws": 16}},
        {"case": {"norm": "l2"}},
        {"case": {"operating_point": "argmax"}},
        {"case": {"defense": "jpeg"}},
        {"victim": VICTIMS[1]},
        {"ladder": (0.3 / 255, 3 / 255)},
        {"over_budget": 1},
        {"record": {"status": "invalid", "reason": "NaN"}},
    ],
)
def test_only_like_is_held_against_like(make_stored: Maker, given: dict[str, Any]) -> None:
    other = make_stored([1] * 6, attack="square", **given)
    row = white_row([make_stored(WHITE), other]).rows[0]
    assert row.standing == "ranked"
    assert row.crosscheck.startswith("no attack with less knowledge")


def test_ladders_are_compared_at_the_radii_they_share(make_stored: Maker) -> None:
    # 2/255 is the only radius both have
    square = make_stored([1, 1, 1, 6, 6, 0], attack="square", ladder=(2 / 255, 3 / 255))
    row = white_row([make_stored(WHITE), square]).rows[0]
    assert row.reasons[0].startswith("3 of 4 images are robust at ε = 2/255")
    # ratios of the mean norm are compared in image units
    ratios = {"case": {"budget": "mean_norm"}, "record": {"radii": LADDER}}
    relative = make_stored(WHITE, ladder=(0.01, 0.02, 0.03, 0.04, 0.05), **ratios)
    assert (
        white_row([relative, square])
        .rows[0]
        .reasons[0]
        .startswith("3 of 4 images are robust at ε = 3 %")
    )


def test_images_are_matched_by_id(make_stored: Maker) -> None:
    fewer = make_stored([1, 1], attack="square", case={"n": 2})
    shuffled = fewer._replace(samples=fewer.samples.sample(frac=1, random_state=1))
    row = white_row([make_stored(WHITE), shuffled]).rows[0]
    assert row.reasons[0].startswith("2 of 2 images")


def test_the_strongest_of_each_kind_is_named(make_stored: Maker) -> None:
    weak = make_stored([1, 1, 6, 6, 6, 0], attack="pgd", surrogate=VICTIMS[1])
    strong = make_stored([1, 1, 1, 6, 6, 0], attack="pgd", surrogate=VICTIMS[2])
    square = make_stored([1, 1, 1, 1, 6, 0], attack="square")
    row = white_row([make_stored(WHITE), weak, strong, square]).rows[0]
    assert [reason[:6] for reason in row.reasons] == ["4 of 5", "3 of 5"]
    assert "densenet_narrow" in row.reasons[1]


def test_one_step_that_beats_every_iterative_attack_flags_the_row(make_stored: Maker) -> None:
    bim, pgd = make_stored([6, 6, 6, 1], attack="bim"), make_stored([6, 6, 6, 6], attack="pgd")
    fgsm = make_stored([2, 2, 6, 1], attack="fgsm")
    row = white_row([bim, pgd, fgsm]).rows[0]
    assert row.standing == "flagged"
    assert row.reasons[0].startswith(
        "2 of 3 images are robust at ε = 1/255 against attacks of many"
    )
    assert "the single step of FGSM" in row.reasons[0]
    # minimum-norm attacks count: where one of them gets there, nothing was hidden
    fmn = make_stored([2, 6, 6, 6], attack="fmn")
    assert white_row([bim, pgd, fmn, fgsm]).rows[0].standing == "ranked"


def test_one_perturbation_for_all_images_need_not_beat_what_is_made_for_each(
    make_stored: Maker,
) -> None:
    uap, square = make_stored([6] * 4, attack="uap"), make_stored([1] * 4, attack="square")
    (board,) = (b for b in leaderboard.make_boards([uap, square]) if b.threat == "universal")
    assert (board.rows[0].standing, board.rows[0].crosscheck) == ("ranked", "")
    # but what one perturbation breaks for all, an attack on each image should break too
    found = make_stored([1] * 4, attack="uap")
    row = white_row([make_stored([6] * 4), found]).rows[0]
    assert row.standing == "flagged"
    assert "which has one perturbation for all images" in row.reasons[0]


def test_of_a_field_only_the_one_that_hides_its_gradients_is_flagged(make_stored: Maker) -> None:
    board = white_row(field(make_stored))
    assert [row.key.victim for row in board.rows if row.standing == "flagged"] == [VICTIMS[2][0]]
    assert [row.ranks[board.headline] for row in board.rows] == [1, 2, 2, None]
