"""The first stage of a recipe: a part of the network is trained on its own data, and then fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from robustbench_med.cards import FirstStage, Recipe
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import SpecError
from robustbench_med.models.sliding import bare
from robustbench_med.training.checkpoint import Saved
from robustbench_med.training.fit import Progress, fit
from robustbench_med.training.validation import IMAGES
from robustbench_med.victim import Victim


def stage_data(first: FirstStage, data: Dataset) -> Dataset:
    """Return the data of the first stage.

    Args:
        first: the stage.
        data: the data of the whole network.

    Raises:
        UnknownNameError: there is no such dataset.
        SpecError: its images have other channels or another size than those of `data`.
    """
    other = load_dataset(first.dataset)
    for what in ("channels", "size"):
        expected, got = getattr(data.card, what), getattr(other.card, what)
        if expected != got:
            raise SpecError(
                f"{first.dataset}: expected {what} {expected} as {data.card.name} has, got {got}"
            )
    return other


def fit_first(
    victim: Victim,
    first: FirstStage,
    data: Dataset,
    recipe: Recipe,
    progress: Progress,
    *,
    saved: Saved,
    log: Callable[[str], None],
) -> None:
    """Train a part of the victim's network in place, and fix its weights.

    Args:
        victim: its module has the part.
        first: states the part and its epochs.
        data: images and truth of the part.
        recipe: states the rest; its defense applies to the whole network alone.
        progress: called with the completed fraction of the stage, 0..1.
        saved: checkpoint of the stage.
        log: called with a line per validated epoch.

    Raises:
        SpecError: the network has no such part.
        CheckpointError, DivergedError: as `fit`.
    """
    part = getattr(bare(victim.module), first.part, None)
    if not isinstance(part, nn.Module):
        raise SpecError(f"expected a part of the network, got {first.part!r}")
    own = recipe.model_copy(update={"epochs": first.epochs, "defense": "", "first": None})
    fit(
        replace(victim, module=part),
        data.batch("train", stored=True),
        data.card,
        own,
        progress,
        val=data.batch("val", n=IMAGES),
        saved=saved,
        log=log,
    )
    part.requires_grad_(False)
