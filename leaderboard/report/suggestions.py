"""Suggestions: what a criterion names that no record of a model has, and what it may have meant.

A name that is misspelt tests nothing. Whether a name is wrong or only not run yet is for the person
to say, so the verdict is "not tested", and the names there are stand beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from robustbench_med.cards import DatasetCard

from ..wording.text import plain
from .criteria import Criterion, Given
from .goals import goal_of
from .model_boards import Chosen

_OBJECTIVES = ("untargeted", "targeted", "finding", "region")


def unknown_names(criterion: Criterion, chosen: list[Chosen]) -> str:
    """Return the names of a criterion that no board of a model has, each with those there are.

    E.g. "no record is of dataset 'phantom_funds' (did you mean 'phantom_fundus'?)"; empty where all
    names are there.

    Args:
        criterion: as read.
        chosen: every board of the model.
    """
    attacks = {run.record.case.attack for one in chosen for run in one.runs.values()}
    named = {
        "dataset": (criterion.dataset, {one.board.dataset.name for one in chosen}),
        "attack": (criterion.attack, {"", "clean", "worst_case", *attacks}),
        "defense": (criterion.defense, {one.row.key.defense for one in chosen} | {"none"}),
    }
    found = [
        f"no record is of {key} {plain(name)!r}{_hint(name, known)}"
        for key, (name, known) in named.items()
        if name and name not in known
    ]
    if (aim := goal_of(criterion.objective)[0]) not in _OBJECTIVES:
        found.append(f"no objective is called {plain(aim)!r}{_hint(aim, _OBJECTIVES)}")
    return plain("; ".join(found))


def unknown_part(metric: str, card: DatasetCard) -> str:
    """Return that data has no such class or region as a metric names; empty where it has."""
    name = metric.partition("[")[2].removesuffix("]")
    masks = card.task == "segmentation"
    known = list(card.parts) if masks else list(card.classes)
    if not name or name in known:
        return ""
    kind = "region" if masks else "class"
    listed = ", ".join(known)
    return plain(f"{card.title} has no {kind} {plain(name)!r}{_hint(name, known)}; it has {listed}")


def unjudged(given: Given, reported: Iterable[str], known: Iterable[str]) -> list[tuple[str, bool]]:
    """Return a line on each criterion that is of a model without a report.

    Args:
        given: the file.
        reported: models that a report was written of.
        known: models with records.

    Returns:
        Lines, each with whether that model has no record at all.
    """
    done, there, found = set(reported), set(known), []
    for place, one in enumerate(given.criteria, 1):
        if one.victim in ("", *done):
            continue
        missing = one.victim not in there
        why = f"has no record{_hint(one.victim, there)}" if missing else "was not reported on"
        word = "not tested" if missing else "not judged"
        found.append(
            (plain(f"C{place} {word}: it is of {plain(one.victim)!r}, which {why}"), missing)
        )
    return found


def _hint(name: str, known: Iterable[str]) -> str:
    written = {one.lower(): one for one in known if one}
    near = difflib.get_close_matches(name.lower(), written, n=1, cutoff=0.5)
    return f" (did you mean {written[near[0]]!r}?)" if near else ""
