"""The price of a defense: against whom, how much, how slow, and in which words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import leaderboard
from leaderboard.boards.board import Board, Row
from leaderboard.boards.defenses import (
    DefenseEffect,
    change_unit,
    defense_effects,
    defense_names,
    defense_words,
    signed_change,
    training_words,
)
from robustbench_med.bench.record import Stored

from .planted import VICTIMS
from .planted_masks import make_masks
from .planted_shields import (
    BARE,
    GUARD,
    JPEG,
    RETRAINED,
    SMOOTHING,
    WRAPPED,
    retrained,
    retrained_card,
    shield_field,
    wrapped,
)

Maker = Callable[..., Stored]


def one(records: list[Stored]) -> tuple[Board, Row, DefenseEffect]:
    """Return the board of `records` with its only defended row and that row's price."""
    (board,) = leaderboard.make_boards(records)
    ((row, price),) = defense_effects(board).items()
    return board, row, price


def test_the_change_is_against_the_bare_victim_at_every_radius(make_stored: Maker) -> None:
    board, row, price = one([make_stored(BARE), wrapped(make_stored, WRAPPED, JPEG)])
    assert row.key.defense == JPEG
    assert price.against is not None
    assert price.against.key.defense == "none"
    assert price.clean == pytest.approx(-0.1)
    assert price.worst == pytest.approx((0.9 - 0.8, 0.8 - 0.6, 0.6 - 0.3, 0.6 - 0.3, 0.5 - 0.2))
    assert (price.slower, price.training, price.cost) == (2.2, "", "2.2 × the time a pass")
    assert change_unit(board) == "points"


def test_a_retrained_victim_is_held_against_the_one_it_names(make_stored: Maker) -> None:
    other = make_stored([6] * 10, victim=VICTIMS[1])
    board, row, price = one([make_stored(BARE), other, retrained(make_stored, WRAPPED)])
    assert row.model.name == RETRAINED[0]
    assert price.against is not None
    assert price.against.model.name == VICTIMS[0][0]
    assert price.clean == pytest.approx(-0.1)
    assert price.cost == "trained 24 epochs, 8 passes an image instead of 1"
    assert [
        defense_names(row, price.against) for row in board.rows if row in defense_effects(board)
    ] == [["PGD-AT"]]


def test_wrapped_and_retrained_is_held_against_neither(make_stored: Maker) -> None:
    both: dict[str, Any] = {"victim": RETRAINED, "case": {"victim_sha256": "f" * 64}}
    card = {"model_card": retrained_card()}
    stacked = wrapped(make_stored, WRAPPED, SMOOTHING, record=card, **both)
    records = [make_stored(BARE), retrained(make_stored, [6] * 10), stacked]
    (board,) = leaderboard.make_boards(records)
    found = {row.key.defense: (row, price) for row, price in defense_effects(board).items()}
    row, price = found[SMOOTHING]
    assert price.against is not None
    assert price.against.model.name == VICTIMS[0][0]
    assert defense_names(row, price.against) == ["PGD-AT", "Randomised smoothing"]
    (board,) = leaderboard.make_boards(records[1:])  # the bare one is not on the board
    found = {row.key.defense: (row, price) for row, price in defense_effects(board).items()}
    assert found["none"][1].against is None
    held = found[SMOOTHING][1].against
    assert held is not None
    assert (held.model.name, held.key.defense) == (RETRAINED[0], "none")
    assert price.cost == "2.2 × the time a pass, trained 24 epochs, 8 passes an image instead of 1"


@pytest.mark.parametrize(
    "case",
    [
        {"data_sha256": "0" * 64},
        {"split": "val"},
        {"n": 10},
        {"victim_sha256": "0" * 64},
        {"operating_point": "argmax"},
    ],
)
def test_nothing_is_compared_across_images_weights_or_judges(
    make_stored: Maker, case: dict[str, Any]
) -> None:
    made = leaderboard.make_boards(
        [make_stored(BARE, case=case), wrapped(make_stored, WRAPPED, JPEG)]
    )
    assert len(made) == (2 if {"data_sha256", "split"} & set(case) else 1)
    (price,) = (price for board in made for price in defense_effects(board).values())
    assert price.against is None
    assert math.isnan(price.clean)
    assert all(map(math.isnan, price.worst))
    assert price.cost == "2.2 × the time a pass"


def test_the_bare_victim_of_as_many_passes_is_preferred(make_stored: Maker) -> None:
    random = wrapped(make_stored, WRAPPED, SMOOTHING, case={"draws": 16})
    single, many = make_stored(BARE), make_stored(BARE, case={"draws": 16})
    held = one([single, random])[2].against
    assert held is not None
    assert held.key.draws == 1
    held = one([single, many, random])[2].against
    assert held is not None
    assert held.key.draws == 16


def test_worst_cases_are_compared_under_the_attacks_that_both_met(make_stored: Maker) -> None:
    records = [make_stored(BARE), make_stored([1] * 10, attack="fgsm")]
    records += [wrapped(make_stored, WRAPPED, JPEG, slower=None)]
    _, _, price = one(records)
    assert price.clean == pytest.approx(-0.1)
    assert price.worst[2] == pytest.approx(0.3)  # FGSM, which left nothing of the bare one, not
    assert price.cost == ""


def test_without_an_attack_in_common_no_worst_case_is_compared(make_stored: Maker) -> None:
    bare = make_stored([1] * 10, attack="bim")
    _, _, price = one([bare, wrapped(make_stored, WRAPPED, JPEG, slower=None)])
    assert all(map(math.isnan, price.worst))


def test_an_oblivious_attack_does_not_count_as_another(make_stored: Maker) -> None:
    blind = wrapped(make_stored, [6] * 10, JPEG, knowledge="oblivious", slower=2.6)
    _, _, price = one([make_stored(BARE), wrapped(make_stored, WRAPPED, JPEG), blind])
    assert price.worst[2] == pytest.approx(0.3)
    assert price.slower == pytest.approx(2.4)  # the median of what its runs measured


def test_a_defense_has_one_name_with_and_without_the_undefended_victim(make_stored: Maker) -> None:
    alone = leaderboard.make_boards([retrained(make_stored, WRAPPED)])[0]
    beside = leaderboard.make_boards([make_stored(BARE), retrained(make_stored, WRAPPED)])[0]
    names = [
        defense_names(row, effect.against)
        for board in (alone, beside)
        for row, effect in defense_effects(board).items()
    ]
    assert names == [["PGD-AT"], ["PGD-AT"]]


def test_a_victim_that_names_itself_is_no_retrained_one(make_stored: Maker) -> None:
    card = {"model_card": retrained_card(undefended=RETRAINED[0])}
    (board,) = leaderboard.make_boards([make_stored(BARE, victim=RETRAINED, record=card)])
    assert defense_effects(board) == {}


def test_dice_is_counted_in_dice(make_stored: Maker) -> None:
    bare = make_masks(make_stored, _dice(0.9, 0.1))
    defended = make_masks(make_stored, _dice(0.85, 0.4), case={"defense": JPEG})
    board, _, price = one([bare, defended])
    assert change_unit(board) == "Dice"
    assert signed_change(price.clean, board.score.kind) == "−0.05"
    assert signed_change(price.worst[0], board.score.kind) == "+0.30"


def test_the_clean_score_of_images_attacked_alone_is_not_compared(make_stored: Maker) -> None:
    aim = {"objective": "targeted(label=1)"}
    records = [make_stored(BARE, case=aim), wrapped(make_stored, WRAPPED, JPEG, case=aim)]
    _, _, price = one(records)
    assert math.isnan(price.clean)
    assert price.worst[2] == pytest.approx(6 / 9 - 3 / 10)  # of the images right when clean


def test_the_attack_shown_first_is_one_that_ranks(make_stored: Maker) -> None:
    blind = wrapped(make_stored, [1] * 10, JPEG, knowledge="oblivious")
    _, row, _ = one([wrapped(make_stored, WRAPPED, JPEG), blind])
    assert row.scores["PGD-40, oblivious"][2].value == 0
    assert row.strongest(2) == ["PGD-40"]
    assert one([blind])[1].strongest(2) == ["PGD-40, oblivious"]


def _dice(clean: float, after: float) -> np.ndarray[Any, Any]:
    found = np.full((4, 6, 3), after)
    found[:, 0] = clean
    return found


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (-0.031, "percent", "−3.1"),
        (0.0, "percent", "±0.0"),
        (-0.0004, "percent", "±0.0"),
        (1.0, "percent", "+100.0"),
        (-0.004, "unit", "±0.00"),
        (math.nan, "percent", "–"),
    ],
)
def test_a_change_has_its_sign(value: float, kind: str, text: str) -> None:
    assert signed_change(value, kind) == text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pgd_at(eps=4/255, steps=5)", "trained 24 epochs, 6 passes an image instead of 1"),
        ("trades(steps=10)", "trained 24 epochs, 12 passes an image instead of 1"),
        ("pgd_at(steps=5, awp=0.005)", "trained 24 epochs, 7 passes an image instead of 1"),
        ("pgd_at(eps=4/255)", "trained 24 epochs"),
        ("universal_at(every=2)", "trained 24 epochs"),
        ("own(steps=5)", "trained 24 epochs"),
        ("not a ( spec", "trained 24 epochs"),
    ],
)
def test_training_costs_what_its_recipe_says(make_stored: Maker, spec: str, words: str) -> None:
    (board,) = leaderboard.make_boards([retrained(make_stored, BARE, spec=spec)])
    assert training_words(board.rows[0]) == words
    name = spec.partition("(")[0]
    title = {"pgd_at": "PGD-AT"}.get(name, name)  # the model's title ends with it
    assert defense_names(board.rows[0], None)[0] in {title, "retrained"}


def test_the_defense_in_words(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards(shield_field(make_stored))
    told = {(row.model.name, row.key.defense): dict(defense_words(row)) for row in board.rows}
    bare = VICTIMS[0][0]
    assert told[bare, "none"] == {"Defense": "none"}
    assert told[bare, GUARD] == {
        "Defense": "Mahalanobis (detector: rejects images before they are called); fpr = 0.05; "
        "source: Mahalanobis et al., 2018",
        "Knowledge": "known to the attacker (adaptive): FGSM, PGD-40; not known (oblivious, never "
        "ranks): FGSM, PGD-40",
    }
    assert told[RETRAINED[0], "none"] == {
        "Trained with": "pgd_at (training: retrains the victim); eps = 4/255, steps = 7; trained "
        "24 epochs, 8 passes an image instead of 1; undefended: resnet_narrow"
    }


def test_a_defense_without_a_card_is_told_as_it_was_asked_for(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards([make_stored(BARE, case={"defense": "a (b\x1b[2J"})])
    assert dict(defense_words(board.rows[0]))["Defense"] == "a (b[2J"


def test_what_was_trained_on_before_is_told(make_stored: Maker) -> None:
    card = retrained_card("trades(steps=5)")
    assert card.recipe is not None
    for start, words in (("resnet_pgd_at", " after resnet_pgd_at"), (VICTIMS[0][0], ""), ("", "")):
        model = card.model_copy(update={"recipe": card.recipe.model_copy(update={"start": start})})
        stored = make_stored(BARE, victim=RETRAINED, record={"model_card": model})
        (board,) = leaderboard.make_boards([stored])
        said = training_words(board.rows[0])
        assert said == f"trained 24 epochs{words}, 7 passes an image instead of 1"


def test_an_attack_that_no_bare_victim_meets_takes_no_price_away(make_stored: Maker) -> None:
    rival = wrapped(make_stored, WRAPPED, GUARD, knowledge="feature_mixture(fit=512)")
    _, _, price = one([make_stored(BARE), wrapped(make_stored, WRAPPED, GUARD), rival])
    assert price.worst[0] == pytest.approx(0.1)
