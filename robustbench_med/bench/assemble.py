"""Assemble: the pieces of a finished case put into its record, with the flags they raise."""

from __future__ import annotations

import resource
import sys

import torch

from robustbench_med import registry
from robustbench_med.bench.plan import Planned
from robustbench_med.bench.prepare import Prepared
from robustbench_med.bench.provenance import provenance
from robustbench_med.bench.record import Cost, Example, Flag, Record
from robustbench_med.bench.score import Scores
from robustbench_med.bench.walk import Run

_FLAGS = {  # name: (threshold above which it is raised, what it means)
    "probabilities": (
        0.0,
        "The model answers probabilities where logits are expected: gradients vanish where it is "
        "sure, so gradient attacks look weaker than they are.",
    ),
    "over_budget": (0.0, "Some images were changed more than the radius allows, or left [0,1]."),
    "nonfinite_gradients": (
        0.0,
        "Some gradients were NaN or Inf; the attack went on with 0 instead.",
    ),
    "zero_gradients": (
        0.01,
        "More than 1 % of the gradients were 0 everywhere: the attack was blind there, and what "
        "looks robust may only be hidden.",
    ),
}


def valid(
    planned: Planned,
    ready: Prepared,
    run: Run,
    scores: Scores,
    examples: tuple[Example, ...],
    *,
    started: str,
    command: str,
) -> Record:
    """Return the record of a case that ran."""
    patients = ready.batch.patients
    notes = [] if patients is not None else ["images treated as independent"]
    if ready.card.name not in registry.load("models"):
        notes.append("model and weights are the user's own: no card vouches for them")
    device = ready.batch.x.device
    return Record(
        case_id=planned.case.id,
        case=planned.case,
        status="ok",
        n=len(ready.batch),
        patients=None if patients is None else len(set(patients.tolist())),
        threshold=scores.threshold,
        rungs=scores.rungs,
        audit=scores.audit,
        ladder_audit=run.ladder,
        cost=Cost(
            forward=run.counter.forward,
            backward=run.counter.backward,
            seconds=round(run.seconds, 3),
            peak_memory_mib=_peak_memory_mib(device),
        ),
        flags=_flags(ready, run, scores),
        notes=(*notes, *planned.data.card.notes),
        examples=examples,
        dataset_card=planned.data.card,
        model_card=ready.card,
        attack_card=registry.find("attacks", planned.case.attack),
        provenance=provenance(started=started, command=command, device=str(device)),
    )


def invalid(planned: Planned, *, reason: str, started: str, command: str, device: str) -> Record:
    """Return the record of a case whose model gave no usable answer: a reason and no score."""
    return Record(
        case_id=planned.case.id,
        case=planned.case,
        status="invalid",
        reason=reason,
        n=0,
        patients=None,
        dataset_card=planned.data.card,
        model_card=planned.model,
        attack_card=registry.find("attacks", planned.case.attack),
        provenance=provenance(started=started, command=command, device=device),
    )


def _flags(ready: Prepared, run: Run, scores: Scores) -> tuple[Flag, ...]:
    measured = {
        "probabilities": float(ready.probabilities),
        "over_budget": float(scores.audit.over_budget),
        "nonfinite_gradients": float(run.counter.nonfinite),
        "zero_gradients": run.counter.zero / max(run.counter.backward, 1),
    }
    return tuple(
        Flag(name=name, meaning=meaning, measured=measured[name], threshold=threshold)
        for name, (threshold, meaning) in _FLAGS.items()
        if measured[name] > threshold
    )


def _peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
