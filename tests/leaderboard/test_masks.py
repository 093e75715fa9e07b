"""Boards of segmenters: the worst Dice of each image, what an aim scores, channels apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import leaderboard
from leaderboard.wording.records import budget_words
from leaderboard.wording.threat_model import channel_label, channel_words, objective_words
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.stats import Estimate
from robustbench_med.worst_case import lowest, score_table, standing_table

from .planted_masks import ATTENTION, BRAIN, CHEST, DEEPLAB, HEART, UNET, make_masks

Maker = Callable[..., Stored]
# clean and at three radii: each image is worst under another attack, one is lost when clean
PGD = [[0.9, 0.2, 0.2, 0.1], [0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.1], [0.3, 0.4, 0.3, 0.3]]
SEG = [[0.9, 0.8, 0.7, 0.6], [0.8, 0.1, 0.1, 0.0], [0.9, 0.7, 0.5, 0.4], [0.3, 0.3, 0.2, 0.1]]
FLAG = Flag(name="zero_gradients", meaning="gradients are zero", value=0.4, threshold=0.1)


def only(records: list[Stored]) -> leaderboard.Board:
    (board,) = leaderboard.make_boards(records)
    return board


def values(estimates: tuple[Estimate, ...]) -> list[float]:
    return [estimate.value for estimate in estimates]


def test_the_worst_dice_is_taken_per_image(make_stored: Maker) -> None:
    pgd = make_masks(make_stored, PGD, attack="pgd")
    seg = make_masks(make_stored, SEG, attack="segpgd")
    row = only([pgd, seg]).rows[0]
    # at the first radius (.2 + .1 + .7 + .3) / 4: two images fall to either attack
    assert values(row.worst) == pytest.approx([1.3 / 4, 1.0 / 4, 0.3 / 4])
    assert row.clean.value == pytest.approx(2.9 / 4)
    assert values(row.scores["PGD-40"]) == pytest.approx([2.1 / 4, 1.8 / 4, 1.0 / 4])
    each = np.minimum(np.array(PGD), np.array(SEG)).mean(0)[1:]
    batch = np.minimum(np.array(PGD).mean(0), np.array(SEG).mean(0))[1:]
    assert values(row.worst) == pytest.approx(each)
    assert all(worst < other - 0.05 for worst, other in zip(values(row.worst), batch, strict=True))


def test_no_image_is_better_than_when_clean(make_stored: Maker) -> None:
    stored = make_masks(make_stored, [[0.4, 0.9, 0.5, 0.45]])
    assert lowest([score_table(stored)]).to_numpy()[0] == pytest.approx([0.4] * 4)
    assert values(only([stored]).rows[0].worst) == pytest.approx([0.4] * 3)


def test_images_are_joined_by_id(make_stored: Maker) -> None:
    pgd, seg = make_masks(make_stored, PGD), make_masks(make_stored, SEG, attack="segpgd")
    mixed = seg._replace(samples=seg.samples.sample(frac=1, random_state=3))
    straight, shuffled = (lowest([score_table(pgd), score_table(other)]) for other in (seg, mixed))
    pd.testing.assert_frame_equal(straight, shuffled)


def test_a_mean_of_dice_has_the_interval_of_a_bootstrap_by_patient(make_stored: Maker) -> None:
    dice = np.repeat([[0.9, 0.8, 0.8, 0.8], [0.9, 0.2, 0.2, 0.2]] * 10, 2, axis=0)
    known = only([make_masks(make_stored, dice, patients=True)]).rows[0].worst[0]
    independent = only([make_masks(make_stored, dice)]).rows[0].worst[0]
    assert known.value == independent.value == pytest.approx(0.5)
    rng = np.random.default_rng(1)
    for found, units in ((known, dice[::2, 1]), (independent, dice[:, 1])):
        repeats = units[rng.integers(0, len(units), (4000, len(units)))].mean(1)
        low, high = np.quantile(repeats, [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_the_board_and_the_record_agree_on_clean_and_single_attacks(make_stored: Maker) -> None:
    stored = make_masks(make_stored, PGD)
    row = only([stored]).rows[0]
    rungs = [rung.metrics["dice"].value for rung in stored.record.rungs]
    assert [row.clean.value, *values(row.scores["PGD-40"])] == pytest.approx(rungs)


def test_segmenters_are_ranked_by_worst_dice_and_flagged_ones_are_not(make_stored: Maker) -> None:
    def two(victim: tuple[str, str, str], change: float, **given: Any) -> list[Stored]:  # noqa: ANN401
        dice = [np.clip(np.array(one) + [0, change, change, change], 0, 1) for one in (PGD, SEG)]
        return [
            make_masks(make_stored, one, victim=victim, attack=attack, **given)
            for one, attack in zip(dice, ("pgd", "segpgd"), strict=True)
        ]

    flagged = two(DEEPLAB, 0.4, record={"flags": (FLAG,)})
    board = only([*two(UNET, 0.0), *two(ATTENTION, 0.1), *flagged])
    assert [(row.key.victim, row.standing, row.ranks[1]) for row in board.rows] == [
        ("attention_unet", "ranked", 1),
        ("unet_narrow", "ranked", 1),  # so few images do not tell them apart
        ("deeplab_narrow", "flagged", None),
    ]
    assert board.score.worst == "worst-case Dice"


def test_a_drawn_mask_scores_what_is_not_drawn_of_the_images_attacked(make_stored: Maker) -> None:
    # the second image already looks like the target, and is not attacked
    target = [[0.1, 0.5, 0.8, 0.9], [0.8, 0.9, 0.9, 0.9], [0.0, 0.2, 0.1, 0.7]]
    stored = make_masks(make_stored, PGD[:3], dataset=CHEST, objective=HEART, target=target)
    row = only([stored]).rows[0]
    assert row.images == 2
    assert row.clean.value == pytest.approx(0.95)
    assert values(row.worst) == pytest.approx([0.65, 0.55, 0.2])
    assert row.robust.to_numpy().tolist() == [[True, True, False, False], [True] * 4]


def test_nobody_is_ranked_on_no_image(make_stored: Maker) -> None:
    target = [[0.9] * 4] * 3
    stored = make_masks(make_stored, PGD[:3], dataset=CHEST, objective=HEART, target=target)
    row = only([stored]).rows[0]
    assert (row.standing, row.ranks) == ("incomplete", (None,) * 3)
    assert row.reasons[0].startswith("no image was attacked by every attack")


def test_an_aim_at_one_region_scores_that_region(make_stored: Maker) -> None:
    dice = np.array(PGD)[..., None] * np.array([1.0, 0.5, 0.1])
    stored = make_masks(make_stored, dice, objective="region(name='tumour core')")
    board = only([stored])
    assert values(board.rows[0].scores["PGD-40"]) == pytest.approx([1.05 / 4, 0.9 / 4, 0.5 / 4])
    assert board.score.metric == "dice[tumour core]"
    # a region the card does not have cannot be scored alone
    unknown = make_masks(make_stored, dice, objective="region(name='nowhere')")
    assert only([unknown]).score.metric == "dice"


def test_an_image_stands_where_it_is_not_broken(make_stored: Maker) -> None:
    table = standing_table(make_masks(make_stored, PGD))
    assert table.to_numpy().tolist() == [
        [True, False, False, False],
        [True, True, True, True],
        [True, True, True, False],
        [False] * 4,
    ]


def test_a_weaker_attacker_who_breaks_more_flags_the_segmenter(make_stored: Maker) -> None:
    white = make_masks(make_stored, [[0.9] * 4] * 3)
    square = make_masks(make_stored, [[0.9, 0.2, 0.2, 0.2]] * 3, attack="square")
    made = leaderboard.make_boards([white, square])
    row = next(board for board in made if board.threat == "white_box").rows[0]
    assert row.standing == "flagged"
    assert row.reasons[0].startswith("3 of 3 images are robust at ε = 1/255")
    # one who may change other channels is another attacker
    part = make_masks(make_stored, [[0.9] * 4] * 3, channels={"T1": 1.0})
    made = leaderboard.make_boards([part, square])
    row = next(board for board in made if board.threat == "white_box").rows[0]
    assert row.standing == "ranked"


def test_channels_have_boards_of_their_own_all_of_them_first(make_stored: Maker) -> None:
    every = [{"FLAIR": 1.0}, {"T1": 1.0, "T2": 1.0}, {"T1": 0.5}, {}, {"T1": 1.0}]
    records = [make_masks(make_stored, PGD, channels=channels) for channels in every]
    made = leaderboard.make_boards(records)
    assert [board.channels for board in made] == [every[i] for i in (3, 4, 2, 0, 1)]
    assert [board.setting.removeprefix("white box · L∞ · ") for board in made] == [
        "untargeted",
        "untargeted · only T1",
        "untargeted · only T1 at half the radius",
        "untargeted · only FLAIR",
        "untargeted · only T1 and T2",
    ]


@pytest.mark.parametrize(
    ("channels", "words", "label"),
    [
        ({}, "", "all"),
        ({"T1ce": 1.0}, "only T1ce", "T1ce"),
        ({"T1": 1.0, "T1ce": 1.0, "T2": 1.0}, "only T1, T1ce and T2", "T1 + T1ce + T2"),
        ({"T1": 0.3}, "only T1 at 30 % of the radius", "T1 ×0.3"),
        (
            {"T1": 0.5, "T2": 1.0},
            "only T1 at half the radius, T2 at the whole of the radius",
            "T1 ×0.5 + T2",
        ),
        (dict.fromkeys(BRAIN.channel_names, 0.5), "every channel at half the radius", "all ×0.5"),
        ({"T\x1b[2J1\n": 1.0}, "only T[2J1", "T[2J1"),
    ],
)
def test_channels_in_words(channels: dict[str, float], words: str, label: str) -> None:
    assert channel_words(channels, BRAIN) == words
    assert channel_label(channels, BRAIN) == label


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("untargeted", "untargeted"),
        ("region(name='tumour core')", "spoil only the tumour core"),
        (HEART, "draw a heart shape in place of the heart"),
        ("targeted(mask='heart', label=1)", "draw a heart in place of the left lung"),
        (
            "targeted(mask='disc', label=2, size=0.25)",
            "draw a disc in place of the right lung, 25 % of the image high",
        ),
        ("targeted(mask='shrink', label=1)", "shrink the left lung"),
        ("targeted(mask='grow', label=1, by=5)", "grow the left lung by 5 px"),
        ("targeted(mask='move', label=3)", "move the heart to the right"),
        ("targeted(mask='move', label=3, by=-4)", "move the heart to the left by 4 px"),
        ("targeted(mask='empty', label=1)", "erase the left lung"),
        ("targeted(mask='empty', label=9)", "erase class 9"),
        ("of(tomorrow='x')", "of(tomorrow='x')"),
        ("targeted(", "targeted("),
    ],
)
def test_objectives_in_words(objective: str, words: str) -> None:
    assert objective_words(objective, CHEST) == words


def test_the_drill_says_which_channels_may_change(make_stored: Maker) -> None:
    record = make_masks(make_stored, PGD, channels={"T1ce": 0.5}).record
    assert budget_words(record) == (
        "radii are L∞ distances, 1, 2, 4 grey levels (1, 2, 4 parts in 255 of the range, grey "
        "level 0..255); only T1ce at half the radius"
    )


def test_objectives_on_labels_keep_their_spec(make_stored: Maker) -> None:
    stored = make_stored([6, 1], case={"objective": "targeted(target=1)"})
    assert only([stored]).setting == "white box · L∞ · targeted(target=1)"
    assert only([stored]).score.name == "share of goals not reached"
