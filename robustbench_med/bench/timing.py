"""Estimate the time of the cases of a plan on this machine, from a few images of each victim.

The time in a victim's card does not help, because it was measured on the machine that trained it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from robustbench_med.ball import Ball
from robustbench_med.bench.case import Case
from robustbench_med.bench.pass_estimate import attack_passes, check_passes, setup_passes
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.cards import Norm
from robustbench_med.devices import device_of, processor
from robustbench_med.errors import BenchError, VictimError
from robustbench_med.files import write_text
from robustbench_med.models.load import load_victim
from robustbench_med.paths import cache_root
from robustbench_med.problem import Problem
from robustbench_med.stored_images import cropped, largest
from robustbench_med.types import images_at_once
from robustbench_med.victim import Victim, frozen

_BATCH = 16  # images in a timed batch
_NORMS: tuple[Norm, ...] = ("linf", "l2")  # the norms in which distances are estimated
_ENOUGH = 1.0  # a batch that takes so many seconds is not timed again
_LEAST = 1e-3  # shortest time of a case in seconds that is shown; shorter ones are shown as less


class Seconds(NamedTuple):
    """The time of a case on this machine, in one process.

    Attributes:
        likely: likely time of the attack.
        most: time of the attack if no image falls.
        checks: likely time of its checks and examples.
        setup: time to prepare its victim; 0 if another case of the plan has the same.
    """

    likely: float
    most: float
    checks: float = 0.0
    setup: float = 0.0

    @property
    def total(self) -> float:
        """The likely time of all of it."""
        return self.likely + self.checks + self.setup


class Pilot(NamedTuple):
    """What one small batch of a victim shows.

    Attributes:
        seconds: time of one image forward and backward.
        distances: by norm, linear estimates of the distance of each image to the attacker's goal,
            0 where it is reached without an attack. Empty if the victim has no gradients.
    """

    seconds: float
    distances: dict[str, list[float]]


class Clock:
    """Time each victim once, and store what its pilot showed in the cache folder.

    Args:
        measure: returns the pilot of a case.
    """

    def __init__(self, measure: Callable[[ResolvedCase, Victim], Pilot] | None = None) -> None:
        self._measure = measure or run_pilot
        self._file = cache_root() / "timings.json"
        self._known: dict[str, Pilot] = {}
        self._shared: set[tuple[object, ...]] = set()  # what an earlier case of the plan computes
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            stored = json.loads(self._file.read_text())
            self._known = {key: _read(value) for key, value in stored.items()}

    def seconds(self, planned: ResolvedCase) -> Seconds | None:
        """Return the time of a case on this machine; None if its victim cannot be timed.

        Cases are asked in the order in which they run, since neighbours share what they prepare.
        """
        pilot = self._pilot(planned)
        if pilot is None:
            return None
        case = planned.case
        passes = attack_passes(planned, pilot.distances.get(case.norm))
        checks = check_passes(planned, passes, pilot.distances.get(case.norm))
        most = max(planned.most_passes() * case.draws, passes)
        if case.surrogate is not None and not self._is_first(_candidates(case)):
            passes = 2 * planned.images() * len(case.ladder) * case.draws / 3  # it is only judged
        setup = setup_passes(planned) if self._is_first(_prepared(case)) else 0.0
        each = pilot.seconds
        return Seconds(
            max(passes * each, _LEAST), max(most * each, _LEAST), checks * each, setup * each
        )

    def _is_first(self, key: tuple[object, ...]) -> bool:
        """Whether no earlier case of the plan has this key."""
        first = key not in self._shared
        self._shared.add(key)
        return first

    def _pilot(self, planned: ResolvedCase) -> Pilot | None:
        """Return the pilot of a case, from the cache if the victim was timed on this machine."""
        case = planned.case
        device = device_of("auto")
        machine = (torch.__version__, processor(), torch.get_num_threads(), device)
        data = (case.data_sha256, case.split, case.objective)
        key = " ".join(map(str, (case.victim_sha256, *data, *machine)))
        if key not in self._known:
            try:
                loaded = planned.loaded or load_victim(
                    planned.victim,
                    planned.data.card,
                    images=partial(planned.data.few_images, case.split),
                )
                loaded.victim.module.to(device)
                self._known[key] = self._measure(planned, loaded.victim)
            except (BenchError, RuntimeError):  # the cases of such a victim fail with the reason
                return None
            self._write()
        return self._known[key]

    def _write(self) -> None:
        """Store the pilots; if the folder cannot be written, the next plan measures them again."""
        with contextlib.suppress(OSError):
            stored = {key: pilot._asdict() for key, pilot in self._known.items()}
            write_text(self._file, json.dumps(stored))


def _candidates(case: Case) -> tuple[object, ...]:
    """Key of the candidates that are crafted on a surrogate once for all victims."""
    parameters = json.dumps(case.parameters, sort_keys=True)
    return case.data_sha256, case.surrogate_sha256, case.attack, parameters, case.norm


def _prepared(case: Case) -> tuple[object, ...]:
    """Key of a victim that is prepared once for all its cases."""
    images = (case.data_sha256, case.split, case.n, case.seed)
    return *images, case.victim_sha256, case.operating_point, case.draws, case.defense


def _read(value: Any) -> Pilot:  # noqa: ANN401 - what a file holds
    pilot = Pilot(float(value["seconds"]), dict(value["distances"]))
    if not pilot.seconds > 0:
        raise ValueError(f"expected seconds > 0, got {pilot.seconds}")
    return pilot


def run_pilot(planned: ResolvedCase, victim: Victim) -> Pilot:
    """Return what one small batch of the images of a case shows, at the victim's own threshold.

    The first pass, in which torch chooses its kernels, counts only if it takes a second or more.

    Raises:
        BenchError, RuntimeError: the victim does not read such images.
    """
    case, card = planned.case, planned.data.card
    device = next(iter(victim.module.parameters()), torch.empty(0)).device
    batch = planned.data.batch(case.split, n=case.n, seed=case.seed, stored=True)
    n = max(min(_BATCH, images_at_once(card.size), len(batch)), 1)
    rows = largest(batch.x, n)
    n, x = len(rows), batch.x[rows].to(device)
    y = batch.y[rows]
    y = (cropped(y, tuple(x.shape[2:])) if y.ndim > 2 else y).long().to(device)
    with frozen(victim.module), torch.inference_mode(False):
        problem = Problem(x, y, Ball("linf", 1.0), planned.objective, victim, chunk=n)
        problem = problem.bind()
        try:
            seconds = _best(lambda: problem.gradient(x), device)
        except VictimError:  # without gradients; attacks by queries only forward it
            return Pilot(3 * _best(lambda: problem.probe(x), device) / n, {})
        g, verdict = problem.gradient(x)
        applies = planned.objective.applies(y) & ~verdict.is_final
    distances: dict[str, list[float]] = {}
    for norm in _NORMS:
        steepest = Ball(norm, 1.0).steepest(g)
        slope = (g * steepest).flatten(1).sum(1)  # the dual norm of the gradient
        distance = (-verdict.harm / slope).nan_to_num(0.0, posinf=1e9).clamp_min(1e-9)
        distances[norm] = distance.masked_fill(~applies, 0.0).tolist()
    return Pilot(seconds / n, distances)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of a function in seconds, of up to three calls."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < _ENOUGH:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:] or times)


def words(seconds: float) -> str:
    """Return a duration as short text.

    >>> words(0.03), words(4.2), words(93.0), words(4000.0)
    ('1 s or less', '4 s', '2 min', '67 min')
    """
    if seconds < 1:
        return "1 s or less"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
