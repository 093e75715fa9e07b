"""Run one case: attack, score and check it, and assemble its record."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from robustbench_med import registry
from robustbench_med.bench.adversarial_images import FILE, collect_images
from robustbench_med.bench.attack_run import AttackRun
from robustbench_med.bench.certificates import certificate, mask_certificate
from robustbench_med.bench.check_context import CheckContext
from robustbench_med.bench.checks import run_checks
from robustbench_med.bench.gallery import make_pictures
from robustbench_med.bench.ladder import WHOLE, Sharding
from robustbench_med.bench.provenance import now, peak_mib, provenance
from robustbench_med.bench.record import Cost, Example, Record
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.scoring import Scores, score_run
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.universal_run import PATTERNS
from robustbench_med.bench.verified_run import run_verified
from robustbench_med.cards import PluginCard
from robustbench_med.errors import InvalidOutputError
from robustbench_med.models.user_factory import factory_of


class Outcome(NamedTuple):
    """The outputs of one case that the store writes."""

    record: Record
    samples: pd.DataFrame
    files: dict[str, bytes]


def execute(
    planned: ResolvedCase,
    prepare: Callable[[], AttackSetup],
    *,
    command: str,
    examples: int = 4,
    images: bool = False,
    device: str = "cpu",
    sharding: Sharding = WHOLE,
) -> Outcome:
    """Run one case and return its record, samples table and example pictures.

    Args:
        planned: the case, its data and its victim's card.
        prepare: returns the victim and its clean outputs, which several cases may share.
        command: command that reproduces the case; it is stored in the provenance.
        examples: largest number of examples for the gallery.
        images: save the adversarial images too.
        device: the device that the record of an invalid case names.
        sharding: how many images are attacked together, and where finished shards are stored.

    If the model returns NaN or Inf, the record is `invalid`; other errors are raised.

    Raises:
        ShardsNeeded: other processes are to attack the shards (`Sharding.stops`).
    """
    started = now()
    try:
        setup = prepare()
        run = run_verified(planned, setup, keeps=images, sharding=sharding)
    except InvalidOutputError as error:
        return invalid_outcome(planned, error, started, command, device)
    scores = score_run(planned, setup, run)
    pictures = make_pictures(planned, setup, run, examples)
    record = _record(
        planned, setup, run, scores, pictures.examples, started=started, command=command
    )
    files = dict(pictures.files)
    if run.fitted is not None:
        files[PATTERNS] = run.fitted.file
    if images:
        masks = planned.data.card.task == "segmentation"
        saved = collect_images(run.rungs, run.problem, masks=masks)
        record = record.model_copy(update={"images": saved.entry})
        files[FILE] = saved.file
    return Outcome(record, scores.samples, files)


def _record(
    planned: ResolvedCase,
    setup: AttackSetup,
    run: AttackRun,
    scores: Scores,
    examples: tuple[Example, ...],
    *,
    started: str,
    command: str,
) -> Record:
    """Return the record of a case that ran."""
    patients = setup.batch.patients
    notes = []
    if patients is None:
        notes.append("the patients are unknown: images are treated as independent")
    if setup.card.name.partition("(preprocess=")[0] not in registry.names("models"):
        name = setup.card.name
        coded = setup.card.code or factory_of(name) or name.startswith("module:")
        what = "model, code and weights" if coded else "model and weights"
        notes.append(f"the {what} are the user's own: no card of this project describes them")
    notes += foreign_code(planned)
    notes += setup.card.notes
    if setup.undecided:
        notes.append(
            f"{', '.join(setup.undecided)}: there is no operating point, because the validation "
            "split has one value of the label only; the model's own decision counts"
        )
    if planned.data.card.task == "segmentation" and planned.data.card.spacing is None:
        notes.append("the spacing is unknown: distances and sizes are in pixels, not in mm")
    device = setup.batch.x.device
    card = planned.attack.card
    checks, flags = run_checks(CheckContext(planned, setup, run, scores.audit, card))
    return Record(
        case_id=planned.case.id,
        case=planned.case,
        status="ok",
        n=len(setup.batch),
        patients=None if patients is None else len(set(patients.tolist())),
        threshold=scores.threshold,
        rungs=scores.rungs,
        radii=run.radii,
        distance=scores.distance if card.schedule == "distance" else None,
        universal=None if run.fitted is None else run.fitted.counts,
        certificate=certificate(setup),
        mask_certificate=mask_certificate(setup, planned.case.seed),
        audit=scores.audit,
        ladder_audit=run.ladder,
        cost=Cost(
            forward=run.counter.forward,
            backward=run.counter.backward,
            seconds=round(run.seconds, 3),
            peak_memory_mib=max(peak_mib(device), run.peak),
            relative_forward_time=None
            if setup.relative_forward_time is None
            else round(setup.relative_forward_time, 2),
        ),
        flags=flags,
        checks=checks,
        notes=(*notes, *planned.data.card.notes),
        examples=examples,
        dataset_card=planned.data.card,
        model_card=planned.titled(setup.card),
        attack_card=card,
        defense_card=planned.defense.card,
        provenance=provenance(started=started, command=command, device=str(device)),
    )


def foreign_code(planned: ResolvedCase) -> list[str]:
    """Return a note on each attack and defense of a case that is not part of this project."""
    notes = []
    defense = planned.defense
    evaded = None if defense.evaded is None else defense.evaded.card
    kinds: list[tuple[registry.Kind, str, PluginCard | None]] = [
        ("attacks", "attack", planned.attack.card),
        ("defenses", "defense", defense.card),
        ("defenses", "evaded detector", evaded),
    ]
    for kind, word, card in kinds:
        if card is None or registry.is_peer(card.name):
            continue
        origin = registry.origin(kind, card.name)
        if origin != registry.ours():
            hashed = f" (SHA-256 {card.sha256[:12]}...)" if card.sha256 else ""
            notes.append(
                f"the {word} {card.name.rpartition(':')[2]} is code from outside this project, "
                f"which ran: {origin}{hashed}"
            )
    return notes


def invalid_outcome(
    planned: ResolvedCase, error: InvalidOutputError, started: str, command: str, device: str
) -> Outcome:
    """Return the outcome of a case whose model gave no usable output: a reason and no score."""
    record = Record(
        case_id=planned.case.id,
        case=planned.case,
        status="invalid",
        reason=str(error),
        n=0,
        patients=None,
        dataset_card=planned.data.card,
        model_card=planned.model,
        attack_card=planned.attack.card,
        defense_card=planned.defense.card,
        provenance=provenance(started=started, command=command, device=device),
    )
    return Outcome(record, pd.DataFrame(), {})
