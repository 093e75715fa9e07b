"""Expected: the entries of a record, recomputed by a rerun or from its saved images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robustbench_med.bench import adversarial_images, scoring
from robustbench_med.bench.attack_run import run_attack
from robustbench_med.bench.execute import Outcome
from robustbench_med.bench.record import Record, Rung, Stored
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import SetupCache, is_crafted_elsewhere
from robustbench_med.devices import device_of

CARDS = ("dataset_card", "model_card", "attack_card", "defense_card")
# entries of the audit that do not depend on outcomes
_BUDGET = ("norm", "over_budget", "tolerance", "bit_depth")
FOUND = ("ssim", "psnr", "l2", "linf")  # metrics that are means of measured columns
_SHOWN = ("attack_success", *FOUND)  # metrics that saved images give for any objective
_DECIDED = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1")


class Recomputed(NamedTuple):
    """The recomputed entries of a record.

    Attributes:
        samples: the samples table.
        rungs: the metrics.
        fixed: entries that are the same on every machine.
        loose: entries that change if outcomes change.
        saved: whether the source are saved images, which say nothing about robust samples.
        masks: whether the victim predicts masks.
        decided: whether a robust sample has the same prediction as its clean image.
    """

    samples: pd.DataFrame
    rungs: tuple[Rung, ...]
    fixed: dict[str, Any]
    loose: dict[str, Any]
    saved: bool = False
    masks: bool = False
    decided: bool = True

    def shows(self, metric: str, eps: float) -> bool:
        """Whether a metric at a radius can be recomputed."""
        if not self.saved or self.masks or eps == 0:
            return True
        return metric in _SHOWN or (self.decided and metric in _DECIDED)


def from_rerun(again: Outcome) -> Recomputed:
    """Return the entries of a rerun, except for the time and place of the run."""
    record = again.record
    whole = record.model_dump()
    loose = {name: whole[name] for name in ("distance", "universal", "certificate", "ladder_audit")}
    if record.mask_certificate is not None:
        loose["mask_certificate"] = whole["mask_certificate"]
    loose |= {"flags": whole["flags"], "checks": whole["checks"]}
    loose["audit"] = {k: v for k, v in (whole["audit"] or {}).items() if k not in _BUDGET}
    case = record.case
    # otherwise several victims share the crafted candidates, and their cost
    if not is_crafted_elsewhere(case):
        loose["cost"] = {name: whole["cost"][name] for name in ("forward", "backward")}
    fixed = {name: whole[name] for name in ("schema_version", "n", "patients", "notes", *CARDS)}
    fixed |= {name: whole[name] for name in ("threshold", "radii", "status", "reason")}
    fixed["audit"] = {name: whole["audit"][name] for name in _BUDGET}
    fixed["checks"] = [(check["name"], check["threshold"]) for check in whole["checks"]]
    return Recomputed(again.samples, record.rungs, fixed, loose)


def from_images(stored: Stored, planned: ResolvedCase, device: str) -> Recomputed:
    """Return the entries that follow from the saved images; the attack is not run again."""
    case, card = stored.record.case, planned.data.card
    images = adversarial_images.read(Path(stored.folder), stored.record.images)
    setup = SetupCache(device_of(device)).of(planned)
    run = run_attack(planned, setup, saved=images)
    scores = scoring.score_run(planned, setup, run)
    patients = setup.batch.patients
    audit = scores.audit.model_dump()
    defense = planned.defense.card
    fixed = {
        "n": len(setup.batch),
        "patients": None if patients is None else len(set(patients.tolist())),
        "threshold": scores.threshold,
        "radii": run.radii,
        "audit": {name: audit[name] for name in _BUDGET},
        "dataset_card": card.model_dump(),
        "model_card": planned.titled(setup.card).model_dump(),
        "attack_card": planned.attack.card.model_dump(),
        "defense_card": None if defense is None else defense.model_dump(),
    }
    loose = {"audit": {"survives_rounding": audit["survives_rounding"]}}
    whole = case.objective == "untargeted"
    masks = card.task == "segmentation"
    return Recomputed(scores.samples, scores.rungs, fixed, loose, True, masks, whole)


def entries(record: Record, recomputed: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a record that were recomputed."""
    whole = record.model_dump()
    recorded = {}
    for name, value in recomputed.items():
        recorded[name] = whole[name]
        if name in ("audit", "cost"):  # only a part of these was recomputed
            recorded[name] = {key: part for key, part in whole[name].items() if key in value}
    return recorded
