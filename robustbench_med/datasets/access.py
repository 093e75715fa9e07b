"""Access: how a stranger gets the images of a named dataset, and on what terms."""

from __future__ import annotations

from collections.abc import Sequence

from robustbench_med.cards import DatasetCard

BUILT = ("hippocampus_3d",)  # datasets that `dataset build` makes, see builds/


def short_way(card: DatasetCard) -> str:
    """Return in a few words how a stranger gets the file of a dataset."""
    if card.function:
        return "drawn here"
    if card.url:
        return "downloaded when first used"
    if card.name in BUILT:
        return "`dataset build`"
    if not card.file:
        return ""  # of another package, whose function knows
    return "a copy that nobody can rebuild"


def way(card: DatasetCard) -> str:
    """Return how a stranger gets the file of a dataset, or why that is not possible."""
    if card.function:
        return "nothing to get: it is drawn here, or shipped with a library"
    if card.url:
        return f"the official file, downloaded when first used or read from --data: {card.url}"
    if card.name in BUILT:
        return (
            f"`python -m robustbench_med dataset build {card.name} --from FOLDER` makes the very "
            f"file from {card.official}"
        )
    if not card.official:
        return f"from {card.source or 'its package'}"
    return (
        f"not this very file: it is a selection from a copy ({card.source}), resized by steps that "
        f"nobody recorded. The official set is {card.official}: make data of your own of it "
        "(docs/add_a_dataset.md); its scores are on other images"
    )


def terms(card: DatasetCard) -> str:
    """Return the licence of a dataset, and who states it."""
    return card.licence_basis or card.licence


def facts(card: DatasetCard, suites: Sequence[str]) -> dict[str, str]:
    """Return what a stranger must know about a dataset's file, by name.

    Args:
        card: the dataset.
        suites: names of the shipped suites that use it.
    """
    used = ", ".join(suites) or "in no shipped suite"
    return {"to have it": way(card), "licence is": terms(card), "used": used}
