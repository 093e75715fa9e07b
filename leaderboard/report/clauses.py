"""Clauses that the sections of a report serve: evidence for them, never a claim to meet them."""

from __future__ import annotations

from .document import Clause

AI_ACT = "EU AI Act (Regulation (EU) 2024/1689)"
FDA = (
    "FDA guidance “Cybersecurity in Medical Devices: Quality System Considerations and Content "
    "of Premarket Submissions” (2023, updated 2025)"
)
ISO = "ISO 14971:2019"
SHORT = {AI_ACT: "EU AI Act", FDA: "FDA cybersecurity guidance", ISO: ISO}

_ACT = {
    "9(2)(a)": "identification and analysis of known and reasonably foreseeable risks",
    "9(5)": "residual risk",
    "9(6)": "testing that finds the risk management measures",
    "9(8)": "testing against metrics and thresholds defined beforehand",
    "15(1)": "accuracy, robustness and cybersecurity",
    "15(3)": "levels of accuracy and their metrics, to be declared",
    "15(4)": "robustness to errors, faults and inconsistencies",
    "15(5)": "cybersecurity: adversarial examples (model evasion) alone",
    "Annex IV(2)(g)": "validation and testing procedures, data and metrics",
}
_FDA = {
    "Threat modeling": "threats to the device and how they were chosen",
    "Cybersecurity risk assessment": "what an exploited weakness does",
    "Cybersecurity testing": "whether controls work, and what breaks them",
    "Labeling": "risks that users must know",
}
_ISO = {
    "4.4": "risk management plan: criteria for risk acceptability",
    "4.5": "risk management file: traceability",
    "5": "risk analysis",
    "6": "risk evaluation",
    "7": "risk control",
    "8": "evaluation of overall residual risk",
}


def _of(act: str = "", fda: str = "", iso: str = "") -> tuple[Clause, ...]:
    """Return the clauses named, each list separated by `;`."""
    found = []
    for framework, subjects, listed in ((AI_ACT, _ACT, act), (FDA, _FDA, fda), (ISO, _ISO, iso)):
        for name in filter(None, listed.split("; ")):
            prefix = "Art. " if framework == AI_ACT and name[0].isdigit() else ""
            prefix = "clause " if framework == ISO else prefix
            found.append(Clause(framework=framework, clause=prefix + name, subject=subjects[name]))
    return tuple(found)


CLAUSES: dict[str, tuple[Clause, ...]] = {
    "identity": _of("Annex IV(2)(g)", "", "4.5"),
    "threats": _of("9(2)(a); 15(5)", "Threat modeling", "5"),
    "criteria": _of("9(8)", "Cybersecurity testing", "4.4; 6"),
    "worst": _of("15(1); 15(3); 15(5)", "Cybersecurity testing", "5; 7"),
    "calls": _of("15(1); 15(3); 15(5)", "Cybersecurity risk assessment", "5"),
    "gallery": _of("9(2)(a); 15(5)", "Cybersecurity testing", "5"),
    "detectors": _of("15(5)", "Cybersecurity testing", "7"),
    "flags": _of("9(6); 15(4)", "Cybersecurity testing", "7"),
    "residual": _of("9(5)", "Cybersecurity risk assessment; Labeling", "8"),
    "limits": _of("9(5); 15(3)", "Labeling", "8"),
    "reproduction": _of("Annex IV(2)(g)", "Cybersecurity testing", "4.5"),
}
STATEMENT = (
    "This is evidence on how one model holds up against changes of its input that are made to "
    "mislead it, collected from the records of a test bench. It is not a statement of conformity, "
    "no clinical claim and no proof of security: what stands here fell to none of the attacks "
    "that were run, and a stronger one may break it. Each section names clauses that its content "
    "may serve as evidence for; they are named for orientation, from the editions given, and the "
    "assessor decides on them and on the edition in force. The report covers attacks on the input "
    "(evasion) alone; what was not tested is listed."
)
