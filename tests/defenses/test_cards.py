"""Every card of a defense: its function, its defaults, its tasks."""

from __future__ import annotations

import inspect

import pytest

from robustbench_med import registry

CARDS = registry.load("defenses")
_OURS = {"attack", "every", "images"}  # of a defense that trains: followed by the core


@pytest.mark.parametrize("name", CARDS)
def test_a_card_names_its_function_and_its_defaults(name: str) -> None:
    card = CARDS[name]
    function = registry.function("defenses", card)
    assert function.__name__ == name
    known = inspect.signature(function).parameters
    stated = {key: one.default for key, one in known.items() if one.default is not inspect._empty}
    given = {key: value for key, value in card.parameters.items() if key not in _OURS}
    assert given == {key: stated[key] for key in given}
    assert set(stated) - set(given) <= {"attack"}
    assert ("fitting" in known) == card.fitted


def test_what_moves_or_votes_is_not_put_on_masks() -> None:
    for name in ("random_resize_pad", "smoothing", "mart", "mahalanobis"):
        assert "segmentation" not in CARDS[name].tasks
    for name in ("bit_depth", "median_filter", "jpeg", "total_variation", "pgd_at", "trades"):
        assert "segmentation" in CARDS[name].tasks
