"""Planted studies: a study with its outcomes, of which nothing was computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustbench_med import registry
from robustbench_med.studies.evidence import StudyEvidence, evidence_of
from robustbench_med.studies.outcome import Outcome, write_outcome
from robustbench_med.studies.study import Study

N = 100
VICTIM = "chest_resnet"
MEASURED = {"dataset": "phantom_chest", "victim": VICTIM, "protocol": "fgsm(eps=0.01)"}
FACTS = {"where": "table 1", "kind": "table", "certainty": "read", "quote": "95.0 and 10.0"}


def row(ident: str, question: str, reading: str = "accuracy", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a row that is measured by a reading."""
    label = f"Label of {ident}"
    measured = {"published": {**MEASURED, "reading": reading}}
    return {"id": ident, "label": label, "question": question, **measured, **fields}


def law(ident: str, question: str, parts: Sequence[str], **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a row that compares two others."""
    return {"id": ident, "label": ident, "question": question, "compares": parts, **fields}


def planted_study(*rows: dict[str, Any], name: str = "toy", **fields: Any) -> Study:  # noqa: ANN401
    """Return a study of rows, with two published numbers and one that nobody could read."""
    values = {
        "name": name,
        "title": f"Title of {name}",
        "summary": "Its claim.",
        "source": "Its paper.",
        "protocol": "Its protocol.",
        "substitute": "Its data.",
        "conclusion": "Its conclusion.",
        "references": [
            {"id": "clean", "of": "accuracy of clean images", "value": 0.95, **FACTS},
            {"id": "under", "of": "accuracy under attack", "value": 0.1, **FACTS},
            {
                "id": "lost",
                "of": "accuracy of another task",
                "where": "a figure",
                "kind": "table",
                "certainty": "unverifiable",
            },
        ],
        "rows": rows,
    }
    return Study.model_validate({**values, **fields})


def plant(
    study: Study,
    results: Path,
    name: str,
    before: float,
    after: float,
    **fields: Any,  # noqa: ANN401
) -> None:
    """Write an outcome in which shares of 100 images are right before and after an attack.

    The images that are wrong after the attack come first, so that two outcomes are paired.
    """
    sha256 = registry.find("models", VICTIM).sha256

    def answers(right: float) -> tuple[tuple[float, float], ...]:
        wrong = round(N * (1 - right))
        return tuple((0.9, 0.1) if (i % 2 == 0) != (i < wrong) else (0.1, 0.9) for i in range(N))

    values: dict[str, Any] = {
        "key": name,
        "measured": study.measurements()[name],
        "weights": (sha256, sha256),
        "kind": "probability",
        "columns": ("normal", "opacity"),
        "samples": tuple(f"s{i}" for i in range(N)),
        "patients": None,
        "truth": tuple(i % 2 for i in range(N)),
        "clean": answers(before),
        "attacked": answers(after),
        "linf": (0.01,) * N,
        "ssim": (0.98,) * N,
        "outside": 0.0,
        "seconds": 1.0,
    }
    write_outcome(Outcome.model_validate(values | fields), results, study.name, name)


def evidence(study: Study, results: Path) -> StudyEvidence:
    """Return the evidence of planted outcomes, without records."""
    (found,) = evidence_of([study], results, [])
    return found
