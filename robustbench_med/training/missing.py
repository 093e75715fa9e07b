"""Train the victims whose weights are not shipped and do not lie in the cache folder yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from robustbench_med import registry
from robustbench_med.cards import ModelCard
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.trained_here import home_of, is_trained
from robustbench_med.training.train import train


def missing_victims(names: Iterable[str]) -> list[ModelCard]:
    """Return the cards to train so that every named victim has weights, in a possible order.

    A victim comes after the one that its recipe starts from. Names that are no cards are left out.
    """
    cards, wanted = registry.load("models"), list(dict.fromkeys(names))
    ordered: list[ModelCard] = []
    while wanted:
        card = cards.get(wanted.pop())
        if card is None or not card.trained_here or is_trained(card):
            continue
        ordered = [card, *(other for other in ordered if other != card)]
        if card.recipe is not None and card.recipe.start:
            wanted.append(card.recipe.start)
    return ordered


def train_missing(
    card: ModelCard, *, data: Path | None, progress: Callable[[float], None] = lambda _: None
) -> ModelCard:
    """Train an unshipped victim, keep its weights in the cache folder, and return its card.

    Args:
        card: one of `missing_victims`.
        data: folder with the files of named datasets.
        progress: called with the completed fraction, 0..1.

    Raises:
        BenchError: the data cannot be read, or the training diverged.
    """
    dataset = load_dataset(card.dataset, data=data)
    return train(card, dataset, home_of(card), progress=progress)
