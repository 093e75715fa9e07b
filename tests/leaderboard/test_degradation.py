"""The scores of ROOD-MRI: against its formula in pandas, on a record of masks, and on its page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import robustbench_med as rm
from leaderboard.boards.board import Board
from leaderboard.boards.degradation import degradations, weighted
from leaderboard.boards.ranking import make_boards
from leaderboard.page import render
from robustbench_med.evaluation import Evaluation

SHIFTS = ["gaussian_noise(search='random', strength=1.0)", "gaussian_blur(search='random')"]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    attacks = [*SHIFTS, "gamma(draws=2)"]
    return rm.evaluate("brain_unet", "phantom_brain", attacks, severity=[0.2, 0.6, 1], n=3)


@pytest.fixture(scope="module")
def board(evaluation: Evaluation) -> Board:
    (made,) = make_boards(evaluation.records)
    return made


def test_the_scores_are_those_of_its_formula(evaluation: Evaluation, board: Board) -> None:
    (found,) = degradations(board, board.rows[0])
    assert len(found.shifts) == 2  # a worst of several draws is no random one
    by_title = {shift.shift[:14]: shift for shift in found.shifts}
    lost = []
    for title, stored in zip(
        ("Gaussian noise", "Gaussian blur,"), evaluation.records, strict=False
    ):
        shift, title_of = by_title[title], stored.record.attack_card.title
        assert title.startswith(title_of)
        table = stored.samples[["eps", "correct"]].astype(float)
        mean = table.groupby("eps")["correct"].mean()
        weights = pd.Series((2 / 3) ** np.arange(4), index=mean.index)
        assert shift.overall == pytest.approx((mean * weights).sum() / weights.sum())
        fall = (mean.iloc[0] - mean.iloc[1:]) * weights.iloc[1:]
        lost.append(fall.sum() / weights.iloc[1:].sum())
        assert shift.degradation == pytest.approx(lost[-1])
    assert lost[0] > 0.05
    assert found.degradation == pytest.approx(np.mean(lost))


def test_a_page_of_masks_shows_them_and_one_of_labels_does_not(board: Board) -> None:
    assert "Degradation after ROOD-MRI" in render([board], title="Toy", suite="toy")
    labels = rm.evaluate("fundus_resnet", "phantom_fundus", "gamma(search='random')", n=3)
    (other,) = make_boards(labels.records)
    assert degradations(other, other.rows[0]) == []


def test_an_undefined_dice_leaves_the_scores_undefined() -> None:
    assert np.isnan(weighted([0.9, float("nan")])).all()
    assert weighted([0.8, 0.8, 0.8]) == pytest.approx((0.8, 0))
    assert torch.tensor(weighted([0.5, 0.7]))[1] < 0
