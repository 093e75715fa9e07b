"""A field of records as a whole suite makes them: every threat model, and all a record can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from robustbench_med.bench.record import Check, Flag, Stored, UniversalResult, UniversalRung
from robustbench_med.stats import Estimate
from robustbench_med.stats.intervals import wilson

from .planted import DATASETS, LADDER, VICTIMS

Maker = Callable[..., Stored]
MANY = (
    ("probabilities", 0.0, 0.0, None),
    ("randomized", 0.0, 0.0, 90),
    ("over_budget", 0.0, 0.0, 84),
    ("nonfinite_gradients", 0.0, 0.0, None),
    ("zero_gradients", 0.0004, 0.01, None),
    ("one_step_beats_iterative", 0.0, 1.0, 12),
    ("noise_beats_attack", 0.0, 1.0, 12),
    ("black_box_beats_white_box", 1.0, 1.0, 12),
    ("success_falls_with_radius", 0.0, 1.0, 12),
    ("large_radius_leaves_images", 0.0, 1.0, 12),
    ("not_converged", 0.07, 0.25, 12),
    ("silent_success", 0.0, 0.0, 12),
    ("more_effort_breaks_more", 1.0, 1.0, 12),
    ("rounding_repairs", 0.02, 0.5, 61),
)
CHECKS = tuple(Check(name=n, value=m, threshold=t, n_images=c) for n, m, t, c in MANY)
QUERIES = Flag(
    name="black_box_beats_white_box",
    meaning="An attack that only asks for answers breaks images that this attack, which knows the "
    "whole model, missed: the model hides its gradients.",
    value=3,
    threshold=1,
)


def raised(flag: Flag, checks: tuple[Check, ...] = CHECKS) -> dict[str, Any]:
    """Return the fields of a record whose check of that name was raised."""
    own = Check(name=flag.name, value=flag.value, threshold=flag.threshold, n_images=12)
    return {"flags": (flag,), "checks": tuple(own if c.name == flag.name else c for c in checks)}


def distance(value: float, low: float, high: float) -> dict[str, Any]:
    """Return the fields of a minimum-norm record: its median distance in grey levels."""
    return {"distance": Estimate(value=value / 255, low=low / 255, high=high / 255)}


def spread(ladder: tuple[float, ...] = LADDER, n: int = 90) -> UniversalResult:
    """Return what a universal perturbation does: more at larger radii, more than its control."""
    rungs = []
    for i, eps in enumerate(ladder):
        changed, control = min(4 + 12 * i, n), 1 + i
        rungs.append(
            UniversalRung(
                eps=eps,
                linf=eps,
                l2=40 * eps,
                changed=wilson(changed, n),
                wrong=wilson(min(changed + 5, n), n),
                control_changed=wilson(control, n),
                success=wilson(changed, n),
                control_wrong=wilson(control + 5, n),
                control_success=wilson(control, n),
            )
        )
    return UniversalResult(n_fit=512, rungs=tuple(rungs), file="universal.safetensors")


def field(make: Maker) -> list[Stored]:
    """Return four victims of one dataset against six attacks of five threat models.

    The third hides its gradients: what its white-box attacks miss, queries and transfers break.
    """
    made = []
    for v in range(len(VICTIMS)):
        rng = np.random.default_rng(v)
        n, masked = 90, v == 2
        strength, clean = rng.gamma(2.5, 0.7 + 0.3 * v, n), rng.random(n) < 0.95

        def stored(
            attack: str,
            weakness: float,
            *,
            v: int = v,
            strength: Any = strength,  # noqa: ANN401
            clean: Any = clean,  # noqa: ANN401
            **given: Any,  # noqa: ANN401
        ) -> Stored:
            breaks = np.where(clean, 1 + np.floor(strength * weakness).clip(0, 5), 0).astype(int)
            shared = {"dataset": DATASETS[0], "victim": VICTIMS[v], "patients": True}
            return make(breaks, attack=attack, **(shared | given))

        white = 3.0 if masked else 1.0
        found = QUERIES if masked else None
        pgd = raised(found) if found else {"checks": CHECKS}
        made += [
            stored("fgsm", 1.7 * white),
            stored("pgd", white, pictures=2, record=pgd),
            stored("fmn", white, record=distance(0.9 + 0.3 * v, 0.7, 1.6 + 0.3 * v)),
            stored(
                "uap",
                2.2 * white,
                case={"parameters": {"epochs": 5}, "n_fit": 512},
                record={"universal": spread()},
            ),
            stored("square", 1.3, case={"parameters": {"queries": 1000}}),
            stored("noise", 9.0, case={"parameters": {"draws": 10}}),
        ]
        made += [
            stored("pgd", 1.8 + 0.25 * s + 0.2 * v, surrogate=VICTIMS[s])
            for s in range(3)
            if s != v
        ]
        other = ("other_net", "ResNet of other data", "ResNet")
        made.append(stored("pgd", 4.5, surrogate=other, threat="no_box"))
    return made
