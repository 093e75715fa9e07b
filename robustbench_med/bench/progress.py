"""Progress of a run: images done, how fast, and how long the rest takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from robustbench_med.bench.queue import CaseRun
from robustbench_med.bench.timing import words

if TYPE_CHECKING:
    from rich.console import Console


_OVERDUE = 0.25  # of the time of an overdue step, which it is taken to need still
_DRAWN = 2.0  # cases of an attack that count as much as all other attacks


class Pace:
    """How long the steps of a run have taken, and what that says about the others.

    The weights of one attack's cases are wrong by about the same factor, so each attack has its
    own. It is drawn to that of all attacks as long as few of its cases have run.
    """

    def __init__(self, runs: Sequence[CaseRun]) -> None:
        self._runs = runs
        self._spent: defaultdict[str, float] = defaultdict(float)  # seconds, by attack
        self._weighed: defaultdict[str, float] = defaultdict(float)  # weights, by attack

    def add(self, run: CaseRun, seconds: float) -> None:
        """Note the time of a step; that of a case counts for others when it has ended."""
        run.seconds += seconds
        if run.state == "ended":
            self._spent[run.resolved.case.attack] += run.seconds
            self._weighed[run.resolved.case.attack] += run.weight

    def seconds_remaining(
        self, running: Sequence[tuple[CaseRun, float]], workers: int
    ) -> float | None:
        """Return how long the rest takes; None while nothing is known of it.

        Args:
            running: the cases of the steps that run, and since how many seconds they do.
            workers: number of workers.
        """
        remaining = [(run, self._remaining(run)) for run in self._runs if run.state != "ended"]
        if any(seconds is None for _, seconds in remaining):
            return None
        known = {run.id: seconds for run, seconds in remaining if seconds is not None}
        for run, since in running:
            if run.id in known:
                # a step that takes longer than expected is not about to end because of that
                known[run.id] = max(known[run.id] - since, _OVERDUE * since)
        return sum(known.values()) / max(min(workers, _steps(remaining)), 1)

    def _remaining(self, run: CaseRun) -> float | None:
        """Return the seconds of work that a case still needs."""
        if run.done > 0:
            return run.seconds * (1 - run.done) / run.done
        # the cases that ended, and those of which a part is done
        spent, weighed = sum(self._spent.values()), sum(self._weighed.values())
        for other in self._runs:
            if other.state != "ended" and other.done > 0:
                spent += other.seconds
                weighed += other.weight * other.done
        if not weighed:
            return None
        attack = run.resolved.case.attack
        drawn = _DRAWN * run.weight
        own = self._spent[attack] + drawn * spent / weighed
        return run.weight * own / (self._weighed[attack] + drawn)


def _steps(remaining: Sequence[tuple[CaseRun, float | None]]) -> int:
    """Return how many steps may run at the same time."""
    return sum(max(len(run.pending) + len(run.attacked), 1) for run, _ in remaining)


class Show:
    """Shows the progress of a run: in a terminal as a bar, in a log as a line now and then."""

    def __init__(
        self,
        runs: Sequence[CaseRun],
        labels: Mapping[str, str],
        console: Console,
        log_every: float,
    ) -> None:
        self._runs, self._labels = runs, labels
        self._console, self._log_every = console, log_every
        self._label = ""
        self._total = sum(run.images for run in runs)
        self._began = self._last = time.monotonic()
        self._bar = Progress(
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=max(self._total, 1))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar."""
        with self._bar:
            yield

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, seconds_remaining: float | None, run: CaseRun | None = None) -> None:
        """Show how far the run is.

        Args:
            seconds_remaining: how long the rest takes; None if that is not known.
            run: a case of which a step has ended; None if none has.
        """
        now = time.monotonic()
        if run is not None:
            self._label = self._labels[run.id]
        images = sum(run.images * run.done for run in self._runs)
        line = self._line(images, now - self._began, seconds_remaining)
        self._bar.update(self._task, completed=images, description=f"{line} · {self._label}")
        # a log shows no progress bar
        if not self._console.is_terminal and now - self._last >= self._log_every:
            self._last = now
            self.say(line)

    def _line(self, images: float, elapsed: float, seconds_remaining: float | None) -> str:
        cases = sum(run.state == "ended" for run in self._runs)
        line = f"{images:,.0f} of {self._total:,} images, {cases} of {len(self._runs)} cases done"
        if images > 0 and elapsed > 0:
            rate = images / elapsed
            line += f", {rate:,.0f} images/s" if rate >= 10 else f", {rate:.2g} images/s"
        if seconds_remaining is not None:
            line += f", about {words(seconds_remaining)} left"
        return line
