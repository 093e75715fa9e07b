"""Threat models in plain words: those that were tested, and those that were not."""

from __future__ import annotations

import re

from ..boards.ranking import knowing
from ..wording.text import KNOWS, NORMS, THREATS, radii
from ..wording.threat_model import channel_words, linf_words, objective_words
from .document import Tested
from .model_boards import Chosen

_MAY = {
    "linf": "change every value of the image by at most {radii}",
    "l2": "change the image by at most {radii} in L2 (root of the sum of squares, image units)",
    "l1": "change the image by at most {radii} in L1 (sum of changes, image units)",
    "l0": "change at most {radii} values of the image (pixels times channels), by any amount",
}
_CONTROL = (
    "A control is no attack: noise and shuffled perturbations show what a change of this size does "
    "without any aim."
)
_BLIND = (
    "An oblivious attacker overlooks the defense and aims at the model without it: his figures are "
    "shown, and are in no worst case."
)
_NEVER = (
    "Poisoning of training data and of pre-trained parts (both named in EU AI Act Art. 15(5), as "
    "evasion is), wrong labels and back doors.",
    "Theft of the model, inference of training data and other attacks on confidentiality (named "
    "there too).",
    "Attacks on the software, the network, the image files or their headers around the model.",
    "Changes made before the image is acquired (objects, patches on the patient, the scanner's "
    "settings), and changes that are no pixel-wise noise (rotation, deformation, generated "
    "images).",
    "Accidental faults: artefacts, other scanners, other populations. Attacks bound what small "
    "changes do; they do not stand for these.",
)


def threat_models(chosen: list[Chosen]) -> tuple[Tested, ...]:
    """Return the threat models that were tested, each once."""
    groups: dict[tuple[str, str, str], list[Chosen]] = {}
    for one in chosen:
        groups.setdefault((_who(one), _may(one), _wants(one)), []).append(one)
    return tuple(
        Tested(
            who=who,
            may=may,
            wants=wants,
            attacks=tuple(dict.fromkeys(column for one in group for column in one.runs)),
            boards=tuple(one.anchor for one in group),
        )
        for (who, may, wants), group in groups.items()
    )


def _who(one: Chosen) -> str:
    who = _CONTROL if one.board.control else KNOWS.get(one.board.threat, one.board.threat)
    if one.row.key.defense != "none":
        who += f" The model is defended by {one.row.shield}."
        known = bool(knowing(one.runs))
        who += " The attacker knows of it." if known else ""
        who += f" {_BLIND}" if one.row.oblivious else ""
    return who


def _may(one: Chosen) -> str:
    board = one.board
    if board.budget == "mean_norm":
        norm = NORMS.get(board.norm, board.norm)
        listed = re.sub("[{}]", "", radii(board.ladder, board.norm, board.budget))
        may = f"change the image by at most {listed} of a training image's mean {norm} norm"
    elif board.norm == "linf":
        may = _MAY[board.norm].format(radii=linf_words(board.ladder, board.dataset))
    else:
        may = _MAY[board.norm].format(radii=radii(board.ladder, board.norm).strip("{}"))
    touched = channel_words(board.channels, board.dataset)
    return f"{may}; {touched}" if touched else may


def _wants(one: Chosen) -> str:
    if one.board.control:
        return "none"
    aim = objective_words(one.board.objective, one.board.dataset)
    if aim == "untargeted":
        masks = one.board.dataset.task == "segmentation"
        return "masks as far from the truth as can be" if masks else "any wrong call"
    return aim


def not_tested(chosen: list[Chosen]) -> tuple[str, ...]:
    """Return the threat models that were not tested, in words."""
    threats = {one.board.threat for one in chosen}
    norms = {one.board.norm for one in chosen}
    missing = [THREATS[t] for t in THREATS if t not in threats and t != "control"]
    lines = []
    if missing:
        lines.append(f"Attackers: {'; '.join(missing)}.")
    if "control" not in threats:
        lines.append("No control: what noise of the same size does without any aim.")
    if left := [name for norm, name in NORMS.items() if norm not in norms]:
        lines.append(f"Changes measured in {', '.join(left)}.")
    if all(one.board.objective == "untargeted" for one in chosen):
        lines.append("An attacker who wants one particular wrong call (a targeted objective).")
    shields = [one for one in chosen if one.row.key.defense != "none"]
    if any(not knowing(one.runs) for one in shields):
        lines.append("An attacker who knows of the defense (adaptive).")
    if not shields:
        lines.append("The model behind a defense or a detector.")
    return (*lines, *_NEVER)
