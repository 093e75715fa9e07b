"""Score a victim in training on validation images, clean and attacked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from robustbench_med import registry
from robustbench_med.cards import DatasetCard
from robustbench_med.metrics.classification import Predictions, score
from robustbench_med.objectives import make
from robustbench_med.objectives.decide import decide, probabilities
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.training import masks
from robustbench_med.training.adversarial_setup import AdversarialSetup
from robustbench_med.types import Batch
from robustbench_med.universal import Additive
from robustbench_med.victim import Victim, frozen

STEPS = 10  # PGD steps: enough to compare epochs; the benchmark attacks with more
IMAGES = 200  # largest number of validation images


class ValidationScores(NamedTuple):
    """Scores of one epoch; `robust` is None for training without a radius."""

    metric: str
    clean: float
    robust: float | None

    @property
    def monitored(self) -> float:
        """The score that early stopping uses."""
        return self.clean if self.robust is None else self.robust

    def __str__(self) -> str:
        robust = "" if self.robust is None else f", robust {self.robust:.3f}"
        return f"validation {self.metric} clean {self.clean:.3f}{robust}"


def validate(
    victim: Victim,
    val: Batch,
    card: DatasetCard,
    setup: AdversarialSetup | None,
    pattern: Tensor | None,
) -> ValidationScores:
    """Return the victim's scores on clean validation images and on attacked ones.

    The attack is PGD-10 at the training radius, or the last universal perturbation.

    Args:
        victim: the victim in any mode, which is restored.
        val: validation images.
        card: describes the data.
        setup: the training defense, if any.
        pattern: last universal perturbation, if any.
    """
    metric = "Dice" if card.task == "segmentation" else "balanced accuracy"
    key = metric.replace(" ", "_").lower()
    with frozen(victim.module):
        clean = scores(victim, val, card)[key]
        if setup is None or setup.ball is None:
            return ValidationScores(metric, clean, None)
        rng = Draws.of(0, map(str, val.ids), device=val.x.device)
        if pattern is not None:
            z = Additive(pattern).apply(val.x, setup.ball, rng)
        else:
            objective = make("untargeted", card.task, card=card).bind(val.y)
            problem = Problem(val.x, val.y, setup.ball, objective, victim, chunk=victim.chunk)
            pgd = registry.function("attacks", registry.find("attacks", "pgd"))
            z = pgd(problem, rng=rng, steps=STEPS)
        attacked = Batch(z, val.y, val.ids, val.patients)
        return ValidationScores(metric, clean, scores(victim, attacked, card)[key])


def scores(victim: Victim, batch: Batch, card: DatasetCard) -> dict[str, float]:
    """Return the victim's mean Dice on masks, else balanced accuracy and accuracy."""
    if card.task == "segmentation":
        return {"dice": masks.mean_dice(victim, batch, card)}
    logits, y = victim.logits(batch.x).cpu(), batch.y.cpu().numpy()
    values = score(
        Predictions.of(y, decide(logits, card.task), probabilities(logits, card.task), card),
        card,
        clusters=None,
        weights=np.ones((1, len(y))),
    )
    return {name: values[name].value for name in ("balanced_accuracy", "accuracy")}
