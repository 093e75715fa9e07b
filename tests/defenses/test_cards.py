"""The cards of defenses: what each says of its function and its tasks."""

from __future__ import annotations

import inspect

import pytest

from robustbench_med import registry

CARDS = registry.load("defenses")


@pytest.mark.parametrize("name", CARDS)
def test_a_defense_takes_the_parameters_of_its_card(name: str) -> None:
    card = CARDS[name]
    function = registry.function("defenses", card)
    assert function.__name__ == name
    known = inspect.signature(function).parameters
    trained = {"attack", "every", "images"} if card.kind == "training" else set()
    assert set(card.parameters) - trained <= set(known)
    assert ("fitting" in known) == card.fitted


def test_what_moves_or_votes_is_not_put_on_masks() -> None:
    for name in ("random_resize_pad", "smoothing", "mart", "mahalanobis"):
        assert "segmentation" not in CARDS[name].tasks
    for name in ("bit_depth", "median_filter", "jpeg", "total_variation", "pgd_at", "trades"):
        assert "segmentation" in CARDS[name].tasks
