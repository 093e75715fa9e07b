"""Score a run: the samples table, the metrics at each radius, and the audit of the budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.bench.attack_run import AttackRun
from robustbench_med.bench.case import Case
from robustbench_med.bench.certificates import CERTIFIED_DICE, lowest_dice
from robustbench_med.bench.measurements import Measurements
from robustbench_med.bench.record import SUBGROUP, Audit, Rung
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.sample_metrics import VISIBILITY, score_attack, score_detector
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.defense import CertifiedMasks
from robustbench_med.memory import release_memory
from robustbench_med.metrics.classification import Predictions, flips, score
from robustbench_med.metrics.segmentation import mask_metrics, overlap, score_masks
from robustbench_med.models.operating_point import probability
from robustbench_med.objective import Objective
from robustbench_med.objectives.decide import decide, probabilities
from robustbench_med.objectives.segmentation import TargetMask
from robustbench_med.shift import DRAW, MOVED, PARAMETERS
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resamples
from robustbench_med.stored_images import by_size, cropped, joined
from robustbench_med.types import images_at_once

TOLERANCE = 1e-6  # tolerance of a radius in [0,1] units; float32 rounds x + delta near 1 by 6e-8
_REJECTED_OR_NOT = ("attack_success", *VISIBILITY)


class Scores(NamedTuple):
    """Everything derived from the outputs of a case."""

    samples: pd.DataFrame
    rungs: tuple[Rung, ...]
    audit: Audit
    threshold: tuple[float, ...]
    distance: Estimate


def score_run(planned: ResolvedCase, setup: AttackSetup, run: AttackRun) -> Scores:
    """Return the samples table, the metrics of the clean images and each radius, and the audit.

    An image that was not attacked counts with its clean output at every radius.

    Args:
        planned: the case, with norm, ladder and objective.
        setup: the setup, with clean logits and truth of all `n` images.
        run: the attack's run, with the measurements of the attacked images.
    """
    release_memory()
    case = planned.case
    attacked, patients = run.attacked, setup.batch.patients
    aimed = run.aimed
    weights = resamples(len(setup.batch), patients, seed=case.seed)
    tables, scored = [], []
    for i, eps in enumerate((0.0, *case.ladder)):
        columns = {name: value[i - 1] for name, value in run.rungs.items()} if i else None
        outputs = evaluate_outputs(
            planned.objective,
            _with_moved_truth(setup, attacked, columns),
            _answers(setup, attacked, columns),
            aimed,
            weights,
        )
        table = _table(setup, run, columns, eps, outputs)
        tables.append(table)
        metrics = outputs.metrics | score_attack(table, patients, weights)
        if setup.suspicion is not None:
            right = table["correct"].to_numpy(dtype=float)
            # the other metrics do not count rejections, and would contradict this accuracy
            metrics = {name: e for name, e in metrics.items() if name in _REJECTED_OR_NOT}
            metrics["accuracy"] = intervals.cluster_mean(right, patients)
            metrics |= score_detector(
                table,
                setup.suspicion.double().cpu().numpy(),
                outputs.wrong,
                unattacked=setup.unattacked,
                nearest=run.minimal and case.knowledge == "adaptive",
                seed=case.seed,
            )
        scored.append(Rung(eps=eps, metrics=metrics))
    samples = pd.concat(tables, ignore_index=True)
    distance = _for_all_images({"distance": run.distance}, "distance", attacked, np.nan)
    distance = np.where(aimed.cpu().numpy(), distance, np.nan)
    samples["distance"] = np.tile(distance, len(tables))
    if isinstance(setup.certified, CertifiedMasks):
        samples[CERTIFIED_DICE] = np.tile(lowest_dice(setup).mean(1), len(tables))
    for name, groups in setup.data.subgroups(case.split, setup.batch.ids).items():
        samples[f"{SUBGROUP}{name}"] = np.tile(groups, len(tables))
    return Scores(
        samples,
        tuple(scored),
        _audit(case, setup, run),
        probability(setup.victim.offset, setup.data.card),
        intervals.median(distance[aimed.cpu().numpy()], weights[:, aimed.cpu().numpy()]),
    )


def _with_moved_truth(
    setup: AttackSetup, attacked: Bool[Tensor, " n"], columns: Measurements | None
) -> AttackSetup:
    """Return the setup with the masks that moved along with the anatomy, if a shift moves it."""
    if columns is None or MOVED not in columns:
        return setup
    y = setup.batch.y.clone()
    y[attacked] = columns[MOVED].to(y)
    return replace(setup, batch=replace(setup.batch, y=y))


def _answers(
    setup: AttackSetup, attacked: Bool[Tensor, " n"], columns: Measurements | None
) -> Tensor:
    """Return the victim's outputs for all images; the clean output if one was not attacked."""
    answers = setup.clean.clone()
    if columns is not None:
        kept = columns["answer"]
        answers[attacked] = joined([kept], tuple(answers.shape[1:])) if kept.ndim > 2 else kept
    return answers


def _table(
    setup: AttackSetup,
    run: AttackRun,
    columns: Measurements | None,
    eps: float,
    outputs: OutputScores,
) -> pd.DataFrame:
    """Return a row for each image at one radius; the columns are documented at Stored."""
    batch, attacked = setup.batch, run.attacked
    return pd.DataFrame(
        {
            "sample": batch.ids,
            "patient": batch.patients if batch.patients is not None else [None] * len(batch),
            "eps": eps,
            **outputs.columns,
            "attacked": run.aimed.cpu().numpy(),
            "success": _for_all_images(columns, "success", attacked, False),
            **{name: _for_all_images(columns, name, attacked, np.nan) for name in VISIBILITY},
            **_shift(run, columns),
            **_guarded(setup, run, columns, outputs),
        }
    )


def _shift(run: AttackRun, columns: Measurements | None) -> dict[str, Any]:
    """Return the parameters and the draw of each shifted image; nothing for an attack."""
    if PARAMETERS not in run.rungs:
        return {}
    count = len(run.attacked)
    theta: list[list[float]] = [[] for _ in range(count)]
    draws = np.zeros(count, dtype=np.int64)
    if columns is not None:
        rows = run.attacked.nonzero()[:, 0].tolist()
        for row, values in zip(rows, columns[PARAMETERS].tolist(), strict=True):
            theta[row] = values
        draws[rows] = columns[DRAW].cpu().numpy()
    return {PARAMETERS: theta, DRAW: draws}


def _guarded(
    setup: AttackSetup, run: AttackRun, columns: Measurements | None, outputs: OutputScores
) -> dict[str, Any]:
    """Return the columns that a detector adds or changes; none without a detector.

    A clean image is correct if its class is right and it is not rejected. To reject an attacked
    image is no mistake, because nobody acts on its class.
    """
    if setup.suspicion is None:
        return {}
    suspicion = setup.suspicion.cpu().numpy().copy()
    accepted, attacked = suspicion <= 0, run.attacked.cpu().numpy()
    right = outputs.columns["correct"] & accepted
    if columns is not None:
        suspicion[attacked] = columns["suspicion"].cpu().numpy()
        right |= attacked & (suspicion > 0)
    return {"suspicion": suspicion, "rejected": suspicion > 0, "correct": right}


def _for_all_images(
    columns: Measurements | None, name: str, attacked: Bool[Tensor, " n"], missing: float | bool
) -> NDArray[np.generic]:
    """Return a measurement for all images, `missing` where an image was not attacked."""
    rows = attacked.cpu().numpy()
    values = np.full(len(rows), missing)
    if columns is not None:
        values[rows] = columns[name].cpu().numpy()
    return values


def _audit(case: Case, setup: AttackSetup, run: AttackRun) -> Audit:
    """Return the budget that the attack used, and how often its successes survive rounding."""
    rungs, attacked = run.rungs, run.attacked
    success = rungs["success"].any(0)
    # argmax is the smallest radius with a success: each image counts once
    lowest_rung = rungs["success"].float().argmax(0)
    survived = rungs["rounded"].gather(0, lowest_rung[None])[0][success]
    patients = setup.batch.patients
    if patients is not None:
        patients = patients[attacked.cpu().numpy()][success.cpu().numpy()]
    eps = rungs["size"].new_tensor(run.radii)[:, None]
    lowest, highest = rungs["lowest"], rungs["highest"]
    outside = (lowest < -TOLERANCE) | (highest > 1 + TOLERANCE)
    # a size is in units of the scale
    tolerance = TOLERANCE / min(case.channels.values(), default=1.0)
    over = (rungs["size"] > eps * (1 + 1e-5) + tolerance) | outside
    any_attacked = rungs["size"].shape[1] > 0
    undefined = float("nan")
    return Audit(
        norm=case.norm,
        max_size=tuple(rungs["size"].amax(1).tolist() if any_attacked else [undefined] * len(eps)),
        min_value=float(lowest.min()) if any_attacked else undefined,
        max_value=float(highest.max()) if any_attacked else undefined,
        over_budget=int(over.any(0).sum()),
        tolerance=tolerance,
        bit_depth=setup.data.card.bit_depth,
        survives_rounding=intervals.cluster_mean(survived.cpu().numpy().astype(float), patients),
    )


class OutputScores(NamedTuple):
    """Columns of the samples table (see Stored), with an entry for each image, and metrics."""

    columns: dict[str, Any]
    metrics: dict[str, Estimate]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which images have a wrong prediction, rejected or not; for labels and findings."""
        return ~np.asarray(self.columns["correct"], dtype=np.bool_)


def evaluate_outputs(
    objective: Objective,
    setup: AttackSetup,
    answer: Tensor,
    attacked: Bool[Tensor, " n"],
    weights: NDArray[np.float64],
) -> OutputScores:
    """Turn model outputs into per-image columns and aggregate metrics.

    Args:
        objective: the attacker's goal.
        setup: the setup, with truth, patients and clean outputs of all images.
        answer: `(n, k)` logits or `(n, *s)` masks of class ids.
        attacked: `(n,)` which images were attacked.
        weights: `(replicates, n)` weights from `resamples`.
    """
    if setup.data.card.task == "segmentation":
        return _masks(objective, setup, answer, weights)
    return _labels(setup, answer, attacked.cpu().numpy(), weights)


def _labels(
    setup: AttackSetup, answer: Tensor, attacked: NDArray[np.bool_], weights: NDArray[np.float64]
) -> OutputScores:
    card, patients = setup.data.card, setup.batch.patients
    truth, predicted = setup.batch.y.cpu().numpy(), decide(answer, card.task)
    scores = probabilities(answer, card.task)
    right = (predicted == truth) | (truth < 0)
    columns = {
        "truth": list(truth),
        "prediction": list(predicted),
        "scores": list(scores),
        "correct": right.all(1) if right.ndim == 2 else right,
    }
    predictions = Predictions.of(truth, predicted, scores, card)
    clean = decide(setup.clean, card.task)
    flip_rates = flips(truth, clean, predicted, card, attacked=attacked, clusters=patients)
    return OutputScores(
        columns, score(predictions, card, clusters=patients, weights=weights) | flip_rates
    )


def _masks(
    objective: Objective, setup: AttackSetup, answer: Tensor, weights: NDArray[np.float64]
) -> OutputScores:
    card, regions = setup.data.card, setup.data.card.parts
    columns: dict[str, Any] = {"truth": [], "prediction": []}
    pieces, target_pieces = [], []
    every_row = torch.arange(len(answer), device=answer.device)
    at_once = images_at_once(tuple(answer.shape[1:]))
    parts = [
        (rows, size)
        for positions, size in by_size(every_row, setup.batch.x)
        for rows in positions.split(at_once)
    ]
    for rows, size in parts:
        y = cropped(setup.batch.y[rows], size).long()
        called, truth = cropped(answer[rows], size).cpu().numpy(), y.cpu().numpy()
        pieces.append(
            mask_metrics(
                called, truth, regions=regions, spacing=card.spacing, tolerance=card.tolerance
            )
        )
        columns["truth"] += _pixels(truth, truth, regions)
        columns["prediction"] += _pixels(called, truth, regions)
        if isinstance(objective, TargetMask):
            target = objective.target(y).cpu().numpy()
            target_region = {"target": (objective.label,)}
            target_pieces.append(overlap(called, target, regions=target_region)[:, 0])
    order = torch.cat([rows for rows, _ in parts]).argsort().cpu().numpy()
    per_image = {
        name: np.concatenate([piece[name] for piece in pieces])[order] for name in pieces[0]
    }
    columns = {name: [values[i] for i in order.tolist()] for name, values in columns.items()}
    columns["scores"] = list(per_image["dice"])
    columns["correct"] = per_image["dice"].mean(1)
    metrics = score_masks(per_image, regions=regions, weights=weights)
    if target_pieces:
        target_dice = np.concatenate(target_pieces)[order]
        columns["target_dice"] = target_dice
        metrics["target_dice"] = intervals.bootstrap(
            float(target_dice.mean()), lambda w: (w @ target_dice) / w.sum(1), weights
        )
    return OutputScores(columns, metrics)


def _pixels(
    masks: NDArray[Any], truth: NDArray[Any], regions: dict[str, tuple[int, ...]]
) -> list[NDArray[np.int64]]:
    """Return the number of counted pixels of each region in each image."""
    axes = tuple(range(1, masks.ndim))
    inside = [(np.isin(masks, ids) & (truth >= 0)).sum(axis=axes) for ids in regions.values()]
    return list(np.stack(inside, axis=1))
