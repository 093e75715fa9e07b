"""Report names in a criterion that no record has, and suggest the known name that is nearest.

A criterion with a misspelt name tests nothing. Only a person can tell whether a name is misspelt or
was not run yet, so the verdict is "not tested", and the message lists the known names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from robustbench_med.cards import DatasetCard

from ..wording.text import plain
from .criteria import CriteriaFile, Criterion
from .goals import goal_of
from .model_boards import ModelBoard

_OBJECTIVES = ("untargeted", "targeted", "finding", "region")


def unknown_names(criterion: Criterion, model_boards: list[ModelBoard]) -> str:
    """Return a text on the names in a criterion that no board of a model has; empty if all exist.

    E.g. "no record is of dataset 'phantom_funds' (did you mean 'phantom_fundus'?)".

    Args:
        criterion: the criterion.
        model_boards: every board of the model.
    """
    attacks = {
        run.record.case.attack for model_board in model_boards for run in model_board.runs.values()
    }
    named = {
        "dataset": (
            criterion.dataset,
            {model_board.board.dataset.name for model_board in model_boards},
        ),
        "attack": (criterion.attack, {"", "clean", "worst_case", *attacks}),
        "defense": (
            criterion.defense,
            {model_board.row.key.defense for model_board in model_boards} | {"none"},
        ),
    }
    sentences = [
        f"no record is of {key} {plain(name)!r}{_hint(name, known)}"
        for key, (name, known) in named.items()
        if name and name not in known
    ]
    if (aim := goal_of(criterion.objective)[0]) not in _OBJECTIVES:
        sentences.append(f"no objective is called {plain(aim)!r}{_hint(aim, _OBJECTIVES)}")
    return plain("; ".join(sentences))


def unknown_part(metric: str, card: DatasetCard) -> str:
    """Return that a dataset lacks the class or region in a metric's name; empty if it has it."""
    name = metric.partition("[")[2].removesuffix("]")
    masks = card.task == "segmentation"
    known = list(card.parts) if masks else list(card.classes)
    if not name or name in known:
        return ""
    kind = "region" if masks else "class"
    listed = ", ".join(known)
    return plain(f"{card.title} has no {kind} {plain(name)!r}{_hint(name, known)}; it has {listed}")


def unjudged(
    file: CriteriaFile, reported: Iterable[str], known: Iterable[str]
) -> list[tuple[str, bool]]:
    """Return a line on each criterion for a model without a report.

    Args:
        file: the file of criteria.
        reported: models with a report.
        known: models with records.

    Returns:
        Pairs of a line and whether the model has no record at all.
    """
    done, there, lines = set(reported), set(known), []
    for number, criterion in enumerate(file.criteria, 1):
        if criterion.victim in ("", *done):
            continue
        missing = criterion.victim not in there
        why = f"has no record{_hint(criterion.victim, there)}" if missing else "has no report"
        word = "not tested" if missing else "not judged"
        lines.append(
            (
                plain(f"C{number} {word}: it is for {plain(criterion.victim)!r}, which {why}"),
                missing,
            )
        )
    return lines


def _hint(name: str, known: Iterable[str]) -> str:
    written = {known_name.lower(): known_name for known_name in known if known_name}
    near = difflib.get_close_matches(name.lower(), written, n=1, cutoff=0.5)
    return f" (did you mean {written[near[0]]!r}?)" if near else ""
