"""Measure: run the published protocol of a row and return what the victim answered."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import SpecError
from robustbench_med.metrics.perturbation import ssim
from robustbench_med.models.load import Loaded, load_victim
from robustbench_med.studies.outcome import Outcome, key_of, read_outcome, write_outcome
from robustbench_med.studies.protocols import VERSION, Target, run_protocol
from robustbench_med.studies.study import Published, Row, Study
from robustbench_med.victim import frozen


def measure_row(study: Study, row: Row, results: Path, *, data: Path | None = None) -> Outcome:
    """Return the outcome of a row's published protocol; one that is stored already is read.

    Args:
        study: the study of the row.
        row: a row with a published measurement.
        results: the results folder; the outcome is written into it.
        data: folder with the files of named datasets.

    Raises:
        SpecError: the row has no published measurement.
        ResultsError: the stored outcome is damaged.
        BenchError: the dataset, the victim or the protocol cannot be used.
    """
    measured = row.published
    if measured is None:
        raise SpecError(f"{study.name} · {row.id}: expected a published protocol, got none")
    dataset = load_dataset(measured.dataset, data=data)
    victim = load_victim(measured.victim, dataset.card)
    attacked = victim
    if measured.surrogate:
        attacked = load_victim(measured.surrogate, dataset.card)
    arrays = dataset.arrays(measured.split).fingerprint()
    key = key_of(measured, victim.sha256, attacked.sha256, arrays, f"{VERSION}", f"{study.seed}")
    stored = read_outcome(results, study.name, row.id)
    if stored is not None and stored.key == key:
        return stored
    outcome = _outcome(study, row.id, key, measured, dataset, victim, attacked)
    write_outcome(outcome, results)
    return outcome


def _outcome(
    study: Study,
    row: str,
    key: str,
    measured: Published,
    dataset: Dataset,
    victim: Loaded,
    attacked: Loaded,
) -> Outcome:
    batch = dataset.batch(measured.split, n=measured.n, seed=study.seed)
    start = time.perf_counter()
    with frozen(victim.victim.module), frozen(attacked.victim.module):
        target = Target(
            attacked.victim,
            batch.x,
            batch.y,
            torch.Generator().manual_seed(study.seed),
            lambda n: dataset.batch("train", n=n, seed=study.seed),
        )
        z = run_protocol(measured.protocol, target)
        clean, answers = (victim.victim.logits(images).softmax(1) for images in (batch.x, z))
    change = (z - batch.x).flatten(1).abs().amax(1)
    return Outcome(
        study=study.name,
        row=row,
        key=key,
        measured=measured,
        classes=_classes(dataset.card),
        samples=tuple(batch.ids.tolist()),
        patients=None if batch.patients is None else tuple(batch.patients.tolist()),
        truth=tuple(batch.y.tolist()),
        clean=_rounded(clean),
        attacked=_rounded(answers),
        linf=tuple(round(value, 6) for value in change.tolist()),
        ssim=tuple(round(value, 6) for value in ssim(z.clamp(0, 1), batch.x).tolist()),
        outside=float(((z < 0) | (z > 1)).float().mean()),
        seconds=round(time.perf_counter() - start, 2),
    )


def _classes(card: DatasetCard) -> tuple[str, ...]:
    if card.task != "single_label":
        raise SpecError(f"{card.name}: expected a task with one label an image, got {card.task}")
    return card.classes


def _rounded(probabilities: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    """Return probabilities with nine digits, so that a stored file is not half digits of noise."""
    return tuple(tuple(round(p, 9) for p in row) for row in probabilities.double().tolist())
