"""Describe the threat models that were tested, and those that were not."""

from __future__ import annotations

import re

from robustbench_med.cards import NORMS as ATTACK_NORMS

from ..boards.standing import informed_runs
from ..wording.text import KNOWS, NORMS, THREATS, radii
from ..wording.threat_model import channel_words, linf_words, objective_words
from .document import Tested
from .model_boards import ModelBoard

_MAY = {
    "linf": "change every value of the image by at most {radii}",
    "l2": "change the image by at most {radii} in L2 (root of the sum of squares, image units)",
    "l1": "change the image by at most {radii} in L1 (sum of changes, image units)",
    "l0": "change at most {radii} values of the image (pixels times channels), by any amount",
    "severity": "shift the image up to severity {radii}, where 1 is the whole range of parameters",
}
_CONTROL = (
    "A control is no attack: noise and shuffled perturbations show the effect of a change of this "
    "size without any goal."
)
_BLIND = (
    "An oblivious attacker ignores the defense and attacks the model without it. These figures are "
    "shown, but no worst case includes them."
)
_NEVER = (
    "Poisoning of training data and of pre-trained components (EU AI Act Art. 15(5) names both, "
    "and evasion), wrong labels and back doors.",
    "Theft of the model, inference of training data and other attacks on confidentiality (which "
    "Art. 15(5) also names).",
    "Attacks on the software, the network, the image files or their headers around the model.",
    "Changes made before the image is acquired (objects, patches on the patient, the scanner's "
    "settings), and changes other than pixel-wise noise (rotation, deformation, generated "
    "images).",
)
_NO_ACCIDENTS = (
    "Accidental faults: artefacts, other scanners, other populations. Attacks show how large the "
    "effect of a small change can be; they do not represent these faults."
)
_ACCIDENTS = (
    "Accidental faults other than the acquisition shifts above: other artefacts, other populations."
)


def threat_models(model_boards: list[ModelBoard]) -> tuple[Tested, ...]:
    """Return the threat models that were tested, each once."""
    groups: dict[tuple[str, str, str], list[ModelBoard]] = {}
    for model_board in model_boards:
        groups.setdefault((_who(model_board), _may(model_board), _wants(model_board)), []).append(
            model_board
        )
    return tuple(
        Tested(
            who=who,
            may=may,
            wants=wants,
            attacks=tuple(
                dict.fromkeys(column for model_board in group for column in model_board.runs)
            ),
            boards=tuple(model_board.anchor for model_board in group),
        )
        for (who, may, wants), group in groups.items()
    )


def _who(model_board: ModelBoard) -> str:
    who = (
        _CONTROL
        if model_board.board.control
        else KNOWS.get(model_board.board.threat, model_board.board.threat)
    )
    if model_board.row.key.defense != "none":
        who += f" The model is defended by {model_board.row.defense_title}."
        known = bool(informed_runs(model_board.runs))
        who += " The attacker knows the defense." if known else ""
        who += f" {_BLIND}" if model_board.row.oblivious else ""
    return who


def _may(model_board: ModelBoard) -> str:
    board = model_board.board
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


def _wants(model_board: ModelBoard) -> str:
    if model_board.board.control or model_board.board.shift:
        return "none"
    aim = objective_words(model_board.board.objective, model_board.board.dataset)
    if aim == "untargeted":
        masks = model_board.board.dataset.task == "segmentation"
        return "masks as far from the truth as possible" if masks else "any wrong call"
    return aim


def not_tested(model_boards: list[ModelBoard]) -> tuple[str, ...]:
    """Return the threat models that were not tested, in words."""
    threats = {model_board.board.threat for model_board in model_boards}
    norms = {model_board.board.norm for model_board in model_boards}
    missing = [THREATS[t] for t in THREATS if t not in threats and t not in ("control", "shift")]
    lines = []
    if missing:
        lines.append(f"Attackers: {'; '.join(missing)}.")
    if "control" not in threats:
        lines.append("Controls, which show the effect of noise of the same size without any goal.")
    if norms_missing := [NORMS[norm] for norm in ATTACK_NORMS if norm not in norms]:
        lines.append(f"Changes measured in {', '.join(norms_missing)}.")
    if all(model_board.board.objective == "untargeted" for model_board in model_boards):
        lines.append("An attacker who wants one particular wrong call (a targeted objective).")
    shields = [model_board for model_board in model_boards if model_board.row.key.defense != "none"]
    if any(not informed_runs(model_board.runs) for model_board in shields):
        lines.append("An attacker who knows the defense (adaptive).")
    if not shields:
        lines.append("The model behind a defense or a detector.")
    return (*lines, *_NEVER, _ACCIDENTS if "shift" in threats else _NO_ACCIDENTS)
