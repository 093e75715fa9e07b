"""Fit one perturbation on training images, and apply it to every attacked image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from robustbench_med.bench.eps_search import at_rung
from robustbench_med.bench.measurements import measure
from robustbench_med.bench.record import UniversalResult, UniversalRung
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.errors import DataError
from robustbench_med.objectives.decide import decide, verdict_on
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stored_images import select_images, shards
from robustbench_med.types import Batch, Images
from robustbench_med.universal import Universal

_OURS = ("attacks", "robustbench_med")  # packages whose attacks select rows of `Problem.x`
PATTERNS = "universal.safetensors"  # file beside the record, with one tensor for each rung


class FittedUniversal(NamedTuple):
    """The perturbation of each rung of a case, and its effect on all images."""

    by_radius: dict[float, Universal]
    counts: UniversalResult

    def apply(self, problem: Problem, rng: Draws) -> Images:
        """Return the images with the perturbation of the problem's radius."""
        eps = float(torch.as_tensor(problem.ball.eps).flatten()[0])  # the same for all images
        nearest = min(self.by_radius, key=lambda radius: abs(radius - eps))
        return self.by_radius[nearest].apply(problem.x, problem.ball, rng)

    @property
    def file(self) -> bytes:
        """The perturbations as safetensors; `rung_0` has the smallest radius."""
        patterns = {
            f"rung_{i}": u.pattern.cpu().contiguous() for i, u in enumerate(self.by_radius.values())
        }
        return save(patterns)


def fit_universal(
    problem: Problem,
    function: Callable[..., Universal],
    parameters: dict[str, Any],
    *,
    train: Batch,
    setup: AttackSetup,
    every_rng: Draws,
    radii: Sequence[float],
    seed: int,
) -> FittedUniversal:
    """Fit a perturbation at each radius and count its effect on all images.

    Args:
        problem: the attacked images.
        function: a universal attack.
        parameters: the parameters of the attack.
        train: the training images used to fit. `StoredImages` stay so for an attack of ours, which
            selects the images of each step; an attack of others gets a tensor.
        setup: the setup with all images of the case.
        every_rng: one random stream for each image of the case.
        radii: the radii of the rungs, in image units.
        seed: the seed of the case.

    Raises:
        DataError: the objective applies to no training image.
    """
    applies = problem.objective.applies(train.y).nonzero()[:, 0]
    if len(applies) == 0:
        raise DataError("expected training images that the objective applies to, got none")
    x = select_images(train.x, applies)
    if function.__module__.split(".")[0] not in _OURS:
        x = x[:]
    train_problem = replace(problem, x=x, y=train.y[applies]).bind()
    device = train.x.device
    streams = Draws.of(seed, (str(train.ids[i]) for i in applies.tolist()), device=device)
    by_radius: dict[float, Universal] = {}
    counts_by_rung = []
    for eps in radii:
        fit_rng = at_rung(streams.fork("fit"), eps)
        fitted = function(train_problem.at(eps), rng=fit_rng, **parameters)
        control_rng = at_rung(Draws.of(seed, ["control"], device=device), eps)
        control = fitted.control(problem.at(eps).ball, control_rng)
        whole = replace(problem, x=setup.batch.x, y=setup.batch.y).at(eps)
        rng = at_rung(every_rng, eps)
        counts = [_counts(universal, whole, setup, rng) for universal in (fitted, control)]
        flat = fitted.pattern.flatten()
        counts_by_rung.append(
            UniversalRung(
                eps=eps,
                linf=float(flat.abs().max()),
                l2=float(flat.norm()),
                **counts[0]._asdict(),
                **{f"control_{name}": value for name, value in counts[1]._asdict().items()},
            )
        )
        by_radius[eps] = fitted
    result = UniversalResult(n_fit=len(train_problem), rungs=tuple(counts_by_rung), file=PATTERNS)
    return FittedUniversal(by_radius, result)


class _Counts(NamedTuple):
    """Fractions of the images: prediction changed, prediction wrong, and success of the attack.

    For masks the first two are fractions of the pixels of an image.
    """

    changed: Estimate
    wrong: Estimate
    success: Estimate


def _counts(universal: Universal, whole: Problem, setup: AttackSetup, rng: Draws) -> _Counts:
    card, patients = setup.data.card, setup.batch.patients
    masks = card.task == "segmentation"

    def per_image(hit: NDArray[np.bool_], truth: NDArray[np.int64]) -> NDArray[Any]:
        rows, known = (values.reshape(len(truth), -1) for values in (hit, truth >= 0))
        if masks:
            return np.asarray((rows & known).sum(axis=1) / known.sum(axis=1))
        return np.asarray(np.any(rows, axis=1))

    changed, wrong, successes = [], [], []
    for rows in shards(torch.arange(len(whole), device=whole.x.device), whole.x):
        part = whole.select(rows)
        z = universal.apply(part.x, part.ball, rng.select(rows))
        columns = measure(part, z, card.levels)
        called, clean = (
            decide(answer, card.task) for answer in (columns["answer"], setup.clean[rows])
        )
        truth = part.y.cpu().numpy()
        changed.append(per_image(called != clean, truth))
        wrong.append(per_image((called != truth) & (truth >= 0), truth))
        successes.append(columns["success"])
    # labelled images whose clean version does not reach the goal
    before = verdict_on(whole.objective, setup.clean, whole.y, len(card.classes)).success
    attacked = (whole.objective.applies(whole.y) & ~before).cpu().numpy()
    success = torch.cat(successes).cpu().numpy()[attacked]
    return _Counts(
        changed=intervals.mean(np.concatenate(changed), patients),
        wrong=intervals.mean(np.concatenate(wrong), patients),
        success=intervals.mean(success, None if patients is None else patients[attacked]),
    )
