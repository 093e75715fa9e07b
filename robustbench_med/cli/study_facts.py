"""What `show` says of a study, and of the suite that runs all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustbench_med import registry

if TYPE_CHECKING:
    from robustbench_med.cards import Card
    from robustbench_med.studies.study import Reference, Row, Study


def study_facts(study: Study) -> dict[str, Any]:
    """Return the facts of a study under the headings that `show` prints."""
    return {
        "title": study.title,
        "claim": study.summary,
        "paper": study.source,
        "protocol as published": study.protocol,
        "data used here": study.substitute,
        "what a reader may conclude": study.conclusion,
        "results": [_row_words(row) for row in study.rows],
        "what moves the numbers": [f"{quirk.moves}: {quirk.what}" for quirk in study.quirks],
        "published numbers": [_reference_words(reference) for reference in study.references],
        "victims": ", ".join(map(_victim_words, study.victims())),
        "run": f"python -m robustbench_med run studies --study {study.name} --data FOLDER",
    }


def suite_facts(suite: Card) -> dict[str, Any]:
    """Return the facts of the suite of studies: what each study claims."""
    from robustbench_med.studies.study import studies

    return {
        "title": suite.title,
        "summary": suite.summary,
        "studies": [f"{study.name}: {study.summary}" for study in studies().values()],
        "run": f"python -m robustbench_med run {suite.name} --data FOLDER",
    }


def _row_words(row: Row) -> str:
    primary = "" if row.primary else ", not counted in the verdict"
    return f"{row.id}: {row.label} ({row.question}: {row.score} {row.claim}{primary})"


def _reference_words(reference: Reference) -> str:
    value = "unknown" if reference.value is None else f"{100 * reference.value:.3g} %"
    return f"{reference.of}: {value} ({reference.certainty}; {reference.where})"


def _victim_words(name: str) -> str:
    card = registry.load("models").get(name)
    return f"{name} (trained here)" if card is not None and card.trained_here else name
