"""Recalls and flips under all attacks: closed forms, and the records' own metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaderboard.report.model_boards import boards_of_model
from leaderboard.report.pooled_runs import Pool, board_pool
from leaderboard.report.recalls import PooledShare, directed_flips, recalls, region_dice
from robustbench_med.bench import store
from robustbench_med.bench.record import Stored
from tests.leaderboard.planted import DATASETS
from tests.leaderboard.planted_masks import BRAIN, make_masks
from tests.leaderboard.planted_shields import GUARD, WRAPPED, detecting, wrapped

from .planted import SENSITIVITY, SPECIFICITY, VICTIM, N, pair, wilson

Maker = Callable[..., Stored]
RESULTS = Path(__file__).parents[3] / "results"


def only(records: list[Stored]) -> Pool:
    """Return the runs of the one board that records make."""
    model_boards = boards_of_model(records, records[0].record.case.victim)
    shares = board_pool(model_boards[0], model_boards)
    assert shares is not None
    return shares


def named(shares: list[PooledShare]) -> dict[str, PooledShare]:
    return {pooled.name: pooled for pooled in shares}


def test_an_image_is_found_only_if_every_attack_leaves_it(make_stored: Maker) -> None:
    pool = only(pair(make_stored))
    shares = named(recalls(pool))
    assert shares["sensitivity"].counts == SENSITIVITY
    assert shares["specificity"].counts == SPECIFICITY
    assert shares["recall[opacity]"].estimates == shares["sensitivity"].estimates
    for count, estimate in zip(SENSITIVITY, shares["sensitivity"].estimates, strict=True):
        assert estimate.value == pytest.approx(count / 10)
        low, high = wilson(count, 10)
        assert [estimate.low, estimate.high] == pytest.approx([low, high])


def test_flips_count_each_direction_of_the_images_right_when_clean(make_stored: Maker) -> None:
    pool = only(pair(make_stored))
    shares = named(directed_flips(pool))
    hidden, planted = shares["flips_to_normal"], shares["flips_to_disease"]
    assert (hidden.n, hidden.counts) == (10, (0, 2, 3, 3, 3, 3))
    assert (planted.n, planted.counts) == (9, (0, 0, 0, 2, 2, 2))  # image 0 was wrong before
    low, high = wilson(3, 10)
    assert hidden.estimates[2].value == pytest.approx(0.3)
    assert hidden.estimates[2].low == pytest.approx(low)
    assert hidden.estimates[2].high == pytest.approx(high)


def test_an_image_wrong_when_clean_does_not_flip_though_it_is_attacked(make_stored: Maker) -> None:
    """A targeted attack works on images called wrong as well."""
    stored = make_stored([0, 0, 1, 1, 6, 6], case={"objective": "targeted(target=0)"})
    samples = stored.samples.assign(attacked=True)
    pool = only([stored._replace(samples=samples)])
    shares = named(directed_flips(pool))
    assert [(pooled.n, pooled.counts[1]) for pooled in shares.values()] == [(2, 1), (2, 1)]


def test_known_patients_widen_the_interval(make_stored: Maker) -> None:
    shares = []
    for patients in (False, True):
        pool = only(pair(make_stored, patients=patients))
        shares.append(named(recalls(pool))["sensitivity"].estimates[2])
    assert shares[0].value == shares[1].value
    assert shares[1].high - shares[1].low > shares[0].high - shares[0].low


def test_findings_have_recalls_and_flips_each(make_stored: Maker) -> None:
    card = DATASETS[1].model_copy(
        update={"task": "multi_label", "classes": ("nodule", "effusion"), "normal": None}
    )
    stored = make_stored([6] * N, dataset=card)
    samples = stored.samples.copy()
    index = samples["sample"].str[1:].astype(int)
    rung = samples.groupby("sample").cumcount()
    truth = [[int(i < 10), 0] for i in index]
    # the nodule of images 0 and 1 is hidden from rung 1 on, an effusion planted into image 2
    called = [
        [t[0] if not (i < 2 and r) else 0, int(i == 2 and r > 1)]
        for t, i, r in zip(truth, index, rung, strict=True)
    ]
    samples["truth"], samples["prediction"] = truth, called
    pool = only([stored._replace(samples=samples)])
    every = named(recalls(pool))
    assert every["recall[nodule]"].counts == (10, 8, 8, 8, 8, 8)
    assert every["recall[effusion]"].n == 0
    assert np.isnan(every["recall[effusion]"].estimates[0].value)
    turned = named(directed_flips(pool))
    assert (turned["flips_to_normal"].n, turned["flips_to_normal"].counts[1]) == (10, 2)
    assert (turned["flips_to_disease"].n, turned["flips_to_disease"].counts[2]) == (N, 1)


def test_without_a_healthy_class_there_is_neither(make_stored: Maker) -> None:
    card = DATASETS[1].model_copy(update={"normal": None})
    pool = only(pair(make_stored, dataset=card))
    assert [pooled.name for pooled in recalls(pool)] == [
        "recall[clear]",
        "recall[opacity]",
    ]
    assert directed_flips(pool) == []


def test_an_oblivious_attacker_does_not_count(make_stored: Maker) -> None:
    known = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.7, 0.1))
    blind = wrapped(make_stored, [1] * 10, GUARD, record=detecting(0.9, 0.8), knowledge="oblivious")
    pool = only([known, blind])
    first = only([known])
    assert recalls(pool) == recalls(first)
    model_boards = boards_of_model([blind], VICTIM)
    assert board_pool(model_boards[0], model_boards) is None


def test_the_dice_of_a_region_is_the_lowest_of_each_image(make_stored: Maker) -> None:
    first, second = np.full((2, 3, 3), 0.9), np.full((2, 3, 3), 0.9)
    first[0, 1:, 0], second[1, 1:, 0], second[:, 2, 2] = 0.5, 0.3, 0.1
    records = [
        make_masks(make_stored, first, attack="pgd"),
        make_masks(make_stored, second, attack="segpgd"),
    ]
    pool = only(records)
    shares = named(region_dice(pool))
    assert list(shares) == [f"dice[{name}]" for name in BRAIN.parts]
    values = [estimate.value for estimate in shares["dice[whole tumour]"].estimates]
    assert values == pytest.approx([0.9, 0.4, 0.4])
    assert shares["dice[enhancing tumour]"].estimates[2].value == pytest.approx(0.1)
    assert recalls(pool) == directed_flips(pool) == []


@pytest.mark.slow
def test_a_single_record_gives_its_own_metrics() -> None:
    """Of one attack the worst case is the record's own metric, made by other code from logits."""
    compared = 0
    for stored in store.read_all(RESULTS / "attacks")[0]:
        if stored.record.dataset_card.task == "segmentation":
            continue
        pool = only([stored])
        for pooled in recalls(pool) + directed_flips(pool):
            for estimate, rung in zip(pooled.estimates, stored.record.rungs, strict=True):
                if pooled.name in rung.metrics:
                    recorded = rung.metrics[pooled.name]
                    both = np.array(
                        [[estimate.value, estimate.low], [recorded.value, recorded.low]]
                    )
                    np.testing.assert_allclose(both[0], both[1], atol=1e-12)
                    compared += 1
    assert compared > 400
