"""Execute: from a case to its record."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from robustbench_med.bench import assemble, scoring
from robustbench_med.bench.adversarial_images import FILE, saved_of
from robustbench_med.bench.gallery import pictures_of
from robustbench_med.bench.provenance import now
from robustbench_med.bench.record import Record
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.universal_run import PATTERNS
from robustbench_med.bench.verified_run import run_verified
from robustbench_med.errors import InvalidOutputError


class Outcome(NamedTuple):
    """What the store writes of one case."""

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
) -> Outcome:
    """Run one case and return its record, samples table and example pictures.

    Args:
        planned: the case, its data and its victim's card.
        prepare: returns the victim and its clean outputs; cases that have them in common share
            them.
        command: reproduces the case; goes into the provenance.
        examples: pictures for the gallery, at most.
        images: save the adversarial images too.
        device: what the record of an invalid case says it ran on.

    A model that returns NaN or Inf makes the record `invalid`; other errors are the caller's.
    """
    started = now()
    try:
        ready = prepare()
        run = run_verified(planned, ready, keeps=images)
    except InvalidOutputError as error:
        record = assemble.invalid(
            planned, reason=str(error), started=started, command=command, device=device
        )
        return Outcome(record, pd.DataFrame(), {})
    scores = scoring.score_run(planned, ready, run)
    pictures = pictures_of(planned, ready, run, examples)
    record = assemble.valid(
        planned, ready, run, scores, pictures.examples, started=started, command=command
    )
    files = dict(pictures.files)
    if run.fitted is not None:
        files[PATTERNS] = run.fitted.file
    if images:
        masks = planned.data.card.task == "segmentation"
        found = saved_of(run.rungs, run.problem.x, masks=masks)
        record = record.model_copy(update={"images": found.entry})
        files[FILE] = found.file
    return Outcome(record, scores.samples, files)
