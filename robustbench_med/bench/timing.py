"""Estimate the time of the cases of a plan on this machine, from one small batch of each victim.

The time in a victim's card does not help, because it was measured on the machine that trained it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.devices import processor
from robustbench_med.errors import BenchError
from robustbench_med.files import write_text
from robustbench_med.models.load import load_victim
from robustbench_med.paths import cache_root
from robustbench_med.types import images_at_once
from robustbench_med.victim import Victim, frozen

_BATCH = 8  # images in a timed batch
_LEAST = 1e-3  # shortest time of a case in seconds that is shown; shorter ones are shown as less
# median share of the largest number of passes that the committed records needed (406 cases,
# docs/speed.md): images with an early success leave the batch; 1 if an attack cannot save passes
_NEEDED = {
    "apgd_targeted": 0.1,
    "carlini_wagner": 0.35,
    "deepfool": 0.01,
    "fab": 0.2,
    "fmn": 0.8,
    "jsma": 0.1,
    "noise": 0.3,
    "shuffled": 0.3,
    "square": 0.2,
    "ensemble": 0.06,
}


def needed_share(attack: str) -> float:
    """Return which share of its largest number of passes an attack usually needs."""
    return _NEEDED.get(attack, 1.0)


class Seconds(NamedTuple):
    """The time of a case: the `likely` one, and the longest, `most`, if no attack succeeds."""

    likely: float
    most: float


class Clock:
    """Time each victim once, and store the times in the cache folder.

    Args:
        measure: returns the seconds of one image forward and backward.
    """

    def __init__(self, measure: Callable[[Victim], float] | None = None) -> None:
        self._measure = measure or gradient_seconds
        self._file = cache_root() / "timings.json"
        self._known: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(self._file.read_text())
            self._known = {k: float(v) for k, v in stored.items() if float(v) > 0}

    def seconds(self, planned: ResolvedCase) -> Seconds | None:
        """Return the time of a case on this machine; None if its victim cannot be timed."""
        gradient = self._gradient(planned)
        if gradient is None:
            return None
        case = planned.case
        most = planned.most_passes() * gradient * case.draws
        likely = most * needed_share(case.attack)
        return Seconds(max(likely, _LEAST), max(most, _LEAST))

    def _gradient(self, planned: ResolvedCase) -> float | None:
        """Return the seconds of one image forward and backward."""
        case = planned.case
        machine = (torch.__version__, processor(), torch.get_num_threads())
        key = " ".join(map(str, (case.victim_sha256, *planned.data.card.size, *machine)))
        if key not in self._known:
            try:
                loaded = planned.loaded or load_victim(
                    planned.victim,
                    planned.data.card,
                    images=partial(planned.data.few_images, case.split),
                )
                self._known[key] = self._measure(loaded.victim)
            except (BenchError, RuntimeError):  # the cases of such a victim fail with the reason
                return None
            self._write()
        return self._known[key]

    def _write(self) -> None:
        """Store the times; if the folder cannot be written, the next plan measures them again."""
        with contextlib.suppress(OSError):
            write_text(self._file, json.dumps(self._known))


def gradient_seconds(victim: Victim) -> float:
    """Return the seconds of one image forward and backward on this machine, the best of two tries.

    The first pass, in which torch chooses its kernels, does not count.
    """
    contract = victim.contract
    n = max(min(_BATCH, images_at_once(contract.size)), 1)
    x = torch.full((n, contract.channels, *contract.size), 0.5, requires_grad=True)
    seconds = []
    with frozen(victim.module), torch.inference_mode(False), torch.enable_grad():
        for _ in range(3):
            start = time.perf_counter()
            logits = victim(x).logits
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), x, allow_unused=True)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / n


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
