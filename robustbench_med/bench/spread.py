"""Spread: one perturbation fitted on training images, applied to every image attacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from robustbench_med import stats
from robustbench_med.bench.ladder import Columns, Table, at_rung, measure
from robustbench_med.bench.prepare import Prepared
from robustbench_med.bench.record import Estimate, Spread, SpreadRung
from robustbench_med.objectives.decide import decide
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Batch, Images
from robustbench_med.universal import Universal

PATTERNS = "universal.safetensors"  # beside the record: one tensor a rung


class Fitted(NamedTuple):
    """The perturbations of a case, a rung each, and what they do to all images."""

    by_radius: dict[float, Universal]
    counts: Spread

    def apply(self, problem: Problem, rng: Draws) -> Images:
        """Return the images with the perturbation of the problem's radius."""
        eps = float(torch.as_tensor(problem.ball.eps).flatten()[0])  # one for all images
        return self.by_radius[eps].apply(problem.x, problem.ball, rng)

    @property
    def file(self) -> bytes:
        """The patterns as safetensors, `rung_0` the smallest radius."""
        patterns = {
            f"rung_{i}": u.pattern.cpu().contiguous() for i, u in enumerate(self.by_radius.values())
        }
        return save(patterns)


def fit(
    problem: Problem,
    function: Callable[..., Universal],
    parameters: dict[str, Any],
    *,
    train: Batch,
    ready: Prepared,
    rng: Draws,
    radii: Sequence[float],
    seed: int,
) -> tuple[Columns, Fitted]:
    """Fit a perturbation at each radius and return what it does to the images attacked, and to all.

    Nothing is carried from one rung to the next: a perturbation is one for all images.

    Args:
        problem: the images attacked.
        function: a universal attack.
        parameters: its parameters.
        train: the images it is fitted on.
        ready: all images of the case, for the two counts.
        rng: one stream an image attacked.
        radii: the rungs, in image units.
        seed: of the case.
    """
    applies = problem.objective.applies(train.y).nonzero()[:, 0]
    lesson = replace(problem, x=train.x[applies], y=train.y[applies])
    streams = Draws.of(seed, (str(train.ids[i]) for i in applies.tolist()), device=train.x.device)
    everyone = Draws.of(seed, map(str, ready.batch.ids), device=train.x.device)
    rows = torch.arange(len(problem), device=train.x.device)
    table = Table(len(radii), len(problem))
    by_radius: dict[float, Universal] = {}
    counted = []
    for i, eps in enumerate(radii):
        here = problem.at(eps)
        own = at_rung(streams.fork("fit"), eps)
        made = function(lesson.at(eps), rng=own, **parameters)
        z = made.apply(here.x, here.ball, at_rung(rng, eps))
        table.put(i, rows, measure(here, z, ready.data.card.bit_depth))
        control = made.control(here.ball, own.fork("control").take(rows[:1] * 0))
        whole = replace(problem, x=ready.batch.x, y=ready.batch.y).at(eps)
        counts = [_counts(one, whole, ready, at_rung(everyone, eps)) for one in (made, control)]
        flat = made.pattern.flatten()
        counted.append(
            SpreadRung(
                eps=eps,
                linf=float(flat.abs().max()),
                l2=float(flat.norm()),
                prediction_changed=counts[0][0],
                prediction_wrong=counts[0][1],
                control_changed=counts[1][0],
                control_wrong=counts[1][1],
            )
        )
        by_radius[eps] = made
    spread = Spread(fitted=len(lesson), rungs=tuple(counted), file=PATTERNS)
    return table.columns, Fitted(by_radius, spread)


def _counts(
    made: Universal, whole: Problem, ready: Prepared, rng: Draws
) -> tuple[Estimate, Estimate]:
    """Return the shares of all images whose prediction changed, and whose prediction is wrong."""
    task, owners = ready.data.card.task, ready.batch.patients
    called = decide(whole.outputs(made.apply(whole.x, whole.ball, rng)).logits, task)
    clean, truth = decide(ready.clean, task), ready.batch.y.cpu().numpy()
    changed, wrong = called != clean, (called != truth) & (truth >= 0)

    def share(hit: NDArray[np.bool_]) -> Estimate:
        rows = np.asarray(hit.reshape(len(hit), -1).any(axis=1), dtype=np.float64)
        return stats.cluster_mean(rows, owners)

    return share(changed), share(wrong)
