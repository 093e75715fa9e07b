"""List the clauses that the sections of a report are evidence for; no clause is claimed to be met.

`FRAMEWORKS` alone states which edition is cited, what of it was read, and when. Whoever changes a
clause reads the text again and changes the date.
"""

from __future__ import annotations

from .document import Clause, Framework

CHECKED = "2026-11-30"
AI_ACT, FDA, ISO = "EU AI Act", "FDA cybersecurity guidance", "ISO 14971:2019"

FRAMEWORKS: tuple[Framework, ...] = (
    Framework(
        name=AI_ACT,
        edition="Regulation (EU) 2024/1689 of 13 June 2024, amended by Regulation (EU) 2026/1744 "
        "(OJ L, 24 July 2026)",
        url="https://eur-lex.europa.eu/eli/reg/2024/1689/oj",
        checked=CHECKED,
        read=True,
        basis="each clause was compared with public copies of the text of 2024. Only summaries of "
        "the amendment were read: they list no change of these clauses, and say that the "
        "requirements for high-risk AI in products such as medical devices apply from 2 August "
        "2028",
    ),
    Framework(
        name=FDA,
        edition="Cybersecurity in Medical Devices: Quality Management System Considerations and "
        "Content of Premarket Submissions, final guidance of 3 February 2026 (it replaces that of "
        "27 June 2025)",
        url="https://www.fda.gov/media/119933/download",
        checked=CHECKED,
        read=True,
        basis="each section was compared with a public transcript of this edition; a guidance "
        "recommends and does not require",
    ),
    Framework(
        name=ISO,
        edition="ISO 14971:2019, third edition, December 2019",
        url="https://www.iso.org/standard/72704.html",
        checked=CHECKED,
        read=False,
        basis="the text is sold and was not read: numbers and titles of the clauses are those that "
        "public summaries give",
    ),
)

_SUBJECTS: dict[str, dict[str, str]] = {
    AI_ACT: {
        "Art. 9(2)(a)": "known and reasonably foreseeable risks, identified and analysed",
        "Art. 9(5)": "residual risk",
        "Art. 9(6)": "testing, to find the most appropriate risk management measures",
        "Art. 9(8)": "testing against metrics and thresholds defined beforehand",
        "Art. 13(3)(b)(ii)": "accuracy, robustness and cybersecurity that can be expected, and "
        "what may lower them",
        "Art. 15(1)": "an appropriate level of accuracy, robustness and cybersecurity",
        "Art. 15(3)": "levels of accuracy and their metrics, to be declared",
        "Art. 15(5)": "cybersecurity; of the attacks named there only adversarial examples (model "
        "evasion)",
        "Annex IV(2)(g)": "validation and testing procedures, data, metrics and logs",
    },
    FDA: {
        "V.A.1": "threat modeling",
        "V.A.2": "cybersecurity risk assessment, acceptance criteria, residual risks",
        "V.C": "cybersecurity testing",
        "VI.A": "labeling: what users must know about risks",
    },
    ISO: {
        "clause 4.4": "risk management plan, with criteria for risk acceptability",
        "clause 4.5": "risk management file",
        "clause 5": "risk analysis",
        "clause 6": "risk evaluation",
        "clause 7": "risk control",
        "clause 8": "evaluation of overall residual risk",
    },
}


def _of(*names: str) -> tuple[Clause, ...]:
    """Return clauses by name, grouped by framework; an unknown name fails."""
    clauses = [
        Clause(framework=framework, clause=name, subject=subjects[name])
        for framework, subjects in _SUBJECTS.items()
        for name in names
        if name in subjects
    ]
    assert len(clauses) == len(names), names  # noqa: S101 - names are our own
    return tuple(clauses)


CLAUSES: dict[str, tuple[Clause, ...]] = {
    "identity": _of("Annex IV(2)(g)", "clause 4.5"),
    "threats": _of("Art. 9(2)(a)", "Art. 15(5)", "V.A.1", "clause 5"),
    "criteria": _of("Art. 9(8)", "V.A.2", "clause 4.4", "clause 6"),
    "worst": _of("Art. 15(1)", "Art. 15(3)", "Art. 15(5)", "V.C", "clause 5"),
    "calls": _of("Art. 15(1)", "Art. 15(3)", "Art. 15(5)", "V.A.2", "clause 5"),
    "gallery": _of("Art. 9(2)(a)", "Art. 15(5)", "V.C", "clause 5"),
    "detectors": _of("Art. 9(6)", "Art. 15(5)", "V.C", "clause 7"),
    "flags": _of("Annex IV(2)(g)", "V.C", "clause 4.5"),
    "residual": _of("Art. 9(5)", "V.A.2", "clause 8"),
    "limits": _of("Art. 13(3)(b)(ii)", "VI.A", "clause 8"),
    "reproduction": _of("Annex IV(2)(g)", "V.C", "clause 4.5"),
}
STATEMENT = (
    "This report shows how one model performs when its input is changed in order to mislead it. "
    "Its figures come from the records of a test bench. It is not a statement of conformity, "
    "not a clinical claim and not a proof of security: an image counts as robust if none of the "
    "attacks that were run succeeded on it, and a stronger attack may succeed. Each section names "
    "the clauses that its content may serve as evidence for. They are named for orientation; the "
    "assessor decides on them and on the edition in force. The report covers only attacks on the "
    "input (evasion), and it lists what was not tested."
)
